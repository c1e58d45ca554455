"""Worker processes of a sweep: started early, so that they import while jobs are composed; given work through their stdin."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from vae_lab.planning import Cohort
from vae_lab.run_dir import read_json, storage_errors

ROOT = Path(__file__).resolve().parent.parent  # run.py needs no installation, and neither do its workers
SINGLE_THREADED = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")  # until the work says how many it gets
# glibc returns each step's few MiB to the system, and gets them back page by page: 10 to 15 % of a cohort's step (LOG.md).
KEPT_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(2**30), "MALLOC_MMAP_THRESHOLD_": str(2**25)}


class Worker(ABC):
    """Something that trains a cohort at a time.

    Its work is a file that lists a cohort. The worker deletes the file when the cohort has ended, and keeps a note of how far
    it is beside it.
    """

    def __init__(self) -> None:
        self.cohort: Cohort = []
        self.given = 0.0
        self.ended_for_silence = False

    @property
    @abstractmethod
    def work(self) -> Path:
        """Where the file lies while there is work."""

    @property
    def note(self) -> Path:
        return self.work.with_suffix(".note")

    def write_order(self, cohort: Cohort, threads: int | None) -> None:
        """The file; `threads` None leaves their number to the worker."""
        self.cohort, self.given = cohort, time.time()
        jobs = [{"cfg": job.cfg, "folder": str(job.folder)} for job in cohort]
        with storage_errors(self.work):
            self.work.write_text(json.dumps({"threads": threads, "jobs": jobs, "note": str(self.note)}), encoding="utf-8")

    @abstractmethod
    def give(self, cohort: Cohort, threads: int) -> None:
        """Let it train a cohort."""

    @property
    @abstractmethod
    def alive(self) -> bool: ...

    @property
    def busy(self) -> bool:
        return self.work.exists()

    def progress(self) -> dict[str, Any]:
        """What it last noted: phase, step, steps, epoch, epochs, images_per_s; empty before it begins."""
        try:
            return read_json(self.note)
        except (OSError, ValueError):
            return {}

    def silent_for(self) -> float:
        """Seconds since it last noted anything."""
        last = self.note.stat().st_mtime if self.note.exists() else 0.0
        return time.time() - max(last, self.given)

    @abstractmethod
    def interrupt(self) -> None:
        """Let it finish its step, keep everything, and end."""

    @abstractmethod
    def kill(self) -> None:
        """End it now."""

    @abstractmethod
    def last_words(self) -> str:
        """How it ended, and the last lines that it wrote."""

    @abstractmethod
    def close(self) -> None:
        """End it, in its own way if it has trained and is idle, and remove its files."""


class Process(Worker):
    """A process of `python -m vae_lab.worker` on this machine; it imports what training needs, and waits."""

    def __init__(self) -> None:
        super().__init__()
        self.private = tempfile.TemporaryDirectory(prefix="vae_lab-work-")  # nobody else can change what is asked for
        # Appending, so that reading it here does not move the place where the process writes.
        self.log = tempfile.TemporaryFile("a+b")  # noqa: SIM115
        # -P: as for run.py itself, what lies in the working directory is no module to import
        command = [sys.executable, "-P", "-m", "vae_lab.worker"]
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        environment = KEPT_MEMORY | os.environ | SINGLE_THREADED | {"PYTHONPATH": path}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=self.log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )

    @property
    def work(self) -> Path:
        return Path(self.private.name) / "order.json"

    def give(self, cohort: Cohort, threads: int) -> None:
        self.write_order(cohort, threads)
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died idle, which `alive` says
            self.process.stdin.write(f"{self.work}\n".encode())
            self.process.stdin.flush()

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def interrupt(self) -> None:
        self.process.terminate()

    def kill(self) -> None:
        self.process.kill()

    def last_words(self) -> str:
        code = self.process.wait()
        self.log.seek(0)
        tail = self.log.read().decode(errors="replace").strip().splitlines()[-3:]
        ended = f"signal {-code}" if code < 0 else f"code {code}"
        return f"its worker process ended with {ended}. {' / '.join(tail)}".strip()

    def close(self) -> None:
        if self.busy or not self.given:
            self.process.kill()
        if self.process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()
        self.process.wait()
        self.log.close()
        self.private.cleanup()
