"""Faults A8 to A10, B7, E8 and I: where a run may go on, what is said, and who may work there."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.processes import finish, said, start, wait
from tests.test_kill import QUIET, TINY, signal_at_step
from vae_lab import lock
from vae_lab.doctor import hashes
from vae_lab.errors import CheckpointError, ConfigError, LockedError
from vae_lab.resume import check_same
from vae_lab.run_dir import RunDir

SMALL = ("tracking=none", "evaluation.figures=false", "trainer.epochs=3", "hidden_dims=[16]")


@pytest.fixture
def interrupted(compose, tmp_path: Path) -> tuple[dict, Path]:
    """A run stopped at step 8 of 12, in the middle of an epoch."""
    cfg = compose(*QUIET, *TINY)
    assert finish(cfg, tmp_path / "run", before=lambda: signal_at_step(8, 15)) == 143
    return cfg, tmp_path / "run"


@pytest.mark.slow
def test_resume_by_folder_and_by_repeating_the_command(command, tmp_path: Path) -> None:
    stop = ("import os, signal, sys; sys.path.insert(0, {root!r}); from tests.test_kill import signal_at_step; "
            "signal_at_step(20, signal.SIGTERM); sys.argv = ['run.py', *{arguments!r}]; import runpy; "
            "runpy.run_path({root!r} + '/run.py', run_name='__main__')")  # fmt: skip
    assert command(*SMALL, "hydra.run.dir=whole").returncode == 0
    for name, again in (("one", ["resume=one"]), ("two", [*SMALL, "hydra.run.dir=two"])):
        code = stop.format(root=str(ROOT), arguments=[*SMALL, f"hydra.run.dir={name}"])
        stopped = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert stopped.returncode == 143, stopped.stderr
        assert f"Go on with: python run.py resume={tmp_path / name}" in stopped.stderr
        done = command(*again)
        assert done.returncode == 0, done.stderr
        assert "is going on at step 20" in done.stdout
        assert hashes(tmp_path / name) == hashes(tmp_path / "whole")


@pytest.mark.slow
def test_a8_a_changed_config_is_refused_with_its_keys(command, interrupted: tuple[dict, Path]) -> None:
    _, folder = interrupted
    (folder / ".hydra").mkdir(exist_ok=True)
    (folder / ".hydra" / "overrides.yaml").write_text(json.dumps([*QUIET, *TINY]))
    for change, shown in (
        ("latent_dim=5", "latent_dim: 2 there, 5 here"),
        ("seed=7", "seed: 0 there, 7 here"),
        ("optimizer.lr=0.1", "optimizer.lr: 0.001 there, 0.1 here"),
    ):
        done = command(f"resume={folder}", change)
        assert done.returncode == 2
        assert shown in done.stderr
    done = command(f"resume={folder}", "optimizer.lr=0.1", "resume_allow=[lr]")
    assert done.returncode == 0, done.stderr
    results = RunDir(folder).read_results()
    assert results is not None
    assert results["resumed"][0]["config"] == {"optimizer.lr": [0.001, 0.1]}


@pytest.mark.slow
def test_a8_more_epochs_may_be_allowed(command, tmp_path: Path) -> None:
    assert command(*SMALL, "hydra.run.dir=run").returncode == 0
    done = command("resume=run", "trainer.epochs=5", "resume_allow=[trainer.epochs]")
    assert done.returncode == 0, done.stderr
    assert [row["epoch"] for row in RunDir(tmp_path / "run").read_metrics()] == [1, 2, 3, 4, 5]


@pytest.mark.slow
def test_a9_a_finished_run_is_left_alone(command, tmp_path: Path) -> None:
    assert command(*SMALL, "hydra.run.dir=run").returncode == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    for again in (["resume=run"], [*SMALL, "hydra.run.dir=run"]):
        done = command(*again)
        assert done.returncode == 0
        assert "Nothing to do" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before


def test_a10_another_environment_is_named_and_recorded(compose, interrupted: tuple[dict, Path]) -> None:
    cfg, folder = interrupted

    def other_threads() -> None:
        import torch

        torch.set_num_threads(2)

    assert finish(cfg, folder, before=other_threads) == 0
    results = RunDir(folder).read_results()
    assert results is not None
    assert results["resumed"][0]["environment"] == {"threads": [1, 2]}


def test_an_exact_resume_records_that_nothing_changed(interrupted: tuple[dict, Path]) -> None:
    cfg, folder = interrupted
    assert finish(cfg, folder) == 0
    results = RunDir(folder).read_results()
    assert results is not None
    assert results["resumed"] == [{"step": 8, "environment": {}, "config": {}}]


def test_b7_a_torn_line_and_rows_past_the_checkpoint(interrupted: tuple[dict, Path], tmp_path: Path) -> None:
    cfg, folder = interrupted
    assert finish(cfg, tmp_path / "whole") == 0
    metrics = RunDir(folder).metrics
    rows = metrics.read_text().splitlines()
    metrics.write_text("\n".join([*rows, rows[-1].replace('"epoch": 2', '"epoch": 3'), '{"epoch": 4, "ste']))
    assert finish(cfg, folder) == 0
    assert hashes(folder) == hashes(tmp_path / "whole")


def test_e8_a_changed_data_set_is_refused(compose, interrupted: tuple[dict, Path]) -> None:
    cfg, folder = interrupted

    def other_images() -> None:
        from vae_lab.data import base
        from vae_lab.data.digits import Digits

        base._load.cache_clear()
        original = Digits.read

        def read(self):
            train, test = original(self)
            train.x[0, 0, 0, 0] += 1
            return train, test

        Digits.read = read  # type: ignore[method-assign]

    assert finish(cfg, folder, before=other_images) == 3
    assert "trained on other images" in said(folder)


def test_a_checkpoint_of_another_run_is_refused(compose, interrupted: tuple[dict, Path], tmp_path: Path) -> None:
    import shutil

    cfg, folder = interrupted
    other = compose(*QUIET, *TINY, "seed=5")
    assert finish(other, tmp_path / "other", before=lambda: signal_at_step(8, 15)) == 143
    shutil.rmtree(folder / "checkpoints")
    shutil.copytree(tmp_path / "other" / "checkpoints", folder / "checkpoints")
    assert finish(cfg, folder) == 5
    assert "different runs" in said(folder)


@pytest.mark.parametrize("wrong", ["nowhere", "."])
def test_resume_of_no_run(command, tmp_path: Path, wrong: str) -> None:
    done = command(f"resume={wrong}")
    assert done.returncode == 2
    assert "no run lies there" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_i_two_commands_on_one_folder(compose, command, tmp_path: Path) -> None:
    cfg = compose(*QUIET, "trainer.epochs=100000", "hidden_dims=[16]")
    pid = start(cfg, tmp_path / "run")
    while not (tmp_path / "run" / "metrics.jsonl").exists():
        time.sleep(0.05)
    done = command(*QUIET, "trainer.epochs=100000", "hidden_dims=[16]", "hydra.run.dir=run")
    assert done.returncode == 7
    assert re.search(rf"in use by process {pid} on \S+ \(since \d+ s\)", done.stderr)
    os.kill(pid, 15)
    assert wait(pid) == 143


def test_i_a_lock_of_a_dead_process_is_taken_over(tmp_path: Path) -> None:
    pid = os.fork()
    if not pid:
        lock.acquire(tmp_path)
        os._exit(9)
    wait(pid)
    held, notice = lock.acquire(tmp_path)
    assert notice is not None
    assert f"process {pid}" in notice
    lock.release(tmp_path, held)
    assert not (tmp_path / lock.OWNER).exists()


def test_i_one_winner_of_eight(tmp_path: Path) -> None:
    go = tmp_path / "go"
    pids = []
    for _ in range(8):
        pid = os.fork()
        if not pid:
            while not go.exists():
                time.sleep(0.001)
            try:
                lock.acquire(tmp_path / "run")
            except LockedError:
                os._exit(7)
            time.sleep(2)
            os._exit(0)
        pids.append(pid)
    go.touch()
    assert sorted(wait(pid) for pid in pids) == [0, *[7] * 7]


def test_i_two_runs_of_one_second_get_two_folders(compose, tmp_path: Path) -> None:
    from vae_lab.resume import reserve

    one, held, _ = reserve(tmp_path / "run", compose(), explicit=False)
    other, held_too, _ = reserve(tmp_path / "run", compose(), explicit=False)
    assert (one.name, other.name) == ("run", "run-2")
    for folder, each in ((one, held), (other, held_too)):
        assert each is not None
        lock.release(folder, each)


COHORT = [("seed=1",), ("seed=2", "optimizer.lr=1e-2"), ("seed=3", "objective.beta=4")]


def train_as_cohort(cfgs: list[dict], folders: list[Path], stop: int | None = None) -> int:
    """Train runs together in a process of their own; the worst exit code."""
    from io import StringIO

    from rich.console import Console

    from vae_lab.errors import VaeLabError
    from vae_lab.interrupt import interrupts
    from vae_lab.train import train_cohort

    pid = os.fork()
    if not pid:
        interrupts.install()
        if stop is not None:
            signal_at_step(stop, 15)
        outcomes = train_cohort(cfgs, folders, Console(file=StringIO()))
        os._exit(max(outcome.exit_code if isinstance(outcome, VaeLabError) else 0 for outcome in outcomes))
    return wait(pid)


def test_a_cohort_goes_on_whole_to_the_same_bits(compose, tmp_path: Path) -> None:
    cfgs = [compose(*QUIET, *TINY, *more) for more in COHORT]
    whole, stopped = ([tmp_path / name / str(number) for number in range(3)] for name in ("whole", "stopped"))
    assert train_as_cohort(cfgs, whole) == 0
    assert train_as_cohort(cfgs, stopped, stop=8) == 143
    assert train_as_cohort(cfgs, stopped) == 0
    for one, other in zip(whole, stopped, strict=True):
        assert hashes(one) == hashes(other)
        results = RunDir(other).read_results()
        assert results is not None
        assert results["resumed"] == [{"step": 8, "environment": {}, "config": {}}]


def test_a_run_of_a_cohort_goes_on_alone_and_says_so(compose, tmp_path: Path) -> None:
    cfgs = [compose(*QUIET, *TINY, *more) for more in COHORT]
    whole, stopped = ([tmp_path / name / str(number) for number in range(3)] for name in ("whole", "stopped"))
    assert train_as_cohort(cfgs, whole) == 0
    assert train_as_cohort(cfgs, stopped, stop=8) == 143
    for cfg, folder, undisturbed in zip(cfgs, stopped, whole, strict=True):
        assert finish(cfg, folder) == 0
        results = RunDir(folder).read_results()
        assert results is not None
        assert results["resumed"][0]["environment"] == {"cohort": [3, 1]}
        for row, expected in zip(RunDir(folder).read_metrics(), RunDir(undisturbed).read_metrics(), strict=True):
            terms = {key: value for key, value in row.items() if key != "seconds"}
            assert terms == pytest.approx({key: expected[key] for key in terms}, rel=1e-5)


def test_a_folder_that_vanishes_costs_its_run_alone(compose, tmp_path: Path) -> None:
    import shutil

    cfgs = [compose(*QUIET, *TINY, *more) for more in COHORT]
    folders = [tmp_path / str(number) for number in range(3)]
    from vae_lab.train import Recorder

    original = Recorder.on_epoch

    def on_epoch(self, run, metrics) -> None:
        if run.epoch == 2:
            shutil.rmtree(folders[1], ignore_errors=True)
        original(self, run, metrics)

    Recorder.on_epoch = on_epoch  # type: ignore[method-assign]
    try:
        assert train_as_cohort(cfgs, folders) == 6
    finally:
        Recorder.on_epoch = original  # type: ignore[method-assign]
    statuses = [(RunDir(folder).read_results() or {}).get("status") for folder in folders]
    assert statuses == ["completed", None, "completed"]


def test_a_refused_resume_leaves_a_finished_run_as_it_was(compose, train_quiet, tmp_path: Path) -> None:
    """Other shapes are not offered, and following the offer of another time costs no results."""
    results = train_quiet("trainer.epochs=1", "hidden_dims=[8]", "data.limit=128", folder="run")
    run_dir = RunDir(results["dir"])
    before = run_dir.results.read_bytes()
    other = ("trainer.epochs=1", "hidden_dims=[8]", "data.limit=128", "tracking=none", "evaluation.figures=false", "device=cpu")
    with pytest.raises(ConfigError, match="its weights have other shapes") as refused:
        check_same(run_dir, compose(*other, "latent_dim=3"))
    assert "resume_allow" not in str(refused.value)
    with pytest.raises(ConfigError, match=r"resume_allow=\[optimizer.lr\]"):
        check_same(run_dir, compose(*other, "optimizer.lr=0.5"))
    with pytest.raises(CheckpointError, match="belongs to another model"):
        train_quiet(*other, "latent_dim=3", "resume_allow=[latent_dim,model.latent_dim]", folder="run")
    assert run_dir.results.read_bytes() == before
