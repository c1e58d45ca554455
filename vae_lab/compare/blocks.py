"""Groups over common seeds: one variance for all of them, so that few seeds suffice, and one of its own for what spreads more.

A value is its group's effect, its seed's effect (runs of one seed saw the same batches) and a rest. The rests of all groups
together say how much chance there is: (S - 1)(G - 1) degrees of freedom instead of the S - 1 of one pair. Where groups do not
spread alike, those that spread more than the pool are taken at their own variance. Arrays are [..., S, G] and may hold many
experiments at once: benchmarks/compare_simulation.py measures with the very functions that decide.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import interpolate, stats

UNEQUAL = 0.15  # p of a test for equal variances below which groups are taken at their own; chosen by simulation
NULL_NUMBERS = 2_000_000  # normal draws behind the tests for equal variances
TABULATED = 32  # studentised ranges that are integrated one by one; more are read off a table


@dataclass(frozen=True)
class Fit:
    """What [..., S, G] values say: a group's `mean` and the deviation `sd` of its rests [..., G], `df` degrees of freedom.

    `seed_sd` [...] is the deviation of the seeds' means; `pooled` [...] says whether all groups have one `sd`.
    """

    mean: np.ndarray
    sd: np.ndarray
    seed_sd: np.ndarray
    pooled: np.ndarray
    df: float
    num_seeds: int

    @property
    def num_groups(self) -> int:
        return self.mean.shape[-1]

    def error(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Standard error of the difference of the means of groups `a` and `b` (indices)."""
        return np.hypot(self.sd[..., a], self.sd[..., b]) / math.sqrt(self.num_seeds)


def fit(values: np.ndarray) -> Fit:
    """Fit group and seed effects to values [..., S, G] without gaps, S and G at least 2."""
    seeds, groups = values.shape[-2:]
    mean, by_seed = values.mean(-2), values.mean(-1)
    rest = values - mean[..., None, :] - by_seed[..., :, None] + by_seed.mean(-1)[..., None, None]
    squares, df = np.square(rest).sum(-2), float((seeds - 1) * (groups - 1))
    pool = squares.sum(-1, keepdims=True) / df
    variance, pooled = np.broadcast_to(pool, squares.shape), np.ones(squares.shape[:-1], dtype=bool)
    if groups > 2:
        # A group's own variance: its rests also hold 1/G of the others' (Grubbs 1948)
        own = groups / (groups - 2) * (squares / (seeds - 1) - pool / groups)
        pooled = np.asarray(_equal_p(squares, seeds) >= UNEQUAL)
        variance = np.where(pooled[..., None], variance, np.maximum(variance, own))
    return Fit(mean, np.sqrt(variance), np.asarray(by_seed.std(-1, ddof=1)), pooled, df, seeds)


def _heterogeneity(squares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bartlett's statistic (many groups differ) and Cochran's (one stands out) of sums of squares [..., G]."""
    total = np.maximum(squares.sum(-1, keepdims=True), np.finfo(float).tiny)
    share = squares / total
    return np.asarray(-np.log(np.maximum(share, 1e-12)).mean(-1)), np.asarray(share.max(-1))


@lru_cache(maxsize=64)
def _null(seeds: int, groups: int) -> tuple[np.ndarray, np.ndarray]:
    """Both statistics of normal rests of equal spread, sorted."""
    draws = min(4000, max(400, NULL_NUMBERS // (seeds * groups)))
    values = np.random.default_rng(0).normal(size=(draws, seeds, groups))
    values -= values.mean(-2, keepdims=True)
    values -= values.mean(-1, keepdims=True)
    bartlett, cochran = _heterogeneity(np.square(values).sum(-2))
    return np.sort(bartlett), np.sort(cochran)


def _equal_p(squares: np.ndarray, seeds: int) -> np.ndarray:
    """The smaller p of two tests of equal variances, exact for normal rests up to the number of draws."""
    null, found = _null(seeds, squares.shape[-1]), _heterogeneity(squares)
    shares = [np.searchsorted(known, value) / len(known) for known, value in zip(null, found, strict=True)]
    return np.asarray(1 - np.maximum(*shares))


def critical(alpha: float, groups: int, df: float) -> float:
    """How many standard errors a difference must exceed so that of all pairs of equal groups none does, but for `alpha`."""
    if groups == 2:
        return float(stats.t.isf(alpha / 2, df))
    return float(stats.studentized_range.isf(alpha, groups, df)) / math.sqrt(2)


def family_p(t: np.ndarray, groups: int, df: float) -> np.ndarray:
    """Tukey's p of differences of `t` standard errors: how often the largest of all pairs of equal groups exceeds that."""
    t = np.abs(t)
    if groups == 2:
        return 2 * stats.t.sf(t, df)
    q = np.minimum(t * math.sqrt(2), 1e4)
    if q.size <= TABULATED:
        return np.clip(stats.studentized_range.sf(q, groups, df), 0, 1)
    grid = np.geomspace(max(q.min(), 1e-2), max(q.max(), 2e-2), TABULATED)
    known = np.clip(stats.studentized_range.sf(grid, groups, df), 1e-15, 1)
    return np.exp(interpolate.pchip_interpolate(grid, np.log(known), np.clip(q, grid[0], grid[-1])))


def mean_errors(found: Fit, alpha: float) -> np.ndarray:
    """Half widths [..., G] of intervals that hold all means at once, so that the one of the best, too, means what it says.

    Two independent errors, added as in Zou & Donner 2008: that of the mean over all groups, Student's with S - 1 degrees of
    freedom, and that of the group's distance from it, by Bonferroni for the groups.
    """
    seeds, groups = found.num_seeds, found.num_groups
    common = stats.t.isf(alpha / 2, seeds - 1) * found.seed_sd / math.sqrt(seeds)
    apart = stats.t.isf(alpha / 2 / groups, found.df) * found.sd * math.sqrt((groups - 1) / groups / seeds)
    return np.hypot(common[..., None], apart)
