"""What rich prints: names, paths, messages and numbers, never its markup."""

from rich.console import Console
from rich.text import Text

from vae_lab.text import printable


def as_text(value: object, style: str = "") -> Text:
    """A cell or a line for rich: shown as it is, and harmless to a terminal."""
    return Text(printable(value), style)


def say(console: Console, line: object, style: str = "") -> None:
    """A line of its own, wrapped by the terminal, so that it can be copied and searched."""
    console.print(as_text(line, style), soft_wrap=True)
