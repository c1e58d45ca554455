"""What a step sees depends on seed and position alone: not on what is gathered ahead, on other runs, or on where it began."""

import pytest
import torch

from vae_lab import feed
from vae_lab.data import Splits, load
from vae_lab.feed import Feed, Step

CPU = torch.device("cpu")


@pytest.fixture(params=["none", "dynamic"])
def splits(request: pytest.FixtureRequest, compose) -> Splits:
    return load(compose("data.limit=1100", f"data.binarize={request.param}")["data"])


def steps(splits: Splits, seeds: list[int], first: int = 0) -> list[Step]:
    made = Feed(seeds, {"eps": (2,)}, splits, 30, CPU).epoch(3, first)
    return [step._replace(batch=step.batch._replace(x=step.batch.x.clone())) for step in made]  # the memory is used again


def same(one: Step, other: Step, run: int | None = None) -> bool:
    pairs = [(one.batch.x, other.batch.x), (one.batch.y, other.batch.y), (one.noise["eps"], other.noise["eps"])]
    return all(torch.equal(a, b if run is None else b[run]) for a, b in pairs)


def test_a_step_holds_the_images_it_names(compose) -> None:
    splits = load(compose("data.limit=1100")["data"])
    seen = steps(splits, [5])
    assert [step.position for step in seen] == list(range(37))
    assert sorted(torch.cat([step.indices[0] for step in seen]).tolist()) == list(range(1100))
    assert len(seen[-1].batch.x) == len(seen[-1].noise["eps"]) == 1100 - 36 * 30
    for step in seen:
        index = step.indices[0]
        torch.testing.assert_close(step.batch.x, splits.train.x[index].float() / 255)
        assert torch.equal(step.batch.y, splits.train.y[index])


@pytest.mark.parametrize("ahead", [1, 2**18])
def test_gathering_ahead_changes_nothing(splits: Splits, monkeypatch: pytest.MonkeyPatch, ahead: int) -> None:
    expected = steps(splits, [5])
    monkeypatch.setattr(feed, "GATHER_BYTES", ahead)
    assert all(same(one, other) for one, other in zip(expected, steps(splits, [5]), strict=True))


def test_runs_of_a_cohort_see_what_they_see_alone(splits: Splits) -> None:
    together = steps(splits, [5, 6])
    for run, seed in enumerate((5, 6)):
        assert all(same(alone, step, run) for alone, step in zip(steps(splits, [seed]), together, strict=True))


@pytest.mark.parametrize("first", [1, 31, 32, 36])
def test_an_epoch_may_begin_anywhere(splits: Splits, first: int) -> None:
    assert all(same(one, other) for one, other in zip(steps(splits, [5])[first:], steps(splits, [5], first), strict=True))
