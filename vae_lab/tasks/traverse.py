"""What each latent does: one moves, the others stay."""

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy.special import ndtr
from torch import Tensor
from torch.distributions import Distribution

from vae_lab import pictures, rng
from vae_lab.distributions import NUM_DRAWS, draw, normal_moments, quantiles
from vae_lab.errors import ConfigError, DataError
from vae_lab.reading import read_results
from vae_lab.tasks import picture, source
from vae_lab.tasks.command import open_run, say_written
from vae_lab.tasks.files import output, write_all
from vae_lab.trained import TrainedRun


@dataclass(frozen=True)
class Traversal:
    """Decoded images [L, S, C, H, W] of L latents at S values each."""

    images: Any
    latents: list[int]
    values: Float[Tensor, "L S"]  # of each latent
    kl: list[float] | None  # mean KL of each of them over the test images, nats; None where the run has none


def traverse(
    run: TrainedRun,
    x: np.ndarray | Tensor | None = None,
    latents: Sequence[int] | None = None,
    span: tuple[float, float] = (-3.0, 3.0),
    steps: int = 11,
) -> Traversal:
    """Move one latent over `span` standard deviations and keep the others.

    Args:
        run: a trained run.
        x: a single image [1, C, H, W] whose code the others keep; None: the mean of a normal prior, of another one the most
            probable of some draws.
        latents: which, in order; None: all, the one with the largest KL over the test images first (from results.json; where
            there is none, the largest standard deviation of the test images' codes).
        span: from and to, in standard deviations of a normal prior around its mean. Another prior's quantiles stand in their
            place, each at the level that so many deviations have under a normal. An autoencoder has no prior: in standard
            deviations of the test images' codes, around the code of `x`.
        steps: values per latent.

    Raises:
        ConfigError: a latent, span or number of steps that cannot be.
    """
    dim = run.model.latent_dim
    kl, deviation = _measured(run)
    if latents is None:
        weights = kl or deviation or [0.0] * dim
        latents = sorted(range(dim), key=lambda index: -weights[index])
    if wrong := [index for index in latents if not 0 <= index < dim]:
        raise ConfigError(f"latents {wrong}: this model has the latents 0 to {dim - 1}.")
    if steps < 2 or not latents or not all(map(math.isfinite, span)) or span[0] >= span[1]:
        raise ConfigError(f"steps={steps}, span={span}, {len(latents)} latents: at least 2 steps, upwards, of one latent or more.")
    if x is not None and len(x) != 1:
        raise DataError(f"traverse starts from a single image [1, C, H, W], not from {len(x)}.")
    code = None if x is None else torch.as_tensor(run.encode(x).mu).cpu()[0]  # type: ignore[type-var]
    chosen = torch.tensor(list(latents))
    deviations = torch.linspace(*span, steps, dtype=torch.double).float()
    prior, moments = run.prior, None if run.prior is None else normal_moments(run.prior)
    if prior is not None and moments is None:
        stream = rng.generator(run.seed, "quantiles")
        values = quantiles(prior, torch.special.ndtr(deviations), stream).T[chosen]
        code = _probable(prior, stream) if code is None else code
    else:
        if moments is not None:
            centre, scale = moments[0].cpu(), moments[1].diagonal().sqrt().cpu()
        else:
            centre, scale = _around(run, code, deviation)
        values = centre[chosen, None] + scale[chosen, None] * deviations
        code = centre if code is None else code
    codes = code.expand(len(latents), steps, dim).clone()
    codes[torch.arange(len(latents)), :, chosen] = values
    images = run.decode(codes.flatten(0, 1)).unflatten(0, (len(latents), steps))
    kept = images.numpy() if isinstance(x, np.ndarray) else images
    return Traversal(kept, list(latents), values, [kl[index] for index in latents] if kl else None)


def _around(run: TrainedRun, code: Tensor | None, deviation: list[float] | None) -> tuple[Tensor, Tensor]:
    """What an autoencoder's span is measured from and in: a code, and the deviations of codes."""
    if code is None:
        raise ConfigError(f"{run.name} has no prior, so no centre to start from: pass an image.")
    if deviation is None:
        raise ConfigError(f"{run.name} has no prior, and no results.json that tells the spread of its codes.")
    return code, torch.tensor(deviation)


def _probable(prior: Distribution, stream: torch.Generator) -> Float[Tensor, " D"]:
    """The most probable of many draws: the mean of a prior that is not normal may lie where it has nothing."""
    z = draw(prior, NUM_DRAWS, stream)
    return z[prior.log_prob(z).argmax()].cpu()


def _measured(run: TrainedRun) -> tuple[list[float] | None, list[float] | None]:
    """KL and standard deviation of each latent over the test images, where the run got as far as measuring them."""
    test = read_results(run.run_dir).get("test", {})
    lists = [test.get(key) for key in ("kl_per_latent", "code_std")]
    kl, deviation = (found if found and len(found) == run.model.latent_dim and None not in found else None for found in lists)
    return kl, deviation


def command(arguments: argparse.Namespace) -> int:
    """`vae-lab traverse`."""
    run = open_run(arguments)
    path = output(arguments.out, run.run_dir.tasks / "traversal.png", ".png")
    normal = run.prior is not None and normal_moments(run.prior) is not None
    x, centre = None, "the prior's mean" if normal else "a probable code of the prior"
    if arguments.index is not None or run.prior is None:
        images, index = source.read(run, arguments.data, arguments.fit), arguments.index or 0
        if index >= len(images):
            raise ConfigError(f"--index {index}: {images.title} has the images 0 to {len(images) - 1}.")
        x, centre = images.x[index : index + 1], f"image {index} of {images.title}"
    span = (arguments.span[0], arguments.span[1])
    latents = arguments.latents or traverse(run, x, None, span, 2).latents[: arguments.top]
    found = traverse(run, x, latents, span, arguments.steps)
    unit = "in the prior's deviations" if normal else "in deviations of the test images' codes"
    title = f"{run.name}: one latent at a time, around {centre}"
    deviations = np.linspace(*span, arguments.steps).round(9)
    columns = [f"{value:.2g}" for value in deviations]
    if run.prior is not None and not normal:
        columns, unit = [f"{100 * ndtr(value):.3g} %" for value in deviations], "by its quantile under the prior"
    figure = picture.table(found.images, title, _names(found), columns, note=f"value of the latent, {unit}")
    moving = traverse(run, x, latents, span, arguments.frames)
    across = math.ceil(math.sqrt(2 * len(latents)))
    frames = []
    for number in range(arguments.frames):
        tiles = [picture.enlarge(tile, 56) for tile in pictures.pixels(moving.images[:, number])]
        tiles = [picture.caption(tile, f"z{index}") for tile, index in zip(tiles, latents, strict=True)]
        frames.append(pictures.mosaic(np.stack(tiles), across, gap=4))
    files = {path: picture.png(figure), path.with_suffix(".gif"): picture.gif(frames)}
    return say_written(write_all(files))


def _names(found: Traversal) -> list[str]:
    """'z7, KL 2.1'."""
    kl = [""] * len(found.latents) if found.kl is None else [f", KL {value:.2f}" for value in found.kl]
    return [f"z{index}{more}" for index, more in zip(found.latents, kl, strict=True)]
