"""Which runs stand for the same variant, and which variants may be compared at all."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vae_lab.compare.collect import Record
from vae_lab.config import FREE_KEYS
from vae_lab.errors import ConfigError, did_you_mean

SHORT = {
    "model": "model.variant",
    "loss": "loss.name",
    "latent_dim": "latent_dim",
    "objective": "objective.name",  # before its beta, which it decides
    "beta": "objective.beta",
    "network": "network.name",
    "hidden_dims": "hidden_dims",
    "data": "data.name",
    "binarize": "data.binarize",
    "optimizer": "optimizer.name",
    "lr": "optimizer.lr",
    "scheduler": "scheduler.name",
}
# Keys that cannot change a run's numbers, or only repeat another one
PICTURES = ("figures", "num_images", "manifold_steps", "manifold_range", "batch_size")  # evaluation keys that move no number
IGNORED = ("seed", "model.name", "model.latent_dim", "network.hidden_dims", *(f"evaluation.{key}" for key in PICTURES))
FREE_GROUPS = tuple(f"{key}." for key in FREE_KEYS)


@dataclass(eq=False)
class Group:
    """Runs that differ in their seed only, as far as `by` can tell. `values` follow the order of `by`."""

    values: tuple[Any, ...]
    label: str
    records: list[Record]
    expected_seeds: list[int] = field(default_factory=list)  # those that this group's sweep has somewhere
    missing_seeds: list[int] = field(default_factory=list)
    seeds_of_root: dict[Path, set[int]] = field(default_factory=dict)  # of each sweep that has runs of its section
    index: int = 0  # position in its section: decides its colour

    def usable(self, metric: str) -> list[Record]:
        """Records with a finite value of a metric."""
        return [record for record in self.records if math.isfinite(record.number(metric))]

    def mean(self, metric: str) -> float:
        """Mean over the group's runs; NaN without any."""
        values = [record.number(metric) for record in self.usable(metric)]
        return sum(values) / len(values) if values else math.nan

    @property
    def beta(self) -> float | None:
        """The weight in the config; None without one, or if runs differ."""
        return _common(record.config.get("objective.beta") for record in self.records)

    @property
    def beta_eff(self) -> float | None:
        """Mean KL weight on the common scale; it differs between runs only where the likelihood's variance is learned."""
        values = [record.results.get("beta_eff") for record in self.records]
        numbers = [value for value in values if isinstance(value, int | float)]
        return sum(numbers) / len(numbers) if numbers else None

    @property
    def seeds(self) -> str:
        """'4 of 5'; '5' if none is missing."""
        have = len(self.expected_seeds) - len(self.missing_seeds)
        return f"{have} of {len(self.expected_seeds)}" if self.missing_seeds else str(have)


@dataclass(eq=False)
class Section:
    """Runs whose numbers are on one scale."""

    scale: dict[str, str]  # what they have in common: data, test images, class of likelihood, evaluation
    records: list[Record]
    groups: list[Group] = field(default_factory=list)
    title: str = ""
    slug: str = ""  # prefix of file names, where there are several sections


def full_key(key: str) -> str:
    """'beta' -> 'objective.beta'; full keys stay."""
    return SHORT.get(key, key)


def short_key(key: str) -> str:
    """'objective.beta' -> 'beta'."""
    return {full: short for short, full in SHORT.items()}.get(key, key)


def varied(records: Iterable[Record]) -> list[str]:
    """Config keys, short where they have a short name, that differ between runs and matter; seed excluded."""
    configs = [record.config for record in records if record.config]
    keys = dict.fromkeys([*SHORT.values(), *(key for config in configs for key in config)])
    return [short_key(key) for key in keys if matters(key) and len({text_of(config.get(key)) for config in configs}) > 1]


def matters(key: str) -> bool:
    """Whether a config key may change a run's numbers, and is not said by another one."""
    return key not in IGNORED and key not in FREE_KEYS and not key.startswith(FREE_GROUPS)


