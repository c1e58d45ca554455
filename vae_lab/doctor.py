"""`vae-lab doctor`: does this machine keep what vae_lab promises? A table of pass and fail in under two minutes."""

import hashlib
import importlib
import importlib.metadata
import io
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from vae_lab import checkpoint
from vae_lab.config import Device, to_plain
from vae_lab.console import as_text
from vae_lab.entry import compose_checked
from vae_lab.errors import CheckpointError, StorageError
from vae_lab.run_dir import RunDir, free_space

TINY = (
    "hidden_dims=[32]",
    "trainer.epochs=30",
    "trainer.checkpoint_every=5",
    "trainer.checkpoint_seconds=0",
    "evaluation.figures=false",
    "tracking=none",
    "device=cpu",
)
MIN_FREE_BYTES = 2**30


class Failed(Exception):
    """A check did not hold; the message says what was seen."""


def examine() -> int:
    """Run every check and print the table; 0 if all hold, else 1."""
    console = Console()
    table = Table("check", "", "seen", title="vae-lab doctor", title_justify="left")
    failures = 0
    with tempfile.TemporaryDirectory(prefix="vae-lab-doctor-") as temporary:
        for number, (name, check) in enumerate(CHECKS.items()):
            folder = Path(temporary) / str(number)
            folder.mkdir()
            began = time.perf_counter()
            with console.status(f"{name} ..."):
                try:
                    verdict, seen = as_text("pass", "green"), check(folder)
                except Failed as error:
                    verdict, seen = as_text("FAIL", "red"), str(error)
                except Exception as error:
                    verdict, seen = as_text("FAIL", "red"), f"{type(error).__name__}: {error}"
            failures += verdict.plain == "FAIL"
            table.add_row(name, verdict, as_text(f"{seen} ({time.perf_counter() - began:.1f} s)"))
    console.print(table)
    console.print(f"{failures} of {len(CHECKS)} checks failed." if failures else f"All {len(CHECKS)} checks hold.")
    return 1 if failures else 0


def expect(holds: bool, otherwise: str) -> None:
    """Raise `Failed` with what was seen, unless it holds."""
    if not holds:
        raise Failed(otherwise)


def versions(folder: Path) -> str:
    """Packages are there, import, and are in the bounds that this project declares."""
    from packaging.requirements import Requirement

    wrong, seen = [], []
    for line in importlib.metadata.requires("vae-lab") or []:
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            version = "missing"
        if version == "missing" or not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} {version}, wanted {requirement.specifier}")
        if requirement.name in ("torch", "wandb", "hydra-core"):
            seen.append(f"{requirement.name} {version}")
    expect(not wrong, "; ".join(wrong))
    return f"Python {sys.version.split()[0]}, {', '.join(seen)}"


def pictures(folder: Path) -> str:
    """torchvision, which reads MNIST and its relatives, fits torch."""
    try:
        importlib.import_module("torchvision.datasets")
    except Exception as error:
        raise Failed(f"torchvision: {error}. data=digits works; for the others reinstall torch and torchvision together") from error
    return f"torchvision {importlib.metadata.version('torchvision')}"


def device(folder: Path) -> str:
    """The device of device=auto multiplies, backwards too."""
    from vae_lab.job import choose_device

    chosen = choose_device(Device.auto)
    x = torch.ones(64, 64, device=chosen, requires_grad=True)
    (x @ x).sum().backward()
    expect(x.grad is not None and float(x.grad.sum()) == 2 * 64**3, "a matrix product has a wrong gradient")
    name = torch.cuda.get_device_name(chosen) if chosen.type == "cuda" else f"{torch.get_num_threads()} threads"
    return f"{chosen.type} ({name})"


def disk(folder: Path) -> str:
    """There is room where runs are written."""
    import shutil

    expect(shutil.disk_usage(Path.cwd()).free > MIN_FREE_BYTES, f"only {free_space(Path.cwd())}")
    return free_space(Path.cwd())


def determinism(folder: Path) -> str:
    """Two processes with the same seed end with the same bits."""
    expect(_train(folder / "one") == 0 and _train(folder / "other") == 0, "a small run failed")
    expect(hashes(folder / "one") == hashes(folder / "other"), "two runs of one seed differ")
    return "two processes, same bits"


def kill(folder: Path) -> str:
    """Runs killed at three moments go on to the same bits."""
    expect(_train(folder / "whole") == 0, "a small run failed")
    for number, epochs in enumerate((1, 8, 20)):
        run = folder / f"killed-{number}"
        process = _start(run)
        while process.poll() is None and len(RunDir(run).read_metrics()) < epochs:
            time.sleep(0.002)
        process.kill()
        process.wait()
        expect(_train(run) == 0, f"the run killed after epoch {epochs} does not go on")
        expect(hashes(run) == hashes(folder / "whole"), f"the run killed after epoch {epochs} ends with other numbers")
    return "killed 3 times, same bits"


def interrupt(folder: Path) -> str:
    """SIGTERM leaves a checkpoint and code 143."""
    if os.name == "nt":
        return "not on Windows"
    process = _start(folder / "run", "trainer.epochs=100000")
    while process.poll() is None and not RunDir(folder / "run").metrics.exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    code = process.wait(30)
    results = RunDir(folder / "run").read_results() or {}
    expect(code == 143 and results.get("status") == "interrupted", f"code {code}, status {results.get('status')}")
    checkpoint.load(folder / "run" / "checkpoints" / "last")
    return "code 143, checkpoint sound"


