"""Grids of images with a title and ticks, drawn by Pillow: a tenth of the time that a plotting library takes."""

import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

INK = "#222222"
MARGIN, TITLE, TICK = 12, 19, 15  # pixels; the latter two are font sizes
Ticks = Sequence[tuple[float, str]]  # place in pixels of the sheet, and text


def pixels(images: Float[Tensor, "N C H W"]) -> UInt8[np.ndarray, "N H W C"]:
    """Images in [0, 1] as an image library wants them."""
    return images.detach().float().clamp(0, 1).mul(255).round().byte().cpu().permute(0, 2, 3, 1).numpy()


def grid(images: Float[Tensor, "N C H W"], columns: int, gap: int = 1) -> UInt8[np.ndarray, "height width C"]:
    """Images in [0, 1] in rows of `columns` as one array, with white lines of `gap` pixels between them."""
    return mosaic(pixels(images), columns, gap)


def mosaic(tiles: UInt8[np.ndarray, "N H W C"], columns: int, gap: int = 1) -> UInt8[np.ndarray, "height width C"]:
    """Tiles in rows of `columns`, with white lines of `gap` pixels between them."""
    number, height, width, channels = tiles.shape
    rows = math.ceil(number / columns)
    padded = np.full((rows * columns, height + gap, width + gap, channels), 255, dtype=np.uint8)
    padded[:number, :height, :width] = tiles
    sheet = padded.reshape(rows, columns, height + gap, width + gap, channels).swapaxes(1, 2)
    whole = sheet.reshape(rows * (height + gap), columns * (width + gap), channels)
    return whole[: whole.shape[0] - gap, : whole.shape[1] - gap]


def picture(
    sheet: UInt8[np.ndarray, "height width channels"],
    title: str,
    width: int,
    x_ticks: Ticks = (),
    y_ticks: Ticks = (),
    labels: tuple[str, str] = ("", ""),
) -> Image.Image:
    """A sheet enlarged by a whole factor to about `width` pixels, under its title, with ticks and axis labels (x, y)."""
    factor = max(1, round(width / sheet.shape[1]))
    image = Image.fromarray(sheet.squeeze(-1) if sheet.shape[-1] == 1 else sheet)
    image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    tick_width = max((_font(TICK).getlength(text) for _, text in y_ticks), default=0)
    left = int(MARGIN + tick_width + (MARGIN if y_ticks else 0) + (2 * TICK if labels[1] else 0))
    top, below = 2 * MARGIN + TITLE, (2 * TICK if x_ticks else 0) + (2 * TICK if labels[0] else 0)
    right = max(left + image.width, int(MARGIN + _font(TITLE).getlength(title))) + MARGIN
    page = Image.new("RGB", (right, top + image.height + below + MARGIN), "white")
    page.paste(image, (left, top))
    draw = ImageDraw.Draw(page)
    draw.text((left if not y_ticks else MARGIN, MARGIN), title, INK, _font(TITLE))
    for place, text in x_ticks:
        draw.text((left + place * factor, top + image.height + TICK // 2), text, INK, _font(TICK), anchor="ma")
    for place, text in y_ticks:
        draw.text((left - MARGIN, top + place * factor), text, INK, _font(TICK), anchor="rm")
    if labels[0]:
        draw.text((left + image.width / 2, page.height - MARGIN), labels[0], INK, _font(TICK), anchor="md")
    if labels[1]:
        draw.text((MARGIN, top + image.height / 2), labels[1], INK, _font(TICK), anchor="lm")
    return page


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)