def default_by(records: Sequence[Record]) -> tuple[list[str], list[str]]:
    """The keys to group by, and those left out because the others decide them (a `model` brings its `objective`)."""
    configs = [record.config for record in records if record.config]
    chosen: list[str] = []
    implied: list[str] = []
    for key in varied(records):
        seen: dict[str, set[str]] = {}
        for config in configs:
            seen.setdefault(text_of([config.get(full_key(name)) for name in chosen]), set()).add(text_of(config.get(full_key(key))))
        (chosen if any(len(values) > 1 for values in seen.values()) else implied).append(key)
    return chosen or ["model"], implied


def check_by(by: Sequence[str], records: Iterable[Record]) -> list[str]:
    """The keys of `--by`, without repetitions.

    Raises:
        ConfigError: a key that no config has, or `seed`.
    """
    known = dict.fromkeys(key for record in records for key in record.config)
    choices = [*(short for short, full in SHORT.items() if full in known), *known]
    for key in by:
        if key == "seed":
            raise ConfigError("--by seed: runs are grouped over their seeds, which are the repetitions. Leave it out.")
        if full_key(key) not in known:
            raise ConfigError(f"Unknown --by '{key}'.{did_you_mean(key, choices)} For example: {', '.join(SHORT)}.")
    return list(dict.fromkeys(short_key(key) for key in by))


def groups_of(records: Sequence[Record], by: Sequence[str]) -> list[Group]:
    """Runs of one section by the values of `by`, in their order; labelled by what differs."""
    members: dict[str, list[Record]] = {}
    for record in records:
        members.setdefault(text_of([_number(record.config.get(full_key(key))) for key in by]), []).append(record)
    groups = []
    for runs in members.values():
        values = tuple(_hashable(runs[0].config.get(full_key(key))) for key in by)
        groups.append(Group(values, "", runs))
    words = [list(dict.fromkeys(group.values[i] for group in groups)) for i in range(len(by))]
    groups.sort(key=lambda group: [_order(value, words[i].index(value)) for i, value in enumerate(group.values)])
    shown = [i for i in range(len(by)) if len({text_of(group.values[i]) for group in groups}) > 1] or list(range(len(by)))
    seeds_of_root: dict[Path, set[int]] = {}
    for record in records:
        seeds_of_root.setdefault(record.root, set()).add(record.seed)
    for index, group in enumerate(groups):
        group.index = index
        parts = [part_label(by[i], group.values[i], group) for i in shown]
        group.label = " · ".join(part for part in parts if part) or "all runs"
        group.seeds_of_root = seeds_of_root
        group.expected_seeds = sorted(set().union(*(seeds_of_root[record.root] for record in group.records)))
        have = {record.seed for record in group.records if record.usable}
        group.missing_seeds = [seed for seed in group.expected_seeds if seed not in have]
    for label, number in Counter(group.label for group in groups).items():
        alike = [group for group in groups if group.label == label] if number > 1 else []
        for group in alike:  # such as numbers that agree in six digits
            group.label = f"{label} ({', '.join(str(group.values[i]) for i in shown)})"
    return groups


def _number(value: Any) -> Any:
    """1 and 1.0 are the same setting."""
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def part_label(key: str, value: Any, group: Group | None = None) -> str:
    """A group's value of one key as its label says it: 'vae', 'z=10', 'beta=4 (beta_eff 2)'."""
    text = f"{value:g}" if isinstance(value, float) else str(value)
    text = text if text.strip() else repr(text)  # a name that cannot be seen
    if key == "beta":
        if value is None:
            return ""
        effective = group.beta_eff if group else None
        return f"beta={text}" + (f" (beta_eff {effective:.3g})" if effective is not None else "")
    if key == "latent_dim":
        return f"z={text}"
    return text if key in ("model", "loss", "objective", "data", "network", "optimizer") else f"{key.rpartition('.')[2]}={text}"


def text_of(value: Any) -> str:
    """A config value as JSON, to be compared."""
    return json.dumps(value, sort_keys=True, default=str)


def _hashable(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list | dict) else value


def _order(value: Any, appeared: int) -> tuple[bool, float]:
    """Numbers by size, then words as the sweep lists them."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return not number, float(value) if number else float(appeared)


def _common(values: Iterable[Any]) -> float | None:
    distinct = {_hashable(value) for value in values}
    value = distinct.pop() if len(distinct) == 1 else None
    return float(value) if isinstance(value, int | float) else None
