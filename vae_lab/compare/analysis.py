"""From sections of runs to their comparisons: a table of seeds and groups, its statistics, and effects of single keys."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import pandas as pd

from vae_lab.compare import design, image_terms, metrics, statistics
from vae_lab.compare.collect import Record
from vae_lab.compare.design import Design, Loss
from vae_lab.compare.groups import Group, Section, part_label
from vae_lab.compare.metrics import Metric
from vae_lab.compare.statistics import Pair

RELEVANT = 1e-3  # of the scale of a metric: the least difference of interest, if none is said


@dataclass(eq=False)
class Effect:
    """One key of `by`, averaged over the settings of the other keys that all of its values have: an estimate, no claim."""

    key: str
    over: str  # 'averaged over latent_dim 2, 10, 20'; empty if there is no other key
    values: pd.DataFrame  # a row per seed, a column per value of the key
    pairs: list[Pair]


@dataclass(eq=False)
class Comparison:
    """Groups of one section on one metric. Columns and pairs name groups by their label.

    Compared are `groups` over the seeds of `values`, the best mean first; after them stand those `apart`, of which too few
    settings and seeds are common. `dead` have no number at all, since their runs are lost. `least` is the least difference of
    interest, in the metric's unit; `claims` says whether any difference may be called better here.
    """

    section: Section
    metric: Metric
    groups: list[Group]
    without: list[Group]  # those whose runs ended without the metric
    dead: list[Group]
    design: Design
    losses: dict[str, Loss]
    table: pd.DataFrame  # n, mean, sd, low, high, rank, wins, of
    pairs: list[Pair]
    least: float
    claims: bool
    effects: list[Effect] = field(default_factory=list)

    @property
    def values(self) -> pd.DataFrame:
        """A row per seed, a column per compared group."""
        return self.design.values

    @property
    def compared(self) -> list[Group]:
        return [group for group in self.groups if group.label not in self.design.apart]

    @property
    def best(self) -> Group | None:
        """The compared group with the best mean; None if there is nothing to compare on."""
        return self.groups[0] if self.compared else None

    @property
    def others(self) -> list[Group]:
        """The compared groups but the best."""
        return self.compared[1:]

    @property
    def num_seeds(self) -> int:
        """Seeds that all compared groups have."""
        return len(self.values)

    def against_best(self, group: Group) -> Pair | None:
        """The pair of a group and the one with the best mean."""
        if self.best is None:
            return None
        return self._by_names.get(frozenset((group.label, self.best.label)))

    @cached_property
    def _by_names(self) -> dict[frozenset[str], Pair]:
        return {frozenset((pair.a, pair.b)): pair for pair in self.pairs}


def compare(
    section: Section, metric: Metric, by: Sequence[str], families: int = 1, least: float | None = None
) -> Comparison | None:
    """Statistics of a section; None if no run of it has the metric.

    Args:
        section: Runs on one scale.
        metric: What to compare by.
        by: Keys that groups differ in.
        families: Tables of the page that claim, this one included, and share its 5 % of false claims; 0: this one only estimates.
        least: Least difference of interest; None: a thousandth of the scale, the median of the groups' means.
    """
    having = [group for group in section.groups if group.usable(metric.name)]
    if not having:
        return None
    plan = design.design(having, metric.name, by)
    losses = {group.label: design.loss(group, metric.name, plan.keys) for group in section.groups}
    table = statistics.describe(plan.values)
    alone = {group.label: _by_seed(group.records, metric.name) for group in having if group.label in plan.apart}
    tables = [table, *(statistics.describe(pd.DataFrame({label: values})) for label, values in alone.items())]
    whole = pd.concat([part for part in tables if len(part)])
    whole = whole.join(statistics.ranks(plan.values, metric.sign)).fillna({"wins": 0, "of": 0})
    order = [
        label
        for part in (whole[whole.index.isin(table.index)], whole[~whole.index.isin(table.index)])
        for label in (metric.sign * part["mean"]).sort_values(ascending=False, kind="stable").index
    ]
    by_label = {group.label: group for group in section.groups}
    if least is None:
        least = RELEVANT * float(whole["mean"].abs().median())
    images = image_terms.of_groups(
        {label: plan.records(by_label[label], metric.name) for label in plan.values.columns}, metric.name
    )
    rules = statistics.Rules(families, least, frozenset(label for label, lost in losses.items() if lost.count), images)
    rest = [group for group in section.groups if group not in having]
    dead = [group for group in rest if not _never_has(group, metric.name)]
    found = Comparison(
        section,
        metric,
        [by_label[label] for label in order],
        [group for group in rest if group not in dead],
        dead,
        plan,
        losses,
        whole.loc[order],
        statistics.pairs(plan.values, metric.sign, rules),
        least,
        families > 0,
    )
    if len(by) > 1 and len(having) > 2:
        found.effects = [effect for key in by if (effect := _effect(having, metric, by, key)) is not None]
    return found


def _never_has(group: Group, metric: str) -> bool:
    """Whether a metric is none of a group's, as an autoencoder has no ELBO; not so if its runs are lost or it is infinite."""
    ended = [record for record in group.records if record.usable]
    return any(metric not in record.numbers and metric.replace("/", ".") not in record.nonfinite for record in ended)


