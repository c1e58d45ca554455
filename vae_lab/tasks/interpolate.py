"""From one image to another through the latent space."""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vae_lab import pictures
from vae_lab.arrays import Array, image_reader, in_kind
from vae_lab.errors import ConfigError, DataError
from vae_lab.tasks import picture, source
from vae_lab.tasks.command import open_run, say_written
from vae_lab.tasks.files import output, write_all
from vae_lab.trained import TrainedRun

KINDS = ("linear", "spherical")


def interpolate(run: TrainedRun, a: Array, b: Array, steps: int = 10, kind: str = "linear") -> Array:
    """Decoded images between the codes of each `a` and `b`, [N, steps, C, H, W]; the first and last are their reconstructions."""
    for x in (a, b):
        image_reader(x, run.image_shape)
    if len(a) != len(b):
        raise DataError(f"{len(a)} images to start from and {len(b)} to go to: pass as many of each.")
    ends = [torch.as_tensor(run.encode(x).mu).cpu() for x in (a, b)]
    return in_kind(decode_path(run, path(ends[0], ends[1], steps, kind)), a)


def decode_path(run: TrainedRun, codes: Float[Tensor, "N S D"]) -> Float[Tensor, "N S C H W"]:
    """Mean images of codes."""
    return run.decode(codes.flatten(0, 1)).unflatten(0, codes.shape[:2])


def path(a: Float[Tensor, "N D"], b: Float[Tensor, "N D"], steps: int, kind: str = "linear") -> Float[Tensor, "N S D"]:
    """Codes from `a` to `b`, both included.

    linear: (1 - t) a + t b. spherical: the direction goes along the great circle, the norm changes linearly; where the two
    directions are equal or opposite, or a norm is 0, linear.

    References:
        Shoemake 1985, section 3.3. https://doi.org/10.1145/325165.325242
        White 2016, section 2.1: in high dimensions the straight line leaves the shell where N(0, I) has its mass.
        https://arxiv.org/abs/1609.04468
    """
    if kind not in KINDS:
        raise ConfigError(f"kind={kind!r}: choose {' or '.join(KINDS)}.")
    if steps < 2:
        raise ConfigError(f"steps={steps}: at least 2, the start and the end.")
    t = torch.linspace(0, 1, steps, dtype=torch.float64)[:, None]
    start, end = a.double()[:, None], b.double()[:, None]
    straight = (1 - t) * start + t * end
    if kind == "linear":
        return straight.to(a.dtype)
    norms = start.norm(dim=-1, keepdim=True), end.norm(dim=-1, keepdim=True)
    unit = start / norms[0], end / norms[1]
    angle = torch.acos((unit[0] * unit[1]).sum(-1, keepdim=True).clamp(-1, 1))
    direction = (torch.sin((1 - t) * angle) * unit[0] + torch.sin(t * angle) * unit[1]) / torch.sin(angle)
    curved = ((1 - t) * norms[0] + t * norms[1]) * direction
    curved[:, 0], curved[:, -1] = start[:, 0], end[:, 0]
    usable = (torch.sin(angle) > 1e-6) & torch.isfinite(angle)
    return torch.where(usable, curved, straight).to(a.dtype)


@dataclass(frozen=True)
class End:
    """One end of a way: its name, its code, and its image where it is one."""

    name: str
    code: Float[Tensor, " D"]
    image: Float[Tensor, "C H W"] | None


def command(arguments: argparse.Namespace) -> int:
    """`vae-lab interpolate`."""
    run = open_run(arguments)
    png = output(arguments.out, run.run_dir.tasks / "interpolation.png", ".png")
    pairs = _pairs(run, arguments)
    starts, ends = (torch.stack([pair[side].code for pair in pairs]) for side in (0, 1))
    files = {png: picture.png(_picture(run, pairs, path(starts, ends, arguments.columns, arguments.kind), arguments.kind))}
    frames = decode_path(run, path(starts, ends, arguments.frames, arguments.kind))
    columns = min(len(pairs), 5)
    sheets = [picture.enlarge(pictures.grid(frames[:, index], columns, gap=2), 112 * columns) for index in range(arguments.frames)]
    files[png.with_suffix(".gif")] = picture.gif(sheets)
    return say_written(write_all(files))


def _pairs(run: TrainedRun, arguments: argparse.Namespace) -> list[tuple[End, End]]:
    """The ends of every way that was asked for; by default three pairs of classes, or of images where there are no classes."""
    images = None
    if arguments.classes or arguments.indices or not arguments.images:
        images = source.read(run, arguments.data, arguments.fit)
    classes, indices = arguments.classes, arguments.indices
    if images is not None and not (classes or indices or arguments.images):
        labels = [] if images.y is None else images.y.unique().tolist()
        if len(labels) > 1:
            classes = [[labels[index], labels[-1 - index]] for index in range(min(3, len(labels) // 2))]
        else:
            indices = [[0, min(1, len(images) - 1)]]
    pairs = []
    if images is not None:
        mu = run.encode(images.x).mu if classes else torch.empty(0)
        pairs += [tuple(_class_end(images, mu, label) for label in pair) for pair in classes]
        pairs += [tuple(_index_end(run, images, index) for index in pair) for pair in indices]
    for pair in arguments.images:
        pairs.append(tuple(_image_end(run, source.read(run, name, arguments.fit).x[:1], Path(name).name) for name in pair))
    return pairs  # type: ignore[return-value]


def _class_end(images: source.Source, mu: Tensor, label: int) -> End:
    if images.y is None or not (images.y == label).any():
        there = "no classes" if images.y is None else f"the classes {', '.join(map(str, images.y.unique().tolist()))}"
        raise ConfigError(f"--classes {label}: {images.title} has {there}.")
    return End(f"mean {label}", mu[images.y == label].mean(0), None)


def _index_end(run: TrainedRun, images: source.Source, index: int) -> End:
    if index >= len(images):
        raise ConfigError(f"--indices {index}: {images.title} has the images 0 to {len(images) - 1}.")
    return _image_end(run, images.x[index : index + 1], f"#{index}")


def _image_end(run: TrainedRun, x: Tensor, name: str) -> End:
    return End(name, run.encode(x).mu[0], picture.as_float(x)[0])


def _picture(run: TrainedRun, pairs: list[tuple[End, End]], codes: Tensor, kind: str) -> "picture.Figure":
    """A row per pair: the image it begins at, where there is one, the way, and the image it ends at."""
    decoded = decode_path(run, codes)
    columns = [f"{t:.2f}".rstrip("0").rstrip(".") for t in np.linspace(0, 1, codes.shape[1])]
    if any(end.image is not None for pair in pairs for end in pair):
        blank = torch.ones(run.image_shape)
        ends = [[blank if end.image is None else end.image for end in pair] for pair in pairs]
        first, last = (torch.stack([pair[side] for pair in ends])[:, None] for side in (0, 1))
        decoded = torch.cat([first, decoded, last], 1)
        columns = ["image", *columns, "image"]
    names = [f"{start.name} to {end.name}" for start, end in pairs]
    return picture.table(decoded, f"{run.name}: {kind} interpolation of codes", names, columns)
