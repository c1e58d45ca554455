"""Plots of what happens inside: learning curves, rate and distortion, and how much each latent says."""

import json
import math
from collections.abc import Sequence
from statistics import median

import numpy as np
from matplotlib.ticker import MaxNLocator

from vae_lab.compare.chart import MUTED, Chart, Mark, Panel, Style
from vae_lab.compare.collect import Record
from vae_lab.compare.groups import Group, Section, matters
from vae_lab.compare.metrics import TERMS
from vae_lab.compare.views import hover, join, styles_of, value_of
from vae_lab.text import printable

MAX_POINTS = 150  # of a curve
SKIPPED_START = 0.05  # of the epochs: the steep first ones may run off the top
RATE, DISTORTION = "test/kl", "test/nll"


def curves(section: Section) -> Chart | None:
    """Every logged term against the epoch, a panel each for validation and training."""
    keys = dict.fromkeys(key for record in section.records if record.usable for row in record.curves for key in row if "/" in key)
    terms = list(dict.fromkeys(key.partition("/")[2] for key in keys))
    panels = []
    for split in ("val", "train"):
        panels += [panel for term in terms if (panel := _curve(section, f"{split}/{term}")) is not None]
    return Chart("curves", "Learning curves", CURVES, panels) if panels else None


CURVES = (
    "Median over a group's runs; the band reaches from the lowest to the highest run. The first epochs may run off the top: "
    "double-click a plot to see all of it."
)


def _curve(section: Section, key: str) -> Panel | None:
    look = styles_of(section)
    unit, title = TERMS.get(key.partition("/")[2], ("",))[0], printable(key)
    panel = Panel(title, "epoch", f"{title} [{unit}]" if unit else title)
    lows, highs = [], []
    for group in section.groups:
        epochs, low, middle, high = _band([record for record in group.records if record.usable], key)
        if not epochs:
            continue
        if len(group.records) > 1:
            panel.marks.append(Mark("band", epochs, middle, look(group), group.index, low=low, high=high))
        panel.marks.append(Mark("line", epochs, middle, look(group), group.index, text=[group.label]))
        start = min(len(epochs) - 1, max(1, math.ceil(SKIPPED_START * len(epochs))))
        lows.append(min(low))
        highs.append(max(high[start:]))
    if not lows:
        return None
    margin = 0.05 * (max(highs) - min(lows)) or 1e-3
    panel.y_range = (min(lows) - margin, max(highs) + margin)
    return panel


def _band(records: Sequence[Record], key: str) -> tuple[list[float], list[float], list[float], list[float]]:
    """Epochs, lowest, median and highest value of the runs that have one, at most `MAX_POINTS` of them."""
    found: dict[int, list[float]] = {}
    for record in records:
        for row in record.curves:
            value = row.get(key)
            if isinstance(value, int | float) and isinstance(row["epoch"], int):
                found.setdefault(row["epoch"], []).append(value)
    epochs = sorted(found)
    chosen = sorted({round(i) for i in np.linspace(0, len(epochs) - 1, min(len(epochs), MAX_POINTS))}) if epochs else []
    kept = [epochs[i] for i in chosen]
    values = [found[epoch] for epoch in kept]
    return [float(epoch) for epoch in kept], [min(v) for v in values], [median(v) for v in values], [max(v) for v in values]


def rate_distortion(section: Section) -> Chart | None:
    """KL against nll, a point a run, lines of equal ELBO, groups that differ in beta only joined."""
    rated = [group for group in section.groups if group.usable(RATE) and group.usable(DISTORTION)]
    if not rated:
        return None
    look = styles_of(section)
    panel = Panel("", "distortion: nll [nats per image]", "rate: KL [nats per image]")
    points = [(record.number(DISTORTION), record.number(RATE)) for group in rated for record in group.usable(RATE)]
    plain = [group for group in section.groups if group.usable(DISTORTION) and group not in rated]
    edges = [group.mean(DISTORTION) for group in plain]
    box = _box([x for x, _ in points] + edges, [y for _, y in points])
    panel.x_range, panel.y_range = box
    panel.marks += _equal_elbo(*box)
    for group in plain:
        x, floor = group.mean(DISTORTION), box[1][0] + 0.02 * (box[1][1] - box[1][0])
        text = [f"{group.label}: nll {x:.4g}, no prior and so no rate"]
        panel.marks.append(Mark("points", [x], [floor], look(group), group.index, text=text))
    lines: dict[str, list[Group]] = {}
    for group in rated:
        lines.setdefault(_but_beta(group), []).append(group)
    for members in (members for members in lines.values() if len(members) > 1):
        members.sort(key=lambda group: group.beta or 0.0)
        means = [(group.mean(DISTORTION), group.mean(RATE)) for group in members]
        panel.marks.append(join(members, [x for x, _ in means], [y for _, y in means], lambda _: Style(MUTED)))
    for group in rated:
        runs = group.usable(RATE)
        nll, rate = [record.number(DISTORTION) for record in runs], [record.number(RATE) for record in runs]
        text = [
            f"{line}<br>nll {a:.4g}, KL {b:.4g}, ELBO {-a - b:.4g}"
            for line, a, b in zip(hover(group, RATE), nll, rate, strict=True)
        ]
        panel.marks.append(Mark("points", nll, rate, look(group), group.index, text=text))
    return Chart("rate_distortion", "Rate and distortion", RATE_DISTORTION, [panel], wide=True)


