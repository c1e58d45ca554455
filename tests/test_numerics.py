"""Faults C: a number that is not finite stops its run before the update, and is shown as what it is."""

import math
from pathlib import Path

import pytest
import torch

from tests.processes import finish, said
from tests.test_engine import train
from tests.test_kill import QUIET, TINY
from vae_lab import checkpoint
from vae_lab.engine import _Stretch
from vae_lab.objectives.elbo import ELBO
from vae_lab.run_dir import RunDir


def poison(kind: str, step: int) -> None:
    """From a step on: a NaN loss, an exploding log-variance, or a finite loss with an infinite gradient."""
    original = ELBO.forward

    def forward(self, model, batch, noise, at):
        terms = original(self, model, batch, noise, at)
        if int(at) < step or not torch.is_grad_enabled():
            return terms
        if kind == "loss":
            return terms | {"loss": terms["loss"] * math.nan}
        if kind == "kl":
            return terms | {"loss": terms["loss"] + math.inf, "kl": terms["kl"] + math.inf}
        weight = next(model.parameters())
        zero = (weight - weight.detach()).abs().sum()
        return terms | {"loss": terms["loss"] + zero.sqrt()}  # the square root of zero has no finite slope

    ELBO.forward = forward  # type: ignore[method-assign]


@pytest.mark.parametrize(("kind", "named"), [("loss", "loss is nan"), ("kl", "kl is inf"), ("gradient", "gradient norm is nan")])
def test_c1_stops_before_the_update_and_says_what_and_where(compose, tmp_path: Path, kind: str, named: str) -> None:
    cfg = compose(*QUIET, *TINY, "objective.beta=2")
    folder = tmp_path / "run"
    assert finish(cfg, folder, before=lambda: poison(kind, 7)) == 4
    message = said(folder)
    for part in (named, "at step 7 (epoch 3)", "lr 0.001", "beta 2", "training images ["):
        assert part in message, message
    results = RunDir(folder).read_results()
    assert results is not None
    assert results["status"] == "failed"
    assert results["failure"]["step"] == 7
    assert len(results["failure"]["images"]) == 32
    for name in ("last", "best"):
        found = checkpoint.load(folder / "checkpoints" / name)
        assert found.manifest["epoch"] <= 2
        assert all(torch.isfinite(tensor).all() for tensor in found.model.values())


@pytest.mark.parametrize("step", [6, 8, 11])
def test_c1_a_bad_gradient_is_traced_to_its_step(compose, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """The first and the last step of an epoch, and the very last step, after which no loss is looked at."""
    monkeypatch.setattr(ELBO, "forward", ELBO.forward)
    poison("gradient", step)
    (run,), _ = train([compose(*TINY, "trainer.epochs=4")])
    assert run.status == "failed"
    assert run.failure is not None
    assert run.failure["step"] == step
    assert math.isnan(run.failure["terms"]["gradient norm"])
    assert math.isfinite(run.failure["terms"]["loss"])
    assert all(torch.isfinite(tensor).all() for tensor in run.best_state.values())


def test_c1_a_bad_gradient_is_not_handed_over_when_interrupted(compose, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ELBO, "forward", ELBO.forward)
    poison("gradient", 6)
    (run,), _ = train([compose(*TINY, "trainer.epochs=4")], stop_at=7)
    assert run.status == "failed"
    assert all(torch.isfinite(tensor).all() for tensor in run.state.values())


def test_c1_the_failed_update_is_not_made(compose, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ELBO, "forward", ELBO.forward)
    cfg = compose(*TINY)
    (healthy,), _ = train([cfg], stop_at=7)
    poison("loss", 7)
    seen = {}
    original = _Stretch._fail

    def fail(self, *args):
        ended = original(self, *args)
        if ended:
            seen.update(self.cohort.run_state(0))
        return ended

    monkeypatch.setattr(_Stretch, "_fail", fail)
    train([cfg])
    assert seen
    assert all(torch.equal(seen[name], healthy.state[name]) for name in seen)


def test_c1_a_huge_learning_rate(compose, tmp_path: Path) -> None:
    assert finish(compose(*QUIET, *TINY, "optimizer.lr=1e6", "trainer.epochs=30"), tmp_path / "run") == 4
    assert "lr 1e+06" in said(tmp_path / "run")


def bad_validation(epochs: tuple[int, ...]) -> None:
    original = _Stretch._validate

    def validate(self):
        rows = original(self)
        if self.runs[0].epoch + 1 in epochs:
            rows = [row | {"loss": math.nan} for row in rows]
        return rows

    _Stretch._validate = validate  # type: ignore[method-assign]


@pytest.mark.parametrize("epochs", [(1,), (2,), (4,), (1, 2, 3)])
def test_c2_a_nan_in_validation_is_never_the_best(compose, tmp_path: Path, epochs: tuple[int, ...]) -> None:
    folder = tmp_path / "run"
    assert finish(compose(*QUIET, *TINY), folder, before=lambda: bad_validation(epochs)) == 0
    results = RunDir(folder).read_results()
    assert results is not None
    assert results["best_epoch"] not in epochs
    rows = RunDir(folder).read_metrics()
    assert [row["epoch"] for row in rows if row["val/loss"] is None] == list(epochs)
    assert all(row["nonfinite"] == ["val/loss"] for row in rows if row["epoch"] in epochs)


def test_c2_no_finite_validation_at_all_is_a_failure(compose, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert finish(compose(*QUIET, *TINY), folder, before=lambda: bad_validation((1, 2, 3, 4))) == 4
    assert "val/loss was never finite" in said(folder)


def test_c3_every_written_line_is_strict_json(compose, tmp_path: Path) -> None:
    import json

    folder = tmp_path / "run"
    assert finish(compose(*QUIET, *TINY), folder, before=lambda: bad_validation((2,))) == 0
    for path in (RunDir(folder).metrics, RunDir(folder).results):
        for text in path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]:
            json.loads(text, parse_constant=pytest.fail)