def disk_full(folder: Path) -> str:
    """A save that fails for want of space leaves the previous checkpoint."""
    if os.name == "nt":
        return "not on Windows"
    import resource

    model = {"weight": torch.zeros(100_000)}
    checkpoint.save(folder, "last", model, {"step": 1}, {"step": 1})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
    try:
        checkpoint.save(folder, "last", model, {"step": 2}, {"step": 2})
    except StorageError:
        pass
    else:
        raise Failed("a save beyond the limit did not fail")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    expect(checkpoint.load_newest(folder)[0].manifest["step"] == 1, "the previous checkpoint is gone")
    return "refused, previous checkpoint intact"


def bit_flips(folder: Path) -> str:
    """Fifty flipped bits are all noticed."""
    checkpoint.save(folder, "last", {"weight": torch.arange(1000.0)}, {"step": 1}, {"step": 1})
    path = folder / "last" / checkpoint.MODEL
    sound = path.read_bytes()
    for position in range(0, len(sound), len(sound) // 50):
        path.write_bytes(sound[:position] + bytes([sound[position] ^ 4]) + sound[position + 1 :])
        try:
            checkpoint.load(folder / "last")
        except CheckpointError:
            continue
        raise Failed(f"a flipped bit in byte {position} was not noticed")
    return "50 of 50 noticed"


class _Payload:
    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


def hostile_checkpoint(folder: Path) -> str:
    """A checkpoint that carries code is refused, and the code not run."""
    checkpoint.save(folder, "last", {"weight": torch.zeros(1)}, {"step": 1}, {"step": 1})
    buffer = io.BytesIO()
    torch.save({"optimizer": _Payload(folder / "marker")}, buffer)
    for data in (buffer.getvalue(), pickle.dumps(_Payload(folder / "marker"))):
        (folder / "last" / checkpoint.TRAINING).write_bytes(data)
        manifest = json.loads((folder / "last" / checkpoint.MANIFEST).read_text())
        manifest["files"][checkpoint.TRAINING] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
        (folder / "last" / checkpoint.MANIFEST).write_text(json.dumps(manifest))
        try:
            checkpoint.load(folder / "last")
        except CheckpointError:
            continue
        raise Failed("it was loaded")
    expect(not (folder / "marker").exists(), "its code was run")
    return "refused, nothing run"


def wandb_hangs(folder: Path) -> str:
    """With a W&B server that never answers, a run ends well and soon."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        environment = {"WANDB_BASE_URL": url, "WANDB_API_KEY": "0" * 40}
        limits = ("tracking.mode=online", "tracking.init_timeout=3", "tracking.finish_timeout=3")
        began = time.perf_counter()
        code = _start(folder / "run", "tracking=wandb", *limits, **environment).wait(90)
        seconds = time.perf_counter() - began
    expect(code == 0, f"code {code}")
    expect(_train(folder / "without") == 0 and hashes(folder / "run") == hashes(folder / "without"), "the numbers differ")
    expect(seconds < 30, f"it took {seconds:.0f} s")
    return "code 0, same bits as without"


CHECKS: dict[str, Callable[[Path], str]] = {
    "packages": versions,
    "torchvision": pictures,
    "device": device,
    "disk": disk,
    "determinism": determinism,
    "kill and resume": kill,
    "interrupt": interrupt,
    "disk full": disk_full,
    "flipped bits": bit_flips,
    "hostile checkpoint": hostile_checkpoint,
    "W&B server hangs": wandb_hangs,
}


def _start(folder: Path, *overrides: str, **environment: str) -> subprocess.Popen[bytes]:
    """A process of its own that trains a tiny run."""
    plain = to_plain(compose_checked([*TINY, *overrides])[0])
    config = folder.with_suffix(".json")
    config.write_text(json.dumps(plain))
    code = "import json, sys; from vae_lab.doctor import _child; _child(sys.argv[1], sys.argv[2])"
    return subprocess.Popen(
        [sys.executable, "-P", "-c", code, str(config), str(folder)],
        env=os.environ | environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def _train(folder: Path) -> int:
    return _start(folder).wait(120)


def _child(config: str, folder: str) -> None:
    from vae_lab.entry import one_message
    from vae_lab.interrupt import interrupts
    from vae_lab.train import train

    interrupts.install()
    with one_message():
        train(json.loads(Path(config).read_text()), Path(folder))
    interrupts.leave(0)


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of everything that a repeat must reproduce: all tensors of both checkpoints, metrics less times, test numbers."""
    run_dir = RunDir(folder)
    parts: dict[str, str] = {}
    for name in ("last", "best"):
        found = checkpoint.load(run_dir.checkpoints / name)
        training = {key: value for key, value in found.training.items() if key not in ("seconds", "resumed")}
        parts[name] = _sha([found.model, training])
    parts["metrics"] = _sha([{key: value for key, value in row.items() if key != "seconds"} for row in run_dir.read_metrics()])
    parts["test"] = _sha((run_dir.read_results() or {})["test"])
    return parts


def _sha(tree: Any) -> str:
    digest = hashlib.sha256()

    def add(node: Any) -> None:
        if isinstance(node, dict):
            for key in sorted(node):
                digest.update(str(key).encode())
                add(node[key])
        elif isinstance(node, list):
            for item in node:
                add(item)
        elif isinstance(node, torch.Tensor):
            digest.update(str((node.dtype, tuple(node.shape))).encode() + node.contiguous().numpy().tobytes())
        else:
            digest.update(repr(node).encode())

    add(tree)
    return digest.hexdigest()
