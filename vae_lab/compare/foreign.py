"""Text that others wrote: configs, results, names of folders. Made harmless once, where it is read."""

from typing import Any


def printable(text: str) -> str:
    """Text without control characters, direction marks or lone surrogates: blanks for white space, else escapes as '\\x1b'.

    A terminal obeys some of them, a reader is deceived by others, and no file takes a lone surrogate.
    """
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else " " if letter.isspace() else _escaped(letter) for letter in text)


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape", "surrogatepass").decode("ascii")


def harmless(value: Any) -> Any:
    """The same for every text in a value read from JSON or YAML, keys too."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {printable(key) if isinstance(key, str) else key: harmless(item) for key, item in value.items()}
    return [harmless(item) for item in value] if isinstance(value, list | tuple) else value
