"""Reconstruction likelihoods: what `loss=` chooses."""

from vae_lab.losses.base import Likelihood

__all__ = ["Likelihood"]
