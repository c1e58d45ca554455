"""Models: a posterior, a likelihood and, where there is one, a prior."""

from vae_lab.models.base import Autoencoder, LatentVariableModel

__all__ = ["Autoencoder", "LatentVariableModel"]
