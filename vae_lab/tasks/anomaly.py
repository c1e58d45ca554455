"""How unusual images are, and how well that tells outliers from inliers."""

import argparse
import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor

from vae_lab import pictures
from vae_lab.arrays import Array, in_kind
from vae_lab.distributions import normal_moments
from vae_lab.errors import ConfigError, DataError
from vae_lab.figures import COLOURS, INK
from vae_lab.tasks import picture, source
from vae_lab.tasks.command import open_run, say, say_written
from vae_lab.tasks.files import Writer, output, text, write_all
from vae_lab.trained import TrainedRun, with_options

MAX_REFERENCE = 10_000  # training images whose codes say what is usual
SHOWN = 24
BLUE, ORANGE = COLOURS[:2]
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
        "negative_elbo": negative_elbo,
        "reconstruction_error": reconstruction_error,
        "latent_distance": latent_distance,
    }
    if kind not in kinds:
        raise ConfigError(f"kind={kind!r}: choose {', '.join(kinds)}.")
    return with_options(kinds[kind], options)(run, x)


def negative_elbo(run: TrainedRun, x: Array, num_samples: int = 8, seed: int | None = None) -> Array:
    """-ELBO in nats, the mean over some draws of the code, [N]."""
    return -run.elbo(x, num_samples, seed)


def reconstruction_error(run: TrainedRun, x: Array) -> Array:
    """Squared error between image and reconstruction from the mean code, summed over pixels, [N]."""

    def step(part: Tensor, rows: slice) -> tuple[Tensor]:
        decoded = run.model.likelihood(run.model.posterior(part).mean).mean
        return ((decoded - part).square().flatten(1).sum(1),)

    (error,) = run.over_images(x, step)
    return error


def latent_distance(run: TrainedRun, x: Array, reference: np.ndarray | Tensor | None = None) -> Array:
    """Mahalanobis distance of each mean code, [N]: from the codes in `reference`, else from a normal prior.

    sqrt((mu - m)^T S^-1 (mu - m)) with the mean m and the covariance S of the reference codes [M, D], or of the prior.

    Raises:
        ConfigError: no reference, and a prior that mean and covariance do not describe, or none.
    """
    mu = torch.as_tensor(run.encode(x).mu).cpu().double()
    if reference is None:
        if run.prior is None:
            raise ConfigError(f"{run.name} has no prior: pass the codes of training images as reference.")
        if (moments := normal_moments(run.prior)) is None:
            raise ConfigError(f"{run.name}: the prior is not normal: pass the codes of training images as reference.")
        mean, covariance = (moment.cpu().double() for moment in moments)
    else:
        codes = torch.as_tensor(reference).cpu().double()
        if codes.dim() != 2 or codes.shape[1] != mu.shape[1] or len(codes) < 2:
            raise DataError(f"reference codes of shape {list(codes.shape)}: pass at least two, [M, {mu.shape[1]}].")
        mean, covariance = codes.mean(0), torch.cov(codes.T).view(mu.shape[1], -1)
        covariance += 1e-9 * covariance.diagonal().mean().clamp_min(1e-12) * torch.eye(mu.shape[1], dtype=torch.double)
    cholesky = torch.linalg.cholesky(covariance)
    distance = torch.linalg.solve_triangular(cholesky, (mu - mean).T, upper=False).norm(dim=0)
    return in_kind(distance.float(), x)


def all_scores(run: TrainedRun, x: Array, reference: np.ndarray | Tensor | None, num_samples: int, seed: int) -> dict[str, Array]:
    """Every score that this model has, by name."""
    scores = {} if run.prior is None else {"negative_elbo": negative_elbo(run, x, num_samples, seed)}
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


def command(arguments: argparse.Namespace) -> int:
    """`vae-lab anomaly`."""
    run = open_run(arguments)
    path = output(arguments.out, run.run_dir.tasks / "anomaly.csv", ".csv")
    images, outlier = _images(run, arguments)
    reference = _reference(run)
    scores = all_scores(run, images.x, reference, arguments.draws, arguments.seed)
    columns = {name: score.double().numpy() for name, score in scores.items()}
    numbers: dict[str, Any] = {"images": images.title, "num_images": len(images)}
    if outlier is not None:
        numbers["detection"] = {name: detection(score, outlier) for name, score in columns.items()}
        for name, found in numbers["detection"].items():
            say(f"{name:>20}: AUROC {found['auroc']:.3f}, average precision {found['average_precision']:.3f}")
        count = f"{np.sum(outlier):,} outliers among {len(outlier):,} images"
        say(f"{count}: guessing has AUROC 0.5, average precision {np.mean(outlier):.3f}")
    else:
        for name, score in columns.items():
            say(f"{name:>20}: mean {score.mean():.2f}, most unusual {score.max():.2f} (image {int(score.argmax())})")
    files: dict[Path, Writer] = {
        path: _table(columns, images.y, outlier),
        path.with_suffix(".json"): text(json.dumps(numbers, indent=2) + "\n"),
        path.with_suffix(".png"): picture.png(_picture(run, images, columns, outlier)),
    }
    return say_written(write_all(files))


