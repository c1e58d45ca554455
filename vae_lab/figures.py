"""Pictures of one trained run."""

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from PIL.Image import Image
from torch import Tensor
from torch.distributions import Distribution

from vae_lab import rng
from vae_lab.arrays import image_reader
from vae_lab.config import EvaluationConfig
from vae_lab.data import Images
from vae_lab.data.base import to_float
from vae_lab.distributions import draw, normal_moments, quantiles
from vae_lab.evaluate import Latents
from vae_lab.mixture import MAX_CODES, Mixture, fit_mixture
from vae_lab.models import LatentVariableModel
from vae_lab.pictures import INK, grid, picture
from vae_lab.run_dir import storage_errors
from vae_lab.skipped import Skipped
from vae_lab.system import System

MUTED = "#8a8a8a"
COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#17becf")
PRIOR_QUANTILE = 0.02  # the decoded plane runs from this quantile of the prior, or of the codes, to its mirror image
SHOWN_DRAWS = 1000  # of a prior that has no ellipse


@dataclass(frozen=True)
class Subject:
    """What is drawn: a system with its best parameters, test images on its device, and their codes; training images anywhere."""

    title: str
    system: System
    images: Images
    latents: Latents
    seed: int
    config: EvaluationConfig
    train: Images

    @cached_property
    def training_codes(self) -> Tensor:
        """Posterior means [N, D] of the training images that `vae-lab sample` looks at too, in the same batches; on the CPU."""
        codes, count = [], min(MAX_CODES, len(self.train))
        for start in range(0, count, self.config.batch_size):
            x = self.train.x[start : min(start + self.config.batch_size, count)]
            pixels = image_reader(x, (x.shape[1], x.shape[2], x.shape[3]))(slice(0, len(x)))
            codes.append(self.system.model.posterior(pixels.to(self.images.x.device)).mean.cpu())
        return torch.cat(codes)


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
    for name, made in figures.items():
        path, png = folder / f"{name}.png", io.BytesIO()
        with skipped.costs_itself(f"figures/{name}"):
            with storage_errors(path):
                path.unlink(missing_ok=True)  # what an earlier command drew is not of this state
            figure = made()
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
    """Decoded draws from the prior; without a prior, from a mixture fitted to the codes of training images."""
    model, side = subject.system.model, subject.config.num_images
    z, source = _codes(subject, side * side)
    decoded = model.likelihood(z.to(subject.images.x.device)).mean
    return picture(grid(decoded, side), f"Samples from {source}: {subject.title}", width=780)


def _codes(subject: Subject, n: int) -> tuple[Tensor, str]:
    """`n` codes to decode, and what they were drawn from."""
    model, stream = subject.system.model, rng.generator(subject.seed, "samples")
    if isinstance(model, LatentVariableModel):
        return draw(model.prior(), n, stream), "the prior"
    mixture = _mixture(subject)
    return mixture.draw(n, stream), f"{mixture} fitted to training codes"


def _mixture(subject: Subject) -> Mixture:
    return fit_mixture(subject.training_codes, seed=subject.seed)


def manifold(subject: Subject) -> Image:
    """The decoded latent plane: steps of equal probability under the prior, or of equal length over training codes."""
    horizontal, vertical, source = _axes_of_the_plane(subject)
    steps = len(horizontal)
    plane = torch.stack(torch.meshgrid(vertical.flip(0), horizontal, indexing="ij")[::-1], -1).view(-1, 2)
    decoded = subject.system.model.likelihood(plane.to(subject.images.x.device)).mean
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


