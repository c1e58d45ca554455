"""What each step of a cohort sees: the images of every run's own order, and every run's own noise.

A cohort of one is fed without the axis R.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import repeat
from typing import NamedTuple

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from vae_lab import rng
from vae_lab.data import Splits
from vae_lab.data.base import bernoulli_pixels, to_float
from vae_lab.objectives.base import Batch, Noise

NOISE_CHUNK = 32  # steps whose noise is drawn at once; part of what a seed means
GATHER_BYTES = 2**22  # of images gathered at once: one batch of large images, several steps' of small ones, whose cost is the call


def steps_per_epoch(num_images: int, batch_size: int) -> int:
    """The last batch may be smaller."""
    return math.ceil(num_images / batch_size)


class Step(NamedTuple):
    """One step: its position in the epoch, and for each run which images [R, B], the images themselves, and noise."""

    position: int
    indices: Int64[Tensor, "R B"]
    batch: Batch
    noise: Noise


class Feed:
    """The data and noise of runs with the given seeds, on one device; everything is a function of (seed, epoch, position)."""

    def __init__(
        self,
        seeds: Sequence[int],
        noise_shapes: dict[str, tuple[int, ...]],
        splits: Splits,
        batch_size: int,
        device: torch.device,
    ):
        self.seeds, self.noise_shapes, self.splits, self.batch_size = seeds, noise_shapes, splits, batch_size
        self.device, self.axis = device, int(len(seeds) > 1)  # of images
        self.num_images = len(splits.train)
        self.num_steps = steps_per_epoch(self.num_images, batch_size)
        shape = splits.train.x.shape[1:]
        in_bytes = 4 * len(seeds) * batch_size * math.prod(shape)
        self.ahead = 1 if splits.dynamic else max(1, min(NOISE_CHUNK, GATHER_BYTES // in_bytes))
        runs = (len(seeds),) if self.axis else ()
        self._pixels = torch.empty(*runs, min(self.ahead * batch_size, self.num_images), *shape, device=device)

    def epoch(self, epoch: int, first: int) -> Iterator[Step]:
        """The steps of an epoch from position `first` on."""
        order, size = self._order(epoch), self.batch_size
        indices = order.split(size, dim=1)
        start = first
        while start < self.num_steps:
            chunk, offset = divmod(start, NOISE_CHUNK)
            stop = min(start - offset + NOISE_CHUNK, self.num_steps)
            noise = self.noise(NOISE_CHUNK * size, "noise", epoch, chunk)
            draws = {name: draw.split(size, dim=self.axis)[offset:] for name, draw in noise.items()}
            for number, batch in enumerate(self._batches(order, epoch, start, stop)):
                index = indices[start + number]
                count = index.shape[1]
                here = {name: parts[number] for name, parts in draws.items()}
                if count < size:
                    here = {name: draw.narrow(self.axis, 0, count) for name, draw in here.items()}
                yield Step(start + number, index, batch, here)
            start = stop

    def _batches(self, order: Int64[Tensor, "R N"], epoch: int, start: int, stop: int) -> Iterator[Batch]:
        """Images [R, B, C, H, W] in [0, 1] of the steps from `start` to `stop`, gathered some steps ahead into the same memory."""
        size = self.batch_size
        for position in range(start, stop, self.ahead):
            index = order[:, position * size : min(position + self.ahead, stop) * size]
            grey, y = self.splits.train.take(index if self.axis else index[0])
            if self.splits.dynamic:
                grey = self._stacked([self._binarized(grey, run, epoch, position) for run in range(len(self.seeds))])
            x = to_float(grey, out=self._pixels.narrow(self.axis, 0, index.shape[1]))
            labels = repeat(None) if y is None else y.split(size, dim=self.axis)
            yield from map(Batch, x.split(size, dim=self.axis), labels)

    def _binarized(self, x: UInt8[Tensor, "*batch C H W"], run: int, epoch: int, position: int) -> UInt8[Tensor, "B C H W"]:
        draws = rng.generator(self.seeds[run], "binarize", epoch, position, device=self.device)
        return bernoulli_pixels(x[run] if self.axis else x, draws)

    def _order(self, epoch: int) -> Int64[Tensor, "R N"]:
        orders = [torch.randperm(self.num_images, generator=rng.generator(seed, "order", epoch)) for seed in self.seeds]
        return torch.stack(orders).to(self.device)

    def _stacked(self, parts: list[Tensor]) -> Tensor:
        return torch.stack(parts) if self.axis else parts[0]

    def noise(self, num_images: int, purpose: str, *position: int) -> Noise:
        """Standard normal noise for `num_images` images, [R, num_images, ...], or without R for one run."""
        generators = [rng.generator(seed, purpose, *position, device=self.device) for seed in self.seeds]
        return {
            name: self._stacked([torch.randn(num_images, *shape, generator=g, device=self.device) for g in generators])
            for name, shape in sorted(self.noise_shapes.items())
        }
