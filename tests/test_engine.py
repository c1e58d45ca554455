"""The engine: cohorts equal their runs alone, seeds decide everything, each option does what it says."""

import copy
import hashlib
import json
import math
from collections.abc import Callable, Sequence

import pytest
import torch

from vae_lab.cohort import Cohort, clip_gradients, gradient_norms
from vae_lab.config import TrainerConfig, typed
from vae_lab.data import load
from vae_lab.engine import Metrics, Run, fit
from vae_lab.job import make_run
from vae_lab.stacking import stack_key

CPU = torch.device("cpu")


class Listener:
    """Keeps what the engine says."""

    def __init__(self, stop_at: int | None = None):
        self.rows: dict[int, list[Metrics]] = {}
        self.stop_at, self.steps = stop_at, 0

    def on_step(self, runs: Sequence[Run], means: Callable[[], list[Metrics]]) -> None:
        self.steps += 1

    def on_epoch(self, run: Run, metrics: Metrics) -> None:
        self.rows.setdefault(id(run), []).append(metrics)

    def on_state(self, run: Run) -> None:
        pass

    def should_stop(self) -> bool:
        return self.stop_at is not None and self.steps >= self.stop_at


def train(cfgs: list[dict], stop_at: int | None = None) -> tuple[list[Run], list[list[Metrics]]]:
    splits = load(cfgs[0]["data"])
    runs = [make_run(cfg, splits) for cfg in cfgs]
    listener = Listener(stop_at)
    fit(runs, splits, typed(TrainerConfig, cfgs[0]["trainer"], "trainer"), CPU, listener)
    return runs, [listener.rows.get(id(run), []) for run in runs]


def sha(state: dict) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


SMALL = ("hidden_dims=[16]", "trainer.epochs=3", "data.limit=300", "data.val_size=100", "trainer.batch_size=32")
MIXED = [  # other seeds, betas and learning rates; the first and last share a setting
    ("seed=1", "optimizer.lr=1e-3"),
    ("seed=2", "optimizer.lr=3e-3"),
    ("seed=3", "optimizer.lr=1e-2", "trainer.clip_grad_norm=5"),
    ("seed=4", "optimizer.lr=1e-3"),
]


@pytest.mark.parametrize("kind", ["mlp vae", "conv vae", "ae", "gaussian", "dynamic", "sgd", "rmsprop", "cosine"])
def test_a_cohort_equals_its_runs_alone(compose, kind: str) -> None:
    settings = {
        "mlp vae": [],
        "conv vae": ["network=conv", "network.channels=[8,8]"],
        "ae": ["model=autoencoder", "loss=mse"],
        "gaussian": ["loss=gaussian"],
        "dynamic": ["data.binarize=dynamic"],
        "sgd": ["optimizer=sgd"],
        "rmsprop": ["optimizer=rmsprop"],
        "cosine": ["scheduler=cosine", "scheduler.warmup_epochs=1"],
    }[kind]
    betas = [] if kind == "ae" else [[f"objective.beta={beta}"] for beta in (0.5, 1, 4, 0)]
    if kind == "sgd":
        settings += ["trainer.clip_grad_norm=100"]
    cfgs = [
        compose(*SMALL, *settings, *(override for override in mixed if kind != "sgd" or "lr" not in override), *beta)
        for mixed, beta in zip(MIXED, betas or [[]] * 4, strict=True)
    ]
    together, rows_together = train(cfgs)
    for run, rows, cfg in zip(together, rows_together, cfgs, strict=True):
        (alone,), (rows_alone,) = train([cfg])
        assert len(rows) == len(rows_alone) == 3
        for row, row_alone in zip(rows, rows_alone, strict=True):
            assert row == pytest.approx(row_alone, rel=1e-5, abs=1e-6)
        assert run.best_epoch == alone.best_epoch


def test_runs_of_a_cohort_do_differ(compose) -> None:
    """A control of the test above: seed, beta and learning rate each change the numbers."""
    base = ("hidden_dims=[16]", "trainer.epochs=4", "data.limit=200")
    losses = [
        train([compose(*base, *more)])[1][0][-1]["train/nll"]
        for more in ([], ["seed=1"], ["objective.beta=4"], ["optimizer.lr=1e-2"])
    ]
    assert len({round(loss, 3) for loss in losses}) == 4


