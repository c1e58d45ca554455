"""Faults A: killed, stopped and interrupted runs go on to the same bits."""

import itertools
import os
import random
import signal
import time
from pathlib import Path

import pytest

from tests.processes import finish, kill_after, said, start, wait
from vae_lab import rng
from vae_lab.doctor import hashes
from vae_lab.run_dir import RunDir
from vae_lab.train import Recorder

TINY = (
    "hidden_dims=[16]",
    "data.limit=96",
    "trainer.batch_size=32",
    "trainer.epochs=4",
    "trainer.checkpoint_every=1",
    "trainer.checkpoint_seconds=0",
)
QUIET = ("tracking=none", "evaluation.figures=false", "device=cpu")
LONGER = (
    "hidden_dims=[32]",
    "trainer.epochs=12",
    "trainer.checkpoint_every=2",
    "trainer.checkpoint_seconds=0",
    "scheduler=cosine",
    "scheduler.warmup_epochs=2",
)
KINDS = list(itertools.product(["autoencoder", "vae", "beta_vae"], ["mlp", "conv"]))


def kill_and_resume(cfg: dict, folder: Path, dice: random.Random, longest: float, kills: int = 1) -> tuple[int, int]:
    """SIGKILL at random moments, go on each time; returns how many kills hit, and the last exit code."""
    hit = 0
    for _ in range(kills):
        code = kill_after(start(cfg, folder), dice.uniform(0, longest))
        assert code in (0, -signal.SIGKILL)
        hit += code != 0
    return hit, finish(cfg, folder)


@pytest.mark.parametrize(("model", "network"), KINDS)
def test_a1_sigkill_at_random_moments(compose, tmp_path: Path, model: str, network: str) -> None:
    cfg = compose(
        *QUIET, *LONGER, f"model={model}", f"network={network}", "network.channels=[8]" if network == "conv" else "seed=0"
    )
    began = time.perf_counter()
    assert finish(cfg, tmp_path / "whole") == 0
    longest = time.perf_counter() - began
    dice = random.Random(f"{model} {network}")
    expected = hashes(tmp_path / "whole")
    for number in range(2):
        folder = tmp_path / f"killed-{number}"
        assert kill_and_resume(cfg, folder, dice, longest)[1] == 0
        assert hashes(folder) == expected


@pytest.mark.slow
def test_a1_a_hundred_kills(compose, tmp_path: Path) -> None:
    """VAE_LAB_KILLS sets how many; docs/reliability.md has the result of 100."""
    kills, hit = int(os.environ.get("VAE_LAB_KILLS", "12")), 0
    dice = random.Random(0)
    for number, (model, network) in zip(range(kills), itertools.cycle(KINDS), strict=False):
        if number < len(KINDS):
            cfg = compose(*QUIET, *LONGER, f"model={model}", f"network={network}", f"seed={number}")
            began = time.perf_counter()
            assert finish(cfg, tmp_path / f"whole-{number}") == 0
            KNOWN[number] = (cfg, time.perf_counter() - began, hashes(tmp_path / f"whole-{number}"))
        cfg, longest, expected = KNOWN[number % len(KINDS)]
        folder = tmp_path / f"killed-{number}"
        hits, code = kill_and_resume(cfg, folder, dice, longest)
        assert code == 0
        assert hashes(folder) == expected
        hit += hits
    print(f"{kills} kills, {hit} before the end, {kills} identical")  # noqa: T201
    assert hit > kills * 0.6


KNOWN: dict[int, tuple[dict, float, dict[str, str]]] = {}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a2_a4_stop_after_every_step(compose, tmp_path: Path, number: signal.Signals) -> None:
    """A signal in every step k of a 12-step run with warm-up: the step ends, a checkpoint is left, the resume is exact."""
    cfg = compose(
        *QUIET,
        *TINY,
        "scheduler=cosine",
        "scheduler.warmup_epochs=1",
        "trainer.checkpoint_every=100",
        "trainer.checkpoint_seconds=0",
    )
    assert finish(cfg, tmp_path / "whole") == 0
    expected = hashes(tmp_path / "whole")
    for step in range(1, 12):
        folder = tmp_path / f"stopped-{step}"
        code = finish(cfg, folder, before=lambda step=step: signal_at_step(step, number))
        assert code == 128 + number
        results = RunDir(folder).read_results()
        assert results is not None
        assert (results["status"], results["steps"]) == ("interrupted", step)
        assert f"at step {step}" in said(folder)
        assert f"resume={folder}" in said(folder)
        assert finish(cfg, folder) == 0
        assert hashes(folder) == expected, f"stopped at step {step}"


