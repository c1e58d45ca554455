"""vae_lab: train and compare autoencoders."""

__version__ = "0.1.0"
