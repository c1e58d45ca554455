"""Which pixels are missing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from vae_lab import rng
from vae_lab.data.files import FORMATS
from vae_lab.errors import ConfigError, DataError
from vae_lab.networks.base import ImageShape


def mask_reader(missing: np.ndarray | Tensor, n: int, shape: ImageShape) -> Callable[[slice], Bool[Tensor, "B C H W"]]:
    """Check a mask for `n` images and return what reads some of its rows, all channels.

    Raises:
        DataError: names the shape or type that is wrong.
    """
    channels, height, width = shape
    if not isinstance(missing, np.ndarray | Tensor) or str(missing.dtype).removeprefix("torch.") != "bool":
        raise DataError("the mask: pass a boolean array, true where a pixel is missing.")
    found = tuple(missing.shape)
    shared = found in ((height, width), shape) and found != (n, height, width)
    if not shared and found not in ((n, height, width), (n, *shape)):
        raise DataError(f"a mask of shape {list(found)}: pass [{height}, {width}] for all images, or [{n}, {height}, {width}].")
    whole = missing if isinstance(missing, Tensor) else torch.from_numpy(np.array(missing))

    def read(rows: slice) -> Tensor:
        part = whole.expand(rows.stop - rows.start, *found) if shared else whole[rows]
        return (part[:, None] if part.dim() == 3 else part).expand(-1, channels, height, width)

    return read


def make_mask(mask: str, n: int, shape: ImageShape, share: float, side: int | None, seed: int) -> Bool[Tensor, "*N H W"]:
    """The missing pixels that a word or a file names: [H, W] for all images, or [N, H, W] where each has its own."""
    _, height, width = shape
    hole = torch.zeros(height, width, dtype=torch.bool)
    if mask == "random":
        stream = rng.generator(seed, "mask")
        return torch.rand(n, height, width, generator=stream) < share
    if mask == "centre":
        tall, wide = (min(side, size) if side else max(1, round(size * 3 / 7)) for size in (height, width))
        top, left = (height - tall) // 2, (width - wide) // 2
        hole[top : top + tall, left : left + wide] = True
        return hole
    halves: dict[str, Any] = {"lower": np.s_[height // 2 :], "upper": np.s_[: height // 2]}
    halves |= {"left": np.s_[:, : width // 2], "right": np.s_[:, width // 2 :]}
    if mask in halves:
        hole[halves[mask]] = True
        return hole
    path = Path(mask).expanduser()
    if not path.is_file():
        raise ConfigError(f"--mask {mask}: no such file; or choose random, centre, {', '.join(halves)}.")
    return _read_mask(path, height, width)


def _read_mask(path: Path, height: int, width: int) -> Bool[Tensor, "*N H W"]:
    try:
        if path.suffix.lower() == ".npy":
            array = np.load(path, allow_pickle=False)
            if array.dtype != bool:
                raise DataError(f"--mask {path}: holds {array.dtype}; pass booleans, true where a pixel is missing.")
        else:
            with Image.open(path, formats=FORMATS) as image:
                array = np.asarray(image.convert("L")) < 128
    except UnidentifiedImageError as error:
        raise DataError(f"--mask {path}: not one of {', '.join(FORMATS)}.") from error
    except (OSError, ValueError, EOFError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"--mask {path}: not readable ({str(error).splitlines()[0]}).") from error
    if array.shape[-2:] != (height, width) or array.ndim > 3:
        raise DataError(f"--mask {path}: of {'x'.join(map(str, array.shape))}; the images are {height}x{width}.")
    if not array.any():
        raise DataError(f"--mask {path}: no pixel is missing.")
    return torch.from_numpy(array)
