"""Shared fixtures. Shapes in signatures are checked while the tests run, and nothing is written outside tmp_path."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from jaxtyping import install_import_hook

install_import_hook("vae_lab", "beartype.beartype")

import pytest  # noqa: E402
import torch  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
os.environ["WANDB_MODE"] = "offline"
torch.set_num_threads(1)


def _mnist_root() -> Path | None:
    root = Path(os.environ.get("VAE_LAB_DATA", ROOT.parent / "shared" / "data"))
    return root if (root / "MNIST" / "raw" / "train-images-idx3-ubyte").is_file() else None


@pytest.fixture(scope="session")
def mnist_root() -> Path:
    """The folder with the real MNIST; the test skips where there is none."""
    root = _mnist_root()
    if root is None:
        pytest.skip("no MNIST: set VAE_LAB_DATA to the folder that holds MNIST/raw")
    return root


@pytest.fixture(autouse=True)
def sandbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """W&B and matplotlib keep their files below tmp_path."""
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home" / name.lower()))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)


@pytest.fixture
def compose() -> Callable[..., dict]:
    """The plain config of a command line, checked for keys but not for values."""
    from vae_lab.config import to_plain
    from vae_lab.entry import compose_checked

    return lambda *overrides: to_plain(compose_checked(overrides)[0])


@pytest.fixture
def train_quiet(compose: Callable[..., dict], tmp_path: Path) -> Callable[..., dict]:
    """Train one run by its overrides, without W&B and figures unless asked; returns results with the folder as 'dir'."""
    from io import StringIO

    from rich.console import Console

    from vae_lab.train import train

    def run(*overrides: str, folder: str = "run") -> dict:
        cfg = compose("tracking=none", "evaluation.figures=false", "device=cpu", *overrides)
        return train(cfg, tmp_path / folder, Console(file=StringIO())) | {"dir": tmp_path / folder}

    return run


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess]:
    """Run `python run.py ...` as a user would, in tmp_path; returns the finished process with its output as text."""

    def call(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, str(ROOT / "run.py"), *arguments],
            cwd=tmp_path,
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    return call


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The folder of a finished run by its overrides, trained once for all tests; nobody may change it."""
    from functools import cache
    from io import StringIO

    from rich.console import Console

    from vae_lab.config import to_plain
    from vae_lab.entry import compose_checked
    from vae_lab.train import train

    @cache
    def run(*overrides: str) -> Path:
        folder = tmp_path_factory.mktemp("trained") / "run"
        cfg = to_plain(compose_checked(["tracking=none", "evaluation.figures=false", "device=cpu", *overrides])[0])
        train(cfg, folder, Console(file=StringIO()))
        return folder

    return run


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    """Run a command as `vae-lab` does, in tmp_path; returns its exit code."""
    from vae_lab.cli import main
    from vae_lab.interrupt import interrupts

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(type(interrupts), "install", lambda self: None)  # pytest's own handlers stay

    def run(*arguments: object) -> int:
        monkeypatch.setattr("sys.argv", ["vae-lab", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        return int(end.value.code or 0)

    return run
