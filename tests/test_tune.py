"""A search with Optuna: batches of trials as sweeps, and going on after a kill."""

import json
import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.test_sweep import SMALL, ledger
from vae_lab.errors import ConfigError
from vae_lab.tune import DATABASE, SearchOptions, metric, override

OPTIONS = {"metric": "val/elbo", "direction": "maximize", "num_trials": 4, "batch_size": 2, "seed": 0}
SEARCH = (
    "hydra/sweeper=optuna",
    "hydra.sweeper.num_trials=6",
    "hydra.sweeper.batch_size=3",
    "hydra.sweeper.search_space={optimizer.lr:{low:1e-4,high:1e-2,log:true},objective.beta:{choices:[0.5,1.0]}}",
    "model=vae",
    "seed=0,1",
    "trainer.epochs=60",
)


def command(folder: Path, *arguments: str) -> list[str]:
    return [sys.executable, str(ROOT / "run.py"), "-m", f"hydra.sweep.dir={folder}", *SMALL, *SEARCH, *arguments]


def search(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(command(folder, *arguments), cwd=folder.parent, capture_output=True, text=True, check=False, timeout=280)


def trials(folder: Path) -> list[tuple]:
    """Number, parameters and value of each trial, read from the database itself."""
    with sqlite3.connect(folder / DATABASE) as database:
        return database.execute(
            "select t.number, t.state, p.param_name, p.param_value, v.value from trials t join trial_params p using (trial_id) "
            "join trial_values v using (trial_id) order by t.number, p.param_name"
        ).fetchall()


@pytest.mark.slow
def test_a_search_ends_with_plots_and_goes_on_after_a_kill(tmp_path: Path) -> None:
    """A killed search asks for the same trials as an undisturbed one, and ends with the same values."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    done = search(whole)
    assert done.returncode == 0, done.stderr
    assert ledger(whole)["completed"] == 12, "six trials of two seeds"
    for file in ("optimization_history.html", "optimization_history.png", "param_importances.html", "param_importances.png"):
        assert (whole / file).stat().st_size > 5_000
    best = json.loads((whole / "best.json").read_text())
    assert best["val/elbo"] == max(row[-1] for row in trials(whole))
    assert "'seed=0,1'" in best["command"] or "seed=0,1" in best["command"]
    process = subprocess.Popen(command(killed), cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while len(list(killed.glob("*/results.json"))) < 7:  # in the second batch
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    time.sleep(2)  # its workers end
    done = search(killed)
    assert done.returncode == 0, done.stderr
    assert ledger(killed)["completed"] == 12
    for ours, theirs in zip(trials(killed), trials(whole), strict=True):
        assert ours[:3] == theirs[:3]
        assert ours[3:] == pytest.approx(theirs[3:], rel=1e-5)
    assert "holds another search" in search(killed, "hydra.sweeper.metric=val/nll").stderr


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"search_space": {}}, "search_space is empty"),
        ({"search_space": {"latent_dim": {"low": 2}}}, "search_space.latent_dim"),
        ({"search_space": {"latent_dim": {"low": 8, "high": 2}}}, "search_space.latent_dim"),
        ({"search_space": {"latent_dim": [2, 3]}}, "search_space.latent_dim"),
        ({"search_space": {"lr": {"low": 0.0, "high": 1.0, "log": True}}}, "search_space.lr"),
        ({"search_space": {"lr": {"low": 1, "high": 2, "lgo": True}}}, "Unknown key 'hydra.sweeper.search_space.lr.lgo'"),
        ({"num_trials": 0, "search_space": {"lr": {"low": 1, "high": 2}}}, "num_trials"),
        ({"direction": "up", "search_space": {"lr": {"low": 1, "high": 2}}}, "direction"),
    ],
)
def test_a_wrong_search_is_named(wrong: dict, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        SearchOptions.of(OPTIONS | wrong)


def test_searched_keys_must_exist(tmp_path: Path) -> None:
    environment = os.environ | {"WANDB_MODE": "offline"}
    space = "hydra.sweeper.search_space={optimiser.lr:{low:1e-4,high:1e-2}}"
    arguments = ["run.py", "-m", "hydra/sweeper=optuna", f"hydra.sweep.dir={tmp_path / 'sweep'}", space]
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Unknown key 'optimiser.lr'" in done.stderr
    assert not (tmp_path / "sweep").exists()


def test_metrics_and_overrides() -> None:
    results = {"status": "completed", "val": {"nll": 3.0, "kl": 2.0, "loss": 7.0}, "test": {"elbo": -4.0}}
    assert metric(results, "val/elbo") == -5.0
    assert metric(results, "test/elbo") == -4.0
    assert metric(results | {"status": "failed"}, "val/elbo") is None
    assert metric(None, "val/elbo") is None
    with pytest.raises(ConfigError, match="Choose from: val/nll, val/kl, val/loss, test/elbo"):
        metric(results, "val/mse")
    assert [override("a", value) for value in (None, True, 0.5, "[64]")] == ["a=null", "a=true", "a=0.5", "a=[64]"]
