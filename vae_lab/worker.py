"""A worker process of a sweep: python -m vae_lab.worker trains the cohorts whose files are named on its stdin."""

import contextlib
import importlib
import json
import logging
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from vae_lab import lock
from vae_lab.interrupt import interrupts
from vae_lab.progress import Metrics, Throughput
from vae_lab.run_dir import RunDir
from vae_lab.text import survive_lost_output

IMPORTED_EARLY = ("vae_lab.train", "vae_lab.evaluate", "vae_lab.figures", "matplotlib.backends.backend_agg", "wandb")


class OwnLog(logging.FileHandler):
    """The run.log of one run: its own records, by the folder they carry."""

    def __init__(self, folder: Path):
        super().__init__(RunDir(folder).log, encoding="utf-8")
        self.folder = str(folder)
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))

    def filter(self, record: logging.LogRecord) -> bool:
        return getattr(record, "folder", self.folder) == self.folder


class Note:
    """Says in a small file, every half second, how far a cohort is; that the file changes shows that the worker lives."""

    def __init__(self, path: Path, epochs: int, images_per_epoch: int, steps_per_epoch: int):
        self.path, self.epochs, self.steps = path, epochs, steps_per_epoch
        self.images_per_s = Throughput(images_per_epoch, steps_per_epoch)
        self.noted = 0.0

    def __enter__(self) -> "Note":
        return self

    def __exit__(self, *exception: object) -> None:
        self.phase("evaluating and drawing", self.steps * self.epochs)

    def on_step(self, step: int, means: Callable[[], Metrics]) -> None:
        if time.perf_counter() - self.noted > 0.5:
            self.phase("training", step)

    def phase(self, phase: str, step: int) -> None:
        """Write the note."""
        self.noted = time.perf_counter()
        known = {"phase": phase, "step": step, "steps": self.steps * self.epochs, "images_per_s": self.images_per_s(step)}
        temporary = self.path.with_suffix(".tmp")
        with contextlib.suppress(OSError):  # no room for a note; the file's time still says that the worker lives
            self.path.touch()
            temporary.write_text(json.dumps(known | {"epoch": step // self.steps, "epochs": self.epochs}), encoding="utf-8")
            os.replace(temporary, self.path)

    def on_epoch(self, epoch: int, step: int, metrics: Metrics) -> None:
        pass

    def line(self, text: str) -> None:
        pass


class Orders:
    """Work from the parent. When it is gone, so that stdin ends, this process interrupts itself: no worker outlives its sweep."""

    def __init__(self) -> None:
        self.files: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self.busy = threading.Event()
        threading.Thread(target=self._listen, name="orders", daemon=True).start()

    def _listen(self) -> None:
        with open(0, "rb", buffering=0, closefd=False) as orders:  # unbuffered: no lock that Python would want at its end
            for line in orders:
                self.busy.set()
                self.files.put(line.decode().strip())
        self.files.put(None)
        if self.busy.is_set():
            os.kill(os.getpid(), signal.SIGTERM)


def work(order: dict[str, Any]) -> None:
    """Train the cohort of one order. What becomes of each run is in its folder."""
    import torch

    from vae_lab.train import train_cohort

    if order["threads"] is not None:
        torch.set_num_threads(order["threads"])
    folders = [Path(job["folder"]) for job in order["jobs"]]
    locks = [lock.acquire(folder)[0] for folder in folders]
    logger = logging.getLogger()
    logger.setLevel(logging.INFO)
    handlers = [OwnLog(folder) for folder in folders]
    for handler in handlers:
        logger.addHandler(handler)
    try:
        console = Console(file=sys.stdout, force_terminal=False)
        note = Path(order["note"])
        train_cohort([job["cfg"] for job in order["jobs"]], folders, console, lambda *sizes: Note(note, *sizes))
    except BaseException:
        logger.exception("the cohort of this run ended; the run goes on in another process")
        raise
    finally:
        for folder, held, handler in zip(folders, locks, handlers, strict=True):
            logger.removeHandler(handler)
            handler.close()
            lock.release(folder, held)


def main() -> None:
    """Import, then train what is asked for, until there is no more."""
    survive_lost_output()
    interrupts.install()
    orders = Orders()
    for module in IMPORTED_EARLY:
        importlib.import_module(module)
    while (file := orders.files.get()) is not None:
        work(json.loads(Path(file).read_text(encoding="utf-8")))
        if interrupts.requested is not None:
            break
        orders.busy.clear()
        Path(file).unlink()
    interrupts.leave(0)


if __name__ == "__main__":
    main()
