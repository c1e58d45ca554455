"""What is minimised: named terms per image, in nats."""

from vae_lab.objectives.base import Objective

__all__ = ["Objective"]