def signal_at_step(step: int, number: signal.Signals) -> None:
    """Let this process get a signal while its step is on the way."""
    original = Recorder.on_step

    def on_step(self, runs, means) -> None:
        original(self, runs, means)
        if runs[0].step == step:
            os.kill(os.getpid(), number)

    Recorder.on_step = on_step  # type: ignore[method-assign]


def test_a3_five_kills_in_one_run(compose, tmp_path: Path) -> None:
    cfg = compose(*QUIET, *LONGER)
    began = time.perf_counter()
    assert finish(cfg, tmp_path / "whole") == 0
    longest = time.perf_counter() - began
    _, code = kill_and_resume(cfg, tmp_path / "killed", random.Random(3), longest / 2, kills=5)
    assert code == 0
    assert hashes(tmp_path / "killed") == hashes(tmp_path / "whole")


def test_a4_a_signal_ends_a_run_within_five_seconds(compose, tmp_path: Path) -> None:
    cfg = compose(*QUIET, "trainer.epochs=100000")
    pid = start(cfg, tmp_path / "run")
    while not (tmp_path / "run" / "metrics.jsonl").exists():
        time.sleep(0.05)
    began = time.perf_counter()
    assert kill_after(pid, 0, signal.SIGTERM) == 143
    assert time.perf_counter() - began < 5


@pytest.mark.parametrize("where", ["start", "save", "evaluate", "figures"])
def test_a5_signals_at_awkward_moments(compose, tmp_path: Path, where: str) -> None:
    """Before step 1, while a checkpoint is written, in the evaluation, while drawing: never code 0, never damage."""
    cfg = compose(*QUIET, *TINY, "evaluation.figures=true")
    assert finish(cfg, tmp_path / "whole") == 0

    def break_in() -> None:
        import vae_lab.checkpoint
        import vae_lab.evaluate
        import vae_lab.figures
        import vae_lab.train

        module, name = {
            "start": (vae_lab.train, "fit"),
            "save": (vae_lab.checkpoint, "_write"),
            "evaluate": (vae_lab.evaluate, "_kl_per_latent"),
            "figures": (vae_lab.figures, "samples"),
        }[where]
        original = getattr(module, name)

        def interrupted(*args, **kwargs):
            os.kill(os.getpid(), signal.SIGTERM)
            return original(*args, **kwargs)

        setattr(module, name, interrupted)

    folder = tmp_path / "run"
    assert finish(cfg, folder, before=break_in) == 143
    results = RunDir(folder).read_results()
    assert results is not None
    assert results["status"] == "interrupted"
    assert finish(cfg, folder) == 0
    assert hashes(folder) == hashes(tmp_path / "whole")
    assert not list(folder.rglob("*.tmp"))


def test_a5_a_second_interrupt_quits_at_once(compose, tmp_path: Path) -> None:
    def stuck() -> None:
        original = Recorder.on_step

        def on_step(self, runs, means) -> None:
            original(self, runs, means)
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(60)

        Recorder.on_step = on_step  # type: ignore[method-assign]

    began = time.perf_counter()
    assert finish(compose(*QUIET, *TINY), tmp_path / "run", before=stuck) == 130
    assert time.perf_counter() - began < 10


def test_a5_a_signal_while_python_still_imports(tmp_path: Path) -> None:
    import subprocess
    import sys

    from tests.conftest import ROOT

    for seconds in (0.3, 1.0, 2.0):
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "run.py"), "trainer.epochs=9999"], cwd=tmp_path, stderr=subprocess.PIPE
        )
        time.sleep(seconds)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) in (143, -signal.SIGTERM)


def test_a7_a_paused_run_is_the_same(compose, tmp_path: Path) -> None:
    cfg = compose(*QUIET, *LONGER)
    assert finish(cfg, tmp_path / "whole") == 0
    pid = start(cfg, tmp_path / "paused")
    time.sleep(0.3)
    os.kill(pid, signal.SIGSTOP)
    time.sleep(5)
    os.kill(pid, signal.SIGCONT)
    assert wait(pid) == 0
    assert hashes(tmp_path / "paused") == hashes(tmp_path / "whole")


def test_a11_control_without_the_streams_the_comparison_fails(compose, tmp_path: Path) -> None:
    """Random streams that a resume does not find again must be noticed by the comparison used above."""
    cfg = compose(*QUIET, *TINY)
    assert finish(cfg, tmp_path / "whole") == 0
    folder = tmp_path / "stopped"
    assert finish(cfg, folder, before=lambda: signal_at_step(5, signal.SIGTERM)) == 143

    def forget() -> None:
        original = rng.derive
        rng.derive = lambda seed, purpose, *position: original(seed + (purpose in ("order", "noise")), purpose, *position)

    assert finish(cfg, folder, before=forget) == 0
    assert hashes(folder) != hashes(tmp_path / "whole")
