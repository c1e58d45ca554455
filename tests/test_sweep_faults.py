"""Faults D: whatever one job of a sweep does costs that job, and the ledger says what became of each."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.test_sweep import SMALL, assert_same, launch, ledger, runs

pytestmark = pytest.mark.slow

ROGUE = '''
"""An objective that behaves well for three steps."""

import os
import signal
import sys
import time
from dataclasses import dataclass

import torch
from vae_lab.distributions import reparameterize
from vae_lab.models import Autoencoder
from vae_lab.objectives.base import Objective
from vae_lab.registry import register


DEEDS = {
    "raise": lambda: 1 / 0,
    "sys.exit": lambda: sys.exit(0),
    "os._exit": lambda: os._exit(0),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "memory": lambda: bytearray(2**60),
    "torch memory": lambda: torch.empty(2**58),
    "hang": lambda: time.sleep(10_000),
}


@register("objective", "rogue")
class Rogue(Objective[Autoencoder]):
    """Negative log-likelihood, then a misdeed."""

    requires = Autoencoder

    @dataclass(frozen=True)
    class Config:
        name: str
        seed: int

    def __init__(self, config: Config):
        super().__init__()
        self.deed = dict(enumerate(DEEDS)).get(config.seed)

    def forward(self, model, batch, noise, step):
        if int(step) > 3 and self.deed is not None:
            DEEDS[self.deed]()
        nll = -model.likelihood(reparameterize(model.posterior(batch.x), noise.get("eps"))).log_prob(batch.x)
        return {"loss": nll, "nll": nll}

    def kl_weight(self):
        return None
'''
CAUSES = (  # by seed
    "ZeroDivisionError",
    "SystemExit",
    "ended with code 0",
    "ended with signal 9",
    "MemoryError",
    "RuntimeError",
    "made no step for 6 s",
)


@pytest.fixture
def rogue(tmp_path: Path) -> Path:
    folder = tmp_path / "plugins"
    (folder / "objectives").mkdir(parents=True)
    (folder / "conf" / "objective").mkdir(parents=True)
    (folder / "objectives" / "rogue.py").write_text(ROGUE)
    (folder / "conf" / "objective" / "rogue.yaml").write_text("name: rogue\nseed: ${seed}\n")
    return folder


def test_d1_d2_seven_jobs_of_fifty_misbehave(rogue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """D1: each costs itself, the other 43 complete, exit code 8. D2: the same command tries those seven again, and no other."""
    monkeypatch.setenv("VAE_LAB_PLUGINS", str(rogue))
    folder = tmp_path / "sweep"
    arguments = ("model=autoencoder", "objective=rogue", "seed=range(0,50)", "hydra.launcher.stall_seconds=6")
    done = launch(folder, *arguments)
    assert done.returncode == 8, done.stderr
    content = ledger(folder)
    assert (content["completed"], content["failed"], content["planned"]) == (43, 7, 50)
    for job, cause in zip(content["jobs"], CAUSES, strict=False):
        assert job["state"] == "failed"
        assert cause in job["cause"], job
        assert Path(job["log"]).is_file()
    text = (folder / content["jobs"][0]["folder"] / "run.log").read_text()
    assert "DEEDS[self.deed]()" in text, "the traceback is in the run's log"
    assert "ZeroDivisionError: division by zero" in text
    finished = {job["folder"]: (folder / job["folder"] / "results.json").stat().st_mtime_ns for job in content["jobs"][7:]}
    again = launch(folder, *arguments)
    assert again.returncode == 8
    assert "50 runs, 43 finished before" in again.stdout
    assert {name: (folder / name / "results.json").stat().st_mtime_ns for name in finished} == finished


LONG = ("model=autoencoder,vae", "seed=0,1", "trainer.epochs=300", "trainer.checkpoint_every=20", "trainer.checkpoint_seconds=0")


def start(folder: Path, *arguments: str) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / "run.py"), "-m", f"hydra.sweep.dir={folder}", *SMALL, *arguments]
    return subprocess.Popen(command, cwd=folder.parent, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def workers_of(pid: int) -> list[int]:
    listing = subprocess.run(["ps", "-o", "pid=,args=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [int(line.split()[0]) for line in listing.stdout.splitlines() if "vae_lab.worker" in line]


def wait_until_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids), "a worker outlived its sweep"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """A whole sweep, and how long it took."""
    folder = tmp_path_factory.mktemp("undisturbed") / "sweep"
    began = time.monotonic()
    assert launch(folder, *LONG).returncode == 0
    return folder, time.monotonic() - began


@pytest.mark.parametrize("number", range(int(os.environ.get("VAE_LAB_KILLS", "4"))))
def test_d3_sigkill_of_a_worker_or_the_parent(undisturbed: tuple[Path, float], tmp_path: Path, number: int) -> None:
    """At a random moment; a sweep that lost a worker ends by itself, one that lost its parent by the same command."""
    whole, seconds = undisturbed
    dice = random.Random(number)
    folder = tmp_path / "sweep"
    process = start(folder, *LONG)
    time.sleep(dice.uniform(0.1, 0.9) * seconds)
    workers = workers_of(process.pid)
    if number % 2 and workers:
        os.kill(dice.choice(workers), signal.SIGKILL)
        assert process.wait(200) == 0
    else:
        process.kill()
        process.wait()
        wait_until_gone(workers)
        assert launch(folder, *LONG).returncode == 0
    assert ledger(folder)["completed"] == 4
    assert_same(folder, whole)
    strip = ("folder", "number")
    ours, theirs = ([{k: v for k, v in job.items() if k not in strip} for job in ledger(f)["jobs"]] for f in (folder, whole))
    assert ours == theirs


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_d3_an_interrupted_sweep_accounts_for_all(
    undisturbed: tuple[Path, float], tmp_path: Path, number: signal.Signals, code: int
) -> None:
    folder = tmp_path / "sweep"
    process = start(folder, *LONG)
    while len(runs(folder)) < 4 or not all(len(run.read_metrics()) > 2 for run in runs(folder).values()):
        time.sleep(0.02)
    workers = workers_of(process.pid)
    process.send_signal(number)
    assert process.wait(60) == code
    wait_until_gone(workers)
    content = ledger(folder)
    assert content["completed"] + content["interrupted"] == 4
    assert launch(folder, *LONG).returncode == 0
    assert_same(folder, undisturbed[0])


def test_d5_awkward_names(tmp_path: Path) -> None:
    """Names that are paths, too long, or alike give folders of their own inside the sweep, also when it is repeated."""
    names = ["../../x", "a/b", "a b", "\u00fc" * 200, "/abs", "a-b", "line\nbreak"]
    swept = ",".join("'" + name + "'" for name in names)
    for _ in range(2):
        done = launch(tmp_path / "sweep", f"name={swept}", "trainer.epochs=1")
        assert done.returncode == 0, done.stderr
        assert ledger(tmp_path / "sweep")["completed"] == len(names)
        folders = [path.parent for path in tmp_path.rglob("results.json")]
        assert len(folders) == len(names)
        assert {folder.parent for folder in folders} == {tmp_path / "sweep"}
        assert all(len(folder.name.encode()) <= 255 for folder in folders)
        assert {run.read_config()["name"] for run in runs(tmp_path / "sweep").values()} == set(names)
    assert "7 finished before" in done.stdout


def test_damaged_files_of_an_earlier_sweep_cost_their_run(tmp_path: Path) -> None:
    """Results that cannot be read are made again; a config that cannot be read is never overwritten."""
    folder = tmp_path / "sweep"
    assert launch(folder, "seed=0,1,2", "trainer.epochs=2").returncode == 0
    names = sorted(runs(folder))
    (folder / names[0] / "results.json").write_text('{"status": "comp')
    (folder / names[1] / "config.yaml").write_text("{ nothing: [")
    (folder / names[1] / "results.json").unlink()
    done = launch(folder, "seed=0,1,2", "trainer.epochs=2")
    assert done.returncode == 8, done.stderr
    content = ledger(folder)
    assert (content["completed"], content["failed"]) == (2, 1)
    assert "3 runs, 1 finished before" in done.stdout
    (failed,) = [job for job in content["jobs"] if job["state"] == "failed"]
    assert "config.yaml" in failed["cause"]
    assert (folder / names[1] / "config.yaml").read_text() == "{ nothing: ["
