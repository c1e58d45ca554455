"""What a plot consists of, in numbers: drawn by plotly for the page and by matplotlib for PNG and SVG, from the same marks."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from vae_lab.compare.groups import Group

MUTED = "#8a8a8a"  # readable on white and on black
# Okabe & Ito's colours for all kinds of colour vision, without yellow and black, which vanish on one of two backgrounds
PALETTE = ("#1f83c4", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a8a8a", "#a6761d")
# viridis without its ends, for more levels of a number than the palette holds
SEQUENCE = ("#46327e", "#3f4788", "#365c8d", "#2d708e", "#277f8e", "#21918c", "#1fa187", "#2db27d", "#4ac16d", "#73d056")
NUM_SYMBOLS, NUM_DASHES = 8, 4


@dataclass(frozen=True)
class Style:
    """How a group looks everywhere: colour from its first varied key, symbol and dash from the others."""

    colour: str = MUTED
    symbol: int = 0
    dash: int = 0


@dataclass(frozen=True)
class Mark:
    """A series. `kind`: line; band (`low` to `high` over x); points; xerr or yerr (an interval from `low` to `high` with a
    point in it); guide (a thin dashed grey line); note (`text` right of a point). `group` is what the legend switches."""

    kind: str
    x: Sequence[float]
    y: Sequence[float]
    style: Style = Style()
    group: int | None = None
    name: str = ""
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    text: Sequence[str] = ()
    faint: bool = False


@dataclass
class Panel:
    """One pair of axes. Ticks are (place, label)."""

    title: str
    x_label: str
    y_label: str
    marks: list[Mark] = field(default_factory=list)
    x_log: bool = False
    y_range: tuple[float, float] | None = None
    x_range: tuple[float, float] | None = None
    x_ticks: list[tuple[float, str]] = field(default_factory=list)
    y_ticks: list[tuple[float, str]] = field(default_factory=list)


@dataclass
class Chart:
    """A plot of one or more panels; `name` is its file's."""

    name: str
    title: str
    caption: str
    panels: list[Panel]
    wide: bool = False  # one panel a row


def styles(groups: Sequence[Group]) -> list[Style]:
    """A look for each group, by position."""
    width = len(groups[0].values) if groups else 0
    levels = [list(dict.fromkeys(group.values[i] for group in groups)) for i in range(width)]
    varied = [i for i in range(width) if len(levels[i]) > 1]
    if not varied:
        return [Style(PALETTE[0]) for _ in groups]
    first, others = varied[0], varied[1:]
    colours = _colours(levels[first])
    rests = list(dict.fromkeys(tuple(group.values[i] for i in others) for group in groups))
    found = []
    for group in groups:
        level = levels[first].index(group.values[first])
        rest = rests.index(tuple(group.values[i] for i in others)) if others else level
        found.append(Style(colours[level], rest % NUM_SYMBOLS, rest % NUM_DASHES))
    return found


def _colours(levels: Sequence[Any]) -> list[str]:
    if len(levels) <= len(PALETTE):
        return list(PALETTE[: len(levels)])
    last = len(SEQUENCE) - 1
    return [SEQUENCE[round(i * last / (len(levels) - 1))] for i in range(len(levels))]


def columns_of(panels: int) -> int:
    """How many panels stand beside each other without leaving one alone below."""
    return panels if panels < 4 else 3 if panels % 3 == 0 else 2
