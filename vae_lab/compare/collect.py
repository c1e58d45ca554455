"""Run directories, found and read: one `Record` for every run that is there or was planned, whatever became of it."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from vae_lab.compare import metrics
from vae_lab.config import fingerprint, flatten
from vae_lab.errors import ConfigError
from vae_lab.run_dir import FINISHED, LEDGER, RunDir, read_json
from vae_lab.text import harmless, printable

MAX_DEPTH = 4
HUGE = 1e100


@dataclass(eq=False)
class Record:
    """One run as it is compared. `path` is where it lies (None: it never began), `root` its sweep's folder, else the DIR given.

    `state` is one of completed, stopped_early, failed, interrupted, unfinished (no results: killed, or still running), not_run,
    damaged. `config` is flat; `problems` are sentences about what is wrong with its files.
    """

    path: Path | None
    root: Path
    name: str
    state: str
    cause: str | None = None
    results: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    curves: list[dict[str, Any]] = field(default_factory=list)
    cohort_size: int = 1
    numbers: dict[str, float] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    copy_of: "Record | None" = None  # the same config was met before

    @property
    def usable(self) -> bool:
        """Whether its numbers may enter statistics."""
        return self.state in FINISHED and self.copy_of is None

    @property
    def seed(self) -> int:
        return int(self.config.get("seed", -1))

    @property
    def fingerprint(self) -> str:
        return str(self.results.get("fingerprint", ""))

    @property
    def nonfinite(self) -> list[str]:
        """Keys of results.json, as 'test.elbo', that stand for NaN or infinity."""
        keys = self.results.get("nonfinite")
        return [str(key) for key in keys] if isinstance(keys, list) else []

    @property
    def where(self) -> str:
        """Its folder as text to show."""
        return "" if self.path is None else printable(str(self.path))

    def number(self, metric: str) -> float:
        """A finite number, or NaN; what cannot be squared counts as infinite."""
        value = self.numbers.get(metric, math.nan)
        return value if self.usable and abs(value) < HUGE else math.nan


def collect(folders: Sequence[Path]) -> list[Record]:
    """Every run below `folders`: run directories, sweep directories, or folders of them.

    Raises:
        ConfigError: a folder is missing or holds no run.
    """
    records: list[Record] = []
    seen: set[Path] = set()
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(f"{printable(str(folder))}: no such folder. Name a sweep's folder (outputs/sweeps/NAME) or a run's.")
        listed = list(_find(folder))
        found = [record for record in listed if record.path is None or record.path.resolve() not in seen]
        seen |= {record.path.resolve() for record in found if record.path is not None}
        if not listed:
            raise ConfigError(
                f"{printable(str(folder))}: no run in it. A run's folder has config.yaml, metrics.jsonl and results.json."
            )
        records += found
    _mark_copies(records)
    return records


def _find(root: Path) -> Iterator[Record]:
    planned: dict[Path, dict[str, Any]] = {}
    ledgers = sorted(_files_named(LEDGER, root))
    for ledger in ledgers:
        jobs, problem = _read_ledger(ledger)
        if problem:
            yield Record(ledger, root, printable(str(ledger.relative_to(root))), "damaged", problem)
        planned |= {(ledger.parent / str(job.get("folder"))).resolve(): job for job in jobs}
    for folder in sorted(_run_folders(root), key=_natural):
        job = planned.pop(folder.resolve(), None)
        yield read(folder, _sweep_of(folder, root, ledgers), job)
    for folder, job in planned.items():
        said, name = job.get("state"), printable(folder.name)
        state = said if said in ("failed", "interrupted", "not_run") else "not_run"
        cause = job.get("cause") or ("" if state == said else f"sweep.json says {said}; no folder {printable(str(folder))}")
        yield Record(None, _sweep_of(folder, root, ledgers), str(job.get("name", name)), str(state), str(cause) or None)


def _sweep_of(folder: Path, root: Path, ledgers: Sequence[Path]) -> Path:
    """The sweep's folder that a run lies in, else `root`."""
    above = folder.resolve().parents
    return next((ledger.parent for ledger in reversed(ledgers) if ledger.parent.resolve() in above), root)


def _natural(path: Path) -> tuple[str, int, str]:
    number = path.name.partition("_")[0]
    return str(path.parent), int(number) if number.isdecimal() and len(number) < 10 else 0, path.name


