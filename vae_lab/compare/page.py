"""report.html: one file that opens without network."""

import base64
import gzip
import json
import math
import os
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from vae_lab.compare import gallery, plots
from vae_lab.compare.analysis import Comparison
from vae_lab.compare.answer import decimals, interval, number, probability, seconds, sentences, standing
from vae_lab.compare.audit import KINDS, lost
from vae_lab.compare.chart import Style, columns_of, styles
from vae_lab.compare.collect import Record
from vae_lab.compare.groups import Group, full_key
from vae_lab.compare.metrics import OTHERS, SPLITS, TERMS
from vae_lab.compare.report import Part, Report
from vae_lab.compare.statistics import Pair

VERDICTS = {
    "better": "beyond noise",
    "noise": "may be noise",
    "constant": "same in every seed",
    "equal": "equal",
    "untested": "not tested",
}
SHAPES = ("●", "■", "◆", "▲", "▼", "✖", "✚", "★")  # plotly's symbols as text
NUMBERS = {"test/elbo": 3, "test/nll": 3, "test/kl": 3, "test/sse": 3, "test/mse": 5, "test/active_units": 0}


def render(report: Report, folder: Path, links: bool) -> str:
    """The page as HTML; links lead from `folder` to run directories, or nowhere without `links`."""
    environment = Environment(
        loader=PackageLoader("vae_lab.compare", "assets"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    parts, problems, figures = [], [], []
    for index, part in enumerate(report.parts):
        section, unreadable, panels = _part(part, index, len(report.parts), folder if links else None)
        parts.append(section)
        problems += unreadable
        figures += panels
    counts = {
        state: sum(record.state == state for record in report.records) for state in dict.fromkeys(r.state for r in report.records)
    }
    findings = [(kind, [f for f in report.findings if f.kind == key]) for key, kind in KINDS.items()]
    assets = {name: _asset(environment, name) for name in ("report.css", "report.js")}
    return environment.get_template("report.html.jinja").render(
        title=report.title,
        metric=report.metric,
        by=report.by,
        implied=report.implied,
        made=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
        counts=counts,
        total=len(report.records),
        parts=parts,
        runs=_runs(report, folder if links else None),
        links=links,
        lost=[
            {"name": r.name, "state": r.state, "cause": r.cause, "link": _link(r, folder if links else None)}
            for r in lost(report.records)
        ],
        findings=[(kind, found) for kind, found in findings if found],
        unreadable=problems,
        definitions=_definitions(report),
        css=assets["report.css"],
        js=assets["report.js"],
        plotly=Markup(_plotly()),
        figures=Markup(_json(figures)),
    )


def _plotly() -> str:
    """plotly.js, gzipped and in base64: 1.9 instead of 4.8 MB. Browsers since 2023 unpack it by themselves."""
    from plotly.offline import get_plotlyjs

    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode()


def _asset(environment: Environment, name: str) -> Markup:
    assert environment.loader is not None
    return Markup(environment.loader.get_source(environment, name)[0])


def _json(value: Any) -> str:
    """JSON that cannot end the script element it stands in; six digits are more than a screen shows, NaN is null."""
    text = json.dumps(_finite(value), allow_nan=False, separators=(",", ":"))
    return (
        text.replace("<", "\\u003c")
        .replace(">", "\\u003e")
        .replace("&", "\\u0026")
        .replace("\u2028", "\\u2028")
        .replace("\u2029", "\\u2029")
    )


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def _link(record: Record, folder: Path | None) -> str | None:
    if folder is None or record.path is None:
        return None
    return quote(os.path.relpath(record.path.resolve(), folder.resolve()).replace(os.sep, "/"))


def _part(part: Part, index: int, total: int, folder: Path | None) -> tuple[dict[str, Any], list[str], list[dict[str, Any]]]:
    """A section for the template, pictures that cannot be read, and its figures."""
    looks = styles(part.section.groups)
    ordered = part.comparisons[0].groups + part.comparisons[0].without if part.comparisons else part.section.groups
    pictures, problems = gallery.galleries(gallery.choose(ordered), gallery.BUDGET // total)
    charts, figures = [], []
    for chart in part.charts:
        names = []
        for number_, figure in enumerate(plots.figures(chart)):
            names.append(f"plot-{index}-{chart.name}-{number_}".replace(".", "-").replace("/", "-"))
            figures.append({"id": names[-1], **figure.to_plotly_json()})
        charts.append({"title": chart.title, "caption": chart.caption, "plots": names, "columns": columns_of(len(names))})
    shown = [
        {
            "title": one.title,
            "wide": one.pictures[0].width > 2 * one.pictures[0].height,
            "pictures": [
                {"label": p.label, "seed": p.record.seed, "uri": p.uri, "width": p.width, "height": p.height}
                | {"link": f"{link}/{p.file}" if (link := _link(p.record, folder)) else None}
                for p in one.pictures
            ],
        }
        for one in pictures
    ]
    legend = [{"label": group.label, "index": group.index, **_look(looks[group.index])} for group in part.section.groups]
    section = {
        "title": part.section.title,
        "slug": f"section-{index + 1}",
        "scale": part.section.scale,
        "comparisons": [_comparison(found, looks) for found in part.comparisons],
        "charts": charts,
        "galleries": shown,
        "left_out": max(0, len(part.section.groups) - gallery.MAX_GROUPS),
        "legend": legend,
    }
    return section, problems, figures


def _look(style: Style) -> dict[str, str]:
    return {"colour": style.colour, "shape": SHAPES[style.symbol]}


def _comparison(found: Comparison, looks: Sequence[Style]) -> dict[str, Any]:
    digits = decimals(found)
    return {
        "metric": found.metric,
        "words": sentences(found),
        "rows": [_row(found, group, digits) | _look(looks[group.index]) for group in found.groups],
        "without": [group.label for group in found.without],
        "pairs": [_pair(pair, digits) for pair in found.pairs],
        "effects": [
            {
                "key": e.key,
                "over": e.over,
                "means": [(str(k), number(v, digits)) for k, v in e.values.mean().items()],
                "pairs": [_pair(pair, digits) for pair in e.pairs],
            }
            for e in found.effects
        ],
    }


def _row(found: Comparison, group: Group, digits: int) -> dict[str, Any]:
    row = found.table.loc[group.label]
    kind, words = standing(found, group)
    return {
        "label": group.label,
        "seeds": group.seeds,
        "n": int(row["n"]),
        "mean": number(row["mean"], digits),
        "sd": "" if math.isnan(row["sd"]) else number(row["sd"], digits),
        "interval": "" if math.isnan(row["low"]) else interval(row["low"], row["high"], digits).removeprefix("95 % interval "),
        "beta": "" if group.beta is None else f"{group.beta:g}",
        "beta_eff": "" if group.beta_eff is None else f"{group.beta_eff:.3g}",
        "rank": "" if math.isnan(row["rank"]) else f"{row['rank']:.2f}",
        "wins": f"{int(row['wins'])} of {int(row['of'])}" if row["of"] else "",
        "kind": kind,
        "words": words,
        "train": seconds(group.mean("time/train_s")),
        "parameters": f"{group.mean('parameters'):,.0f}",
    }


def _pair(pair: Pair, digits: int) -> dict[str, Any]:
    def between(low: float, high: float) -> str:
        return "" if math.isnan(low) else f"{number(low, digits)} to {number(high, digits)}"

    return {
        "a": pair.a,
        "b": pair.b,
        "n": pair.n,
        "gain": number(pair.gain, digits),
        "t": between(pair.low, pair.high),
        "boot": between(pair.boot_low, pair.boot_high),
        "p": probability(pair.p).removeprefix("p ").removeprefix("= "),
        "holm": probability(pair.p_holm).removeprefix("p ").removeprefix("= "),
        "wilcoxon": probability(pair.p_wilcoxon).removeprefix("p ").removeprefix("= "),
        "verdict": VERDICTS[pair.verdict],
        "kind": pair.verdict,
    }


def _runs(report: Report, folder: Path | None) -> dict[str, Any]:
    """Head and rows of the table of all runs; a cell is (text, value to sort by)."""
    wanted = [report.metric.name, "test/elbo", "test/nll", "test/kl", "test/mse", "test/active_units"]
    known = {name for record in report.records for name in record.numbers}
    names = [name for name in dict.fromkeys(wanted) if name in known]
    titles = {id(record): part.section.title for part in report.parts for record in part.section.records}
    several = len(report.parts) > 1
    keys = list(dict.fromkeys([*report.by, *(["beta"] if "beta" in report.implied else [])]))
    head = [
        "run",
        "state",
        *(["section"] if several else []),
        *keys,
        "beta_eff",
        "seed",
        *names,
        "epochs",
        "train [s]",
        "parameters",
    ]
    rows = []
    for record in report.records:
        cells = [_cell(record.state)]
        cells += [_cell(titles.get(id(record), ""))] if several else []
        cells += [_cell(record.config.get(full_key(key))) for key in keys]
        cells += [_cell(record.results.get("beta_eff"), 3), _cell(record.config.get("seed"))]
        cells += [_cell(record.numbers.get(name), NUMBERS.get(name, 4), fixed=True) for name in names]
        cells += [_cell(record.results.get("epochs")), _cell(record.numbers.get("time/train_s"), 1, fixed=True)]
        cells += [_cell(record.results.get("parameters"))]
        where = str(record.path) if record.path is not None else ""
        rows.append(
            {
                "name": record.name,
                "link": _link(record, folder),
                "where": where,
                "counts": record.usable,
                "cells": cells,
                "is_copy": record.copy_of is not None,
            }
        )
    return {"head": head, "rows": rows}


def _cell(value: Any, digits: int = 4, fixed: bool = False) -> dict[str, Any]:
    if value is None or value == "None":
        return {"text": "", "sort": "", "number": True}
    if isinstance(value, int | float) and not isinstance(value, bool):
        text = number(float(value), digits) if fixed else f"{value:,d}" if isinstance(value, int) else f"{value:.{digits}g}"
        return {"text": text, "sort": repr(float(value)), "number": True}
    return {"text": str(value), "sort": str(value), "number": False}


def _definitions(report: Report) -> list[tuple[str, str]]:
    terms = {name.partition("/")[2] for record in report.records for name in record.numbers if name.partition("/")[0] in SPLITS}
    found = [(term, f"{text} [{unit}].") for term, (unit, _, _, text) in TERMS.items() if term in terms]
    return found + [(name, f"{text} [{unit}].") for name, (unit, _, text) in OTHERS.items()]