RATE_DISTORTION = (
    "What the code says about an image (KL) against what is still missing from the reconstruction (nll). Along a dashed line the "
    "ELBO is the same; lower left is better. Grey lines join variants that differ in beta only. Points on the lower edge are "
    "autoencoders without a prior: they have no rate, and their place says nothing about it."
)


def _but_beta(group: Group) -> str:
    config = group.records[0].config
    out = ("objective.beta", "model.variant")
    kept = {key: value for key, value in config.items() if key not in out and matters(key)}
    return json.dumps(kept, sort_keys=True, default=str)


def _box(x: Sequence[float], y: Sequence[float]) -> tuple[tuple[float, float], tuple[float, float]]:
    def span(values: Sequence[float]) -> tuple[float, float]:
        margin = 0.08 * (max(values) - min(values)) or 0.5
        return min(values) - margin, max(values) + margin

    return span(x), span([0.0, *y])


def _equal_elbo(x: tuple[float, float], y: tuple[float, float]) -> list[Mark]:
    """Lines nll + kl = -ELBO across the box, named near their upper ends."""
    lines = []
    for total in MaxNLocator(8).tick_values(x[0] + y[0], x[1] + y[1]):
        left, right = max(x[0], total - y[1]), min(x[1], total - y[0])
        if right - left > 0.05 * (x[1] - x[0]):
            lines.append(Mark("guide", [left, right], [total - left, total - right]))
            inside = min(0.06 * (y[1] - y[0]), right - left)
            lines.append(Mark("note", [left + inside], [total - left - inside], text=[f"ELBO {-total:g}"]))
    return lines


def latents(section: Section) -> Chart | None:
    """KL of each latent, largest first, and active units."""
    look = styles_of(section)
    spectrum = Panel("KL of each latent", "latent, by falling KL", "KL [nats per image]", x_whole=True)
    longest = 0
    for group in section.groups:
        spectra = [kls for record in group.records if record.usable and (kls := _spectrum(record))]
        length = min(map(len, spectra), default=0)
        if length:
            mean = np.mean([kls[:length] for kls in spectra], axis=0).tolist()
            text = [f"{group.label}: {value:.3g}" for value in mean]
            ranks = list(range(1, length + 1))
            spectrum.marks.append(Mark("line", ranks, mean, look(group), group.index, text=text))
            spectrum.marks.append(Mark("points", ranks, mean, look(group), group.index, text=text))
            longest = max(longest, length)
    active = Panel("Active units", "active latents", "", x_whole=True)
    shown = [group for group in section.groups if group.usable("test/active_units")]
    for place, group in enumerate(reversed(shown)):
        runs, dim = group.usable("test/active_units"), value_of(group, "latent_dim")
        x = [record.number("test/active_units") for record in runs]
        active.y_ticks.append((place, group.label))
        if isinstance(dim, int):
            active.marks.append(Mark("guide", [0, dim], [place, place], text=[f"of {dim}"]))
        active.marks.append(Mark("points", x, [place] * len(x), look(group), group.index, text=hover(group, "test/active_units")))
    panels = [panel for panel in (spectrum, active) if panel.marks]
    return Chart("latents", "How much each latent says", LATENTS, panels) if panels else None


LATENTS = (
    "Left: KL of each latent, averaged over test images and then over runs, sorted within each run. Right: latents whose posterior "
    "mean varies over the test images by more than evaluation.active_threshold; the dashed line ends at latent_dim. A latent near "
    "zero KL is unused; if all are, the posterior has collapsed onto the prior."
)


def _spectrum(record: Record) -> list[float]:
    kls = record.results["test"].get("kl_per_latent")
    numbers = [float(kl) for kl in kls if isinstance(kl, int | float)] if isinstance(kls, list) else []
    return sorted(numbers, reverse=True)
