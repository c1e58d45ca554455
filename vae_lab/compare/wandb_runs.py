"""The W&B runs of run directories, and their upload."""

import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vae_lab.compare.wandb_client import ask, last_line, no_answer, run_bounded
from vae_lab.errors import ConfigError, ServiceError
from vae_lab.run_dir import RunDir

LOOK_S = 40.0
UPLOAD_S, UPLOAD_PER_RUN_S = 60.0, 10.0
BATCH = 50  # runs to a `wandb sync`


@dataclass(frozen=True)
class TrackedRun:
    """A run directory that W&B knows: the run's id, and a folder for each process that worked on it."""

    folder: Path
    run_id: str
    segments: tuple[Path, ...]

    def epochs(self) -> int | None:
        """Of the results; None if the run did not end."""
        try:
            return (RunDir(self.folder).read_results() or {}).get("epochs")
        except ValueError:
            return None

    def unsent(self) -> tuple[Path, ...]:
        """Offline segments that were never synced; W&B marks those that were."""
        return tuple(path for path in self.segments if path.name.startswith("offline-") and _marked(path) is None)


def tracked(runs: Iterable[Path]) -> tuple[list[TrackedRun], list[Path]]:
    """The runs that W&B can show, and the folders of those that it cannot (tracking=none, or W&B was disabled)."""
    found, untracked = [], []
    for folder in runs:
        file = folder / "wandb" / "run-id"
        run_id = file.read_text(encoding="utf-8").strip() if file.is_file() else ""
        known = re.fullmatch(r"[\w-]+", run_id)  # it goes into patterns and filters
        segments = sorted(path.parent for path in folder.glob(f"wandb/*run-*-{run_id}/run-{run_id}.wandb")) if known else []
        if segments:
            found.append(TrackedRun(folder.resolve(), run_id, tuple(path.resolve() for path in segments)))
        else:
            untracked.append(folder)
    return found, untracked


def upload(runs: Sequence[TrackedRun], project: str, say: Callable[[str], None]) -> int:
    """Send to `entity/project` what it lacks; returns the number of runs that were sent.

    A run that was logged or synced to another project is copied. What the project has is never sent again: the server would
    append it, and show every epoch twice.

    Raises:
        ConfigError: no key, a wrong key, or an entity that is not the key's.
        ServiceError: the server did not answer in time, or refused.
    """
    unique = {run.run_id: run for run in reversed(runs)}  # of a copied run directory, the first
    known = ask("look", LOOK_S, project=project, run_ids=list(unique))
    todo = []
    for run in reversed(unique.values()):
        segments = run.segments if run.run_id not in known["epochs"] else run.unsent()
        complete = known["epochs"].get(run.run_id) == run.epochs() is not None
        if segments and not complete:
            todo.append((run, segments))
        elif not complete and run.epochs() is not None:
            say(f"{run.folder.name} is not complete in {project}, where it was logged online: its connection was lost")
    for start in range(0, len(todo), BATCH):
        batch = todo[start : start + BATCH]
        say(f"uploading runs {start + 1} to {start + len(batch)} of {len(todo)} that {project} lacks")
        _sync([path for _, segments in batch for path in segments], project, len(batch), known["entities"])
    return len(todo)


def _sync(segments: Sequence[Path], project: str, num_runs: int, entities: Sequence[str]) -> None:
    """`wandb sync`, which ends with code 0 whatever happens: its success is told by the marks that it leaves or renews."""
    entity, _, name = project.partition("/")
    command = [sys.executable, "-m", "wandb", "sync", "--entity", entity, "--project", name]
    command += ["--include-online", "--include-synced"]  # what is to be sent was decided before
    limit = UPLOAD_S + UPLOAD_PER_RUN_S * num_runs
    before = [_marked(path) for path in segments]
    ended = run_bounded([*command, *map(str, segments)], limit)
    if ended is None:
        raise no_answer(limit)
    missing = [path for path, mark in zip(segments, before, strict=True) if _marked(path) == mark]
    if not missing:
        return
    why = last_line(ended.output)
    if re.search(r"not found|permission|error 40[34]", why):
        raise ConfigError(f"W&B refused {project}: {why}. This key's entities: {', '.join(entities)}.")
    raise ServiceError(f"W&B did not take {len(missing)} of {len(segments)} runs, such as {missing[0]}: {why}")


def _marked(segment: Path) -> int | None:
    """When W&B last noted that it has sent this segment, in ns."""
    return max((mark.stat().st_mtime_ns for mark in segment.glob("*.wandb.synced")), default=None)
