"""1,797 real handwritten digits of 8x8 pixels, embedded in scikit-learn: no network, no files."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np
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
        pixels, labels = _read_table()
        x = torch.from_numpy(pixels).mul(255 / 16).round().to(torch.uint8).view(-1, 1, 8, 8)
        images = Images(x, torch.from_numpy(labels).long())
        order = torch.randperm(len(images), generator=rng.generator(0, "digits-test"))
        return images.select(order[NUM_TEST:].sort().values), images.select(order[:NUM_TEST].sort().values)


def _read_table() -> tuple[np.ndarray, np.ndarray]:
    """Pixels [1797, 64] and labels: scikit-learn's own file, since importing scikit-learn takes a second."""
    package = importlib.util.find_spec("sklearn")
    file = Path(str(package.origin)).parent / "datasets" / "data" / "digits.csv.gz" if package else Path()
    if file.is_file():
        table = np.loadtxt(file, delimiter=",")
        return table[:, :-1], table[:, -1]
    from sklearn.datasets import load_digits

    return load_digits(return_X_y=True)
