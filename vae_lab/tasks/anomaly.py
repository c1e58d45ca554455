"""How unusual images are, and how well that tells outliers from inliers."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor

from vae_lab.arrays import Array, in_kind
from vae_lab.errors import ConfigError, DataError
from vae_lab.trained import TrainedRun

TITLES = {
    "negative_elbo": "negative ELBO, nats",
    "reconstruction_error": "squared error of the reconstruction",
    "latent_distance": "distance in latent space",
}


def anomaly_score(run: TrainedRun, x: Array, kind: str = "negative_elbo", **options: Any) -> Array:
    """How unusual each image is, [N]; larger is more unusual.

    Args:
        run: a trained run.
        x: images.
        kind: 'negative_elbo' (nats; `num_samples` draws, `seed`), 'reconstruction_error' (summed squared error of the
            reconstruction from the mean code) or 'latent_distance' (of the mean code, in standard deviations).
        options: `num_samples` and `seed` of the ELBO; `reference`, codes [M, D], of the distance.

    Raises:
        ConfigError: an unknown kind, or one that a model without a prior does not have.
    """
    kinds: dict[str, Callable[..., Any]] = {
        "negative_elbo": lambda **extra: -run.elbo(x, **({"num_samples": 8} | extra)),
        "reconstruction_error": lambda **extra: reconstruction_error(run, x, **extra),
        "latent_distance": lambda **extra: latent_distance(run, x, **extra),
    }
    if kind not in kinds:
        raise ConfigError(f"kind={kind!r}: choose {', '.join(kinds)}.")
    return kinds[kind](**options)


def reconstruction_error(run: TrainedRun, x: Array) -> Array:
    """Squared error between image and reconstruction from the mean code, summed over pixels, [N]."""

    def step(part: Tensor, rows: slice) -> tuple[Tensor]:
        decoded = run.model.likelihood(run.model.posterior(part).mean).mean
        return ((decoded - part).square().flatten(1).sum(1),)

    (error,) = run.over_images(x, step)
    return error


def latent_distance(run: TrainedRun, x: Array, reference: np.ndarray | Tensor | None = None) -> Array:
    """Mahalanobis distance of each mean code, [N]: from the codes in `reference`, else from the prior.

    sqrt((mu - m)^T S^-1 (mu - m)) with the mean m and the covariance S of the reference codes [M, D], or of the prior.
    """
    mu = torch.as_tensor(run.encode(x).mu).cpu().double()
    if reference is None:
        if run.prior is None:
            raise ConfigError(f"{run.name} has no prior: pass the codes of training images as reference.")
        distance = ((mu - run.prior.mean.cpu()) / run.prior.stddev.cpu()).norm(dim=1)
    else:
        codes = torch.as_tensor(reference).cpu().double()
        if codes.dim() != 2 or codes.shape[1] != mu.shape[1] or len(codes) < 2:
            raise DataError(f"reference codes of shape {list(codes.shape)}: pass at least two, [M, {mu.shape[1]}].")
        covariance = torch.cov(codes.T).view(mu.shape[1], -1)
        ridge = 1e-9 * covariance.diagonal().mean().clamp_min(1e-12)
        cholesky = torch.linalg.cholesky(covariance + ridge * torch.eye(mu.shape[1], dtype=torch.double))
        distance = torch.linalg.solve_triangular(cholesky, (mu - codes.mean(0)).T, upper=False).norm(dim=0)
    return in_kind(distance.float(), x)


def all_scores(run: TrainedRun, x: Array, reference: np.ndarray | Tensor | None, num_samples: int, seed: int) -> dict[str, Array]:
    """Every score that this model has, by name."""
    scores = {} if run.prior is None else {"negative_elbo": -run.elbo(x, num_samples, seed)}
    scores["reconstruction_error"] = reconstruction_error(run, x)
    scores["latent_distance"] = latent_distance(run, x, reference)
    return scores


def detection(score: np.ndarray, outlier: np.ndarray) -> dict[str, float]:
    """How well a score tells outliers (true) from inliers: area under the ROC curve, and average precision."""
    return {
        "auroc": float(roc_auc_score(outlier, score)),
        "average_precision": float(average_precision_score(outlier, score)),
        "outlier_share": float(np.mean(outlier)),  # the average precision of guessing
    }
