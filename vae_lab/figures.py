"""Pictures of one trained run."""

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from PIL.Image import Image

from vae_lab import rng
from vae_lab.config import EvaluationConfig
from vae_lab.data import Images
from vae_lab.data.base import to_float
from vae_lab.evaluate import Latents
from vae_lab.models import LatentVariableModel
from vae_lab.pictures import INK, grid, picture
from vae_lab.run_dir import storage_errors
from vae_lab.skipped import Skipped
from vae_lab.system import System

MUTED = "#8a8a8a"
COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#17becf")
PRIOR_QUANTILE = 0.02  # the decoded plane runs from this quantile of the prior, or of the codes, to its mirror image


@dataclass(frozen=True)
class Subject:
    """What is drawn: a system with its best parameters, test images on its device, and their codes."""

    title: str
    system: System
    images: Images
    latents: Latents
    seed: int
    config: EvaluationConfig


@torch.no_grad()
def draw_all(subject: Subject, metrics: Sequence[dict[str, Any]], best_epoch: int, folder: Path, skipped: Skipped) -> list[Path]:
    """Write every picture that this run can have into `folder`; returns their paths.

    One that raises is left out, as `skipped` notes.

    Raises:
        StorageError: a picture cannot be written.
    """
    figures: dict[str, Callable[[], Image | Figure]] = {
        "reconstructions": lambda: reconstructions(subject),
        "samples": lambda: samples(subject),
        "latent": lambda: latent(subject),
        "curves": lambda: curves(subject.title, metrics, best_epoch),
    }
    if subject.system.model.latent_dim == 2:
        figures["manifold"] = lambda: manifold(subject)
    paths = []
    for name, draw in figures.items():
        path, png = folder / f"{name}.png", io.BytesIO()
        with skipped.costs_itself(f"figures/{name}"):
            with storage_errors(path):
                path.unlink(missing_ok=True)  # what an earlier command drew is not of this state
            figure = draw()
            if isinstance(figure, Figure):
                figure.savefig(png, format="png", dpi=130, facecolor="white", pil_kwargs={"compress_level": 3})
            else:
                figure.save(png, format="png", compress_level=3)
            with storage_errors(path):
                folder.mkdir(parents=True, exist_ok=True)
                path.write_bytes(png.getvalue())
            paths.append(path)
    return paths


def reconstructions(subject: Subject) -> Image:
    """Test images over the decoded means of their posteriors."""
    count = min(subject.config.num_images, len(subject.images))
    x = to_float(subject.images.x[:count])
    model = subject.system.model
    sheet = grid(torch.cat([x, model.likelihood(model.posterior(x).mean).mean]), count)
    rows = [(sheet.shape[0] / 4, "test image"), (3 * sheet.shape[0] / 4, "reconstruction")]
    return picture(sheet, f"Reconstructions: {subject.title}", width=104 * count, y_ticks=rows)


def samples(subject: Subject) -> Image:
    """Decoded draws from the prior; without a prior, from a Gaussian fitted to the codes."""
    model, side = subject.system.model, subject.config.num_images
    device = subject.images.x.device
    eps = torch.randn(side * side, model.latent_dim, generator=rng.generator(subject.seed, "samples")).to(device)
    if isinstance(model, LatentVariableModel):
        prior = model.prior()
        z, source = prior.mean + prior.variance.sqrt() * eps, "the prior"
    else:
        mu = subject.latents.mu.to(device)
        cholesky = torch.linalg.cholesky(
            torch.cov(mu.T).view(model.latent_dim, -1) + 1e-6 * torch.eye(model.latent_dim, device=device)
        )
        z, source = mu.mean(0) + eps @ cholesky.T, "a Gaussian fitted to the codes"
    return picture(grid(model.likelihood(z).mean, side), f"Samples from {source}: {subject.title}", width=780)


