"""Encoder and decoder networks: tensors in, tensors out."""

from vae_lab.networks.base import Network

__all__ = ["Network"]
