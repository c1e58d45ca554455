"""Images, their three splits, and what a data set provides."""

import hashlib
import json
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from enum import Enum
from functools import cached_property, lru_cache
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from vae_lab import registry, rng
from vae_lab.config import bounded
from vae_lab.data.stored import StoredPixels
from vae_lab.errors import ConfigError, DataError
from vae_lab.networks.base import ImageShape


class Binarize(Enum):
    """How grey pixels become black and white: not at all, at one half, drawn once, or drawn anew for every batch."""

    none = "none"
    threshold = "threshold"
    static = "static"
    dynamic = "dynamic"


@dataclass(frozen=True)
class Images:
    """N images with pixels from 0 to 255, and their class labels where there are any.

    Where they do not fit into memory `x` reads from disk what it is indexed with.
    """

    x: UInt8[Tensor, "N C H W"] | StoredPixels
    y: Int64[Tensor, " N"] | None = None

    def __len__(self) -> int:
        return len(self.x)

    @cached_property
    def digest(self) -> str:
        """Sixteen hex digits of the SHA-256 of the pixels: equal ones mean equal images in the same order."""
        digest = hashlib.sha256(str(tuple(self.x.shape)).encode())
        digest.update(self.x.content() if isinstance(self.x, StoredPixels) else self.x.cpu().contiguous().numpy().data)
        return digest.hexdigest()[:16]

    def select(self, index: Tensor | slice) -> "Images":
        pixels = self.x.select(index) if isinstance(self.x, StoredPixels) else self.x[index]
        return Images(pixels, None if self.y is None else self.y[index])

    def take(self, index: Int64[Tensor, "*batch"]) -> tuple[UInt8[Tensor, "*batch C H W"], Int64[Tensor, "*batch"] | None]:
        """Pixels and labels of the images that `index` names."""
        if isinstance(self.x, StoredPixels):
            pixels = self.x[index]
        else:  # several times faster than indexing
            pixels = self.x.index_select(0, index.flatten()).view(*index.shape, *self.x.shape[1:])
        return pixels, None if self.y is None else self.y[index]

    def to(self, device: torch.device) -> "Images":
        return Images(self.x.to(device), None if self.y is None else self.y.to(device))


@dataclass(frozen=True)
class Splits:
    """Training, validation (None if `val_size` is 0) and test images of one data set.

    `digest` is the SHA-256 of all pixels and labels in order: equal digests mean equal data and equal splits.
    """

    train: Images
    val: Images | None
    test: Images
    digest: str
    dynamic: bool

    def to(self, device: torch.device) -> "Splits":
        val = None if self.val is None else self.val.to(device)
        return replace(self, train=self.train.to(device), val=val, test=self.test.to(device))


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Keys that every data set has."""

    name: str
    binarize: Binarize
    classes: list[int] | None = bounded(ge=0)  # kept in every split; null: all. Which split an image is in does not depend on it
    limit: int | None = bounded(ge=1)  # at most this many images of each split; null: all
    val_size: int = bounded(ge=0)  # images of the training set held out for validation; 0: none
    split_seed: int = bounded(ge=0)  # the same for all runs, whatever their seed


class Dataset(ABC):
    """A named data set. `image_shape` is known before anything is read."""

    image_shape: ImageShape
    title: ClassVar[str]

    def __init__(self, config: DataConfig):
        self.config = config

    @abstractmethod
    def read(self) -> tuple[Images, Images]:
        """All training and all test images, on the CPU.

        Raises:
            DataError: names what was looked for, where, and the command that mends it.
        """

    def splits(self) -> Splits:
        """Read, split, choose classes, limit and binarise."""
        config = self.config
        train, test = self.read()
        if config.val_size >= len(train):
            raise ConfigError(f"data.val_size={config.val_size}: {config.name} has only {len(train)} training images.")
        val = None
        if config.val_size:
            order = torch.randperm(len(train), generator=rng.generator(config.split_seed, "split"))
            val, train = train.select(order[: config.val_size]), train.select(order[config.val_size :].sort().values)
        parts = [None if part is None else self._kept(part).select(slice(config.limit)) for part in (train, val, test)]
        digest = hashlib.sha256()
        for number, part in enumerate(parts):
            if part is None:
                continue
            stored = part.x if isinstance(part.x, StoredPixels) else None
            whole = parts[number] = self._binarize(part if stored is None else replace(part, x=stored.resident()), number)
            if stored is not None:
                digest.update(stored.content())
            for tensor in (whole.x, whole.y) if stored is None else (whole.y,):
                if isinstance(tensor, Tensor):
                    digest.update(str(tuple(tensor.shape)).encode())
                    digest.update(tensor.contiguous().numpy().data)
        assert parts[0] is not None
        assert parts[2] is not None
        return Splits(parts[0], parts[1], parts[2], digest.hexdigest()[:16], config.binarize is Binarize.dynamic)

    def _kept(self, images: Images) -> Images:
        """The images of the classes that are kept."""
        config = self.config
        if config.classes is None:
            return images
        if images.y is None:
            raise ConfigError(f"data.classes={config.classes}: {config.name} has no class labels.")
        if absent := sorted(set(config.classes) - set(images.y.tolist())):
            there = ", ".join(map(str, images.y.unique().tolist()))
            raise ConfigError(f"data.classes: a split of {config.name} has no images of {absent}; its classes are {there}.")
        if not config.classes:
            raise ConfigError("data.classes=[]: keep at least one class, or say null for all.")
        return images.select(torch.isin(images.y, torch.tensor(config.classes)))

    def _binarize(self, images: Images, part: int) -> Images:
        """Black and white images; the dynamic kind keeps training images grey and fixes validation and test once."""
        kind = self.config.binarize
        if kind is Binarize.none or (kind is Binarize.dynamic and part == 0):
            return images
        if isinstance(images.x, StoredPixels):
            raise ConfigError(
                f"data.binarize={kind.value}: {self.config.name} does not fit into memory; use none, or binarise the files."
            )
        if kind is Binarize.threshold:
            return replace(images, x=(images.x >= 128).to(torch.uint8) * 255)
        draws = rng.generator(self.config.split_seed, "binarize-static", part)
        return replace(images, x=bernoulli_pixels(images.x, draws))


def bernoulli_pixels(x: UInt8[Tensor, "*batch C H W"], generator: torch.Generator) -> UInt8[Tensor, "*batch C H W"]:
    """Each pixel white (255) with probability value / 255, exactly: value > u for u uniform on 0..254."""
    draws = torch.randint(0, 255, x.shape, generator=generator, dtype=torch.uint8, device=x.device)
    return (x > draws).to(torch.uint8) * 255


def to_float(x: UInt8[Tensor, "*batch C H W"], out: Float[Tensor, "*batch C H W"] | None = None) -> Float[Tensor, "*batch C H W"]:
    """Pixels from 0..255 to [0, 1], written to `out` if given."""
    return (x.to(torch.float32) if out is None else out.copy_(x)).mul_(1 / 255)


def dataset(cfg: Any) -> Dataset:
    """The data set that a config's `data` group selects, nothing read yet."""
    return registry.build("data", cfg)


def load(cfg: Any) -> Splits:
    """Splits on the CPU; runs with the same `data` group share one copy."""
    return _load(json.dumps(cfg, sort_keys=True))


@lru_cache(maxsize=4)
def _load(cfg: str) -> Splits:
    splits = dataset(json.loads(cfg)).splits()
    if len(splits.train) == 0 or len(splits.test) == 0:
        raise DataError(f"data={json.loads(cfg)['name']}: a split is empty.")
    return splits
