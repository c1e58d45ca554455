"""Statistics over seeds. Input is a table of one metric: a row per seed, a column per group, NaN where a run is missing.

Seeds are the repetitions, and they pair: runs of one seed saw the same batches in the same order. So groups are compared by the
differences within seeds. The paired t test decides and its interval is shown first: with few seeds the bootstrap interval of a
mean is too narrow (82 % instead of 95 % coverage with 5 seeds) and Wilcoxon's test cannot reach 5 % with fewer than 6.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats
from statsmodels.stats.multitest import multipletests

CONFIDENCE = 0.95
ALPHA = 0.05
FEW_SEEDS = 5  # fewer are called few
RESAMPLES = 9_999
BATCH = 200  # bootstrap resamples held in memory at once


def describe(values: pd.DataFrame) -> pd.DataFrame:
    """Per group: n, mean, standard deviation (n - 1), and the 95 % t interval of the mean."""
    n, mean, sd = values.count(), values.mean(), values.std(ddof=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        low, high = stats.t.interval(CONFIDENCE, n - 1, loc=mean, scale=sd / np.sqrt(n))
    return pd.DataFrame({"n": n, "mean": mean, "sd": sd, "low": low, "high": high}, index=values.columns)


@dataclass(frozen=True)
class Pair:
    """Two groups over their common seeds; `gain` is how much better `a` is than `b`, in the metric's unit, never negative.

    `low` to `high` is the 95 % t interval of the gain, `boot_low` to `boot_high` the BCa bootstrap's. `p` and `p_wilcoxon` are
    two-sided; `p_holm` is `p` after Holm's correction for all pairs. NaN where there is nothing to compute from.
    """

    a: Any
    b: Any
    n: int
    gain: float
    low: float
    high: float
    boot_low: float
    boot_high: float
    p: float
    p_holm: float
    p_wilcoxon: float

    @property
    def verdict(self) -> str:
        """'better', 'noise' (not told apart from it), 'constant' (the same gain in every seed), 'equal', or 'untested'."""
        if self.n < 2:
            return "untested"
        if np.isnan(self.p):
            return "equal" if self.gain == 0 else "constant"
        return "better" if self.p_holm < ALPHA else "noise"


def pairs(values: pd.DataFrame, sign: int) -> list[Pair]:
    """All pairs of groups, in the order of the columns' means, best first; `sign` is -1 where less is better."""
    order = (sign * values.mean()).sort_values(ascending=False, kind="stable").index
    rows = []
    for a, b in combinations([name for name in order if values[name].notna().any()], 2):
        gains = sign * (values[a] - values[b]).dropna().to_numpy()
        if len(gains) and gains.mean() < 0:  # over the common seeds the order may be another
            a, b, gains = b, a, -gains
        rows.append((a, b, gains))
    boots = _bootstrap([gains for _, _, gains in rows])
    tests = [_test(gains) for _, _, gains in rows]
    p = np.array([test[2] for test in tests])
    holm = np.full(len(rows), np.nan)
    tested = ~np.isnan(p)
    if tested.sum() == 1:
        holm = p  # nothing to correct; multipletests collects garbage on every call
    elif tested.any():
        holm[tested] = multipletests(p[tested], alpha=ALPHA, method="holm")[1]
    return [
        Pair(
            a,
            b,
            len(gains),
            float(gains.mean()) if len(gains) else float("nan"),
            *test[:2],
            *boot,
            test[2],
            float(corrected),
            test[3],
        )
        for (a, b, gains), test, boot, corrected in zip(rows, tests, boots, holm, strict=True)
    ]


def _test(gains: np.ndarray) -> tuple[float, float, float, float]:
    """t interval (low, high), paired t test's p and Wilcoxon's p; NaN where the gains do not vary."""
    nan = float("nan")
    if len(gains) < 2 or not _varies(gains):
        return nan, nan, nan, nan
    result = stats.ttest_1samp(gains, 0.0)
    interval = result.confidence_interval(CONFIDENCE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ties and zeros: SciPy says that it takes the normal approximation
        wilcoxon = float(stats.wilcoxon(gains).pvalue)
    return float(interval.low), float(interval.high), float(result.pvalue), wilcoxon


def _varies(gains: np.ndarray) -> bool:
    """Whether there is more to see than rounding."""
    return bool(np.ptp(gains) > 1e-9 * max(1.0, np.abs(gains).max()))


def _bootstrap(samples: Sequence[np.ndarray]) -> list[tuple[float, float]]:
    """BCa intervals of the means, all samples of one length in one call; NaN for fewer than two values."""
    found = [(float("nan"), float("nan"))] * len(samples)
    for n in {len(sample) for sample in samples if len(sample) > 1}:
        here = [index for index, sample in enumerate(samples) if len(sample) == n and _varies(sample)]
        if not here:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a degenerate sample has no BCa interval: NaN says so
            interval = stats.bootstrap(
                (np.stack([samples[index] for index in here]),),
                np.mean,
                axis=1,
                confidence_level=CONFIDENCE,
                n_resamples=RESAMPLES,
                batch=BATCH,
                rng=np.random.default_rng(0),
            ).confidence_interval
        for index, low, high in zip(here, interval.low, interval.high, strict=True):
            found[index] = (float(low), float(high))
    return found


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
