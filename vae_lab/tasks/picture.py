"""Pictures and animations of decoded images."""

from collections.abc import Sequence
from typing import BinaryIO

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from vae_lab.pictures import INK, grid
from vae_lab.tasks.files import Writer

FRAME_MS, END_MS = 60, 500
GIF_LEVELS = 32
HOLE = (0.35, 0.62, 0.86)  # missing pixels: a blue that no grey image has


def as_float(images: Tensor) -> Tensor:
    """Pixels in [0, 1], whatever they were read as."""
    return images.float() / 255 if images.dtype == torch.uint8 else images.float()


def show(axes: Axes, sheet: np.ndarray) -> None:
    """One array without interpolation, ticks and frame."""
    axes.imshow(
        sheet[..., 0] if sheet.shape[-1] == 1 else sheet,
        cmap="gray",
        vmin=0,
        vmax=255,
        interpolation="nearest",
        extent=(0, sheet.shape[1], sheet.shape[0], 0),
    )
    axes.set_xticks([])
    axes.set_yticks([])
    axes.tick_params(length=0, labelsize=8, colors=INK)
    axes.spines[:].set_visible(False)


def table(
    images: Tensor, title: str, row_names: Sequence[str] = (), column_names: Sequence[str] = (), note: str = "", tile: float = 0.55
) -> Figure:
    """Images [R, S, C, H, W] as R named rows of S columns."""
    rows, columns = images.shape[:2]
    sheet = grid(images.flatten(0, 1), columns)
    names = max((len(line) for name in row_names for line in name.split("\n")), default=0)
    width = max(4.2, columns * tile + 0.085 * names + 0.2, 0.088 * len(title))
    head = 0.32 + (0.22 if column_names else 0) + (0.2 if note else 0)
    figure = Figure(figsize=(width, max(1, rows) * tile * images.shape[-2] / images.shape[-1] + head), layout="constrained")
    axes = figure.add_subplot()
    show(axes, sheet)
    height, wide = sheet.shape[0] / rows, sheet.shape[1] / columns
    if row_names:
        axes.set_yticks([(index + 0.5) * height for index in range(rows)], row_names)
    if column_names:
        axes.set_xticks([(index + 0.5) * wide for index in range(columns)], column_names)
    axes.set_xlabel(note, fontsize=8, color=INK)
    figure.suptitle(title, fontsize=10, color=INK, x=0.01, ha="left")
    return figure


def png(figure: Figure) -> Writer:
    """A writer of a figure."""
    return lambda file: figure.savefig(file, format="png", dpi=130, facecolor="white")


def gif(frames: Sequence[np.ndarray], there_and_back: bool = True) -> Writer:
    """A writer of an endless animation of uint8 arrays [height, width, C]; the ends are shown longer."""
    whole = [*frames, *frames[-2:0:-1]] if there_and_back else list(frames)
    ends = {0, len(frames) - 1}
    durations = [END_MS if index in ends else FRAME_MS for index in range(len(whole))]
    images = [Image.fromarray(frame[..., 0] if frame.shape[-1] == 1 else frame) for frame in whole]
    images = [image.point(_levels) if image.mode == "L" else image.quantize(GIF_LEVELS) for image in images]

    def write(file: BinaryIO) -> None:
        images[0].save(file, format="GIF", save_all=True, append_images=images[1:], duration=durations, loop=0, optimize=True)

    return write


def _levels(value: int) -> int:
    """The nearest of `GIF_LEVELS` greys: half the file, and no difference to be seen."""
    return round(round(value * (GIF_LEVELS - 1) / 255) * 255 / (GIF_LEVELS - 1))


def enlarge(sheet: np.ndarray, side: int) -> np.ndarray:
    """Each pixel as a square, so that the longer side has about `side` pixels."""
    factor = max(1, round(side / max(sheet.shape[:2])))
    return sheet.repeat(factor, 0).repeat(factor, 1)


def caption(tile: np.ndarray, line: str, size: int = 11) -> np.ndarray:
    """A tile [height, width, C] over a line of text."""
    _, width, channels = tile.shape
    strip = Image.new("L", (width, size + 5), 255)
    ImageDraw.Draw(strip).text((width / 2, 1), line, fill=34, font=ImageFont.load_default(size), anchor="ma")
    return np.concatenate([tile, np.asarray(strip)[..., None].repeat(channels, 2)])


def framed(images: Tensor, chosen: Sequence[int], colour: str) -> Tensor:
    """RGB images, some of them with a frame one pixel wide."""
    images = images.clone()
    line = torch.tensor(to_rgb(colour))[:, None]
    for index in chosen:
        images[index, :, [0, -1], :] = line[..., None]
        images[index, :, :, [0, -1]] = line[..., None]
    return images


def holes_shown(images: Tensor, missing: Tensor) -> Tensor:
    """RGB images whose missing pixels are blue."""
    colour = torch.tensor(HOLE)[:, None, None]
    return torch.where(missing[:, :1].expand(-1, 3, -1, -1), colour, images.expand(-1, 3, -1, -1))
