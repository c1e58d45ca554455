"""Statistics over seeds. Input is a table of one metric: a row per seed, a column per group.

Seeds are the repetitions, and they pair: runs of one seed saw the same batches in the same order. So groups are compared by the
differences within seeds, all of them at once (`blocks`). Beside that stand each pair's own t test and Wilcoxon's, uncorrected.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from vae_lab.compare import blocks

CONFIDENCE = 0.95
ALPHA = 0.05
FEW_SEEDS = 5  # fewer are called few
MANY_PAIRS = 2_000  # of more, no pair is tested alone: a thousand take a second
ROUNDING = 1e-9  # relative; spreads below are not chance
NAN = float("nan")


def describe(values: pd.DataFrame) -> pd.DataFrame:
    """Per group: n, mean, standard deviation (n - 1), and a 95 % interval of the mean, by Student's t.

    Of two groups or more over the same seeds, the intervals are `blocks.mean_errors`': they allow for the choice of the best.
    """
    n, mean, sd = values.count(), values.mean(), values.std(ddof=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        half = stats.t.isf((1 - CONFIDENCE) / 2, n - 1) * sd / np.sqrt(n)
    if len(values.columns) > 1 and len(values) > 1 and values.notna().all(axis=None):
        half = pd.Series(blocks.mean_errors(blocks.fit(values.to_numpy()), ALPHA), index=values.columns)
    return pd.DataFrame({"n": n, "mean": mean, "sd": sd, "low": mean - half, "high": mean + half}, index=values.columns)


@dataclass(frozen=True)
class Pair:
    """Two groups over the seeds that both have; `gain` is how much better `a` is than `b`, in the metric's unit, never negative.

    `error` is its standard error over seeds, `low` to `high` its 95 % interval; `p_family` and the interval hold for all pairs of
    all tables that claim together. `p` (t test) and `p_wilcoxon` are this pair's alone. `image_error` is the standard error of
    the gain over the `images` of the test set, for these very runs, and `p_images` its p, corrected as `p_family` is. All tests
    are two-sided; NaN where there is nothing to compute from.

    `verdict` is 'better'; or why it is not: 'noise' (not told apart from it by these seeds), 'images' (nor by these test images),
    'small' (less than the least difference of interest), 'lost' (of `a`, runs failed or are missing), 'constant' (the same gain
    in every seed), 'equal', 'untested', 'unclaimed' (of a table that only estimates).
    """

    a: Any
    b: Any
    n: int
    gain: float
    error: float = NAN
    low: float = NAN
    high: float = NAN
    p: float = NAN
    p_wilcoxon: float = NAN
    p_family: float = NAN
    images: int = 0
    image_error: float = NAN
    p_images: float = NAN
    verdict: str = "untested"


@dataclass(frozen=True)
class Rules:
    """What a difference must pass to be called better.

    `families` tables share the 5 % of false claims; 0: this table claims nothing. A gain below `least` is not called better, nor
    one of a group in `lost`. `images` has a value for each test image, by group.
    """

    families: int = 1
    least: float = 0.0
    lost: frozenset[Any] = frozenset()
    images: Mapping[Any, np.ndarray] | None = None


def pairs(values: pd.DataFrame, sign: int, rules: Rules = Rules()) -> list[Pair]:
    """All pairs of groups, in the order of the columns' means, best first; `sign` is -1 where less is better.

    Every column must have every seed: which seeds and groups those are is decided before.
    """
    order = (sign * values.mean()).sort_values(ascending=False, kind="stable").index
    table = sign * values[order].to_numpy(dtype=float)
    seeds, groups = table.shape
    index = np.array(list(combinations(range(groups), 2)), dtype=int).reshape(-1, 2).T
    gains = table[:, index[0]] - table[:, index[1]]
    if not seeds or groups < 2:
        return []
    if seeds < 2:
        return [Pair(order[a], order[b], seeds, float(gain)) for a, b, gain in zip(*index, gains.mean(0), strict=True)]
    found, tables = blocks.fit(table), max(1, rules.families)
    error = found.error(*index)
    known = error > ROUNDING * max(1e-300, float(np.abs(table).max()))
    p = np.full(len(error), NAN)
    p[known] = np.minimum(1, tables * blocks.family_p(gains.mean(0)[known] / error[known], groups, found.df))
    half = blocks.critical(ALPHA / tables, groups, found.df) * error
    made = []
    for column, (a, b) in enumerate(index.T):
        gain, own = float(gains[:, column].mean()), gains[:, column]
        shown = {"p_family": float(p[column])} | _images(order[a], order[b], gain, groups, tables, rules)
        if known[column]:
            shown |= {"error": float(error[column]), "low": gain - float(half[column]), "high": gain + float(half[column])}
        verdict = _verdict(order[a], gain, own, shown["p_family"], shown.get("p_images", NAN), rules)
        alone = _alone(own) if len(index.T) <= MANY_PAIRS else {}
        made.append(Pair(order[a], order[b], seeds, gain, **shown, **alone, verdict=verdict))
    return made


def _verdict(best: Any, gain: float, gains: np.ndarray, p: float, p_images: float, rules: Rules) -> str:
    if not gains.any():
        return "equal"
    if math.isnan(p):
        return "constant"
    if not rules.families:
        return "unclaimed"
    if p >= ALPHA:
        return "noise"
    if gain < rules.least:
        return "small"
    if p_images >= ALPHA:
        return "images"
    return "lost" if best in rules.lost else "better"


def _images(a: Any, b: Any, gain: float, groups: int, tables: int, rules: Rules) -> dict[str, Any]:
    """How far the gain would move with other test images: paired by image, since both groups saw the same ones."""
    first, second = ((rules.images or {}).get(name) for name in (a, b))
    if first is None or second is None or len(first) != len(second) or len(first) < 2:
        return {}
    error = float((first - second).std(ddof=1) / math.sqrt(len(first)))
    p = float(blocks.family_p(np.array([gain / error]), groups, np.inf)[0]) if error > 0 else 0.0
    return {"images": len(first), "image_error": error, "p_images": min(1.0, tables * p)}


def _alone(gains: np.ndarray) -> dict[str, Any]:
    """The paired t test's p and Wilcoxon's of one pair; none where the gains do not vary."""
    if np.ptp(gains) <= ROUNDING * max(1.0, np.abs(gains).max()):
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ties and zeros: SciPy says that it takes the normal approximation
        return {"p": float(stats.ttest_1samp(gains, 0.0).pvalue), "p_wilcoxon": float(stats.wilcoxon(gains).pvalue)}


def ranks(values: pd.DataFrame, sign: int) -> pd.DataFrame:
    """Per group, over the seeds that all groups have: mean rank (1 is best, ties share) and how often it was first."""
    known = values.loc[:, values.notna().any()]
    common = known.dropna()
    if common.empty:
        return pd.DataFrame({"rank": np.nan, "wins": 0, "of": 0}, index=values.columns)
    ranked = pd.DataFrame(stats.rankdata(-sign * common.to_numpy(), axis=1), index=common.index, columns=common.columns)
    wins = (ranked == 1).sum()
    return pd.DataFrame({"rank": ranked.mean(), "wins": wins, "of": len(common)}).reindex(values.columns)


def pareto(cost: Sequence[float], quality: Sequence[float]) -> list[int]:
    """Indices of the points that no other beats in both: less cost and more quality; by rising cost."""
    order = sorted((i for i in range(len(cost)) if np.isfinite(cost[i] + quality[i])), key=lambda i: (cost[i], -quality[i]))
    front: list[int] = []
    for index in order:
        if not front or quality[index] > quality[front[-1]]:
            front.append(index)
    return front