def test_same_seed_same_weights_bit_for_bit(compose) -> None:
    cfg = compose(*SMALL)
    (first,), rows_first = train([cfg])
    (second,), rows_second = train([copy.deepcopy(cfg)])
    assert sha(first.state) == sha(second.state)
    assert rows_first == rows_second


def test_global_random_state_changes_nothing(compose) -> None:
    cfg = compose(*SMALL)
    torch.manual_seed(1)
    (first,), _ = train([cfg])
    torch.manual_seed(2)
    torch.randn(7)
    (second,), _ = train([cfg])
    assert sha(first.state) == sha(second.state)


def test_going_on_from_every_step_is_bit_identical(compose) -> None:
    cfg = compose(*SMALL, "trainer.epochs=2", "scheduler=cosine")
    splits, trainer = load(cfg["data"]), typed(TrainerConfig, cfg["trainer"], "trainer")
    (whole,), (rows,) = train([cfg])
    for stop in range(1, whole.step):
        run, listener = make_run(cfg, splits), Listener(stop)
        fit([run], splits, trainer, CPU, listener)
        assert run.status == "running"
        assert run.step == stop
        first_rows = listener.rows.get(id(run), [])
        again, listener = make_run(cfg, splits), Listener()
        for name in ("epoch", "step", "sums", "state", "optimizer_state", "best_epoch", "best_loss", "best_state"):
            setattr(again, name, getattr(run, name))
        fit([again], splits, trainer, CPU, listener)
        assert sha(again.state) == sha(whole.state), f"stopped at step {stop}"
        assert first_rows + listener.rows.get(id(again), []) == rows


def test_a_cohort_goes_on_whole_bit_identically(compose) -> None:
    """Stopped in the middle of an epoch and gone on as the same cohort: the same bits."""
    cfgs = [compose(*SMALL, *mixed) for mixed in MIXED]
    splits, trainer = load(cfgs[0]["data"]), typed(TrainerConfig, cfgs[0]["trainer"], "trainer")
    whole, _ = train(cfgs)
    stopped, _ = train(cfgs, stop_at=14)
    again = [make_run(cfg, splits) for cfg in cfgs]
    for run, before in zip(again, stopped, strict=True):
        assert before.step == 14
        for name in ("epoch", "step", "sums", "state", "optimizer_state", "best_epoch", "best_loss", "best_state"):
            setattr(run, name, getattr(before, name))
    fit(again, splits, trainer, CPU, Listener())
    assert [sha(run.state) for run in again] == [sha(run.state) for run in whole]


GOLDEN = [
    44.8535,
    43.5957,
    42.3452,
    41.4082,
    40.462,
    39.5761,
    38.5071,
    37.854,
    36.5385,
    36.2997,
    34.8442,
    34.5478,
    34.0827,
    33.7579,
    33.0522,
    32.6893,
    32.4338,
    32.0807,
    31.3321,
    31.5038,
]


def test_a_golden_curve(compose) -> None:
    """20 steps of the default model. A change that should not alter numbers leaves this alone."""
    cfg = compose("data.limit=64", "trainer.batch_size=64", "trainer.epochs=20")
    _, (rows,) = train([cfg])
    assert [row["train/loss"] for row in rows] == pytest.approx(GOLDEN, rel=1e-5)


def test_nan_stops_one_run_and_no_other(compose) -> None:
    cfgs = [compose(*SMALL, f"seed={seed}", f"optimizer.lr={lr}") for seed, lr in ((1, 1e-3), (2, 1e6), (3, 1e-3))]
    runs, rows = train(cfgs)
    assert [run.status for run in runs] == ["completed", "failed", "completed"]
    assert "lr 1e+06" in (runs[1].error or "")
    assert "step" in (runs[1].error or "")
    for index in (0, 2):
        _, (alone,) = train([cfgs[index]])
        for row, row_alone in zip(rows[index], alone, strict=True):
            assert row == pytest.approx(row_alone, rel=1e-5)


