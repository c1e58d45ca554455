"""Where the codes of an autoencoder lie, which has no prior to tell it: a Gaussian mixture fitted to those of training images."""

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vae_lab import rng
from vae_lab.errors import ConfigError, DataError

MAX_CODES = 10_000  # training images, the first ones, whose codes are looked at
COMPONENTS = 10
ROUNDS = 30  # of the fit: they place the components well enough to sample
MAX_WORK = COMPONENTS * 64**2  # components x latents^2, to which the time of a round is proportional; a minute is too long
JITTER = 1e-6  # of the codes' mean variance, added to the variances


@dataclass(frozen=True)
class Mixture:
    """A Gaussian mixture over codes: weights, means and Cholesky factors of the covariances of its K components."""

    weights: Float[Tensor, " K"]
    means: Float[Tensor, "K D"]
    cholesky: Float[Tensor, "K D D"]

    def draw(self, n: int, generator: torch.Generator, temperature: float = 1.0) -> Float[Tensor, "n D"]:
        """`n` codes; `temperature` scales the deviations of every component."""
        eps = temperature * torch.randn(n, self.means.shape[1], generator=generator)
        chosen = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        return self.means[chosen] + (self.cholesky[chosen] @ eps[..., None])[..., 0]

    def __str__(self) -> str:
        k = len(self.weights)
        return f"a mixture of {k} Gaussians" if k > 1 else "a Gaussian"


def fit_mixture(mu: np.ndarray | Tensor, components: int | None = None, seed: int = 0) -> Mixture:
    """Fit a mixture with full covariances to codes [N, D].

    Args:
        mu: the codes.
        components: None: `COMPONENTS`, fewer beyond 64 latents, and no more than there are codes.
        seed: of the places where the fit begins.

    References:
        Ghosh et al. 2020, ex-post density estimation. https://arxiv.org/abs/1903.12436
    """
    from sklearn.exceptions import ConvergenceWarning  # half a second, which only autoencoders need
    from sklearn.mixture import GaussianMixture

    codes = np.asarray(mu, dtype=np.float64)
    if components is None:
        components = min(COMPONENTS, len(codes), max(1, MAX_WORK // codes.shape[1] ** 2))
    if not 1 <= components <= len(codes):
        raise ConfigError(f"components={components}: from 1 to the {len(codes)} codes that the mixture is fitted to.")
    if not np.isfinite(codes).all():
        raise DataError("The codes that the mixture is to be fitted to hold NaN or infinite numbers.")
    jitter = JITTER * max(float(codes.var(0).mean()), JITTER)  # relative, for codes of any scale, and constant ones too
    model = GaussianMixture(components, max_iter=ROUNDS, reg_covar=jitter, random_state=rng.derive(seed, "mixture") % 2**32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(codes if len(codes) > 1 else codes.repeat(2, 0))  # scikit-learn wants two
    cholesky = np.linalg.cholesky(model.covariances_)
    return Mixture(*(torch.from_numpy(array).float() for array in (model.weights_, model.means_, cholesky)))
