"""The same charts as PNG and SVG, drawn by matplotlib: no browser is needed."""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from vae_lab.compare.chart import MUTED, Chart, Mark, Panel, Style, columns_of
from vae_lab.run_dir import storage_errors

SYMBOLS = ("o", "s", "D", "^", "v", "X", "P", "*")
DASHES = ("-", "--", ":", "-.")
INK = "#222222"
SETTINGS: Any = {"text.parse_math": False, "svg.hashsalt": "vae_lab", "svg.fonttype": "none", "font.size": 9}


def export(chart: Chart, legend: Sequence[tuple[str, Style]], folder: Path, prefix: str) -> list[Path]:
    """Write `<prefix><name>.png` and `.svg`; returns their paths. `legend` says what colours and symbols mean."""
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{prefix}{_file_name(chart.name)}.{kind}" for kind in ("png", "svg")]
    with rc_context(SETTINGS):
        figure = draw(chart, legend)
        layout = figure.get_layout_engine()
        assert layout is not None
        layout.execute(figure)  # once for both files: it takes as long as drawing
        figure.set_layout_engine("none")
        for path in paths:
            temporary = path.with_name(f".{os.getpid()}.{path.name}")
            with storage_errors(path):
                metadata = {"Date": None} if path.suffix == ".svg" else None
                try:
                    figure.savefig(temporary, dpi=110, facecolor="white", format=path.suffix[1:], metadata=metadata)
                    os.replace(temporary, path)
                finally:
                    temporary.unlink(missing_ok=True)
    return paths


def _file_name(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "._-" else "_" for letter in name)


def draw(chart: Chart, legend: Sequence[tuple[str, Style]]) -> Figure:
    """All panels of a chart in one figure, the groups named below it."""
    columns = 1 if chart.wide else columns_of(len(chart.panels))
    rows = math.ceil(len(chart.panels) / columns)
    heights = [max(_height(panel) for panel in chart.panels[row * columns : (row + 1) * columns]) for row in range(rows)]
    named = any(not panel.y_ticks for panel in chart.panels) and len(legend) > 1
    width = 8.0 if columns == 1 else 4.3 * columns
    beside = max(1, int(width / (0.55 + 0.065 * max(len(name) for name, _ in legend))))  # inches of a handle, and of a letter
    lines = math.ceil(len(legend) / beside) if named else 0
    figure = Figure(figsize=(width, sum(heights) + 0.5 + 0.22 * lines), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, height_ratios=heights)
    for index in range(rows * columns):
        axes = grid[index // columns][index % columns]
        if index < len(chart.panels):
            _panel(axes, chart.panels[index])
        else:
            axes.set_axis_off()
    figure.suptitle(chart.title, fontsize=11, color=INK, x=0.01, ha="left")
    if named:
        handles = [
            Line2D([], [], color=s.colour, marker=SYMBOLS[s.symbol], ls=DASHES[s.dash], markersize=5, label=name)
            for name, s in legend
        ]
        figure.legend(handles=handles, loc="outside lower left", ncols=min(beside, len(legend)), frameon=False, fontsize=8)
    return figure


def _height(panel: Panel) -> float:
    return max(1.6, 0.7 + 0.27 * len(panel.y_ticks)) if panel.y_ticks else 3.3


def _panel(axes: Axes, panel: Panel) -> None:
    for mark in panel.marks:
        _mark(axes, mark)
    axes.set_title(panel.title, fontsize=9.5, color=INK, loc="left")
    axes.set_xlabel(panel.x_label)
    axes.set_ylabel(panel.y_label)
    if panel.x_log:
        axes.set_xscale("log")
        axes.minorticks_off()
    if panel.x_whole:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if panel.x_ticks:
        axes.set_xticks([place for place, _ in panel.x_ticks], [text for _, text in panel.x_ticks])
    if panel.y_ticks:
        axes.set_yticks([place for place, _ in panel.y_ticks], [text for _, text in panel.y_ticks])
        axes.set_ylim(-0.6, len(panel.y_ticks) - 0.4)
    if panel.x_range:
        axes.set_xlim(panel.x_range)
    if panel.y_range:
        axes.set_ylim(panel.y_range)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK, labelsize=8)
    axes.grid(alpha=0.25, lw=0.6)
    axes.set_axisbelow(True)


def _mark(axes: Axes, mark: Mark) -> None:
    colour, symbol, dash = mark.style.colour, SYMBOLS[mark.style.symbol], DASHES[mark.style.dash]
    match mark.kind:
        case "guide":
            axes.plot(mark.x, mark.y, color=MUTED, lw=0.8, ls="--", alpha=0.7, zorder=1)
        case "note":
            at = (mark.x[0], mark.y[0])
            axes.annotate(mark.text[0], at, (3, 0), textcoords="offset points", fontsize=6.5, color=MUTED, va="center")
        case "line":
            axes.plot(mark.x, mark.y, color=colour, lw=0.9 if mark.faint else 1.5, ls=dash, alpha=0.7 if mark.faint else 1)
        case "band":
            axes.fill_between(mark.x, mark.low, mark.high, color=colour, alpha=0.15, lw=0)
        case "xerr" | "yerr":
            sideways = mark.kind == "xerr"
            for x, y, low, high in zip(mark.x, mark.y, mark.low, mark.high, strict=True):
                ends = ([low, high], [y, y]) if sideways else ([x, x], [low, high])
                axes.plot(*ends, color=colour, lw=1.5, marker="|" if sideways else "_", markersize=6)
            axes.plot(mark.x, mark.y, color=colour, marker=symbol, markersize=5.5, ls="none")
        case _:
            look: Any = {"markersize": 3.7, "alpha": 0.45} if mark.faint else {"markersize": 5.8, "alpha": 0.95}
            axes.plot(mark.x, mark.y, color=colour, marker=symbol, ls="none", mew=0, **look)
