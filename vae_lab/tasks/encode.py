"""Codes of images, as a table and as a scatter."""

import argparse
import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from vae_lab import rng
from vae_lab.errors import ConfigError
from vae_lab.figures import COLOURS, INK
from vae_lab.tasks import picture, source
from vae_lab.tasks.command import open_run, say_written
from vae_lab.tasks.files import Writer, output, text, write_all
from vae_lab.trained import Codes

MAX_TSNE = 3000
PERPLEXITY = 30


def command(arguments: argparse.Namespace) -> int:
    """`vae-lab encode`."""
    run = open_run(arguments)
    path = output(arguments.out, run.run_dir.tasks / "codes.npz", ".npz", ".csv")
    how = arguments.plot
    if how == "auto":
        how = "plane" if run.model.latent_dim == 2 else "pca"
    if how == "plane" and run.model.latent_dim != 2:
        raise ConfigError(f"--plot plane: {run.name} has {run.model.latent_dim} latents; use --plot pca or tsne.")
    images = source.read(run, arguments.data, arguments.fit)
    codes = run.encode(images.x)
    files: dict[Path, Writer] = {path: table(codes, images.y, path.suffix.lower())}
    if how:
        files[path.with_suffix(".png")] = picture.png(_scatter(codes.mu, images, how, run.name, arguments.seed))
    return say_written(write_all(files))


def table(codes: Codes, labels: Tensor | None, suffix: str) -> Writer:
    """A writer of codes: arrays mu, variance and label in an .npz, or a row per image in a .csv."""
    mu, variance = codes.mu.numpy(), codes.variance.numpy()
    if suffix == ".npz":
        arrays: dict[str, Any] = {"mu": mu, "variance": variance} | ({} if labels is None else {"label": labels.numpy()})
        return lambda file: np.savez_compressed(file, **arrays)
    dims = range(mu.shape[1])
    rows = io.StringIO()
    lines = csv.writer(rows, lineterminator="\n")
    lines.writerow(["index", "label", *(f"mu_{dim}" for dim in dims), *(f"variance_{dim}" for dim in dims)])
    names = [""] * len(mu) if labels is None else labels.tolist()
    for index, (name, *row) in enumerate(zip(names, mu.astype(str), variance.astype(str), strict=True)):
        lines.writerow([index, name, *row[0], *row[1]])
    return text(rows.getvalue())


def flatten(mu: Float[Tensor, "N D"], how: str, seed: int = 0) -> tuple[np.ndarray, list[str]]:
    """Codes as points [N, 2] of a plane, and the names of its axes.

    References:
        van der Maaten & Hinton 2008, t-SNE. https://jmlr.org/papers/v9/vandermaaten08a.html
    """
    points = mu.double().numpy()
    if how == "plane":
        return points, ["$z_0$", "$z_1$"]
    if min(points.shape) < 2:
        raise ConfigError(f"--plot {how}: needs at least two codes of two latents, not {points.shape[0]} of {points.shape[1]}.")
    if how == "pca":
        from sklearn.decomposition import PCA

        pca = PCA(2).fit(points)
        names = [f"principal component {i + 1} ({pca.explained_variance_ratio_[i]:.0%} of variance)" for i in (0, 1)]
        return pca.transform(points), names
    from sklearn.manifold import TSNE

    perplexity = min(PERPLEXITY, (len(points) - 1) / 3)
    model = TSNE(2, perplexity=perplexity, init="pca", random_state=rng.derive(seed, "tsne") % 2**32)
    return model.fit_transform(points.astype(np.float32)), ["t-SNE 1", "t-SNE 2"]


def _scatter(mu: Tensor, images: source.Source, how: str, name: str, seed: int) -> Figure:
    """Points coloured by class, the class written where its middle is: colours alone do not tell ten classes apart."""
    labels = images.y
    chosen = torch.arange(len(mu))
    if how == "tsne" and len(mu) > MAX_TSNE:
        chosen = torch.randperm(len(mu), generator=rng.generator(seed, "tsne-subset"))[:MAX_TSNE].sort().values
    points, axis_names = flatten(mu[chosen], how, seed)
    figure = Figure(figsize=(7, 6), layout="constrained")
    axes = figure.add_subplot()
    size = float(np.clip(4000 / len(points), 2, 18))
    classes = np.zeros(len(points), dtype=int) if labels is None else labels[chosen].numpy()
    for index, label in enumerate(np.unique(classes)):
        group = points[classes == label]
        axes.scatter(
            group[:, 0], group[:, 1], s=size, alpha=0.7, linewidths=0, color=COLOURS[index % len(COLOURS)], label=str(label)
        )
        if labels is not None:
            x, y = np.median(group, 0)
            box = {"boxstyle": "circle,pad=0.2", "facecolor": "white", "edgecolor": COLOURS[index % len(COLOURS)], "alpha": 0.9}
            axes.text(x, y, str(label), ha="center", va="center", fontsize=9, color=INK, bbox=box)
    if labels is not None:
        axes.legend(frameon=False, fontsize=8, markerscale=4, loc="center left", bbox_to_anchor=(1, 0.5))
    axes.set_xlabel(axis_names[0])
    axes.set_ylabel(axis_names[1])
    axes.set_aspect("equal", adjustable="datalim")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK, labelsize=8)
    axes.grid(alpha=0.25, lw=0.6)
    subset = f" ({len(chosen):,} of {len(mu):,})" if len(chosen) < len(mu) else ""
    axes.set_title(f"{name}: codes of {images.title}{subset}", fontsize=10, color=INK, loc="left")
    return figure
