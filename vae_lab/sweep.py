"""A sweep: cohorts trained by worker processes, each job accounted for in sweep.json."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml
from rich.console import Console

from vae_lab.config import fingerprint
from vae_lab.interrupt import interrupts
from vae_lab.planning import Cohort, Planned
from vae_lab.pool import Worker
from vae_lab.run_dir import LEDGER, RunDir, storage_errors, strict_json, write_atomic
from vae_lab.sweep_display import SweepDisplay

POLL_S = 0.05
MAX_DEATHS = 2  # workers that die under a cohort before its runs go on alone, or under a lone run before it counts as failed
STATES = ("completed", "failed", "interrupted", "not_run")


class Sweep:
    """The jobs of one sweep directory, and the workers that train them.

    Every job's outcome is read from its run directory. A cohort whose worker died goes on from its checkpoints, to the same bits;
    the second time each of its runs goes on alone, and a lone run counts as failed the second time. A worker that says nothing for
    `stall_seconds` is ended.
    """

    def __init__(self, folder: Path, workers: list[Worker], start_worker: Callable[[], Worker], stall_seconds: float | None):
        self.folder, self.workers, self.start_worker, self.stall_seconds = folder, workers, start_worker, stall_seconds
        self.console = Console()
        self.jobs: list[Planned] = []

    def settle_folders(self, jobs: Sequence[Planned]) -> None:
        """Let each job use the folder where its config was trained before, whatever its number was then."""
        before: dict[str, list[Path]] = {}
        taken = {job.folder for job in self.jobs}
        for config in sorted(self.folder.glob("*/config.yaml")):
            if config.parent not in taken:
                with contextlib.suppress(OSError, yaml.YAMLError, AttributeError, TypeError, ValueError):  # the job there will say
                    before.setdefault(fingerprint(RunDir(config.parent).read_config()), []).append(config.parent)
                    taken.add(config.parent)
        for job in jobs:
            known = before.get(fingerprint(job.cfg))
            if known:
                job.folder = known.pop(known.index(job.folder) if job.folder in known else 0)
            elif job.folder in taken:
                numbered = (job.folder.with_name(f"{job.folder.name}-{i}") for i in range(2, 10_000))
                job.folder = next(folder for folder in numbered if folder not in taken)
            taken.add(job.folder)

    def train(self, cohorts: Sequence[Cohort], num_workers: int, prepare: Callable[[Planned], None]) -> None:
        """Train cohorts, at most `num_workers` at a time; `prepare` makes a job's folder ready before its first start."""
        waiting = list(cohorts)
        threads = max(1, (os.cpu_count() or 1) // max(1, min(num_workers, len(cohorts))))
        self.write()
        display = SweepDisplay(self.console, self.jobs, [job for cohort in cohorts for job in cohort])
        with display:
            try:
                told = False
                while waiting or any(worker.cohort for worker in self.workers):
                    if interrupts.requested is not None:
                        waiting.clear()
                        for worker in () if told else self.workers:
                            worker.interrupt()
                        told = True
                    while waiting and (free := self.free_worker(num_workers)) is not None:
                        cohort = waiting.pop(0)
                        for job in cohort:
                            with storage_errors(job.folder):
                                job.folder.mkdir(parents=True, exist_ok=True)
                                prepare(job)
                        free.give(cohort, threads)
                    time.sleep(POLL_S)
                    for worker in list(self.workers):
                        if worker.cohort and not (worker.alive and worker.busy):
                            waiting = [*self.account(worker), *waiting]
                            self.write()
                        elif worker.cohort and self.stall_seconds and worker.silent_for() > self.stall_seconds:
                            worker.ended_for_silence = True
                            worker.kill()
                    display.show(self.workers)
            finally:
                self.write()

    def free_worker(self, num_workers: int) -> Worker | None:
        """An idle worker, a new one, or None while all are busy."""
        for worker in [worker for worker in self.workers if not worker.cohort and not worker.alive]:
            worker.close()
            self.workers.remove(worker)
        for worker in self.workers:
            if not worker.cohort:
                return worker
        if len(self.workers) < num_workers:
            self.workers.append(self.start_worker())
            return self.workers[-1]
        return None

    def account(self, worker: Worker) -> Iterator[Cohort]:
        """Settle a cohort whose worker finished or died; yields the runs that it leaves: together once, then each alone."""
        cohort, worker.cohort = worker.cohort, []
        died = worker.busy
        if died:
            words = worker.last_words()
            if worker.ended_for_silence:
                words = f"it made no step for {self.stall_seconds:g} s (hydra.launcher.stall_seconds) and was ended"
            worker.close()
            self.workers.remove(worker)
        for job in cohort:
            job.look()
        left = [job for job in cohort if job.state == "not_run"]
        if interrupts.requested is not None:
            for job in left:
                job.state = "interrupted" if RunDir(job.folder).metrics.exists() else "not_run"
            return
        for job in left:
            job.deaths += 1
            if len(cohort) == 1 and job.deaths >= MAX_DEATHS:
                job.state, job.cause = "failed", words if died else "its worker left no results"
        again = [job for job in left if job.state == "not_run"]
        together = [again] if again and again[0].deaths < MAX_DEATHS else [[job] for job in again]
        yield from together

    def close(self) -> None:
        """End all workers, at once: each takes a second to leave."""
        with ThreadPoolExecutor() as together:
            list(together.map(lambda worker: worker.close(), self.workers))
        self.workers.clear()

    def counts(self) -> dict[str, int]:
        """Jobs by state; `planned` is always the sum of the others."""
        return {"planned": len(self.jobs)} | {state: sum(job.state == state for job in self.jobs) for state in STATES}

    def write(self) -> None:
        """Replace sweep.json."""
        jobs = [
            {
                "number": job.number,
                "name": job.cfg["name"],
                "state": job.state,
                "fingerprint": fingerprint(job.cfg),
                "folder": os.path.relpath(job.folder, self.folder),
                "cause": job.cause,
                "log": str(RunDir(job.folder).log) if job.state == "failed" else None,
                "last_lines": _tail(RunDir(job.folder).log) if job.state == "failed" else [],
            }
            for job in self.jobs
        ]
        write_atomic(self.folder / LEDGER, strict_json(self.counts() | {"jobs": jobs}, indent=2) + "\n")


def _tail(log: Path) -> list[str]:
    with contextlib.suppress(OSError):
        return log.read_text(encoding="utf-8", errors="replace").splitlines()[-5:]
    return []
