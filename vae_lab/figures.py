"""Pictures of one trained run."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from vae_lab import rng
from vae_lab.config import EvaluationConfig
from vae_lab.data import Images
from vae_lab.engine import to_float
from vae_lab.evaluate import Latents
from vae_lab.models import LatentVariableModel
from vae_lab.system import System

INK, MUTED, ACCENT = "#222222", "#8a8a8a", "#d1495b"
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
def draw_all(subject: Subject, metrics: Sequence[dict[str, Any]], best_epoch: int, folder: Path) -> list[Path]:
    """Write every picture that this run can have into `folder`; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    figures = {
        "reconstructions": reconstructions(subject),
        "samples": samples(subject),
        "latent": latent(subject),
        "curves": curves(subject.title, metrics, best_epoch),
    }
    if subject.system.model.latent_dim == 2:
        figures["manifold"] = manifold(subject)
    paths = []
    for name, figure in figures.items():
        path = folder / f"{name}.png"
        figure.savefig(path, dpi=130, facecolor="white")
        paths.append(path)
    return paths


def reconstructions(subject: Subject) -> Figure:
    """Test images over the decoded means of their posteriors."""
    count = min(subject.config.num_images, len(subject.images))
    x = to_float(subject.images.x[:count])
    model = subject.system.model
    decoded = model.likelihood(model.posterior(x).mean).mean
    figure = _picture(_grid(torch.cat([x, decoded]), count), f"Reconstructions: {subject.title}", width=max(4.0, 0.8 * count))
    axes = figure.axes[0]
    height = axes.get_images()[0].get_array().shape[0]  # type: ignore[union-attr]
    axes.set_yticks([height / 4, 3 * height / 4], ["test image", "reconstruction"])
    axes.tick_params(axis="y", length=0, labelsize=9)
    return figure


def samples(subject: Subject) -> Figure:
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
    return _picture(_grid(model.likelihood(z).mean, side), f"Samples from {source}: {subject.title}", width=6.0)


def manifold(subject: Subject) -> Figure:
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
    gap = 0 if decoded.shape[-1] >= 16 else 1  # small images need a line between them
    figure = _picture(_grid(decoded, steps, gap), f"Latent plane ({source}): {subject.title}", width=7.0, margin=0.55)
    axes = figure.axes[0]
    size = axes.get_images()[0].get_array().shape[0]  # type: ignore[union-attr]
    ticks = np.linspace(0, steps - 1, 5).round().astype(int)
    places = (ticks + 0.5) * size / steps
    axes.set_xticks(places, [f"{horizontal[i]:.1f}" for i in ticks])
    axes.set_yticks(places, [f"{vertical.flip(0)[i]:.1f}" for i in ticks])
    axes.set_xlabel("$z_0$")
    axes.set_ylabel("$z_1$")
    axes.tick_params(colors=INK, labelsize=8)
    return figure


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
    figure = Figure(figsize=(7, 6), layout="constrained")
    axes = figure.add_subplot()
    size = float(np.clip(4000 / len(mu), 2, 18))
    for index, label in enumerate(np.unique(labels)):
        mask = labels == label
        axes.scatter(
            points[mask, 0], points[mask, 1], s=size, alpha=0.75, linewidths=0, color=COLOURS[index % 10], label=str(label)
        )
    if dim == 2 and isinstance(subject.system.model, LatentVariableModel):
        angle, radius = np.linspace(0, 2 * np.pi, 200), math.sqrt(-2 * math.log(0.05))
        axes.plot(radius * np.cos(angle), radius * np.sin(angle), ls="--", lw=1, color=MUTED, label="95 % of prior")
    if subject.images.y is not None:
        axes.legend(
            frameon=False, fontsize=8, markerscale=max(1.0, 5 / math.sqrt(size)), loc="center left", bbox_to_anchor=(1, 0.5)
        )
    axes.set_xlabel(names[0])
    axes.set_ylabel(names[1])
    if dim > 1:
        axes.set_aspect("equal", adjustable="datalim")
    _plain(axes, f"Codes of the test images: {subject.title}")
    return figure


def curves(title: str, metrics: Sequence[dict[str, Any]], best_epoch: int) -> Figure:
    """Every logged term against the epoch, training and validation."""
    terms = [key.removeprefix("train/") for key in metrics[0] if key.startswith("train/")]
    figure = Figure(figsize=(4.2 * len(terms), 3.4), layout="constrained")
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


def _grid(x: Float[Tensor, "N C H W"], columns: int, gap: int = 1) -> np.ndarray:
    """Images in rows of `columns` as one array [height, width, channels], white lines of `gap` pixels between them."""
    rows = math.ceil(len(x) / columns)
    images = x.detach().float().clamp(0, 1).cpu().permute(0, 2, 3, 1).numpy()
    _, height, width, channels = images.shape
    sheet = np.ones((rows * (height + gap) - gap, columns * (width + gap) - gap, channels), dtype=np.float32)
    for index, image in enumerate(images):
        top, left = (index // columns) * (height + gap), (index % columns) * (width + gap)
        sheet[top : top + height, left : left + width] = image
    return sheet


def _picture(sheet: np.ndarray, title: str, width: float, margin: float = 0.0) -> Figure:
    """A figure that shows one array without interpolation."""
    height = width * sheet.shape[0] / sheet.shape[1] + 0.5 + margin
    figure = Figure(figsize=(width + margin, height), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(
        sheet.squeeze(-1) if sheet.shape[-1] == 1 else sheet,
        cmap="gray",
        vmin=0,
        vmax=1,
        interpolation="nearest",
        extent=(0, sheet.shape[1], sheet.shape[0], 0),
    )
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.set_title(title, fontsize=10, color=INK, loc="left")
    return figure


def _plain(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=10, color=INK, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK, labelsize=8)
    axes.grid(alpha=0.25, lw=0.6)
