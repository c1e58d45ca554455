"""The same sweep under other launchers, and as jobs of a cluster."""

from pathlib import Path

import pytest

from tests.test_sweep import assert_same, launch, ledger
from vae_lab.errors import ConfigError
from vae_lab.planning import Cost, Planned, SweepOptions, largest_cohort, plan

SWEEP = ("model=autoencoder,vae", "seed=0,1", "trainer.epochs=4")
OPTIONS = {"max_cohort": "auto", "workers": None, "stall_seconds": None, "cluster": None, "submitit": None}


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("here") / "sweep"
    assert launch(folder, *SWEEP).returncode == 0
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "options"),
    [
        ("joblib", ("hydra.launcher.n_jobs=2",)),
        ("submitit_local", ("hydra.launcher.timeout_min=5", "hydra.launcher.cpus_per_task=1")),
        ("cohort", ("hydra.launcher.cluster=local", "hydra.launcher.submitit={timeout_min:5}")),
    ],
)
def test_other_launchers_give_the_same(here: Path, tmp_path: Path, launcher: str, options: tuple[str, ...]) -> None:
    done = launch(tmp_path / "sweep", *SWEEP, *options, launcher=launcher)
    assert done.returncode == 0, done.stderr
    assert ledger(tmp_path / "sweep")["completed"] == 4
    assert_same(tmp_path / "sweep", here)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_a_failed_run_is_code_8_under_every_launcher(tmp_path: Path, launcher: str) -> None:
    done = launch(tmp_path / "sweep", "seed=0", "optimizer.lr=1e6,1e-3", "trainer.epochs=2", launcher=launcher)
    assert done.returncode == 8, done.stderr
    content = ledger(tmp_path / "sweep")
    assert (content["completed"], content["failed"]) == (1, 1)
    assert "1 of 2 runs failed" in done.stderr


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"max_cohort": 0}, "max_cohort"),
        ({"max_cohort": "many"}, "max_cohort=many"),
        ({"workers": 0}, "workers"),
        ({"stall_seconds": -1.0}, "stall_seconds"),
        ({"wokers": 2}, "Did you mean 'workers'"),
    ],
)
def test_wrong_options_are_named(wrong: dict, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        SweepOptions.of(OPTIONS | wrong)


def jobs(number: int, operations: float, key: str = "a") -> list[Planned]:
    return [Planned(i, {"trainer": {"epochs": 1}}, Path(str(i)), key, Cost(operations, 1e6)) for i in range(number)]


def test_small_runs_are_stacked_evenly_over_all_workers_and_large_ones_are_not() -> None:
    assert [len(cohort) for cohort in plan(jobs(64, 3e6), "auto", 2, on_gpu=False)] == [32, 32]
    assert sorted(len(cohort) for cohort in plan(jobs(5, 3e6), "auto", 4, on_gpu=False)) == [1, 2, 2]
    assert {len(cohort) for cohort in plan(jobs(6, 250e6), "auto", 2, on_gpu=False)} == {1}
    assert sorted(len(cohort) for cohort in plan(jobs(10, 3e6), 4, 2, on_gpu=False)) == [3, 3, 4]


def test_jobs_of_different_architecture_are_never_stacked() -> None:
    both = jobs(4, 3e6) + jobs(4, 3e6, "b")
    cohorts = plan(both, 100, 2, on_gpu=False)
    assert sorted(len(cohort) for cohort in cohorts) == [4, 4]
    assert all(len({job.key for job in cohort}) == 1 for cohort in cohorts)


def test_memory_bounds_a_cohort() -> None:
    import psutil

    free = float(psutil.virtual_memory().available)
    assert largest_cohort(Cost(1e6, free / 9), 1, on_gpu=False) <= 5
    assert largest_cohort(Cost(1e6, 2.0 * free), 1, on_gpu=False) == 1
