"""Image files: one as pixels, or why there are none; the classes of a folder of them."""

import os
import stat
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from vae_lab.networks.base import ImageShape

FORMATS = ("PNG", "JPEG", "BMP", "WEBP")
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
GREY, COLOUR = ("1", "L", "I;16", "I;16B", "I"), ("RGB",)
MAX_PIXELS = 4096 * 4096  # judged by the header, before anything is decoded


def read_image(path: Path, shape: ImageShape, resize: bool, convert: bool) -> np.ndarray | str:
    """Pixels [C, H, W] of a `shape` as uint8; a reason, if the file is no such image.

    `resize` crops the largest centred part of the right proportions and scales it; `convert` turns palettes, alpha, CMYK, and
    colour or grey of the other kind into the channels wanted. 16-bit grey images keep their range: 0..65535 becomes 0..255.
    """
    channels, height, width = shape
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for its writer
            return "not a regular file"
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                return f"{image.width}x{image.height} pixels, at most {MAX_PIXELS:,} are read"
            if image.size != (width, height) and not resize:
                return f"{image.width}x{image.height} pixels, not {width}x{height}"
            if image.mode not in (GREY if channels == 1 else COLOUR) and not convert:
                return f"mode {image.mode}, not {'grey' if channels == 1 else 'RGB'}"
            return _pixels(image, shape)
    except FileNotFoundError:
        return "no such file"
    except Image.DecompressionBombError as error:
        return f"too many pixels: {error}"
    except UnidentifiedImageError:
        return f"not one of {', '.join(FORMATS)}"
    except (OSError, SyntaxError, ValueError) as error:
        return f"damaged: {str(error).splitlines()[0] if str(error) else type(error).__name__}"


def class_labels(paths: Sequence[str]) -> Int64[Tensor, " N"] | None:
    """The number of each image's first sub-folder in alphabetical order, for paths below a root; None if one lies in the root."""
    if not all(os.sep in path for path in paths):
        return None
    names = [path.partition(os.sep)[0] for path in paths]
    numbers = {name: number for number, name in enumerate(sorted(set(names)))}
    return torch.tensor([numbers[name] for name in names])


def first_of(bad: Sequence[str], shown: int) -> str:
    """'a (why); b (why) and 3 more'."""
    return "; ".join(bad[:shown]) + (f" and {len(bad) - shown} more" if len(bad) > shown else "")


def _pixels(image: Image.Image, shape: ImageShape) -> np.ndarray:
    channels, height, width = shape
    if image.mode.startswith("I"):
        sixteen = np.asarray(image).astype(np.float64)
        image = Image.fromarray(np.rint(sixteen / 257).clip(0, 255).astype(np.uint8))
    image = image.convert("L" if channels == 1 else "RGB")
    if image.size != (width, height):
        scale = min(image.width / width, image.height / height)
        left, top = (image.width - scale * width) / 2, (image.height - scale * height) / 2
        box = (left, top, left + scale * width, top + scale * height)
        image = image.resize((width, height), Image.Resampling.LANCZOS, box=box)
    return np.ascontiguousarray(np.asarray(image).reshape(height, width, channels).transpose(2, 0, 1))
