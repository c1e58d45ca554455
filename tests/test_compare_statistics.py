"""Statistics of a comparison against closed forms and against SciPy called another way."""

import gc
import math
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from tests.planted import plant_groups
from vae_lab.compare import report, statistics

RNG = np.random.default_rng(7)


def table(**columns: list[float]) -> pd.DataFrame:
    return pd.DataFrame(columns)


def test_mean_sd_and_interval_are_students() -> None:
    values = [1.0, 2.0, 4.0, 5.0, 8.0]
    row = statistics.describe(table(a=values)).loc["a"]
    assert (row["n"], row["mean"]) == (5, 4.0)
    assert row["sd"] == pytest.approx(math.sqrt(sum((v - 4) ** 2 for v in values) / 4))
    half = 2.7764451 * row["sd"] / math.sqrt(5)  # Student's t with 4 degrees of freedom, 97.5 %
    assert (row["low"], row["high"]) == pytest.approx((4 - half, 4 + half))


def test_one_seed_has_no_interval() -> None:
    row = statistics.describe(table(a=[3.0])).loc["a"]
    assert row["mean"] == 3.0
    assert math.isnan(row["sd"])
    assert math.isnan(row["low"])


def test_pairs_are_the_paired_tests_of_scipy_over_common_seeds() -> None:
    frame = pd.DataFrame(RNG.normal(size=(9, 2)) + np.array([0.0, 1.5]), columns=["a", "b"])
    frame.loc[3, "a"] = np.nan
    pair = statistics.pairs(frame, sign=1)[0]
    both = frame.dropna()
    assert (pair.a, pair.b, pair.n) == ("b", "a", 8)
    assert pair.gain == pytest.approx((both["b"] - both["a"]).mean())
    related = stats.ttest_rel(both["b"], both["a"])
    assert pair.p == pytest.approx(related.pvalue)
    assert (pair.low, pair.high) == pytest.approx(tuple(related.confidence_interval(0.95)))
    assert pair.p_wilcoxon == pytest.approx(stats.wilcoxon(both["b"], both["a"]).pvalue)
    assert pair.p_holm == pair.p  # a single pair needs no correction


def test_lower_is_better_turns_the_pair_round() -> None:
    frame = table(a=[1.0, 2.0, 3.5], b=[2.0, 3.1, 4.4])
    up, down = statistics.pairs(frame, 1)[0], statistics.pairs(frame, -1)[0]
    assert (up.a, down.a) == ("b", "a")
    assert up.gain == down.gain == pytest.approx(1.0)


def test_holms_correction_by_hand() -> None:
    frame = pd.DataFrame(RNG.normal(size=(6, 4)) + np.array([0, 0.2, 1.0, 3.0]), columns=list("abcd"))
    found = sorted(statistics.pairs(frame, 1), key=lambda pair: pair.p)
    corrected, largest = [], 0.0
    for position, pair in enumerate(found):
        largest = max(largest, min(1.0, (len(found) - position) * pair.p))
        corrected.append(largest)
    assert len(found) == 6
    assert [pair.p_holm for pair in found] == pytest.approx(corrected)


def test_pairing_finds_what_the_spread_of_seeds_hides() -> None:
    seeds = np.array([0.0, 30.0, -20.0, 10.0, 50.0])  # the same for both: easy and hard seeds
    frame = table(a=list(seeds + RNG.normal(0, 0.1, 5)), b=list(seeds - 1 + RNG.normal(0, 0.1, 5)))
    assert statistics.pairs(frame, 1)[0].verdict == "better"
    assert stats.ttest_ind(frame["a"], frame["b"]).pvalue > 0.9


def test_the_bootstrap_interval_of_many_seeds_is_the_normal_one() -> None:
    gains = RNG.normal(2.0, 1.0, 400)
    pair = statistics.pairs(table(a=list(gains), b=[0.0] * 400), 1)[0]
    half = 1.96 * gains.std(ddof=1) / 20
    assert pair.boot_low == pytest.approx(gains.mean() - half, abs=0.02)
    assert pair.boot_high == pytest.approx(gains.mean() + half, abs=0.02)
    again = statistics.pairs(table(a=list(gains), b=[0.0] * 400), 1)[0]
    assert (again.boot_low, again.boot_high) == (pair.boot_low, pair.boot_high)


