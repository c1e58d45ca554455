"""One process at a time works in a run directory."""

import atexit
import contextlib
import json
import os
import socket
import time
from pathlib import Path

from filelock import FileLock, Timeout

from vae_lab.errors import LockedError
from vae_lab.run_dir import read_json, storage_errors, write_atomic

LOCK, OWNER = ".lock", ".lock.json"


def acquire(folder: Path) -> tuple[FileLock, str | None]:
    """Lock a run directory for the life of this process; the system releases it however the process ends.

    Returns:
        The lock, to be kept, and a notice if a process that died had left its mark.

    Raises:
        LockedError: names process, host and age of the lock.
    """
    lock, owner = FileLock(folder / LOCK), folder / OWNER
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise LockedError(
                f"{folder} is in use by {_describe(owner)}. Wait for it, end it, or choose another hydra.run.dir."
            ) from None
    atexit.register(release, folder, lock)
    stale = _describe(owner) if owner.exists() else None
    write_atomic(owner, json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": time.time()}))
    return lock, None if stale is None else f"Took over {folder} from {stale}, which is gone."


def release(folder: Path, lock: FileLock) -> None:
    """Give a run directory back, without a mark."""
    if lock.is_locked:
        with contextlib.suppress(OSError):
            (folder / OWNER).unlink(missing_ok=True)
        lock.release()


def _describe(owner: Path) -> str:
    for _ in range(20):  # the winner may not have written its mark yet
        try:
            facts = read_json(owner)
            return f"process {facts['pid']} on {facts['host']} (since {max(0.0, time.time() - facts['since']):.0f} s)"
        except (OSError, ValueError, LookupError, TypeError):
            time.sleep(0.05)
    return "another process"
