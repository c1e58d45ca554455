"""A picture, a metric or a tracker that raises costs itself: the run is completed and says what was left out."""

import json
import logging
import traceback
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console

from tests.test_messages import TINY
from vae_lab import evaluate, figures
from vae_lab.errors import StorageError
from vae_lab.models.vae import VAE
from vae_lab.run_dir import RunDir
from vae_lab.skipped import Skipped
from vae_lab.tracking import Tracker
from vae_lab.train import train_cohort
from vae_lab.worker import OwnLog


def broken(*arguments: object) -> None:
    raise ValueError("of its own\nand more")


def train_logged(cfgs: list[dict], folders: list[Path]) -> tuple[list, str, list[str]]:
    """Outcomes of a cohort, what the console said, and each run's log."""
    shown, logger = StringIO(), logging.getLogger()
    for folder in folders:
        folder.mkdir(exist_ok=True)
    handlers = [OwnLog(folder) for folder in folders]
    level = logger.level
    logger.setLevel(logging.INFO)
    try:
        for handler in handlers:
            logger.addHandler(handler)
        outcomes = train_cohort(cfgs, folders, Console(file=shown, width=300))
    finally:
        logger.setLevel(level)
        for handler in handlers:
            logger.removeHandler(handler)
            handler.close()
    return outcomes, shown.getvalue(), [RunDir(folder).log.read_text() for folder in folders]


@pytest.mark.parametrize("seeds", [1, 3])
def test_d6_a_picture_that_raises_costs_itself(tmp_path: Path, compose, monkeypatch: pytest.MonkeyPatch, seeds: int) -> None:
    monkeypatch.setattr(figures, "latent", broken)
    cfgs = [compose(*TINY, "evaluation.figures=true", f"seed={seed}") for seed in range(seeds)]
    folders = [tmp_path / f"{seed}" for seed in range(seeds)]
    for folder in folders:
        (folder / "figures").mkdir(parents=True)
        (folder / "figures" / "latent.png").write_text("of an earlier state")
    outcomes, shown, logs = train_logged(cfgs, folders)
    for folder, outcome, log in zip(folders, outcomes, logs, strict=True):
        assert outcome["status"] == "completed"
        assert outcome["skipped"] == {"figures/latent": "ValueError: of its own"}
        assert json.loads((folder / "results.json").read_text()) == outcome
        drawn = {path.stem for path in (folder / "figures").iterdir()}
        assert drawn == {"reconstructions", "samples", "curves", "manifold"}
        assert log.count("figures/latent is left out: ValueError: of its own") == 1
        assert 'raise ValueError("of its own' in log, "the traceback is in the run's log"
    assert shown.count("is left out") == 1


def test_d6_labels_of_another_shape(train_quiet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels [N, F] suit no scatter by class."""
    latent = figures.latent

    def with_attributes(subject):
        object.__setattr__(subject.images, "y", torch.zeros(len(subject.images), 3, dtype=torch.long))
        return latent(subject)

    monkeypatch.setattr(figures, "latent", with_attributes)
    results = train_quiet(*TINY, "evaluation.figures=true", "latent_dim=3")
    assert results["status"] == "completed"
    assert list(results["skipped"]) == ["figures/latent"]


def test_d6_metrics_that_raise_cost_themselves(train_quiet, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train_quiet(*TINY, folder="whole")
    monkeypatch.setattr(evaluate, "_kl_per_latent", broken)
    monkeypatch.setattr(evaluate, "reparameterize", broken)
    results = train_quiet(*TINY, "evaluation.figures=true", folder="part")
    assert results["status"] == "completed"
    assert set(results["skipped"]) == {"test/kl_per_latent", "test/sse"}
    assert set(whole["test"]) - set(results["test"]) == {"kl_per_latent", "sse", "mse"}
    assert {key: whole["test"][key] for key in results["test"]} == results["test"]
    assert len(list((results["dir"] / "figures").iterdir())) == 5


def test_d6_codes_that_raise_cost_what_is_made_of_them(train_quiet, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's own terms are whole; evaluation asks the model again, and gets no codes."""
    posterior = VAE.posterior

    def asked(model, x):
        callers = {frame.name for frame in traceback.extract_stack()}
        return broken() if "evaluate" in callers and "forward" not in callers else posterior(model, x)

    monkeypatch.setattr(VAE, "posterior", asked)
    results = train_quiet(*TINY, "evaluation.figures=true")
    assert results["status"] == "completed"
    assert results["skipped"] == {"test/codes": "ValueError: of its own"}
    assert set(results["test"]) == {"loss", "nll", "kl", "elbo"}


def test_d6_a_storage_that_fails_is_still_code_6() -> None:
    skipped = Skipped()
    with pytest.raises(StorageError), skipped.costs_itself("figures/x"):
        raise StorageError("no room")
    assert not skipped


class Broken(Tracker):
    """Fails in all it does."""

    log = finish = broken


def test_a_tracker_that_raises_costs_itself(train_quiet, monkeypatch: pytest.MonkeyPatch) -> None:
    from vae_lab import registry

    build = registry.build
    monkeypatch.setattr(registry, "build", lambda group, *a, **k: Broken() if group == "tracking" else build(group, *a, **k))
    results = train_quiet(*TINY)
    assert results["status"] == "completed"
    assert results["skipped"] == {"tracking": "ValueError: of its own"}


@pytest.mark.parametrize("trouble", ["not installed", "names the run"])
def test_d7_a_wandb_warning_of_a_cohort_stands_once(tmp_path: Path, compose, monkeypatch: pytest.MonkeyPatch, trouble: str) -> None:
    """In each run's log stands its own, on the console one for all."""
    import sys

    from vae_lab.interrupt import interrupts
    from vae_lab.tracking.weights_and_biases import WandbTracker

    def fail(tracker: WandbTracker, mode: str) -> None:
        raise OSError(f"no answer for run {tracker._run_id()}")

    if trouble == "names the run":
        monkeypatch.setattr(WandbTracker, "_init", fail)
    else:
        monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr(interrupts, "before_leaving", [])
    tracked = [word for word in TINY if word != "tracking=none"]
    cfgs = [compose(*tracked, f"seed={seed}") for seed in range(3)]
    folders = [tmp_path / f"{seed}" for seed in range(3)]
    outcomes, shown, logs = train_logged(cfgs, folders)
    assert shown.count("W&B: ") == 1
    for folder, outcome, log in zip(folders, outcomes, logs, strict=True):
        assert outcome["status"] == "completed"
        assert log.count("W&B: ") == 1
        assert f"wandb sync {folder}/wandb" in log
        assert outcome["skipped"]["tracking"].startswith("W&B: ")
