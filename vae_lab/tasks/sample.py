"""New images: codes drawn from the prior, or from a Gaussian mixture fitted to the codes of training images."""

import argparse
import math
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from torch import Tensor

from vae_lab import rng
from vae_lab.errors import ConfigError
from vae_lab.tasks import picture, source
from vae_lab.tasks.command import open_run, say_written
from vae_lab.tasks.files import output, write_all
from vae_lab.trained import TrainedRun

MAX_CODES, MAX_SHOWN = 10_000, 400
JITTER = 1e-6  # added to the mixture's variances


@dataclass(frozen=True)
class Mixture:
    """A Gaussian mixture over codes: weights, means and Cholesky factors of the covariances of its K components."""

    weights: Float[Tensor, " K"]
    means: Float[Tensor, "K D"]
    cholesky: Float[Tensor, "K D D"]


def fit_mixture(mu: np.ndarray | Tensor, components: int = 10, seed: int = 0) -> Mixture:
    """Fit a mixture with full covariances to codes [N, D]: where an autoencoder's codes lie, which nothing else tells.

    References:
        Ghosh et al. 2020, ex-post density estimation. https://arxiv.org/abs/1903.12436
    """
    codes = np.asarray(mu, dtype=np.float64)
    if not 1 <= components <= len(codes):
        raise ConfigError(f"components={components}: from 1 to the {len(codes)} codes that the mixture is fitted to.")
    model = GaussianMixture(components, reg_covar=JITTER, random_state=rng.derive(seed, "mixture") % 2**32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a hundred rounds place the components well enough to sample
        model.fit(codes)
    cholesky = np.linalg.cholesky(model.covariances_)
    return Mixture(*(torch.from_numpy(array).float() for array in (model.weights_, model.means_, cholesky)))


def draw_codes(run: TrainedRun, n: int, seed: int = 0, temperature: float = 1.0, mixture: Mixture | None = None) -> Tensor:
    """`n` codes [n, D]: mean + temperature * deviation, of the prior or of a component of `mixture`."""
    if n < 1 or not (math.isfinite(temperature) and temperature >= 0):
        raise ConfigError(f"n={n}, temperature={temperature}: at least one sample, and a temperature of 0 or more.")
    stream = rng.generator(seed, "sample")
    eps = temperature * torch.randn(n, run.model.latent_dim, generator=stream)
    if mixture is not None:
        chosen = torch.multinomial(mixture.weights, n, replacement=True, generator=stream)
        return mixture.means[chosen] + (mixture.cholesky[chosen] @ eps[..., None])[..., 0]
    if run.prior is None:
        raise ConfigError(f"{run.name} has no prior to sample from: fit a mixture to its codes (--source mixture; fit_mixture).")
    return run.prior.mean.cpu() + run.prior.stddev.cpu() * eps


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
        codes = run.encode(source.own_train(run).x[:MAX_CODES]).mu
        mixture, where = fit_mixture(codes, arguments.components, arguments.seed), f"a mixture of {arguments.components} Gaussians"
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