def _images(run: TrainedRun, arguments: argparse.Namespace) -> tuple[source.Source, np.ndarray | None]:
    """The images to score and, where sets were named, which of them are outliers."""
    if arguments.outliers is None:
        if arguments.inliers is not None:
            raise ConfigError("--inliers needs --outliers; to score one set, say --data.")
        return source.read(run, arguments.data, arguments.fit), None
    if arguments.data is not None:
        raise ConfigError("--data is what is scored without a comparison; say --inliers with --outliers.")
    outliers = source.read(run, arguments.outliers, arguments.fit)
    inliers = source.read(run, arguments.inliers, arguments.fit)
    if arguments.inliers is None and source.CLASSES.fullmatch(arguments.outliers) and inliers.y is not None:
        left_out = torch.tensor(source.class_list(arguments.outliers))
        kept = ~torch.isin(inliers.y, left_out)
        if not kept.any():
            raise ConfigError(f"--outliers {arguments.outliers}: leaves no other test images of {inliers.title} as inliers.")
        inliers = source.Source(inliers.x[kept], inliers.y[kept], inliers.title)
    labels = None if inliers.y is None or outliers.y is None else torch.cat([inliers.y, outliers.y])
    both = torch.cat([picture.as_float(inliers.x), picture.as_float(outliers.x)])
    is_outlier = np.repeat([False, True], [len(inliers), len(outliers)])
    return source.Source(both, labels, f"{inliers.title}; outliers: {outliers.title}"), is_outlier


def _reference(run: TrainedRun) -> Tensor | None:
    """Codes of training images; None, with a word of it, where they are not on this machine but there is a normal prior."""
    try:
        return run.encode(source.own_train(run, MAX_REFERENCE).x).mu
    except DataError:
        if run.prior is None or normal_moments(run.prior) is None:
            raise
        say("The training images are not here: latent_distance is measured from the prior, not from their codes.")
        return None


def _table(columns: dict[str, np.ndarray], labels: Tensor | None, outlier: np.ndarray | None) -> Writer:
    rows = io.StringIO()
    lines = csv.writer(rows, lineterminator="\n")
    lines.writerow(["index", "label", *([] if outlier is None else ["outlier"]), *columns])
    for index, values in enumerate(zip(*columns.values(), strict=True)):
        label = "" if labels is None else int(labels[index])
        lines.writerow([index, label, *([] if outlier is None else [int(outlier[index])]), *(f"{value:.6g}" for value in values)])
    return text(rows.getvalue())


def _picture(run: TrainedRun, images: source.Source, columns: dict[str, np.ndarray], outlier: np.ndarray | None) -> Figure:
    """A row per score: its histogram, the least and the most unusual images."""
    figure = Figure(figsize=(11, 2.7 * len(columns) + 0.4), layout="constrained")
    figure.suptitle(f"{run.name}: {images.title}", fontsize=10, color=INK, x=0.01, ha="left")
    axes = figure.subplots(len(columns), 3, squeeze=False, width_ratios=[1.5, 1, 1])
    everything = np.ones(len(images), dtype=bool)
    groups = {"images": everything} if outlier is None else {"inliers": ~outlier, "outliers": outlier}
    for row, (name, score) in zip(axes, columns.items(), strict=True):
        bins = np.linspace(score.min(), np.quantile(score, 0.998), 60).tolist()
        for colour, (group, members) in zip((BLUE, ORANGE), groups.items(), strict=False):
            found = score[members]
            row[0].hist(found, bins, density=True, alpha=0.6, color=colour, label=f"{group} ({len(found):,})")
        auroc = "" if outlier is None else f", AUROC {detection(score, outlier)['auroc']:.3f}"
        row[0].set_title(f"{name}{auroc}", fontsize=9, color=INK, loc="left")
        row[0].set_xlabel(TITLES[name], fontsize=8)
        row[0].set_ylabel("density", fontsize=8)
        row[0].tick_params(labelsize=7, colors=INK)
        row[0].legend(frameon=False, fontsize=8)
        row[0].spines[["top", "right"]].set_visible(False)
        order = np.argsort(score)
        for place, which, title in ((row[1], order[:SHOWN], "least unusual"), (row[2], order[::-1][:SHOWN], "most unusual")):
            tiles = picture.as_float(images.x[which.copy()]).expand(-1, max(3, images.x.shape[1]), -1, -1)
            framed = [] if outlier is None else [index for index, image in enumerate(which) if outlier[image]]
            picture.show(place, pictures.grid(picture.framed(tiles, framed, ORANGE), 6))
            title += " (outliers framed)" if framed else ""
            place.set_title(title, fontsize=9, color=INK, loc="left")
    return figure
