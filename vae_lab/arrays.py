"""Images and codes that a user hands in: NumPy arrays or torch tensors, checked, read in slices, answered in kind."""

from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from vae_lab.errors import DataError
from vae_lab.networks.base import ImageShape

Array = TypeVar("Array", np.ndarray, Tensor)
Reader = Callable[[slice], Tensor]  # rows as float32 on the CPU
SLACK = 1e-6  # rounding that pixels may leave [0, 1] by


def image_reader(x: np.ndarray | Tensor, shape: ImageShape) -> Reader:
    """Check N images of `shape` (C, H, W) and return what reads some of them as float32 [B, C, H, W] in [0, 1].

    Taken are uint8 from 0 to 255 and floats in [0, 1], as [N, C, H, W], as [N, H, W, C], and as [N, H, W] where C is 1. Values
    are checked as they are read, so that a memory-mapped array is never whole in memory.

    Raises:
        DataError: names the shape, the type or the value that is wrong.
    """
    check_kind(x, "images")
    channels, height, width = shape
    found = tuple(x.shape)
    if found[1:] == shape:
        arrange = lambda part: part  # noqa: E731
    elif found[1:] == (height, width) and channels == 1:
        arrange = lambda part: part[:, None]  # noqa: E731
    elif found[1:] == (height, width, channels):
        arrange = lambda part: part.movedim(-1, 1)  # noqa: E731
    else:
        wanted = f"[N, {channels}, {height}, {width}]" + (f" or [N, {height}, {width}]" if channels == 1 else "")
        single = found in (shape, (height, width), (height, width, channels))
        hint = " That is a single image: add a leading axis, x[None]." if single else ""
        raise DataError(f"images of shape {list(found)}: this model takes {wanted}.{hint}")
    if not len(x):
        raise DataError("images: there are none; pass at least one.")
    is_bytes = str(x.dtype).removeprefix("torch.") == "uint8"
    if not is_bytes and not _is_float(x):
        raise DataError(f"images of type {x.dtype}: pass uint8 from 0 to 255, or floats from 0 to 1.")

    def read(rows: slice) -> Tensor:
        part = arrange(_float32(x[rows]))
        if is_bytes:
            return part / 255
        _check_finite(part, "images", rows)
        if part.min() < -SLACK or part.max() > 1 + SLACK:
            hint = " Divide by 255, or pass uint8." if 1 < part.max() <= 255 and part.min() >= 0 else ""
            raise DataError(
                f"images {rows.start} to {rows.stop - 1} have values from {part.min():.4g} to {part.max():.4g}: floats must lie in "
                f"[0, 1].{hint}"
            )
        return part.clamp(0, 1)

    return read


def code_reader(z: np.ndarray | Tensor, latent_dim: int) -> Reader:
    """Check N codes and return what reads some of them as float32 [B, D]."""
    check_kind(z, "codes")
    if z.ndim != 2 or z.shape[1] != latent_dim or not _is_float(z):
        raise DataError(f"codes of shape {list(z.shape)} and type {z.dtype}: this model takes floats [N, {latent_dim}].")

    if not len(z):
        raise DataError("codes: there are none; pass at least one.")

    def read(rows: slice) -> Tensor:
        part = _float32(z[rows])
        _check_finite(part, "codes", rows)
        return part

    return read


def in_kind(result: Tensor, like: Array) -> Array:
    """`result` as a NumPy array where `like` is one, else as a tensor on the device of `like`."""
    if isinstance(like, np.ndarray):
        return result.cpu().numpy()
    return result.to(like.device)


def check_kind(x: object, what: str) -> None:
    """Raise `DataError` for what is neither a NumPy array nor a tensor."""
    if not isinstance(x, np.ndarray | Tensor):
        raise DataError(f"{what}: pass a NumPy array or a torch tensor, not {type(x).__name__}.")


def _is_float(x: np.ndarray | Tensor) -> bool:
    return x.is_floating_point() if isinstance(x, Tensor) else np.issubdtype(x.dtype, np.floating)


def _float32(part: np.ndarray | Tensor) -> Tensor:
    if isinstance(part, Tensor):
        return part.detach().to("cpu", torch.float32)
    return torch.from_numpy(part.astype(np.float32))


def _check_finite(part: Tensor, what: str, rows: slice) -> None:
    if not torch.isfinite(part).all():
        raise DataError(f"{what} {rows.start} to {rows.stop - 1} hold NaN or infinite values.")
