"""A setting is not state: it stands in no checkpoint, and a run that goes on takes it from its config."""

import json
import shutil
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

import vae_lab
from tests.conftest import ROOT
from tests.variants import Base, Private, Undeclared, chosen
from vae_lab.run_dir import RunDir
from vae_lab.train import train

SMALL = (
    *("hidden_dims=[8]", "data.limit=200", "data.val_size=50", "trainer.batch_size=32"),
    *("tracking=none", "evaluation.figures=false", "device=cpu", "trainer.checkpoint_seconds=0"),
)
EARLIER = ROOT / "tests" / "fixtures" / "run_0.1.0"  # stopped after step 8 of 12; whole.jsonl is what it went on to


def quietly(cfg: dict, folder: Path) -> dict:
    return train(cfg, folder, Console(file=StringIO()))


@pytest.mark.parametrize("cls", [Base, Undeclared, Private])
def test_a_changed_weight_counts_from_where_the_run_goes_on(cls, monkeypatch, compose, tmp_path: Path) -> None:
    """Allowed, recorded, and trained with; the best epoch is one of the new weight."""
    before = compose(*SMALL, "trainer.epochs=2")
    quietly(chosen(monkeypatch, before, "objective", cls, beta=0.5), tmp_path / "run")
    allowed = "resume_allow=[trainer.epochs,objective.beta]"
    after = compose(*SMALL, "trainer.epochs=4", allowed)
    results = quietly(chosen(monkeypatch, after, "objective", cls, beta=50.0), tmp_path / "run")
    rows = RunDir(tmp_path / "run").read_metrics()
    weights = [(row["train/loss"] - row["train/nll"]) / row["train/kl"] for row in rows]
    assert weights == pytest.approx([0.5, 0.5, 50, 50], rel=1e-3)
    assert results["best_epoch"] > 2
    assert results["beta"] == 50
    assert results["resumed"][-1]["config"]["objective.beta"] == [0.5, 50.0]


def test_no_checkpoint_holds_a_setting(compose, tmp_path: Path) -> None:
    quietly(compose(*SMALL, "trainer.epochs=1", "loss=mse"), tmp_path / "run")
    names = load_file(tmp_path / "run" / "checkpoints" / "last" / "model.safetensors").keys()
    assert {name.rpartition(".")[0].partition(".")[2].partition(".")[0] for name in names} == {"encoder", "decoder"}


def test_a_changed_monitor_selects_anew(compose, tmp_path: Path) -> None:
    quietly(compose(*SMALL, "trainer.epochs=2"), tmp_path / "run")
    allowed = "resume_allow=[trainer.epochs,trainer.monitor]"
    after = compose(*SMALL, "trainer.epochs=3", "trainer.monitor=val/kl", allowed)
    assert quietly(after, tmp_path / "run")["best_epoch"] == 3


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """A run directory as release 0.1.0 left it."""
    return Path(shutil.copytree(EARLIER, tmp_path / "earlier"))


def test_a_run_from_before_settings_loads(earlier: Path) -> None:
    run = vae_lab.load(earlier, device="cpu")
    assert run.decode(torch.zeros(1, 2)).shape == (1, 1, 8, 8)


def test_a_run_from_before_settings_goes_on_as_it_would_have(earlier: Path) -> None:
    config = RunDir(earlier).read_config()
    assert "monitor" not in config["trainer"]
    results = quietly(config, earlier)
    assert results["status"] == "completed"
    assert results["resumed"][-1]["environment"]["vae_lab"][0] == "0.1.0"
    losses = [row["val/loss"] for row in RunDir(earlier).read_metrics()[2:]]
    assert results["best_epoch"] == 3 + losses.index(min(losses)), "not by the losses of that release's noise"
    expected = [json.loads(line) for line in (EARLIER / "whole.jsonl").read_text().splitlines()]
    for row, then in zip(RunDir(earlier).read_metrics(), expected, strict=True):
        for name in ("train/loss", "train/nll", "train/kl"):
            assert row[name] == pytest.approx(then[name], rel=1e-6)