def test_early_stopping_keeps_the_best_state(compose) -> None:
    cfg = compose(
        "hidden_dims=[64]",
        "trainer.epochs=60",
        "trainer.patience=2",
        "trainer.batch_size=30",
        "data.limit=60",
        "data.val_size=60",
        "optimizer.lr=2e-2",
    )
    (run,), (rows,) = train([cfg])
    assert run.status == "stopped_early"
    losses = [row["val/loss"] for row in rows]
    assert run.best_epoch == 1 + losses.index(min(losses))
    assert run.epoch == run.best_epoch + 2
    shorter = copy.deepcopy(cfg)
    shorter["trainer"] |= {"epochs": run.best_epoch, "patience": None}
    (expected,), _ = train([shorter])
    assert sha(expected.state) == sha(run.best_state)


def test_runs_of_a_cohort_stop_early_each_by_itself(compose) -> None:
    base = (
        "hidden_dims=[32]",
        "trainer.epochs=40",
        "trainer.patience=2",
        "trainer.batch_size=30",
        "data.limit=60",
        "data.val_size=60",
    )
    cfgs = [compose(*base, f"seed={seed}", f"optimizer.lr={lr}") for seed, lr in ((0, 3e-2), (1, 1e-3), (2, 1e-2))]
    runs, _ = train(cfgs)
    assert len({run.epoch for run in runs}) > 1
    for run, cfg in zip(runs, cfgs, strict=True):
        (alone,), _ = train([cfg])
        assert (alone.epoch, alone.best_epoch, alone.status) == (run.epoch, run.best_epoch, run.status)
        assert alone.best_loss == pytest.approx(run.best_loss, rel=1e-4)


def test_clipping_is_per_run() -> None:
    gradients = [torch.tensor([[3.0, 4.0], [0.3, 0.4]]), torch.zeros(2, 1)]
    norms = gradient_norms(gradients)
    torch.testing.assert_close(norms, torch.tensor([5.0, 0.5]))
    clip_gradients(gradients, norms, torch.tensor([1.0, 1.0]))
    torch.testing.assert_close(gradients[0], torch.tensor([[0.6, 0.8], [0.3, 0.4]]))


def test_clipping_bounds_what_sgd_moves(compose) -> None:
    base = (
        "optimizer=sgd",
        "optimizer.momentum=0",
        "optimizer.nesterov=false",
        "optimizer.lr=1",
        "trainer.epochs=1",
        "data.limit=32",
    )
    cfg = compose(*base, "trainer.batch_size=32", "trainer.clip_grad_norm=0.01", "data.val_size=0")
    before = make_run(cfg, load(cfg["data"])).system.state_dict()
    (run,), _ = train([cfg])
    moved = math.sqrt(sum(float((run.state[name] - before[name]).square().sum()) for name in before))
    assert moved == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_precision(compose, precision: str) -> None:
    (run,), (rows,) = train([compose(*SMALL, f"trainer.precision={precision}")])
    assert run.status == "completed"
    assert all(leaf.dtype == torch.float32 for leaf in run.state.values())
    assert rows[-1]["train/loss"] < rows[0]["train/loss"]


def test_different_architectures_are_not_stacked(compose) -> None:
    splits = load(compose()["data"])
    one, other = (make_run(compose(f"hidden_dims=[{size}]"), splits).system for size in (8, 9))
    assert stack_key(one) != stack_key(other)
    with pytest.raises(ValueError, match="cannot be stacked"):
        Cohort([one, other], CPU)


def test_a_number_that_is_no_buffer_keeps_runs_apart(compose) -> None:
    """A forgotten buffer costs speed, never truth."""
    splits = load(compose()["data"])
    one, other = (make_run(compose(), splits).system for _ in range(2))
    assert stack_key(one) == stack_key(other)
    other.objective.temperature = 2.0  # type: ignore[assignment]
    assert stack_key(one) != stack_key(other)


def test_the_last_partial_batch_is_used(compose) -> None:
    cfg = compose("data.limit=33", "data.val_size=0", "trainer.batch_size=32", "trainer.epochs=1")
    (run,), _ = train([cfg])
    assert run.step == 2


def test_metrics_are_json(compose) -> None:
    _, rows = train([compose(*SMALL)])
    json.dumps(rows, allow_nan=False)
