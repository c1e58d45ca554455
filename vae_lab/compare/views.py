"""Plots of outcomes: what groups reach, by how much the best is better, how it depends on a key, and what it costs."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vae_lab.compare import statistics
from vae_lab.compare.analysis import Comparison
from vae_lab.compare.chart import MUTED, Chart, Mark, Number, Panel, Style, styles
from vae_lab.compare.groups import Group, Section, full_key
from vae_lab.compare.metrics import OTHERS

LOG_FROM = 8  # ratio of the largest to the smallest value from which an axis is logarithmic


def styles_of(section: Section) -> Callable[[Group], Style]:
    """The look of a section's groups, the same in all of its plots."""
    found = styles(section.groups)
    return lambda group: found[group.index]


def hover(group: Group, metric: str) -> list[str]:
    """One text for each run of a group that has the metric."""
    return [f"{group.label}, seed {record.seed}: {record.name}" for record in group.usable(metric)]


def outcome(comparisons: Sequence[Comparison]) -> Chart:
    """Each group's runs, mean and interval, best first."""
    panels = []
    for found in comparisons:
        name, look = found.metric.name, styles_of(found.section)
        panel = Panel(name, f"{name} [{found.metric.unit}]", "")
        for place, group in enumerate(reversed(found.groups)):
            runs, row = group.usable(name), found.table.loc[group.label]
            panel.y_ticks.append((place, group.label))
            x = [record.number(name) for record in runs]
            panel.marks.append(
                Mark("points", x, [place - 0.22] * len(x), look(group), group.index, text=hover(group, name), faint=True)
            )
            panel.marks.append(_interval("xerr", row["mean"], place, row["low"], row["high"], look(group), group))
        panels.append(panel)
    return Chart("outcome", "What each variant reaches", OUTCOME, panels, wide=True)


OUTCOME = (
    "A faint point is a run, the bold one the mean over what all compared variants have, the bar its 95 % interval over seeds, "
    "wide enough for the choice of the best. Best on top; below stand those that are not compared."
)


def _interval(kind: str, x: Number, y: Number, low: float, high: float, style: Style, group: Group) -> Mark:
    value = x if kind == "xerr" else y
    low, high = (value if math.isnan(end) else end for end in (low, high))
    text = [f"{group.label}: {value:.4g}, 95 % interval {low:.4g} to {high:.4g}"]
    return Mark(kind, [x], [y], style, group.index, low=[low], high=[high], text=text)


def gains(comparisons: Sequence[Comparison]) -> Chart | None:
    """How much better the best group is than each other one, within seeds."""
    panels = []
    for found in comparisons:
        if found.best is None:
            continue
        look = styles_of(found.section)
        panel = Panel(f"{found.metric.name}: gain of {found.best.label}", f"{found.metric.name} gained [{found.metric.unit}]", "")
        rows = [(group, pair) for group in reversed(found.others) if (pair := found.against_best(group))]
        for place, (group, pair) in enumerate(rows):
            panel.y_ticks.append((place, group.label))
            panel.marks.append(_interval("xerr", pair.gain, place, pair.low, pair.high, look(group), group))
            if not math.isnan(pair.image_error):
                reach, text = IMAGES_Z * pair.image_error, [f"{group.label}: {pair.gain:.4g}, test images"]
                ends, below = [pair.gain - reach, pair.gain + reach], [place - 0.25] * 2
                panel.marks.append(Mark("line", ends, below, Style(look(group).colour), group.index, text=text, faint=True))
        if rows:
            panel.marks.insert(0, Mark("guide", [0, 0], [-0.5, len(rows) - 0.5]))
            panel.marks.append(Mark("note", [0], [len(rows) - 0.5], text=["no difference"]))
            panels.append(panel)
    return Chart("gains", "By how much the best is better", GAINS, panels, wide=True) if panels else None


IMAGES_Z = 1.96  # standard errors of a normal 95 % interval
GAINS = (
    "Differences within the seeds that all have: the point is their mean, the bar its 95 % interval over seeds, which holds for "
    "all pairs of variants at once: a bar that crosses zero is not told apart from noise. The thin line below it, where runs kept "
    "their terms of single images, is the 95 % interval over the choice of test images, for these very runs."
)


def against(comparisons: Sequence[Comparison], by: Sequence[str], implied: Sequence[str]) -> list[Chart]:
    """A plot for each numeric key: the metric against it, a line for each setting of the other keys."""
    charts = []
    for key in [*by, *(key for key in implied if key == "beta")]:
        panels = [panel for found in comparisons if (panel := _against(found, by, key)) is not None]
        if panels:
            caption = f"Points are runs, bars 95 % intervals of the mean over seeds. Lines join settings that differ in {key} only."
            charts.append(Chart(f"against_{key}", f"Against {key}", caption, panels))
    return charts


