"""Image data sets, whole in memory as uint8."""

from vae_lab.data.base import DataConfig, Dataset, Images, Splits, load

__all__ = ["DataConfig", "Dataset", "Images", "Splits", "load"]