def _files_named(name: str, root: Path) -> Iterator[Path]:
    return (folder / name for folder in _walk(root) if (folder / name).is_file())


def _run_folders(root: Path) -> Iterator[Path]:
    return (folder for folder in _walk(root) if RunDir(folder).is_run())


def _walk(folder: Path, depth: int = 0) -> Iterator[Path]:
    """A folder and those below it, but not below a run, nor where runs keep their own things."""
    yield folder
    if depth == MAX_DEPTH or RunDir(folder).is_run():
        return
    for child in folder.iterdir():
        if child.name != "wandb" and not child.name.startswith(".") and child.is_dir() and not child.is_symlink():
            yield from _walk(child, depth + 1)


def _read_ledger(path: Path) -> tuple[list[dict[str, Any]], str | None]:
    try:
        jobs = read_json(path)["jobs"]
        return [harmless(job) | {"folder": job.get("folder")} for job in jobs if isinstance(job, dict)], None
    except (OSError, ValueError, LookupError, TypeError) as error:
        return [], f"the sweep's ledger cannot be read ({_short(error)}): runs that never began are unknown"


def read(folder: Path, root: Path, job: dict[str, Any] | None = None) -> Record:
    """One run's files; damage is a state and a cause, not an exception. `job` is the sweep's ledger entry, where there is one."""
    run_dir, record = RunDir(folder), Record(folder, root, printable(folder.name), "damaged")
    try:
        plain = run_dir.read_config()
        int(plain["seed"])
        identity = fingerprint(plain)
        plain = harmless(plain)
        record.name = str(plain["name"])
        record.config = flatten(plain)
    except (OSError, ValueError, yaml.YAMLError, LookupError, TypeError, AttributeError) as error:
        record.cause = f"{run_dir.config.name} cannot be read: {_short(error)}"
        return record
    try:
        results = harmless(run_dir.read_results())
        if run_dir.results.exists():
            _check_results(results)
    except (OSError, ValueError, LookupError, TypeError) as error:
        record.cause = f"{run_dir.results.name} cannot be read: {_short(error)}"
        return record
    _read_curves(run_dir, record)
    if results is None:
        record.state = job["state"] if job and job.get("state") in ("failed", "interrupted") else "unfinished"
        record.cause = str(job["cause"]) if job and job.get("cause") else "no results.json: killed, or still running"
        return record
    record.results, record.state = results, results["status"]
    record.cause = None if results.get("error") is None else str(results["error"])
    if results["status"] in FINISHED and results.get("epochs") and not run_dir.metrics.exists():
        record.problems.append("metrics.jsonl is gone: there are no curves of this run")
    record.cohort_size = max(1, len(run_dir.read_cohort()))
    record.numbers = metrics.of_run(results, record.cohort_size)
    if identity != record.fingerprint:
        record.problems.append("config.yaml was changed after training: its fingerprint is not that of results.json")
    if job and job.get("fingerprint") not in (None, record.fingerprint):
        record.problems.append("sweep.json planned another config for this folder")
    return record


def _read_curves(run_dir: RunDir, record: Record) -> None:
    try:
        record.curves = [row for row in run_dir.read_metrics() if isinstance(row, dict) and "epoch" in row]
        lost = run_dir.count_lines() - len(record.curves)
    except OSError as error:
        record.problems.append(f"metrics.jsonl cannot be read: {_short(error)}")
        return
    if lost:
        record.problems.append(f"metrics.jsonl: {lost} damaged lines; curves end after {len(record.curves)} epochs")


def _check_results(results: Any) -> None:
    known = (*FINISHED, "failed", "interrupted")
    if not isinstance(results, dict) or not isinstance(results.get("test"), dict):
        raise ValueError("not the results of a run")
    if results.get("status") not in known:
        raise ValueError(f"status is {results.get('status')!r:.40}, not one of {', '.join(known)}")


def _mark_copies(records: Iterable[Record]) -> None:
    """Of runs with one config, the first usable one counts; the others are copies of it."""
    first: dict[tuple[str, str], Record] = {}
    for record in records:
        if record.state in FINISHED and record.fingerprint:
            same = first.setdefault((record.fingerprint, str(record.results.get("data_digest"))), record)
            record.copy_of = None if same is record else same


def _short(error: BaseException) -> str:
    return printable((str(error).splitlines() or [type(error).__name__])[0][:200])