def value_of(group: Group, key: str) -> Any:
    """A group's config value of a key, if its runs agree in it."""
    values = [record.config.get(full_key(key)) for record in group.records]
    return values[0] if all(value == values[0] for value in values) else None


def is_number(value: Any) -> bool:
    """Whether it can lie on an axis."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _against(found: Comparison, by: Sequence[str], key: str) -> Panel | None:
    places = {group.index: value for group in found.groups if is_number(value := value_of(group, key))}
    if len(set(places.values())) < 2:
        return None
    name, look = found.metric.name, styles_of(found.section)
    panel = Panel(f"{name} against {key}", key, f"{name} [{found.metric.unit}]")
    panel.x_log = is_wide(list(places.values()))
    here = sorted((group for group in found.groups if group.index in places), key=lambda group: places[group.index])
    lines: dict[tuple[Any, ...], list[Group]] = {}
    for group in here:
        lines.setdefault(tuple(v for k, v in zip(by, group.values, strict=True) if not same_axis(k, key)), []).append(group)
    for members in lines.values():
        means = [float(found.table.loc[group.label, "mean"]) for group in members]
        panel.marks.append(join(members, [places[group.index] for group in members], means, look))
    for group in here:
        x, runs, row = places[group.index], group.usable(name), found.table.loc[group.label]
        y = [record.number(name) for record in runs]
        panel.marks.append(Mark("points", [x] * len(y), y, look(group), group.index, text=hover(group, name), faint=True))
        panel.marks.append(_interval("yerr", x, row["mean"], row["low"], row["high"], look(group), group))
    ticks = {places[group.index]: tick_label(key, group) for group in here}
    panel.x_ticks = sorted(ticks.items())
    return panel


def same_axis(key: str, axis: str) -> bool:
    """Whether a key of `by` moves along an axis: the key itself, or the model's name where it only names a beta."""
    return key == axis or (axis == "beta" and key == "model")


def tick_label(key: str, group: Group) -> str:
    """A value, with its `beta_eff` where it is a beta."""
    value = value_of(group, key)
    if key == "beta" and group.beta_eff is not None and group.beta_eff != value:
        return f"{value:g} (eff {group.beta_eff:.3g})"
    return f"{value:g}"


def join(members: Sequence[Group], x: Sequence[Number], y: Sequence[Number], look: Callable[[Group], Style]) -> Mark:
    """A line through groups: in their colour if they share it, else grey."""
    colours = {look(group).colour for group in members}
    same = len(colours) == 1
    return Mark(
        "line", x, y, Style(colours.pop() if same else MUTED), members[0].index if len(members) == 1 else None, faint=not same
    )


def is_wide(values: Sequence[Number]) -> bool:
    """Whether positive values spread so far that an axis should be logarithmic."""
    return min(values) > 0 and max(values) / min(values) > LOG_FROM


def cost(comparisons: Sequence[Comparison]) -> Chart | None:
    """Quality against training time and parameters, with the Pareto front of the groups."""
    panels = []
    for found in comparisons:
        for source, label in (("time/train_s", "training time [s a run]"), ("parameters", "parameters")):
            means = [group.mean(source) for group in found.groups]
            if found.metric.name in OTHERS or len({round(value, 6) for value in means if not math.isnan(value)}) < 2:
                continue
            panels.append(_cost(found, source, label, means))
    return Chart("cost", "Quality and its cost", COST, panels) if panels else None


COST = (
    "Small points are runs, large ones groups. The grey line joins the groups that no other beats in both (the Pareto front). A "
    "run trained in a cohort counts with its share of the cohort's time, which depends on the cohort's size and on what else ran."
)


def _cost(found: Comparison, source: str, label: str, means: Sequence[float]) -> Panel:
    name, look = found.metric.name, styles_of(found.section)
    panel = Panel(f"{name} against {label.partition(' [')[0]}", label, f"{name} [{found.metric.unit}]", x_log=is_wide(means))
    quality = [float(found.table.loc[group.label, "mean"]) for group in found.groups]
    front = statistics.pareto(means, list(found.metric.sign * np.array(quality)))
    panel.marks.append(Mark("line", [means[i] for i in front], [quality[i] for i in front], Style(MUTED, dash=1), faint=True))
    for group, x, y in zip(found.groups, means, quality, strict=True):
        runs = group.usable(name)
        if len(runs) > 1:
            costs, values = [record.number(source) for record in runs], [record.number(name) for record in runs]
            panel.marks.append(Mark("points", costs, values, look(group), group.index, text=hover(group, name), faint=True))
        text = [f"{group.label}: {y:.4g} at {x:.4g}"]
        panel.marks.append(Mark("points", [x], [y], look(group), group.index, text=text))
    return panel
