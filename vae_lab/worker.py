"""A worker process of a sweep: python -m vae_lab.worker SPEC.json trains the jobs listed there as one cohort."""

import json
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from vae_lab import lock
from vae_lab.interrupt import interrupts
from vae_lab.run_dir import RunDir


class OwnLog(logging.FileHandler):
    """The run.log of one run: its own records, by the folder they carry."""

    def __init__(self, folder: Path):
        super().__init__(RunDir(folder).log, encoding="utf-8")
        self.folder = str(folder)
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))

    def filter(self, record: logging.LogRecord) -> bool:
        return getattr(record, "folder", self.folder) == self.folder


def end_with(parent: int) -> None:
    """Interrupt this process when its parent is gone: a sweep that was killed leaves no worker behind."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)


def main(spec: str) -> None:
    """Train the cohorts of a spec file, one after the other. What becomes of each run is in its folder."""
    from vae_lab.train import train_cohort

    interrupts.install()
    threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
    cohorts: list[list[dict[str, Any]]] = json.loads(Path(spec).read_text(encoding="utf-8"))
    logger = logging.getLogger()
    logger.setLevel(logging.INFO)
    for jobs in cohorts:
        if interrupts.requested is not None:
            break
        folders = [Path(job["folder"]) for job in jobs]
        locks = [lock.acquire(folder)[0] for folder in folders]
        handlers = [OwnLog(folder) for folder in folders]
        for handler in handlers:
            logger.addHandler(handler)
        train_cohort([job["cfg"] for job in jobs], folders, Console(file=sys.stdout, force_terminal=False))
        for folder, held, handler in zip(folders, locks, handlers, strict=True):
            logger.removeHandler(handler)
            handler.close()
            lock.release(folder, held)
    interrupts.leave(0)


if __name__ == "__main__":
    main(sys.argv[1])
