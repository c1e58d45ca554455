"""New images: codes drawn from the prior, or from a Gaussian mixture fitted to the codes of training images."""

import argparse
import math

import numpy as np
import torch
from torch import Tensor

from vae_lab import rng
from vae_lab.distributions import draw
from vae_lab.errors import ConfigError
from vae_lab.mixture import MAX_CODES, Mixture, fit_mixture
from vae_lab.tasks import picture, source
from vae_lab.tasks.command import open_run, say_written
from vae_lab.tasks.files import output, write_all
from vae_lab.trained import TrainedRun

MAX_SHOWN = 400


def draw_codes(run: TrainedRun, n: int, seed: int = 0, temperature: float = 1.0, mixture: Mixture | None = None) -> Tensor:
    """`n` codes [n, D] from the prior, or from `mixture`; `temperature` scales their deviations, where the prior has such."""
    if n < 1 or not (math.isfinite(temperature) and temperature >= 0):
        raise ConfigError(f"n={n}, temperature={temperature}: at least one sample, and a temperature of 0 or more.")
    stream = rng.generator(seed, "sample")
    if mixture is not None:
        return mixture.draw(n, stream, temperature)
    if run.prior is None:
        raise ConfigError(f"{run.name} has no prior to sample from: fit a mixture to its codes (--source mixture; fit_mixture).")
    return draw(run.prior, n, stream, temperature).cpu()


def training_mixture(run: TrainedRun, components: int | None = None) -> Mixture:
    """The mixture that a run's pictures are drawn from too: fitted to its training images' codes, with the run's seed."""
    return fit_mixture(run.encode(source.own_train(run, MAX_CODES).x).mu, components, run.seed)


def columns_for(n: int) -> int:
    """Columns of a grid of `n` images without an empty place, where there is one that is not too wide; else of a square."""
    side = math.isqrt(n - 1) + 1
    return next((columns for columns in range(side, 2 * side) if n % columns == 0), side)


def command(arguments: argparse.Namespace) -> int:
    """`vae-lab sample`."""
    run = open_run(arguments)
    path = output(arguments.out, run.run_dir.tasks / "samples.png", ".png")
    mixture, where = None, "the prior"
    if arguments.source == "prior":
        run.needs_prior("samples from it")
    elif arguments.source == "mixture" or run.prior is None:
        mixture = training_mixture(run, arguments.components)
        where = f"{mixture} fitted to training codes"
    images = run.sample(arguments.n, arguments.seed, arguments.temperature, mixture)
    columns = columns_for(min(arguments.n, MAX_SHOWN))
    shown = images[:MAX_SHOWN]
    cells = torch.ones(math.ceil(len(shown) / columns) * columns, *shown.shape[1:])
    cells[: len(shown)] = shown
    note = f"the first {MAX_SHOWN} of {arguments.n}" if arguments.n > MAX_SHOWN else ""
    heat = "" if arguments.temperature == 1 else f", temperature {arguments.temperature:g}"
    figure = picture.table(cells.unflatten(0, (-1, columns)), f"{run.name}: samples from {where}{heat}", note=note)
    files = {path: picture.png(figure), path.with_suffix(".npy"): lambda file: np.save(file, images.numpy())}
    return say_written(write_all(files))
