"""A progress bar for a command that takes long."""

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vae_lab.interrupt import interrupts

PATIENCE_S = 0.5  # what is over sooner needs no bar


class Bar:
    """Called with the images done and in all, after each batch; shows a bar on a terminal, and stops at a signal."""

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        self.bar: Progress | None = None
        self.began: float | None = None

    def __call__(self, done: int, total: int) -> None:
        try:
            interrupts.check()
        except BaseException:
            self._stop()
            raise
        now = time.perf_counter()
        self.began = now if self.began is None else self.began
        if self.console.is_terminal and self.bar is None and done < total and now - self.began > PATIENCE_S:
            columns = (TextColumn("images"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeRemainingColumn())
            self.bar = Progress(*columns, console=self.console, transient=True)
            self.task = self.bar.add_task("", total=total)
            self.bar.start()
        if self.bar is not None:
            self.bar.update(self.task, completed=done)
        if done >= total:
            self._stop()

    def _stop(self) -> None:
        if self.bar is not None:
            self.bar.stop()
        self.bar = self.began = None
