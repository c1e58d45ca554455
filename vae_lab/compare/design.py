"""Which runs of which groups may be set against each other, and which runs are lost.

A cell is a setting of the keys beside `--by`, and a seed. Groups are compared on the cells that all of them have: means over
different cells may order groups the other way round than every single cell does (Simpson's paradox).
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from vae_lab.compare.collect import Record
from vae_lab.compare.groups import Group, full_key, varied
from vae_lab.run_dir import FINISHED

Cell = tuple[str, int]  # values of the other keys as JSON, and the seed


@dataclass(frozen=True)
class Loss:
    """Of `expected` cells of a group, those without a finite number, by what became of them."""

    expected: int
    causes: dict[str, int]

    @property
    def count(self) -> int:
        return sum(self.causes.values())

    @property
    def words(self) -> str:
        """'2 of 5 runs failed', '3 of 5 runs lost: 2 failed, 1 missing'; empty without a loss."""
        if not self.causes:
            return ""
        if len(self.causes) == 1:
            return f"{self.count} of {self.expected} runs {next(iter(self.causes))}"
        return f"{self.count} of {self.expected} runs lost: {', '.join(f'{n} {cause}' for cause, n in self.causes.items())}"


@dataclass(frozen=True)
class Design:
    """What is compared: a value per seed and compared group, over `cells`. `apart` are groups with too few cells in common."""

    keys: list[str]  # beside `by`, that vary within a group
    values: pd.DataFrame
    cells: list[Cell]
    apart: dict[str, int]  # label: cells in common with the compared groups

    def records(self, group: Group, metric: str) -> list[list[Record]]:
        """The runs behind a group's values, by cell."""
        known = cells_of(group, metric, self.keys)
        return [known[cell] for cell in self.cells]


def other_keys(groups: Sequence[Group], by: Sequence[str]) -> list[str]:
    """Keys beside `by` that vary within a group: what a group decides by itself is a part of it, not a circumstance."""
    return [key for key in dict.fromkeys(key for group in groups for key in varied(group.records)) if key not in by]


def cell_of(record: Record, keys: Sequence[str]) -> Cell:
    """A run's place in the design."""
    return json.dumps([record.config.get(full_key(key)) for key in keys], sort_keys=True, default=str), record.seed


def cells_of(group: Group, metric: str, keys: Sequence[str]) -> dict[Cell, list[Record]]:
    """A group's runs with a finite number, by cell."""
    found: dict[Cell, list[Record]] = {}
    for record in group.usable(metric):
        found.setdefault(cell_of(record, keys), []).append(record)
    return found


def design(groups: Sequence[Group], metric: str, by: Sequence[str]) -> Design:
    """The groups and cells to compare; without two groups that share a cell, no group is.

    A group stands apart if the others have at least twice as many cells in common without it: one group of a single seed would
    else leave nothing of a large sweep.
    """
    keys = other_keys(groups, by)
    cells = {group.label: cells_of(group, metric, keys) for group in groups}
    shared_by = Counter(cell for known in cells.values() for cell in known)
    left = sorted(cells, key=lambda label: -sum(shared_by[cell] for cell in cells[label]))
    ordered = [left.pop(0)]
    common = [set(cells[ordered[0]])]
    while left:  # next comes who keeps most in common
        ordered.append(left.pop(max(range(len(left)), key=lambda i: len(common[-1] & cells[left[i]].keys()))))
        common.append(common[-1] & cells[ordered[-1]].keys())
    kept = len(ordered)
    while fewer := [k for k in range(2, kept) if len(common[k - 1]) >= max(1, 2 * len(common[kept - 1]))]:
        kept = fewer[-1]
    chosen, rows = set(ordered[:kept]), common[kept - 1]
    if not rows:
        chosen = set()
    by_seed = {label: _by_seed(cells[label], rows, metric) for label in cells if label in chosen}
    apart = {label: len(rows & set(known)) for label, known in cells.items() if label not in chosen}
    return Design(keys, pd.DataFrame(by_seed).sort_index(), sorted(rows), apart)


def _by_seed(known: dict[Cell, list[Record]], rows: set[Cell], metric: str) -> "pd.Series[float]":
    """Means over a seed's cells; several runs of one cell count as one, their mean. Runs with one seed are one repetition."""
    means: dict[int, list[float]] = {}
    for cell in sorted(rows):
        runs = [record.number(metric) for record in known[cell]]
        means.setdefault(cell[1], []).append(sum(runs) / len(runs))
    return pd.Series({seed: sum(values) / len(values) for seed, values in means.items()}, dtype=float)


def loss(group: Group, metric: str, keys: Sequence[str]) -> Loss:
    """What is gone of a group: its settings, at each seed that the same sweep has anywhere."""
    planned = {
        (setting, seed)
        for root, setting in {(record.root, cell_of(record, keys)[0]) for record in group.records}
        for seed in group.seeds_of_root[root]
    }
    have = cells_of(group, metric, keys)
    became = {cell_of(record, keys): record for record in group.records if cell_of(record, keys) not in have}
    causes = Counter(_cause(became.get(cell), metric) for cell in sorted(planned) if cell not in have)
    return Loss(len(planned), dict(causes))


def _cause(record: Record | None, metric: str) -> str:
    if record is None:
        return "missing"
    return f"without a finite {metric}" if record.state in FINISHED else record.state.replace("_", " ")