def _by_seed(records: Sequence[Record], metric: str) -> "pd.Series[float]":
    known = [(record.seed, record.number(metric)) for record in records]
    series = pd.Series([value for _, value in known], index=[seed for seed, _ in known], dtype=float)
    return series.dropna().groupby(level=0).mean()


def _effect(groups: Sequence[Group], metric: Metric, by: Sequence[str], key: str) -> Effect | None:
    """Estimate what one key does, using only settings of all other keys, and seeds, that all of its values have."""
    position = by.index(key)
    levels = list(dict.fromkeys(group.values[position] for group in groups))
    if len(levels) < 2:
        return None
    plan = design.design(groups, metric.name, by)
    cells = {group.values: design.cells_of(group, metric.name, plan.keys) for group in groups}
    rests = dict.fromkeys(_without(group.values, position) for group in groups)
    full = {}
    for rest in rests:
        known = [cells.get((*rest[:position], level, *rest[position:])) for level in levels]
        common = set.intersection(*(set(part) for part in known if part is not None)) if None not in known else set()
        if common:
            full[rest] = common
    if len(full) < 2:
        return None  # one setting is what the groups themselves show
    names = {level: part_label(key, level) or f"no {key}" for level in levels}
    seeds = sorted(set.intersection(*({seed for _, seed in common} for common in full.values())))
    if not seeds:
        return None

    def mean(level: object, seed: int) -> float:
        """Of a level at a seed, over the same settings for every level."""
        parts = []
        for rest, common in full.items():
            known = cells[(*rest[:position], level, *rest[position:])]
            runs = [[record.number(metric.name) for record in known[cell]] for cell in sorted(common) if cell[1] == seed]
            parts.append(sum(sum(each) / len(each) for each in runs) / len(runs))
        return sum(parts) / len(parts)

    values = pd.DataFrame({names[level]: [mean(level, seed) for seed in seeds] for level in levels}, index=seeds)
    values = values[(metric.sign * values.mean()).sort_values(ascending=False, kind="stable").index]
    over = ", ".join(_settings(by, position, list(full)))
    return Effect(key, f"averaged over {over}", values, statistics.pairs(values, metric.sign, statistics.Rules(families=0)))


def _without(values: tuple[object, ...], position: int) -> tuple[object, ...]:
    return values[:position] + values[position + 1 :]


def _settings(by: Sequence[str], position: int, rests: Sequence[tuple[object, ...]]) -> list[str]:
    others = [key for index, key in enumerate(by) if index != position]
    values = [
        list(dict.fromkeys(f"{rest[i]:g}" if isinstance(rest[i], float) else str(rest[i]) for rest in rests))
        for i in range(len(others))
    ]
    return [f"{key} {', '.join(found)}" for key, found in zip(others, values, strict=True) if len(found) > 1]


def metrics_of(section: Section, wanted: Metric) -> list[Metric]:
    """The metric asked for, and the reconstruction for all groups, where some groups do not have the first (an AE has no ELBO)."""
    having = [group for group in section.groups if group.usable(wanted.name)]
    lacking = [group for group in section.groups if group not in having and group.usable(metrics.RECONSTRUCTION)]
    chosen = [wanted] if having else []
    if lacking and wanted.name != metrics.RECONSTRUCTION:
        chosen.append(metrics.find(metrics.RECONSTRUCTION, [metrics.RECONSTRUCTION], None))
    return chosen
