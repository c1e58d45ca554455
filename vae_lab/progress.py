"""Live progress: a bar on a terminal, plain lines elsewhere."""

import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.table import Table

from vae_lab.console import as_text, say

Metrics = dict[str, float]
REFRESH_S = 0.1  # a refresh copies numbers from the device


@runtime_checkable
class Progress(Protocol):
    """What is told how far runs that train together are."""

    def __enter__(self) -> "Progress": ...
    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...
    def images_per_s(self, step: int) -> float: ...
    def on_step(self, step: int, means: Callable[[], Metrics]) -> None: ...
    def on_epoch(self, epoch: int, step: int, metrics: Metrics) -> None: ...
    def line(self, text: str) -> None: ...


class Throughput:
    """Images a second and run, since the first step that it was asked about."""

    def __init__(self, images_per_epoch: int, steps_per_epoch: int):
        self.images_per_step = images_per_epoch / steps_per_epoch
        self.started = time.perf_counter()
        self.first_step: int | None = None

    def __call__(self, step: int) -> float:
        if self.first_step is None:
            self.first_step = step - 1
        return (step - self.first_step) * self.images_per_step / max(1e-9, time.perf_counter() - self.started)


class ProgressBar:
    """Epoch, loss terms, images per second and time left of the runs trained together."""

    def __init__(self, console: Console, epochs: int, images_per_epoch: int, steps_per_epoch: int):
        self.console, self.epochs, self.steps = console, epochs, steps_per_epoch
        self.images_per_s = Throughput(images_per_epoch, steps_per_epoch)
        self.shown = 0.0
        self.bar: RichProgress | None = None
        if console.is_terminal:
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[terms]}  {task.fields[speed]}", markup=False),
                TimeRemainingColumn(),
            )
            self.bar = RichProgress(*columns, console=console, transient=True)
            self.task = self.bar.add_task(f"epoch 1/{epochs}", total=epochs * steps_per_epoch, terms="", speed="")

    def __enter__(self) -> "ProgressBar":
        if self.bar:
            self.bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.bar:
            self.bar.stop()

    def on_step(self, step: int, means: Callable[[], Metrics]) -> None:
        """Show a step, at most ten times a second."""
        now = time.perf_counter()
        speed = self.images_per_s(step)
        if self.bar and now - self.shown > REFRESH_S:
            self.shown = now
            self.bar.update(
                self.task,
                completed=step,
                description=f"epoch {(step - 1) // self.steps + 1}/{self.epochs}",
                terms="  ".join(f"{name} {value:.2f}" for name, value in means().items()),
                speed=f"{speed:,.0f} images/s",
            )

    def on_epoch(self, epoch: int, step: int, metrics: Metrics) -> None:
        """Off a terminal, print about ten lines in all."""
        if not self.bar and (epoch == 1 or epoch == self.epochs or epoch % max(1, self.epochs // 10) == 0):
            self.line(epoch_line(epoch, self.epochs, metrics, self.images_per_s(step)))

    def line(self, text: str) -> None:
        """A line of its own, above the bar where there is one."""
        say(self.console, text)


def epoch_line(epoch: int, epochs: int, metrics: Metrics, images_per_s: float) -> str:
    """One epoch as text."""
    terms = "  ".join(f"{key} {value:.3f}" for key, value in metrics.items() if "/" in key)
    return f"epoch {epoch}/{epochs}  {terms}  {images_per_s:,.0f} images/s"


def title(results: dict[str, Any]) -> str:
    """What a run is, on one line, with its KL weight on the common scale."""
    beta = "" if results["beta"] is None else f", beta {results['beta']:g} (beta_eff {results['beta_eff']:.4g})"
    return (
        f"{results['name']}: {results['model']} on {results['data']}, {results['objective']}, {results['loss']}{beta}, "
        f"latent {results['latent_dim']}, {results['parameters']:,} parameters"
    )


def print_results(console: Console, results: dict[str, Any], folder: str, figures: Sequence[str]) -> None:
    """The closing table: what was trained, the test numbers, and where everything lies."""
    table = Table(show_edge=False, pad_edge=False)
    table.add_column("test, nats per image")
    table.add_column("", justify="right")
    units = {
        "sse": "sse, squared error per image",
        "mse": "mse, per pixel",
        "active_units": f"active units of {results['latent_dim']}",
    }
    for key, value in results["test"].items():
        if isinstance(value, int | float):
            table.add_row(
                as_text(units.get(key, key)),
                f"{value:,.4f}" if key == "mse" else f"{value:,d}" if isinstance(value, int) else f"{value:,.3f}",
            )
    timing = results["time"]
    console.print()
    say(console, title(results), "bold")
    console.print(table, highlight=False)
    say(
        console,
        f"{results['status']} after {results['epochs']} epochs (best: {results['best_epoch']}), {results['steps']} steps, "
        f"{timing['train_s']:.1f} s of training, {timing['images_per_s']:,.0f} images/s, on {results['environment']['device']}",
    )
    if results["note"]:
        say(console, results["note"], "dim")
    drawn = as_text(f"  ({', '.join(figures)})" if figures else "")
    console.print(as_text(folder, "bold") + drawn, soft_wrap=True)
