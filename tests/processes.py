"""Real processes that train and can be killed, forked from the tests so that each costs no imports."""

import importlib
import os
import signal
import time
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

from rich.console import Console

from vae_lab import lock, registry
from vae_lab.errors import VaeLabError
from vae_lab.interrupt import interrupts
from vae_lab.train import train

CRASHED = 99
for module in ("torch._dynamo", "vae_lab.evaluate", "vae_lab.figures"):  # what every child would import for itself
    importlib.import_module(module)
for group in registry.PACKAGES:
    registry.names(group)


def start(cfg: dict[str, Any], folder: Path, before: Callable[[], None] | None = None) -> int:
    """Fork a process that trains `cfg` in `folder`, as the command does after composing; returns its process id.

    `before` runs in the child: the place to break something.
    """
    pid = os.fork()
    if pid:
        return pid
    code = CRASHED
    try:
        interrupts.requested = None
        interrupts.install()
        lock.acquire(folder)
        if before is not None:
            before()
        train(cfg, folder, Console(file=StringIO()))
        code = 0
    except VaeLabError as error:
        (folder.parent / f"{folder.name}.error").write_text(str(error))
        code = error.exit_code
    finally:
        os._exit(code)


def wait(pid: int) -> int:
    """Exit code; minus the signal's number if a signal ended it."""
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def finish(cfg: dict[str, Any], folder: Path, before: Callable[[], None] | None = None) -> int:
    """Start and wait."""
    return wait(start(cfg, folder, before))


def kill_after(pid: int, seconds: float, number: int = signal.SIGKILL) -> int:
    """Let a process live for a while, then signal it."""
    time.sleep(seconds)
    os.kill(pid, number)
    return wait(pid)


def said(folder: Path) -> str:
    """The message with which the last failed process ended."""
    return (folder.parent / f"{folder.name}.error").read_text()
