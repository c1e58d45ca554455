"""A sweep: jobs planned, stacked into cohorts, trained by worker processes, and accounted for in sweep.json."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from vae_lab.config import fingerprint, flatten
from vae_lab.interrupt import interrupts
from vae_lab.resume import FINISHED
from vae_lab.run_dir import RunDir, strict_json, write_atomic

LEDGER = "sweep.json"
CPU_PARAMETERS = 600_000  # of a whole cohort: beyond, stacking costs more than it saves on CPU cores
GPU_PARAMETERS = 200_000_000
POLL_S = 0.1
MAX_DEATHS = 2  # workers that may die under a run before it counts as failed
STATES = ("completed", "failed", "interrupted", "not_run")


@dataclass
class Planned:
    """One job of a sweep."""

    number: int
    cfg: dict[str, Any]
    folder: Path
    key: str = ""  # runs with the same key may be stacked
    parameters: int = 0
    state: str = "not_run"
    cause: str | None = None
    deaths: int = 0

    def results(self) -> dict[str, Any] | None:
        """Its results, if they are those of this config."""
        results = RunDir(self.folder).read_results()
        return results if results is not None and results["fingerprint"] == fingerprint(self.cfg) else None

    def look(self) -> None:
        """Take over what its folder says."""
        results = self.results()
        if results is not None:
            self.state = {"failed": "failed", "interrupted": "interrupted"}.get(results["status"], "completed")
            self.cause = results["error"]


Cohort = list[Planned]


@dataclass
class Worker:
    """A process that trains cohorts, one after the other."""

    process: "subprocess.Popen[bytes]"
    cohorts: list[Cohort]
    log: Path


@dataclass
class Sweep:
    """The jobs of one sweep directory."""

    folder: Path
    jobs: list[Planned]
    console: Console
    prepare_folder: Callable[[int, Path], None]
    workers: list[Worker] = field(default_factory=list)
    shown: float = 0.0

    def settle_folders(self) -> None:
        """Let each job use the folder where its config was trained before, whatever its number was then."""
        before = {}
        for config in sorted(self.folder.glob("*/config.yaml")):
            before[fingerprint(RunDir(config.parent).read_config())] = config.parent
        taken = set(before.values())
        for job in self.jobs:
            known = before.get(fingerprint(job.cfg))
            if known is not None:
                job.folder = known
            elif job.folder in taken:
                numbered = (job.folder.with_name(f"{job.folder.name}-{i}") for i in range(2, 10_000))
                job.folder = next(folder for folder in numbered if folder not in taken)
            taken.add(job.folder)

    def train(self, shares: list[list[Cohort]], num_workers: int) -> None:
        """Give each worker its share of cohorts, `num_workers` at a time; a run whose worker died goes on alone."""
        waiting = list(shares)
        self.write()
        try:
            while waiting or self.workers:
                while waiting and len(self.workers) < num_workers and interrupts.requested is None:
                    self.workers.append(self.start(waiting.pop(0), num_workers))
                if interrupts.requested is not None:
                    waiting.clear()
                    for worker in self.workers:
                        worker.process.terminate()
                time.sleep(POLL_S)
                for worker in [worker for worker in self.workers if worker.process.poll() is not None]:
                    self.workers.remove(worker)
                    waiting += self.account(worker)
                    self.write()
                self.show()
        finally:
            for worker in self.workers:
                worker.process.kill()
            self.write()

    def start(self, cohorts: list[Cohort], num_workers: int) -> Worker:
        """Write the jobs' Hydra files and start a worker for them."""
        for job in (job for members in cohorts for job in members):
            job.folder.mkdir(parents=True, exist_ok=True)
            self.prepare_folder(job.number, job.folder)
        descriptor, name = tempfile.mkstemp(prefix=".worker-", suffix=".json", dir=self.folder)
        with os.fdopen(descriptor, "w") as file:
            json.dump([[{"cfg": job.cfg, "folder": str(job.folder)} for job in members] for members in cohorts], file)
        log = Path(name).with_suffix(".log")
        threads = {} if num_workers == 1 else dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        with log.open("wb") as output:
            command = [sys.executable, "-m", "vae_lab.worker", name]
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=os.environ | threads)
        return Worker(process, cohorts, log)

    def account(self, worker: Worker) -> Iterator[list[Cohort]]:
        """Settle the jobs of a worker that ended; yields what is left: the runs it died with, each alone, and later cohorts."""
        code, untouched = worker.process.returncode, False
        for members in worker.cohorts:
            for job in members:
                job.look()
            left = [job for job in members if job.state == "not_run"]
            if not left or interrupts.requested is not None:
                for job in left:
                    job.state = "interrupted" if RunDir(job.folder).metrics.exists() else "not_run"
                continue
            if untouched:
                yield [left]
                continue
            untouched = True  # cohorts after this one
            for job in left:
                job.deaths += 1
                if job.deaths < MAX_DEATHS:
                    yield [[job]]
                else:
                    tail = worker.log.read_text(errors="replace").strip().splitlines()[-3:]
                    ended = f"signal {-code}" if code < 0 else f"code {code}"
                    job.state, job.cause = "failed", f"its worker process ended with {ended}. {' / '.join(tail)}".strip()
        worker.log.with_suffix(".json").unlink(missing_ok=True)
        worker.log.unlink(missing_ok=True)

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

    def show(self) -> None:
        """A line of progress every few seconds."""
        now = time.monotonic()
        if now - self.shown < 5 or not self.workers:
            return
        self.shown = now
        busy = []
        for worker in self.workers:
            members = next((c for c in worker.cohorts if not RunDir(c[-1].folder).results.exists()), worker.cohorts[-1])
            epoch = len(RunDir(members[0].folder).read_metrics())
            busy.append(f"{len(members)} runs at epoch {epoch}/{members[0].cfg['trainer']['epochs']}")
        counts = self.counts()
        done = sum(RunDir(job.folder).results.exists() for job in self.jobs)
        line = f"{done} of {counts['planned']} ended; training {', '.join(busy)}"
        self.console.print(line, highlight=False, soft_wrap=True)

    def table(self) -> Table:
        """All runs, best test loss first, then what did not complete, with its cause."""
        swept = _swept_keys([job.cfg for job in self.jobs])
        table = Table("run", *swept, "test loss", "epochs", "state")

        def order(job: Planned) -> tuple[bool, float]:
            results = job.results() or {}
            loss = results.get("test", {}).get("loss")
            return job.state != "completed", float("inf") if loss is None else loss

        for job in sorted(self.jobs, key=order):
            results, flat = job.results() or {}, flatten(job.cfg)
            loss = results.get("test", {}).get("loss")
            state = job.state if job.cause is None or job.state == "completed" else f"{job.state}: {job.cause[:120]}"
            values = [str(flat.get(key)) for key in swept]
            table.add_row(job.cfg["name"], *values, "" if loss is None else f"{loss:.3f}", str(results.get("epochs", "")), state)
        return table


