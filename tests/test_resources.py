"""Faults J: memory, descriptors, processes and files do not pile up."""

import os
import resource
from pathlib import Path

import pytest

from tests.processes import start, wait
from tests.test_kill import QUIET, TINY
from vae_lab.train import Recorder


def in_child(work) -> None:
    """Run `work` in a forked process, so that what other tests left does not count."""
    pid = os.fork()
    if not pid:
        try:
            work()
            os._exit(0)
        except BaseException as error:
            os.write(2, f"{error!r}\n".encode())
            os._exit(1)
    assert wait(pid) == 0


def rss() -> int:
    """Resident bytes now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_memory_is_flat_over_300_steps(compose, tmp_path: Path) -> None:
    seen: list[int] = []

    def watch() -> None:
        original = Recorder.on_step

        def on_step(self, runs, means) -> None:
            original(self, runs, means)
            seen.append(rss())
            if runs[0].step == 400:
                grown = seen[399] / seen[99]
                (tmp_path / "grown").write_text(str(grown))

        Recorder.on_step = on_step  # type: ignore[method-assign]

    assert wait(start(compose(*QUIET, *TINY, "trainer.epochs=140"), tmp_path / "run", before=watch)) == 0
    assert float((tmp_path / "grown").read_text()) < 1.05


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_descriptors_are_flat_over_50_runs(train_quiet, tmp_path: Path) -> None:
    def work() -> None:
        counts = []
        for number in range(50):
            train_quiet("hidden_dims=[4]", "data.limit=32", "trainer.batch_size=32", "trainer.epochs=1", folder=f"run-{number}")
            counts.append(len(list(Path("/proc/self/fd").iterdir())))
        assert counts[-1] <= counts[2], counts

    in_child(work)


def test_no_temporary_files_and_linear_metrics(train_quiet, tmp_path: Path) -> None:
    sizes = []
    for epochs in (10, 20):
        results = train_quiet(
            "hidden_dims=[4]", "data.limit=32", "trainer.batch_size=32", f"trainer.epochs={epochs}", folder=str(epochs)
        )
        sizes.append((results["dir"] / "metrics.jsonl").stat().st_size)
    assert sizes[1] == pytest.approx(2 * sizes[0], rel=0.1)
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith(".tmp") or path.name.startswith(".doomed")]


def test_no_process_is_left_behind(command, tmp_path: Path) -> None:
    done = command("trainer.epochs=1", "evaluation.figures=false", f"hydra.run.dir={tmp_path}/run")
    assert done.returncode == 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            environment = (process / "environ").read_bytes()
            words = (process / "cmdline").read_bytes()
        except OSError:
            continue
        assert not (str(tmp_path).encode() in environment and b"wandb-core" in words)
