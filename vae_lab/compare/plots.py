"""Charts as plotly figures for the page: a figure a panel, no legend of its own; the page has one for all."""

import html
from typing import Any

import plotly.graph_objects as go

from vae_lab.compare.chart import MUTED, Chart, Mark, Number, Panel

SYMBOLS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "x", "cross", "star")
DASHES = ("solid", "dash", "dot", "dashdot")
ROW = 30  # pixels for a named row


def figures(chart: Chart) -> list[go.Figure]:
    """A figure for each panel."""
    return [_figure(panel, len(chart.panels) == 1) for panel in chart.panels]


def _figure(panel: Panel, alone: bool) -> go.Figure:
    figure = go.Figure([trace for mark in panel.marks for trace in _traces(mark)])
    height = max(320, 110 + ROW * len(panel.y_ticks)) if panel.y_ticks else 440 if alone else 340
    figure.update_layout(
        template="none",
        title={"text": safe(panel.title), "x": 0.01, "font": {"size": 14}},
        height=height,
        margin={"l": 10, "r": 16, "t": 40 if panel.title else 12, "b": 10},
        showlegend=False,
        hovermode="closest",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        annotations=[_note(mark) for mark in panel.marks if mark.kind == "note"],
    )
    figure.update_xaxes(_axis(panel.x_label, panel.x_ticks, panel.x_range), type="log" if panel.x_log else "linear")
    if panel.x_whole:
        figure.update_xaxes(tickformat=",d")
    figure.update_yaxes(_axis(panel.y_label, panel.y_ticks, panel.y_range), type="linear")
    return figure


def _axis(label: str, ticks: list[tuple[Number, str]], limits: tuple[float, float] | None) -> dict[str, Any]:
    axis: dict[str, Any] = {"title": {"text": safe(label), "font": {"size": 12}}, "automargin": True, "zeroline": False}
    if ticks:
        axis |= {"tickvals": [place for place, _ in ticks], "ticktext": [safe(text) for _, text in ticks]}
    return axis | ({"range": list(limits)} if limits else {})


def _note(mark: Mark) -> dict[str, Any]:
    return {
        "x": mark.x[0],
        "y": mark.y[0],
        "text": safe(mark.text[0]),
        "showarrow": False,
        "font": {"size": 10, "color": MUTED},
        "xanchor": "left",
        "yanchor": "middle",
        "xshift": 4,
    }


def _traces(mark: Mark) -> list[go.Scatter]:
    colour, symbol, dash = mark.style.colour, SYMBOLS[mark.style.symbol], DASHES[mark.style.dash]
    common = {"x": list(mark.x), "y": list(mark.y), "meta": {"group": mark.group}, "hoverinfo": "skip"}
    if mark.text:
        texts = [safe(text) for text in mark.text]
        common |= {"text": texts if len(texts) > 1 else texts[0], "hoverinfo": "text+x+y" if mark.kind == "line" else "text"}
    match mark.kind:
        case "note":
            return []
        case "guide":
            return [go.Scatter(**common, mode="lines", line={"color": MUTED, "width": 1, "dash": "dash"}, opacity=0.6)]
        case "line":
            line = {"color": colour, "width": 1.2 if mark.faint else 2, "dash": dash}
            return [go.Scatter(**common, mode="lines", line=line, opacity=0.7 if mark.faint else 1)]
        case "band":
            outline = {**common, "x": [*mark.x, *reversed(mark.x)], "y": [*mark.low, *reversed(mark.high)]}
            return [go.Scatter(**outline, fill="toself", fillcolor=colour, opacity=0.15, line={"width": 0}, mode="lines")]
        case "xerr" | "yerr":
            value = mark.x if mark.kind == "xerr" else mark.y
            bars = {
                "type": "data",
                "symmetric": False,
                "array": [high - v for high, v in zip(mark.high, value, strict=True)],
                "arrayminus": [v - low for low, v in zip(mark.low, value, strict=True)],
                "color": colour,
                "thickness": 2,
                "width": 4,
            }
            marker = {"color": colour, "symbol": symbol, "size": 10}
            return [go.Scatter(**common, mode="markers", marker=marker, **{f"error_{mark.kind[0]}": bars})]
        case _:
            marker = {"color": colour, "symbol": symbol, "size": 6 if mark.faint else 9}
            return [go.Scatter(**common, mode="markers", marker=marker, opacity=0.45 if mark.faint else 0.95)]


def safe(text: str) -> str:
    """Plotly reads some HTML in its texts: what comes from a config must not be any; our own line breaks stay."""
    return html.escape(text, quote=False).replace("&lt;br&gt;", "<br>")
