"""What a sweep shows: while it trains, runs done, running and failed, each cohort's epoch, time left; then a table of all runs."""

import json
import math
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.measure import Measurement
from rich.progress_bar import ProgressBar
from rich.table import Table

from vae_lab.config import flatten
from vae_lab.console import as_text, say
from vae_lab.planning import Planned
from vae_lab.pool import Worker
from vae_lab.run_dir import RunDir

PLAIN_EVERY_S = 10.0
# Keys that follow from others, or differ without a choice
DERIVED = ("name", "model.name", "model.latent_dim", "network.hidden_dims", "objective.name", "tracking")


class SweepDisplay:
    """One display for all workers: redrawn in place on a terminal, a line every ten seconds elsewhere."""

    def __init__(self, console: Console, jobs: Sequence[Planned], training: Sequence[Planned]):
        self.console, self.jobs, self.training = console, jobs, training
        self.started = self.shown = time.monotonic()
        self.live = Live(console=console, transient=True, auto_refresh=False) if console.is_terminal else None

    def __enter__(self) -> "SweepDisplay":
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.live:
            self.live.stop()

    def show(self, workers: Sequence[Worker]) -> None:
        """Draw the state as it is now, if it is time to."""
        now = time.monotonic()
        if now - self.shown < (0.25 if self.live else PLAIN_EVERY_S):
            return
        self.shown = now
        busy = [(worker, worker.progress()) for worker in workers if worker.cohort]
        running = sum(len(worker.cohort) for worker, _ in busy)
        done = self._share_done(busy)
        left = _duration((now - self.started) * (1 - done) / done) if done > 0.01 else "?"
        states = [job.state for job in self.jobs]
        counts = f"{states.count('completed')} of {len(states)} runs done, {running} running, {states.count('failed')} failed"
        if self.live is None:
            cohorts = "; ".join(_line(worker, note) for worker, note in busy)
            say(self.console, f"{counts}, {left} left. {cohorts}")
            return
        rows = Table.grid(padding=(0, 2))
        rows.add_row(as_text(counts), ProgressBar(total=1.0, completed=done, width=24), as_text(f"{left} left"))
        for worker, note in busy:
            fraction = note["step"] / note["steps"] if note else 0.0
            rows.add_row(as_text(f"  {_line(worker, note)}"), ProgressBar(total=1.0, completed=fraction, width=24), "")
        self.live.update(Group(rows), refresh=True)

    def _share_done(self, busy: Sequence[tuple[Worker, dict[str, Any]]]) -> float:
        """Epochs trained as a share of all epochs of the runs trained now."""
        total = sum(job.epochs for job in self.training)
        ended = sum(job.epochs for job in self.training if job.state not in ("not_run", "interrupted"))
        halfway = sum(len(w.cohort) * w.cohort[0].epochs * note["step"] / note["steps"] for w, note in busy if note)
        return min(1.0, (ended + halfway) / max(1, total))


def _line(worker: Worker, note: dict[str, Any]) -> str:
    who = worker.cohort[0].cfg["name"] if len(worker.cohort) == 1 else f"{len(worker.cohort)} runs as one"
    if not note:
        return f"{who}: starting"
    if note["phase"] != "training":
        return f"{who}: {note['phase']}"
    return f"{who}: epoch {note['epoch'] + 1}/{note['epochs']}, {note['images_per_s'] * len(worker.cohort):,.0f} images/s"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def print_closing(console: Console, jobs: Sequence[Planned]) -> None:
    """A table of all runs, best test loss first, then what failed, with its cause and log."""
    swept = swept_keys([job.cfg for job in jobs])
    table = Table()
    for head in ("run", *swept, "test loss", "epochs", "state"):
        table.add_column(as_text(head))

    def order(pair: tuple[Planned, dict[str, Any]]) -> tuple[bool, float]:
        return pair[0].state != "completed", _test_loss(pair[1])

    for job, results in sorted(((job, job.results() or {}) for job in jobs), key=order):
        loss = _test_loss(results)
        flat = flatten(job.cfg)
        values = [as_text("" if flat.get(key) is None else flat[key]) for key in swept]
        numbers = "" if loss == math.inf else f"{loss:.3f}", as_text(results.get("epochs", ""))
        table.add_row(as_text(job.folder.name), *values, *numbers, job.state.replace("_", " "))
    if not console.is_terminal:  # whatever reads this has no width
        wide = console.options.update(max_width=10_000)
        console = Console(file=console.file, width=Measurement.get(console, wide, table).maximum)
    console.print(table)
    skipped: Counter[str] = Counter()
    for job in jobs:
        notes = (job.results() or {}).get("skipped")
        notes = notes if isinstance(notes, dict) else {}
        skipped.update(f"{name}: {why}" for name, why in notes.items())
    for note, count in skipped.items():
        say(console, f"left out of {count} of {len(jobs)} runs: {note}", "yellow")
    for job in jobs:
        if job.cause is not None and job.state == "failed":
            say(console, f"failed: {job.folder.name}: {job.cause}  ({RunDir(job.folder).log})")


def _test_loss(results: dict[str, Any]) -> float:
    loss = results.get("test", {}).get("loss")
    return loss if isinstance(loss, int | float) else math.inf


def swept_keys(cfgs: Sequence[dict[str, Any]]) -> list[str]:
    """Flat keys whose values differ between configs and were chosen."""
    flats = [flatten(cfg) for cfg in cfgs]
    keys = dict.fromkeys(key for flat in flats for key in flat)
    return [key for key in keys if not key.startswith(DERIVED) and len({json.dumps(flat.get(key)) for flat in flats}) > 1]