def plan(jobs: Sequence[Planned], max_cohort: int | None, num_workers: int, on_gpu: bool) -> list[list[Cohort]]:
    """Stack what may be stacked, and share the cohorts out to workers, the largest work first to the least loaded."""
    cohorts: list[Cohort] = []
    for _, group in groupby(sorted(jobs, key=lambda job: (job.key, job.number)), key=lambda job: job.key):
        members = list(group)
        limit = (GPU_PARAMETERS if on_gpu else CPU_PARAMETERS) // max(1, members[0].parameters)
        size = max_cohort or max(1, min(limit, -(-len(jobs) // num_workers)))
        cohorts += [members[start : start + size] for start in range(0, len(members), size)]
    shares: list[list[Cohort]] = [[] for _ in range(num_workers)]

    def work(share: list[Cohort]) -> int:
        return sum(len(members) * members[0].parameters for members in share)

    for cohort in sorted(cohorts, key=lambda members: -work([members])):
        min(shares, key=work).append(cohort)
    return [share for share in shares if share]


def is_finished(job: Planned) -> bool:
    """Whether its folder holds the results of this very config."""
    results = job.results()
    return results is not None and results["status"] in FINISHED


def _swept_keys(cfgs: Sequence[dict[str, Any]]) -> list[str]:
    flats = [flatten(cfg) for cfg in cfgs]
    keys = dict.fromkeys(key for flat in flats for key in flat)
    derived = ("name", "model.name", "model.latent_dim", "network.hidden_dims", "objective.name", "tracking")
    return [key for key in keys if not key.startswith(derived) and len({json.dumps(flat.get(key)) for flat in flats}) > 1]


def _tail(log: Path) -> list[str]:
    try:
        return log.read_text(encoding="utf-8", errors="replace").splitlines()[-5:]
    except OSError:
        return []