def manifold(subject: Subject) -> Image:
    """The decoded latent plane: steps of equal probability under the prior, or of equal length over the codes' range."""
    model, steps, config = subject.system.model, subject.config.manifold_steps, subject.config
    if config.manifold_range is not None:
        x0, x1, y0, y1 = config.manifold_range
        horizontal, vertical, source = torch.linspace(x0, x1, steps), torch.linspace(y0, y1, steps), "range set"
    elif isinstance(model, LatentVariableModel):
        quantiles = torch.special.ndtri(torch.linspace(PRIOR_QUANTILE, 1 - PRIOR_QUANTILE, steps))
        prior = model.prior()
        mean, scale = prior.mean.cpu(), prior.variance.sqrt().cpu()
        horizontal, vertical = mean[0] + scale[0] * quantiles, mean[1] + scale[1] * quantiles
        source = "quantiles of the prior"
    else:
        low, high = subject.latents.mu.quantile(torch.tensor([PRIOR_QUANTILE, 1 - PRIOR_QUANTILE]), dim=0)
        horizontal, vertical = (torch.linspace(float(low[i]), float(high[i]), steps) for i in (0, 1))
        source = "range of the codes"
    plane = torch.stack(torch.meshgrid(vertical.flip(0), horizontal, indexing="ij")[::-1], -1).view(-1, 2)
    decoded = model.likelihood(plane.to(subject.images.x.device)).mean
    sheet = grid(decoded, steps, gap=0 if decoded.shape[-1] >= 16 else 1)  # small images need a line between them
    ticks = np.linspace(0, steps - 1, 5).round().astype(int)
    places = (ticks + 0.5) * sheet.shape[0] / steps
    return picture(
        sheet,
        f"Latent plane ({source}): {subject.title}",
        width=910,
        x_ticks=[(place, f"{horizontal[i]:.1f}") for place, i in zip(places, ticks, strict=True)],
        y_ticks=[(place, f"{vertical.flip(0)[i]:.1f}") for place, i in zip(places, ticks, strict=True)],
        labels=("z\N{SUBSCRIPT ZERO}", "z\N{SUBSCRIPT ONE}"),
    )


def latent(subject: Subject) -> Figure:
    """Posterior means of the test images, coloured by class; their two leading principal components where D > 2."""
    mu, names = subject.latents.mu, ["$z_0$", "$z_1$"]
    labels = subject.images.y.cpu().numpy() if subject.images.y is not None else np.zeros(len(mu), dtype=int)
    dim = mu.shape[1]
    points = mu.numpy()
    if dim > 2:
        centred = mu - mu.mean(0)
        _, singular, directions = torch.linalg.svd(centred, full_matrices=False)
        share = singular.square() / singular.square().sum()
        points = (centred @ directions[:2].T).numpy()
        names = [f"principal component {i + 1} ({share[i]:.0%} of variance)" for i in (0, 1)]
    elif dim == 1:
        points, names = np.stack([points[:, 0], labels + np.linspace(-0.3, 0.3, len(mu))], 1), ["$z_0$", "class"]
    figure = Figure(figsize=(7, 6))
    axes = figure.add_axes((0.09, 0.09, 0.72, 0.84))
    classes, index = np.unique(labels, return_inverse=True)
    colours = np.array(COLOURS)[index % len(COLOURS)]
    axes.scatter(points[:, 0], points[:, 1], s=float(np.clip(4000 / len(mu), 2, 18)), alpha=0.75, linewidths=0, c=colours)
    handles = [Line2D([], [], ls="", marker="o", color=COLOURS[i % 10], label=str(name)) for i, name in enumerate(classes[:30])]
    if dim == 2 and isinstance(subject.system.model, LatentVariableModel):
        angle, radius = np.linspace(0, 2 * np.pi, 200), math.sqrt(-2 * math.log(0.05))
        handles += axes.plot(radius * np.cos(angle), radius * np.sin(angle), ls="--", lw=1, color=MUTED, label="95 % of prior")
    if subject.images.y is not None:
        axes.legend(handles=handles, frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    axes.set_xlabel(names[0])
    axes.set_ylabel(names[1])
    if dim > 1:
        axes.set_aspect("equal", adjustable="datalim")
    _plain(axes, f"Codes of the test images: {subject.title}")
    return figure


def curves(title: str, metrics: Sequence[dict[str, Any]], best_epoch: int) -> Figure:
    """Every logged term against the epoch, training and validation."""
    terms = [key.removeprefix("train/") for key in metrics[0] if key.startswith("train/")]
    figure = Figure(figsize=(4.2 * len(terms), 3.4))
    figure.subplots_adjust(0.16 / len(terms), 0.15, 1 - 0.06 / len(terms), 0.8, wspace=0.26)
    epochs = [row["epoch"] for row in metrics]
    for axes, term in zip(figure.subplots(1, len(terms), squeeze=False)[0], terms, strict=True):
        for split, colour in (("train", COLOURS[0]), ("val", COLOURS[1])):
            values = [row.get(f"{split}/{term}") for row in metrics]
            if any(value is not None for value in values):
                numbers = [math.nan if value is None else value for value in values]
                axes.plot(epochs, numbers, color=colour, lw=1.6, marker="o" if len(epochs) < 3 else None, label=split)
        if best_epoch:
            axes.axvline(best_epoch, color=MUTED, lw=0.9, ls=":", label=f"best epoch ({best_epoch})")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("epoch")
        axes.set_ylabel("squared error per image" if term == "sse" else "nats per image")
        axes.legend(frameon=False, fontsize=8)
        axes.margins(x=0.02)
        _plain(axes, term)
    figure.suptitle(title, fontsize=10, color=INK)
    return figure


def _plain(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=10, color=INK, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK, labelsize=8)
    axes.grid(alpha=0.25, lw=0.6)
