"""From sections of runs to their comparisons: a table of seeds and groups, its statistics, and effects of single keys."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import pandas as pd

from vae_lab.compare import metrics, statistics
from vae_lab.compare.collect import Record
from vae_lab.compare.groups import Group, Section, part_label
from vae_lab.compare.metrics import Metric
from vae_lab.compare.statistics import Pair


@dataclass(eq=False)
class Effect:
    """One key of `by`, averaged over the settings of the other keys that all of its values have."""

    key: str
    over: str  # 'averaged over latent_dim 2, 10, 20'; empty if there is no other key
    values: pd.DataFrame  # a row per seed, a column per value of the key
    pairs: list[Pair]


@dataclass(eq=False)
class Comparison:
    """Groups of one section on one metric. Columns and pairs name groups by their label."""

    section: Section
    metric: Metric
    groups: list[Group]  # those with the metric, best mean first
    without: list[Group]  # those that do not have it
    values: pd.DataFrame
    table: pd.DataFrame  # n, mean, sd, low, high, rank, wins, of
    pairs: list[Pair]
    effects: list[Effect] = field(default_factory=list)

    @property
    def best(self) -> Group:
        return self.groups[0]

    @property
    def num_seeds(self) -> int:
        """Seeds of the group that has fewest."""
        return int(self.table["n"].min())

    def against_best(self, group: Group) -> Pair | None:
        """The pair of a group and the one with the best mean."""
        names = {group.label, self.best.label}
        return next((pair for pair in self.pairs if {pair.a, pair.b} == names), None)


def seed_table(groups: Sequence[Group], metric: str) -> pd.DataFrame:
    """A row per seed, a column per group; several runs of a group with one seed count as one, their mean."""
    columns = {group.label: _by_seed(group.records, metric) for group in groups}
    return pd.DataFrame(columns, columns=[group.label for group in groups]).sort_index()


def _by_seed(records: Sequence[Record], metric: str) -> "pd.Series[float]":
    known = [(record.seed, record.number(metric)) for record in records]
    series = pd.Series([value for _, value in known], index=[seed for seed, _ in known], dtype=float)
    return series.dropna().groupby(level=0).mean()


def compare(section: Section, metric: Metric, by: Sequence[str]) -> Comparison | None:
    """Statistics of a section; None if no run of it has the metric."""
    having = [group for group in section.groups if group.usable(metric.name)]
    if not having:
        return None
    values = seed_table(having, metric.name)
    table = statistics.describe(values).join(statistics.ranks(values, metric.sign))
    order = (metric.sign * table["mean"]).sort_values(ascending=False, kind="stable").index
    by_label = {group.label: group for group in having}
    without = [group for group in section.groups if group not in having]
    groups = [by_label[label] for label in order]
    found = Comparison(
        section, metric, groups, without, values[list(order)], table.loc[order], statistics.pairs(values, metric.sign)
    )
    if len(by) > 1 and len(having) > 2:
        found.effects = [effect for key in by if (effect := _effect(having, metric, by, key)) is not None]
    return found


def _effect(groups: Sequence[Group], metric: Metric, by: Sequence[str], key: str) -> Effect | None:
    """Compare the values of one key, using only settings of the other keys, and seeds, that all of its values have."""
    position = by.index(key)
    levels = list(dict.fromkeys(group.values[position] for group in groups))
    if len(levels) < 2:
        return None
    cells = {group.values: _by_seed(group.records, metric.name) for group in groups}

    def cell(level: object, rest: tuple[object, ...]) -> "pd.Series[float] | None":
        return cells.get((*rest[:position], level, *rest[position:]))

    rests = dict.fromkeys(_without(group.values, position) for group in groups)
    full = [rest for rest in rests if all(cell(level, rest) is not None for level in levels)]
    if len(full) < 2:
        return None  # one setting is what the groups themselves show
    names = {level: part_label(key, level) or f"no {key}" for level in levels}
    columns = {names[level]: pd.concat([cells[(*r[:position], level, *r[position:])] for r in full], axis=1) for level in levels}
    complete = {name: frame.dropna().mean(axis=1) for name, frame in columns.items()}
    values = pd.DataFrame(complete)
    values = values[(metric.sign * values.mean()).sort_values(ascending=False, kind="stable").index]
    over = ", ".join(_settings(by, position, full))
    return Effect(key, f"averaged over {over}", values, statistics.pairs(values, metric.sign))


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
