"""What selects the best epoch: losses of one weight, the named metric, and patience that waits for the warm-up."""

import pytest

from tests.test_engine import train
from tests.test_settings import SMALL, quietly
from tests.variants import Base, ImportanceWeighted, Warm, chosen
from vae_lab.data import load
from vae_lab.entry import check
from vae_lab.errors import ConfigError
from vae_lab.job import make_run

EPOCHS = ("trainer.epochs=12", "optimizer.lr=3e-3")
STEPS = 7  # of an epoch of 200 images


def warm(monkeypatch, compose, steps: float, *overrides: str) -> dict:
    return chosen(monkeypatch, compose(*SMALL, *EPOCHS, *overrides), "objective", Warm, beta=steps)


def test_validation_is_by_the_weight_at_the_end(monkeypatch, compose) -> None:
    """With a rising weight the lowest loss of the current weight would be that of an early epoch."""
    (run,), (rows,) = train([warm(monkeypatch, compose, 10.0 * STEPS)])
    for row in rows:
        assert row["val/loss"] == pytest.approx(row["val/nll"] + row["val/kl"], rel=1e-6)
    assert rows[2]["train/loss"] < rows[2]["train/nll"] + 0.5 * rows[2]["train/kl"], "training is by the weight of the step"
    bounds = [row["val/nll"] + row["val/kl"] for row in rows]
    assert run.best_epoch == 1 + bounds.index(min(bounds))


def test_the_test_is_by_the_weight_at_the_end(monkeypatch, compose, tmp_path) -> None:
    test = quietly(warm(monkeypatch, compose, 1000.0 * STEPS, "trainer.epochs=2"), tmp_path / "run")["test"]
    assert test["loss"] == pytest.approx(test["nll"] + test["kl"] * 2 / 1000, rel=1e-6)


@pytest.mark.parametrize("steps", [1, 5, 50, 77.5, 83])
def test_the_end_of_a_warm_up_is_found(steps: float, monkeypatch, compose) -> None:
    cfg = warm(monkeypatch, compose, steps, "trainer.patience=1")
    assert make_run(cfg, load(cfg["data"])).settled_step == -(-steps // 1)


def test_without_a_warm_up_there_is_none(monkeypatch, compose) -> None:
    cfg = chosen(monkeypatch, compose(*SMALL, "trainer.patience=1"), "objective", Base, beta=1.0)
    assert make_run(cfg, load(cfg["data"])).settled_step == 0


def test_patience_waits_for_the_end_of_the_warm_up(monkeypatch, compose) -> None:
    """At a learning rate of nearly zero no epoch is better than the first, so that only patience decides."""
    settings = ("trainer.patience=2", "optimizer.lr=1e-12", "optimizer=sgd")
    (run,), _ = train([warm(monkeypatch, compose, 5.0 * STEPS, *settings)])
    assert (run.status, run.epoch) == ("stopped_early", 7)
    (plain,), _ = train([chosen(monkeypatch, compose(*SMALL, *EPOCHS, *settings), "objective", Base, beta=1.0)])
    assert (plain.status, plain.epoch) == ("stopped_early", 3)


def test_monitor_names_what_selects(compose) -> None:
    for name, better in (("val/kl", min), ("val/nll", min), ("val/elbo", min)):
        (run,), (rows,) = train([compose(*SMALL, *EPOCHS, f"trainer.monitor={name}")])
        values = [row["val/nll"] + row["val/kl"] if name == "val/elbo" else row[name] for row in rows]
        assert run.best_epoch == 1 + values.index(better(values))
        assert run.best_loss == better(values)


def test_an_objective_may_name_its_monitor(monkeypatch, compose) -> None:
    class ByDistortion(Base):
        monitor = "nll"

    cfg = chosen(monkeypatch, compose(*SMALL), "objective", ByDistortion, beta=1.0)
    assert make_run(cfg, load(cfg["data"])).monitor == "val/nll"


def test_a_monitor_that_is_not_there(monkeypatch, compose) -> None:
    with pytest.raises(ConfigError, match=r"trainer.monitor=val/nl: this run has no such number. Choose from: val/loss, "
                       r"val/nll, val/kl, val/elbo. Did you mean 'val/nll'\?"):  # fmt: skip
        check(compose(*SMALL, "trainer.monitor=val/nl"))
    with pytest.raises(ConfigError, match="Choose from: val/loss, val/nll"):
        check(compose(*SMALL, "model=autoencoder", "trainer.monitor=val/elbo"))
    with pytest.raises(ConfigError, match=r"trainer\.monitor needs validation images"):
        check(compose(*SMALL, "trainer.monitor=val/nll", "data.val_size=0"))
    cfg = chosen(monkeypatch, compose(*SMALL, "trainer.monitor=val/kl"), "objective", ImportanceWeighted, beta=2.0)
    with pytest.raises(ConfigError, match="Choose from: val/loss, val/nll"):
        check(cfg)
