"""What a plot consists of, in numbers: drawn by plotly for the page and by matplotlib for PNG and SVG, from the same marks."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from vae_lab.compare.groups import Group, part_label

Number = float | int
MUTED = "#8a8a8a"  # readable on white and on black
# Okabe & Ito's colours for all kinds of colour vision, without yellow and black, which vanish on one of two backgrounds
PALETTE = ("#1f83c4", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a8a8a", "#a6761d")
# viridis without its ends, for more levels of a number than the palette holds
SEQUENCE = ("#46327e", "#3f4788", "#365c8d", "#2d708e", "#277f8e", "#21918c", "#1fa187", "#2db27d", "#4ac16d", "#73d056")
NUM_SYMBOLS, NUM_DASHES = 8, 4
LIGHTEST = 0.6


@dataclass(frozen=True)
class Style:
    """How a group looks everywhere: colour from its first varied key, symbol from the second, lightness from the rest."""

    colour: str = MUTED
    symbol: int = 0
    dash: int = 0


@dataclass(frozen=True)
class Mark:
    """A series. `kind`: line; band (`low` to `high` over x); points; xerr or yerr (an interval from `low` to `high` with a
    point in it); guide (a thin dashed grey line); note (`text` right of a point). `group` is what the legend switches."""

    kind: str
    x: Sequence[Number]
    y: Sequence[Number]
    style: Style = Style()
    group: int | None = None
    name: str = ""
    low: Sequence[Number] = ()
    high: Sequence[Number] = ()
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
    x_ticks: list[tuple[Number, str]] = field(default_factory=list)
    y_ticks: list[tuple[Number, str]] = field(default_factory=list)
    x_whole: bool = False  # whole numbers only


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
    varied, levels = _varied(groups)
    if not varied:
        return [Style(PALETTE[0]) for _ in groups]
    colours = _colours(levels[0])
    shades = list(dict.fromkeys(tuple(group.values[i] for i in varied[2:]) for group in groups))
    found = []
    for group in groups:
        first = levels[0].index(group.values[varied[0]])
        second = levels[1].index(group.values[varied[1]]) if len(varied) > 1 else first
        third = shades.index(tuple(group.values[i] for i in varied[2:]))
        colour = _lighter(colours[first], third / max(1, len(shades) - 1))
        found.append(Style(colour, second % NUM_SYMBOLS, (third if len(shades) > 1 else second) % NUM_DASHES))
    return found


def legend(groups: Sequence[Group], by: Sequence[str]) -> list[tuple[str, Style]]:
    """What colours, symbols and lightness stand for: each varied key's values in turn, or all groups if more than three vary."""
    looks, (varied, levels) = styles(groups), _varied(groups)
    if len(varied) not in (2, 3):
        return [(group.label, look) for group, look in zip(groups, looks, strict=True)]
    entries = []
    for place, values in zip(varied, levels, strict=True):
        for value in values:
            index = next(index for index, group in enumerate(groups) if group.values[place] == value)
            look = looks[index]
            if place == varied[0]:
                kept = Style(look.colour)
            elif place == varied[1]:
                kept = Style(MUTED, look.symbol, look.dash if len(varied) == 2 else 0)
            else:
                kept = Style(_lighter(MUTED, values.index(value) / (len(values) - 1)), 0, look.dash)
            entries.append((part_label(by[place], value, groups[index]) or f"no {by[place]}", kept))
    return entries


def _varied(groups: Sequence[Group]) -> tuple[list[int], list[list[Any]]]:
    """Positions in `by` where groups differ, and the values there in order."""
    width = len(groups[0].values) if groups else 0
    levels = [list(dict.fromkeys(group.values[i] for group in groups)) for i in range(width)]
    varied = [i for i in range(width) if len(levels[i]) > 1]
    return varied, [levels[i] for i in varied]


def _lighter(colour: str, share: float) -> str:
    """A colour moved towards white by up to `LIGHTEST`."""
    parts = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round(part + LIGHTEST * share * (255 - part)):02x}" for part in parts)


def _colours(levels: Sequence[Any]) -> list[str]:
    if len(levels) <= len(PALETTE):
        return list(PALETTE[: len(levels)])
    last = len(SEQUENCE) - 1
    return [SEQUENCE[round(i * last / (len(levels) - 1))] for i in range(len(levels))]


def columns_of(panels: int) -> int:
    """How many panels stand beside each other without leaving one alone below."""
    return panels if panels < 4 else 3 if panels % 3 == 0 else 2