@pytest.mark.parametrize(
    ("a", "b", "verdict"),
    [
        ([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], "equal"),
        ([1.0, 2.0, 3.0], [0.0, 1.0, 2.0], "constant"),
        ([1.0, np.nan, np.nan], [0.0, 1.0, 2.0], "untested"),
        ([1.0, np.nan, np.nan], [np.nan, 1.0, 2.0], "untested"),
    ],
)
def test_what_cannot_be_tested_is_not(a: list[float], b: list[float], verdict: str) -> None:
    pair = statistics.pairs(table(a=a, b=b), 1)[0]
    assert pair.verdict == verdict
    assert math.isnan(pair.p_holm)


def test_ranks_over_common_seeds_share_ties() -> None:
    frame = table(a=[1.0, 5.0, 2.0, 9.0], b=[2.0, 5.0, 1.0, np.nan], c=[0.0, 0.0, 0.0, 0.0])
    found = statistics.ranks(frame, 1)
    assert found["rank"].to_dict() == {"a": pytest.approx(4.5 / 3), "b": pytest.approx(4.5 / 3), "c": 3.0}
    assert found["wins"].to_dict() == {"a": 1, "b": 1, "c": 0}
    assert set(found["of"]) == {3}


def test_the_pareto_front() -> None:
    cost, quality = [1.0, 2.0, 3.0, 2.5, 4.0, 1.0], [1.0, 3.0, 2.0, 3.0, 5.0, 0.5]
    assert statistics.pareto(cost, quality) == [0, 1, 4]
    assert statistics.pareto([1.0, math.nan], [1.0, 9.0]) == [0]


def test_a_planted_nat_is_found_and_a_name_is_not(tmp_path: Path) -> None:
    """Five seeds a group; seeds move both groups together by 0.5, each run by 0.3."""
    rng = np.random.default_rng(0)
    seeds = 100 + rng.normal(0, 0.5, 5)
    planted = {"plain": seeds + rng.normal(0, 0.3, 5), "better": seeds - 1 + rng.normal(0, 0.3, 5)}
    found = report.build([plant_groups(tmp_path / "planted", planted)]).comparisons[0]
    pair = found.pairs[0]
    assert (found.best.label, pair.verdict) == ("better", "better")
    assert pair.low < 1 < pair.high
    named = {"one": seeds + rng.normal(0, 0.3, 5), "other": seeds + rng.normal(0, 0.3, 5)}
    assert report.build([plant_groups(tmp_path / "named", named)]).comparisons[0].pairs[0].verdict == "noise"


def rate_of_findings(shift: float, draws: int, groups: int = 2) -> float:
    """The share of draws in which any pair of groups is called different; `shift` is the first group's advantage in nats."""
    rng, found = np.random.default_rng(1), 0
    for _ in range(draws):
        values = rng.normal(0, 0.5, (5, 1)) + rng.normal(0, 0.3, (5, groups))
        values[:, 0] += shift
        found += any(pair.verdict == "better" for pair in statistics.pairs(pd.DataFrame(values), 1))
    return found / draws


def test_how_often_noise_is_called_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "RESAMPLES", 99)  # decides nothing here
    monkeypatch.setattr(gc, "collect", lambda: 0)  # multipletests calls it every time
    names, many, nat = rate_of_findings(0, 1000), rate_of_findings(0, 200, groups=5), rate_of_findings(1, 200)
    sys.stderr.write(f"5 seeds: names only {names:.3f}, five names {many:.3f}, a nat {nat:.3f}\n")
    assert 0.03 < names < 0.07  # 5 % is meant; three standard errors of 1000 draws are 2 %
    assert many < 0.08
    assert nat > 0.85


def test_the_coverage_of_intervals_that_the_page_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "RESAMPLES", 999)
    samples = np.random.default_rng(3).normal(0, 1, (1500, 5))
    boots = statistics._bootstrap(list(samples))
    share = np.mean([low <= 0 <= high for low, high in boots])
    sys.stderr.write(f"bootstrap, 5 seeds: {share:.3f}\n")
    assert 0.79 < share < 0.86
