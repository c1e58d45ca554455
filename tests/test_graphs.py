"""Compiled steps: one graph each, the same numbers, few of them, and a message where they cannot be made."""

from pathlib import Path

import pytest
import torch

from tests.test_engine import CPU, SMALL, Listener, sha, train
from tests.variants import BatchNormed, chosen
from vae_lab import engine
from vae_lab.cohort import Cohort
from vae_lab.config import Precision, TrainerConfig, typed
from vae_lab.data import load
from vae_lab.data.base import to_float
from vae_lab.engine import fit
from vae_lab.errors import ConfigError
from vae_lab.graphs import Graphs, check_compiler, roomy
from vae_lab.job import make_run
from vae_lab.objectives.base import Batch

CARRIED = ("epoch", "step", "sums", "state", "optimizer_state", "best_epoch", "best_loss", "best_state")


@pytest.fixture
def shapes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shape of images of every graph that is compiled."""
    seen: list[tuple[int, ...]] = []

    class Watched(Graphs):
        """Graphs that say for which images they were made."""

        def call(self, whole, blocks, buffers, batch, noise, step):
            before = set(self.compiled)
            outputs = super().call(whole, blocks, buffers, batch, noise, step)
            seen.extend(tuple(shape) for shape in set(self.compiled) - before)
            return outputs

    monkeypatch.setattr(engine, "Graphs", Watched)
    return seen


def compiled(cfg: dict) -> dict:
    return cfg | {"trainer": cfg["trainer"] | {"compile": True}}


@pytest.mark.parametrize("precision", [Precision.fp32, Precision.bf16])
@pytest.mark.parametrize("runs", [1, 3])
def test_what_is_recorded_is_the_step(compose, runs: int, precision: Precision) -> None:
    """The function that is traced gives the very bits of the step that is not."""
    cfgs = [compose("hidden_dims=[600]", f"seed={seed}") for seed in range(runs)]  # tensors large enough for blocks of their own
    splits = load(cfgs[0]["data"])
    cohort = Cohort([make_run(cfg, splits).system for cfg in cfgs], CPU, precision)
    leading = () if runs == 1 else (runs,)
    x = to_float(splits.train.x[:32]).expand(*leading, *[-1] * 4).contiguous()
    noise = {"eps": torch.randn(*leading, 32, 2)}
    terms, backward = cohort.step(Batch(x, None), noise, torch.tensor(0))
    terms_recorded, gradients = cohort._whole(cohort.blocks, cohort.buffers, Batch(x, None), noise, torch.tensor(0))
    assert len(gradients) == 3
    for gradient, recorded in zip(backward(), gradients, strict=True):
        assert torch.equal(gradient, recorded)
        assert gradient.abs().sum() > 0
    for name, term in terms.items():
        assert torch.equal(term, terms_recorded[name])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("runs", "kind"),
    [(1, []), (1, ["trainer.precision=bf16"]), (2, ["network=conv", "network.channels=[4]", "network.groups=2", "loss=gaussian"])],
)
def test_compiled_training_agrees(compose, shapes: list, runs: int, kind: list[str]) -> None:
    cfgs = [compose(*SMALL, *kind, f"seed={seed}") for seed in range(runs)]
    _, plain = train(cfgs)
    _, rows_compiled = train([compiled(cfg) for cfg in cfgs])
    for rows, others in zip(plain, rows_compiled, strict=True):
        assert rows[-1] == pytest.approx(others[-1], rel=1e-2 if "trainer.precision=bf16" in kind else 1e-4)
    leading = () if runs == 1 else (runs,)
    assert sorted(shapes) == [(*leading, size, 1, 8, 8) for size in (300 % 32, 32)]


@pytest.mark.slow
def test_runs_may_leave_a_compiled_cohort(compose, shapes: list) -> None:
    """As without compiling, and without compiling anew each time; stopped on the way, to the same bits."""
    base = (
        "hidden_dims=[64]",
        "trainer.epochs=40",
        "trainer.patience=2",
        "data.limit=60",
        "data.val_size=60",
        "trainer.batch_size=30",
    )
    lrs = (5e-2, 2e-2, 1e-2, 5e-3, 1e-3)
    cfgs = [compose(*base, "trainer.batch_size=30", f"seed={seed}", f"optimizer.lr={lr}") for seed, lr in enumerate(lrs)]
    plain, _ = train(cfgs)
    cfgs = [compiled(cfg) for cfg in cfgs]
    runs, _ = train(cfgs)
    assert len({run.epoch for run in runs}) > 2
    assert [(run.status, run.epoch, run.best_epoch) for run in runs] == [(run.status, run.epoch, run.best_epoch) for run in plain]
    assert {shape[0] for shape in shapes} <= {roomy(number) for number in range(2, 6)} | {30}

    stopped, _ = train(cfgs, stop_at=2 * sorted(run.epoch for run in runs)[1] + 1)
    splits, again = load(cfgs[0]["data"]), [make_run(cfg, load(cfgs[0]["data"])) for cfg in cfgs]
    for run, before in zip(again, stopped, strict=True):
        for name in CARRIED:
            setattr(run, name, getattr(before, name))
    going_on = [run for run, before in zip(again, stopped, strict=True) if before.status == "running"]
    assert 1 < len(going_on) < len(runs)
    fit(going_on, splits, typed(TrainerConfig, cfgs[0]["trainer"], "trainer"), CPU, Listener())
    expected = [run for run, before in zip(runs, stopped, strict=True) if before.status == "running"]
    assert [sha(run.best_state) for run in going_on] == [sha(run.best_state) for run in expected]


def test_recording_a_step_does_not_take_it(compose, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a forward pass writes to buffers is written once a step, for each shape of images too."""
    cfg = chosen(monkeypatch, compose(*SMALL), "network", BatchNormed, hidden_dims=[16])
    (eager,), _ = train([cfg])
    (run,), _ = train([compiled(cfg)])
    name = "model.encoder.2.num_batches_tracked"
    assert int(run.state[name]) == int(eager.state[name]) == run.step
    variance = "model.encoder.2.running_var"  # the mean has a bias whose gradient is rounding noise
    assert torch.allclose(run.state[variance], eager.state[variance], rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("runs", [1, 2])
def test_convolutions_in_bf16_are_compiled(compose, runs: int) -> None:
    settings = (*SMALL, "network=conv", "network.channels=[8,8]", "trainer.precision=bf16", "trainer.epochs=1")
    cfgs = [compose(*settings, f"seed={seed}") for seed in range(runs)]
    _, eager = train(cfgs)
    _, rows = train([compiled(cfg) for cfg in cfgs])
    for row, expected in zip(rows, eager, strict=True):
        assert row[0]["train/loss"] == pytest.approx(expected[0]["train/loss"], rel=2e-3)


def test_sizes_of_shrinking_cohorts() -> None:
    assert sorted({roomy(number) for number in range(1, 65)}) == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64]
    assert all(number <= roomy(number) < 1.5 * number for number in range(1, 1000))


def test_no_compiler_is_said_before_anything_begins(monkeypatch: pytest.MonkeyPatch, compose) -> None:
    from vae_lab.entry import check

    monkeypatch.setenv("CXX", "no-such-compiler -O2")
    with pytest.raises(ConfigError, match=r"needs a C\+\+ compiler, and there is no no-such-compiler"):
        check(compose("trainer.compile=true"))
    check(compose("trainer.compile=false"))
    monkeypatch.setenv("CXX", "python3")
    check_compiler()


@pytest.mark.slow
def test_a_step_that_cannot_be_compiled(compose, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One message instead of the compiler's pages."""
    from torch._inductor import cpp_builder

    cpp_builder.cpp_compiler_search.cache_clear()
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("/no/compiler",))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    with pytest.raises(ConfigError, match=r"trainer.compile=true: torch cannot compile this: .*C\+\+.* Set trainer.compile=false"):
        train([compiled(compose(*SMALL, "hidden_dims=[23]"))])
    cpp_builder.cpp_compiler_search.cache_clear()