def _axes_of_the_plane(subject: Subject) -> tuple[Tensor, Tensor, str]:
    """The values of the first latent and of the second, upwards, and where they come from."""
    model, steps, config = subject.system.model, subject.config.manifold_steps, subject.config
    if config.manifold_range is not None:
        x0, x1, y0, y1 = config.manifold_range
        return torch.linspace(x0, x1, steps), torch.linspace(y0, y1, steps), "range set"
    if isinstance(model, LatentVariableModel):
        levels = torch.linspace(PRIOR_QUANTILE, 1 - PRIOR_QUANTILE, steps)
        horizontal, vertical = quantiles(model.prior(), levels, rng.generator(subject.seed, "quantiles")).T
        return horizontal, vertical, "each latent's quantiles under the prior"
    low, high = subject.training_codes.quantile(torch.tensor([PRIOR_QUANTILE, 1 - PRIOR_QUANTILE]), dim=0)
    horizontal, vertical = (torch.linspace(float(low[i]), float(high[i]), steps) for i in (0, 1))
    return horizontal, vertical, "range of the training codes"


def latent(subject: Subject) -> Figure:
    """Posterior means of the test images, coloured by class; their two leading principal components where D > 2."""
    mu, names = subject.latents.mu, ["$z_0$", "$z_1$"]
    labels = subject.images.y.cpu().numpy() if subject.images.y is not None else np.zeros(len(mu), dtype=int)
    dim = mu.shape[1]
    points = mu.numpy()
    if dim > 2:
        centred = torch.cat([mu - mu.mean(0), mu.new_zeros(max(0, 2 - len(mu)), dim)])  # one code has one component
        _, singular, directions = torch.linalg.svd(centred, full_matrices=False)
        share = singular.square() / singular.square().sum().clamp_min(1e-30)
        points = (centred @ directions[:2].T).numpy()[: len(mu)]
        names = [f"principal component {i + 1} ({share[i]:.0%} of variance)" for i in (0, 1)]
    elif dim == 1:
        points, names = np.stack([points[:, 0], labels + np.linspace(-0.3, 0.3, len(mu))], 1), ["$z_0$", "class"]
    figure = Figure(figsize=(7, 6))
    axes = figure.add_axes((0.09, 0.09, 0.72, 0.84))
    classes, index = np.unique(labels, return_inverse=True)
    colours = np.array(COLOURS)[index % len(COLOURS)]
    axes.scatter(points[:, 0], points[:, 1], s=float(np.clip(4000 / len(mu), 2, 18)), alpha=0.75, linewidths=0, c=colours)
    handles: list[Artist] = [
        Line2D([], [], ls="", marker="o", color=COLOURS[i % 10], label=str(name)) for i, name in enumerate(classes[:30])
    ]
    if subject.images.y is None:
        handles = []
    if dim == 2 and isinstance(subject.system.model, LatentVariableModel):
        handles.append(_draw_prior(axes, subject.system.model.prior(), rng.generator(subject.seed, "prior-shown")))
    if handles:
        axes.legend(handles=handles, frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    axes.set_xlabel(names[0])
    axes.set_ylabel(names[1])
    if dim > 1:
        axes.set_aspect("equal", adjustable="datalim")
    _plain(axes, f"Codes of the test images: {subject.title}")
    return figure


def _draw_prior(axes: Axes, prior: Distribution, generator: torch.Generator) -> Artist:
    """The ellipse that holds 95 % of a normal prior; of any other some draws, which claim nothing."""
    if (moments := normal_moments(prior)) is None:
        z = draw(prior, SHOWN_DRAWS, generator).cpu().numpy()
        return axes.scatter(z[:, 0], z[:, 1], s=3, linewidths=0, c=MUTED, alpha=0.5, zorder=0.5, label="draws of prior")
    mean, cholesky = moments[0].cpu().numpy(), torch.linalg.cholesky(moments[1]).cpu().numpy()
    angle, radius = np.linspace(0, 2 * np.pi, 200), math.sqrt(-2 * math.log(0.05))
    x, y = mean[:, None] + radius * cholesky @ np.stack([np.cos(angle), np.sin(angle)])
    (line,) = axes.plot(x, y, ls="--", lw=1, color=MUTED, label="95 % of prior")
    return line


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
