"""How often `vae-lab compare` is wrong, and what it finds: the tables of docs/compare.md, by the functions that decide.

Each experiment is a table of seeds x groups. A seed moves all groups alike; a run's own chance has standard deviation 1. "False"
is the share of tables in which any of the equal groups are told apart (5 % is meant), "found" the share of pairs with the one
group that is better by so many standard deviations. Beside it what a paired t test of each pair with Holm's correction does.

    python benchmarks/compare_simulation.py             # two minutes on one core
    python benchmarks/compare_simulation.py --draws 500
"""

import argparse
from collections.abc import Callable

import numpy as np
from scipy import stats

from vae_lab.compare import blocks
from vae_lab.compare.statistics import ALPHA

Kind = Callable[[np.random.Generator, tuple[int, int, int]], np.ndarray]
DESIGNS = ((3, 2), (5, 2), (3, 3), (5, 3), (4, 5), (5, 5), (10, 5), (3, 9), (4, 9), (5, 9), (10, 9), (4, 20), (5, 20))


def spread(*factors: float) -> Kind:
    """Normal runs; the first groups spread by these factors."""

    def draw(rng: np.random.Generator, shape: tuple[int, int, int]) -> np.ndarray:
        values = rng.normal(size=shape)
        values[..., : len(factors)] *= factors[: shape[2]]
        return values

    return draw


def collapsing(rng: np.random.Generator, shape: tuple[int, int, int]) -> np.ndarray:
    """A tenth of all runs is ten standard deviations worse."""
    return rng.normal(size=shape) - 10 * (rng.random(shape) < 0.1)


def one_collapses(rng: np.random.Generator, shape: tuple[int, int, int]) -> np.ndarray:
    """So is a fifth of the runs of the first group, which is better by two else: its true mean is that of the others."""
    values = rng.normal(size=shape)
    values[..., 0] += 2 - 10 * (rng.random(shape[:2]) < 0.2)
    return values


KINDS: dict[str, Kind] = {
    "normal": spread(),
    "skewed": lambda rng, shape: rng.exponential(size=shape),
    "heavy tails": lambda rng, shape: rng.standard_t(3, size=shape) / np.sqrt(3),
    "a tenth collapses": collapsing,
    "one spreads 3 x": spread(3),
    "one spreads 10 x": spread(10),
    "half spread 3 x": lambda rng, shape: spread(*[3.0] * (shape[2] // 2))(rng, shape),
    "spreads 1 to 8": lambda rng, shape: rng.normal(size=shape) * np.geomspace(1, 8, shape[2]),
    "one collapses": one_collapses,
}


def holm(values: np.ndarray) -> np.ndarray:
    """Which pairs [N, P] a paired t test of each, corrected by Holm, tells apart."""
    a, b = np.triu_indices(values.shape[2], 1)
    p = stats.ttest_1samp(values[..., a] - values[..., b], 0, axis=1).pvalue
    order = np.argsort(p, 1)
    passes = np.take_along_axis(p, order, 1) <= ALPHA / (p.shape[1] - np.arange(p.shape[1]))
    found = np.zeros_like(passes)
    np.put_along_axis(found, order, np.logical_and.accumulate(passes, 1), 1)
    return found


def told_apart(values: np.ndarray) -> np.ndarray:
    """Which pairs [N, P] `compare` tells apart."""
    a, b = np.triu_indices(values.shape[2], 1)
    found = blocks.fit(values)
    t = np.abs(found.mean[:, a] - found.mean[:, b]) / found.error(a, b)
    return t > blocks.critical(ALPHA, values.shape[2], found.df)


def percent(share: float) -> str:
    """'4.9 %'; whole numbers from 10 on."""
    return f"{100 * share:.1f} %" if share < 0.0995 else f"{100 * share:.0f} %"


def power(draws: int) -> None:
    """Normal runs: false claims without an effect, and what is found of one."""
    rng = np.random.default_rng(0)
    effects = (1.0, 2.0, 3.0, 10 / 3)
    print("| seeds | groups | false | " + " | ".join(f"found, {effect:.3g} sd" for effect in effects) + " |")
    print("|" + "---|" * (3 + len(effects)))
    for seeds, groups in DESIGNS:
        shape = (max(200, draws * 9 // max(9, groups)), seeds, groups)
        first = np.triu_indices(groups, 1)[0] == 0
        cells = []
        for effect in (0.0, *effects):
            values = rng.normal(size=shape) + rng.normal(size=(*shape[:2], 1))
            values[..., 0] += effect
            both = told_apart(values), holm(values)
            shares = [found[:, first].mean() if effect else found.any(1).mean() for found in both]
            cells.append(f"{percent(shares[0])} ({percent(shares[1])})")
        print(f"| {seeds} | {groups} | " + " | ".join(cells) + " |")


def robustness(draws: int) -> None:
    """False claims where runs are not normal or groups do not spread alike."""
    designs = ((5, 2), (3, 3), (5, 5), (10, 5), (4, 9), (4, 20))
    print("| runs | " + " | ".join(f"{seeds} x {groups}" for seeds, groups in designs) + " |")
    print("|" + "---|" * (1 + len(designs)))
    for name, kind in KINDS.items():
        cells = []
        for seeds, groups in designs:
            rng = np.random.default_rng(1)
            values = kind(rng, (max(200, draws * 9 // max(9, groups)), seeds, groups))
            cells.append(f"{percent(told_apart(values).any(1).mean())} ({percent(holm(values).any(1).mean())})")
        print(f"| {name} | " + " | ".join(cells) + " |")


def winners(draws: int) -> None:
    """How often the interval of the best of equal groups holds its true mean, and Student's."""
    rng = np.random.default_rng(2)
    levels = (0.0, 1.0, 5.0)
    print("| seeds | groups | " + " | ".join(f"seeds spread {level:g} sd" for level in levels) + " |")
    print("|" + "---|" * (2 + len(levels)))
    for groups in (2, 5, 9, 20):
        for seeds in (3, 5, 10):
            cells = []
            for level in levels:
                values = rng.normal(size=(draws, seeds, groups)) + level * rng.normal(size=(draws, seeds, 1))
                found = blocks.fit(values)
                at = np.arange(draws), found.mean.argmax(1)
                student = stats.t.isf(ALPHA / 2, seeds - 1) * values.std(1, ddof=1) / np.sqrt(seeds)
                shares = [(np.abs(found.mean) <= half)[at].mean() for half in (blocks.mean_errors(found, ALPHA), student)]
                cells.append(f"{shares[0]:.0%} ({shares[1]:.0%})")
            print(f"| {seeds} | {groups} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--draws", type=int, default=4000, help="tables behind each number (fewer of many groups)")
    arguments = parser.parse_args()
    for part in (power, robustness, winners):
        part(arguments.draws)
        print()
