"""Sweeps: cohorts in worker processes give what the basic launcher gives, and lose nothing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from vae_lab import sweep
from vae_lab.run_dir import RunDir

pytestmark = pytest.mark.slow
SMALL = (
    "hidden_dims=[16]",
    "trainer.epochs=10",
    "data.limit=300",
    "trainer.batch_size=64",
    "tracking=none",
    "evaluation.figures=false",
)


def launch(folder: Path, *arguments: str, launcher: str = "cohort") -> subprocess.CompletedProcess:
    command = [
        sys.executable,
        str(ROOT / "run.py"),
        "-m",
        f"hydra/launcher={launcher}",
        f"hydra.sweep.dir={folder}",
        *SMALL,
        *arguments,
    ]
    return subprocess.run(command, cwd=folder.parent, capture_output=True, text=True, timeout=280, check=False)


def ledger(folder: Path) -> dict:
    content = json.loads((folder / sweep.LEDGER).read_text())
    assert content["planned"] == sum(content[state] for state in sweep.STATES) == len(content["jobs"])
    return content


def runs(folder: Path) -> dict[str, RunDir]:
    return {path.parent.name: RunDir(path.parent) for path in sorted(folder.glob("*/config.yaml"))}


def numbers(run_dir: RunDir) -> list[dict]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in run_dir.read_metrics()]


def assert_same(one: Path, other: Path, rel: float = 1e-5) -> None:
    """Two sweep directories hold the same runs with the same numbers."""
    ours, theirs = runs(one), runs(other)
    assert set(ours) == set(theirs)
    for name in ours:
        for row, expected in zip(numbers(ours[name]), numbers(theirs[name]), strict=True):
            assert row == pytest.approx(expected, rel=rel, abs=1e-6), name
        mine, yours = ours[name].read_results(), theirs[name].read_results()
        assert mine is not None
        assert yours is not None
        assert mine["test"]["loss"] == pytest.approx(yours["test"]["loss"], rel=rel)
        assert (mine["fingerprint"], mine["best_epoch"], mine["status"]) == (
            yours["fingerprint"],
            yours["best_epoch"],
            yours["status"],
        )


MIXED = ("model=autoencoder,vae,beta_vae", "latent_dim=2,5", "seed=0,1")


def test_cohorts_give_the_tree_and_the_numbers_of_the_basic_launcher(tmp_path: Path) -> None:
    assert launch(tmp_path / "cohort", *MIXED).returncode == 0
    assert launch(tmp_path / "basic", *MIXED, launcher="basic").returncode == 0
    assert_same(tmp_path / "cohort", tmp_path / "basic")
    assert ledger(tmp_path / "cohort")["completed"] == 12

    def tree(folder: Path) -> set[str]:
        return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} - {
            sweep.LEDGER,
            ".lock",
            ".lock.json",
        }

    assert tree(tmp_path / "cohort") == tree(tmp_path / "basic")
    for name, run_dir in runs(tmp_path / "cohort").items():
        basic = tmp_path / "basic" / name / ".hydra"
        assert (run_dir.path / ".hydra" / "config.yaml").read_text() == (basic / "config.yaml").read_text()
        assert (run_dir.path / ".hydra" / "overrides.yaml").read_text() == (basic / "overrides.yaml").read_text()
        assert len(run_dir.log.read_text().splitlines()) == len((tmp_path / "basic" / name / "run.log").read_text().splitlines())


def test_a_run_that_turns_nan_costs_itself_and_code_8(tmp_path: Path) -> None:
    done = launch(tmp_path / "sweep", "seed=0,1", "optimizer.lr=1e-3,1e6")
    assert done.returncode == 8
    content = ledger(tmp_path / "sweep")
    assert (content["completed"], content["failed"]) == (2, 2)
    for job in content["jobs"]:
        if job["state"] == "failed":
            assert "lr 1e+06" in job["cause"]
            assert any("lr 1e+06" in line for line in job["last_lines"])
    assert "error: 2 of 4 runs failed" in done.stderr
    assert launch(tmp_path / "alone", "seed=0,1").returncode == 0
    for seed in (0, 1):
        (mixed,) = [run for run in runs(tmp_path / "sweep").values() if _is(run, seed, 1e-3)]
        (alone,) = [run for run in runs(tmp_path / "alone").values() if _is(run, seed, 1e-3)]
        for row, expected in zip(numbers(mixed), numbers(alone), strict=True):
            assert row == pytest.approx(expected, rel=1e-5)


def _is(run: RunDir, seed: int, lr: float) -> bool:
    cfg = run.read_config()
    return cfg["seed"] == seed and cfg["optimizer"]["lr"] == lr


def test_going_on_trains_only_what_is_missing(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    assert launch(folder, "seed=1,2").returncode == 0
    before = {name: run.results.stat().st_mtime_ns for name, run in runs(folder).items()}
    assert launch(folder, "seed=0,1,2,3").returncode == 0
    after = runs(folder)
    assert len(after) == 4
    assert {name: after[name].results.stat().st_mtime_ns for name in before} == before
    assert ledger(folder)["completed"] == 4
    assert len({run.read_config()["seed"] for run in after.values()}) == 4


def test_a_wrong_job_is_found_before_any_starts(tmp_path: Path) -> None:
    done = launch(tmp_path / "sweep", "latent_dim=2,3,0")
    assert done.returncode == 2
    assert "latent_dim=0" in done.stderr
    assert not list((tmp_path / "sweep").glob("*/config.yaml"))


def test_every_run_has_its_own_wandb_run_in_the_sweeps_group(tmp_path: Path) -> None:
    from tests.offline_wandb import read_offline_run

    assert launch(tmp_path / "sweep", "seed=0,1,2", "tracking=wandb").returncode == 0
    offline = [read_offline_run(run.path / "wandb") for run in runs(tmp_path / "sweep").values()]
    assert len({run.run_id for run in offline}) == 3
    assert {run.config["seed"] for run in offline} == {0, 1, 2}
    assert {run.config["tracking"]["group"] for run in offline} == {"sweep"}
    assert all(len([row for row in run.history if "train/loss" in row]) == 10 for run in offline)
