"""SIGINT and SIGTERM: finish the step, keep everything, leave with 130 or 143."""

import contextlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from vae_lab.errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """The signals of this process.

    Inside `deferred` a signal only sets `requested`, and the code asks at points where it can stop; nothing is ever raised
    in the middle of something, where a library might swallow it. Outside, where there is nothing to lose, it ends the process.
    """

    def __init__(self) -> None:
        self.requested: signal.Signals | None = None
        self.is_deferred = False
        self.before_leaving: list[Callable[[], None]] = []  # not empty: some library hangs, and Python would wait for it at exit

    def leave(self, code: int) -> None:
        """End the process now if something would keep it from ending; the files are written by then."""
        if self.before_leaving:
            for action in self.before_leaving:
                action()
            logging.shutdown()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def install(self) -> None:
        """Take over both signals; a second SIGINT always quits at once. Only the main thread may."""
        for number in SIGNALS:
            signal.signal(number, self._handle)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Let the block see `requested` and end by itself."""
        self.is_deferred = True
        try:
            yield
        finally:
            self.is_deferred = False

    def check(self) -> None:
        """Raise `Interrupted` if a signal came."""
        if self.requested is not None:
            raise Interrupted(f"interrupted by {self.requested.name}", self.requested)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        again, self.requested = self.requested is not None, signal.Signals(number)
        if not self.is_deferred or (again and number == signal.SIGINT):
            said = "second interrupt: quitting at once" if again else f"interrupted by {self.requested.name}"
            with contextlib.suppress(OSError):
                os.write(2, f"{said}\n".encode())
            os._exit(128 + number)


interrupts = Interrupts()
