"""Text on its way to the user: it commands no terminal, and a terminal that went away costs its lines only."""

import contextlib
import io
import os
import sys
import unicodedata
from typing import Any

CONTROLS = ("Cc", "Cf", "Cs", "Zl", "Zp")  # controls, text direction, lone surrogates, line separators
JOINERS = "\N{ZERO WIDTH NON-JOINER}\N{ZERO WIDTH JOINER}"  # of class Cf, and part of words and emoji


def printable(value: object) -> str:
    """A value as one line of text; what a terminal would obey stands there as Python's escape, ESC as \\x1b."""
    return "".join(
        character.encode("unicode_escape").decode()
        if unicodedata.category(character) in CONTROLS and character not in JOINERS
        else character
        for character in str(value)
    )


def harmless(value: Any) -> Any:
    """The same for every text in a value read from JSON or YAML, keys too: made harmless once, where it is read."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {printable(key) if isinstance(key, str) else key: harmless(item) for key, item in value.items()}
    return [harmless(item) for item in value] if isinstance(value, list | tuple) else value


def complain(line: object) -> None:
    """A line on stderr."""
    sys.stderr.write(f"{printable(line)}\n")


def first_line(error: BaseException) -> str:
    """'ValueError: what it says', without the lines that follow."""
    said = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {said}".removesuffix(": ")


class Lossy(io.FileIO):
    """A descriptor whose reader may be gone, or whose disk full: what cannot be written is dropped."""

    def write(self, data: Any, /) -> int:
        with contextlib.suppress(OSError):
            if (written := super().write(data)) is not None:
                return written
        return memoryview(data).nbytes


def survive_lost_output() -> None:
    """Let nothing depend on who reads stdout and stderr; descriptors that are closed lead to the null device.

    Else the next file that is opened would take such a number, and what is printed would go there.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free number: this one
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is None or stream is getattr(sys, f"__{name}__"):  # else somebody else's, as of a test
            raw = Lossy(number, "w", closefd=False)
            encoding = getattr(stream, "encoding", None) or "utf-8"
            lossy = io.TextIOWrapper(io.BufferedWriter(raw), encoding, "backslashreplace")
            at_once = getattr(stream, "write_through", False)
            lossy.reconfigure(line_buffering=number == 2 or raw.isatty(), write_through=at_once)
            setattr(sys, name, lossy)
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115
