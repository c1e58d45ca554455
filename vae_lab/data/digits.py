"""1,797 real handwritten digits of 8x8 pixels, embedded in scikit-learn: no network, no files."""

from dataclasses import dataclass

import torch

from vae_lab import rng
from vae_lab.data.base import DataConfig, Dataset, Images
from vae_lab.registry import register

NUM_TEST = 297


@register("data", "digits")
class Digits(Dataset):
    """Pixels 0..16 are stretched to 0..255. The test split is a fixed random sixth.

    References:
        Alpaydin & Kaynak 1998, Optical Recognition of Handwritten Digits, UCI. https://doi.org/10.24432/C50P49
    """

    @dataclass(frozen=True)
    class Config(DataConfig):
        pass

    title = "Digits 8x8"
    image_shape = (1, 8, 8)

    def read(self) -> tuple[Images, Images]:
        from sklearn.datasets import load_digits  # a second to import, for whoever trains on this data set only

        pixels, labels = load_digits(return_X_y=True)
        x = torch.from_numpy(pixels).mul(255 / 16).round().to(torch.uint8).view(-1, 1, 8, 8)
        images = Images(x, torch.from_numpy(labels).long())
        order = torch.randperm(len(images), generator=rng.generator(0, "digits-test"))
        return images.select(order[NUM_TEST:].sort().values), images.select(order[:NUM_TEST].sort().values)
