"""Rows of the page's tables, as text."""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from vae_lab.compare.analysis import Comparison
from vae_lab.compare.answer import seeds_of, sentences, standing
from vae_lab.compare.chart import Style
from vae_lab.compare.collect import Record
from vae_lab.compare.groups import Group, full_key
from vae_lab.compare.report import Report
from vae_lab.compare.statistics import Pair
from vae_lab.compare.wording import decimals, interval, number, probability, seconds

VERDICTS = {
    "better": "better",
    "noise": "may be noise",
    "small": "too small to matter",
    "images": "may be the test images",
    "lost": "runs are lost",
    "unclaimed": "estimate",
    "constant": "same in every seed",
    "equal": "equal",
    "untested": "not tested",
}
SHAPES = ("●", "■", "◆", "▲", "▼", "✖", "✚", "★")  # plotly's symbols as text
NUMBERS = {"test/elbo": 3, "test/nll": 3, "test/kl": 3, "test/sse": 3, "test/mse": 5, "test/active_units": 0}


def link(record: Record, folder: Path | None) -> str | None:
    """A run's folder as a link that leads there from `folder`; None without either."""
    if folder is None or record.path is None:
        return None
    return quote(os.path.relpath(record.path.resolve(), folder.resolve()).replace(os.sep, "/"))


def look(style: Style) -> dict[str, str]:
    """A group's colour, and its symbol as text."""
    return {"colour": style.colour, "shape": SHAPES[style.symbol]}


def comparison(found: Comparison, looks: Sequence[Style]) -> dict[str, Any]:
    """All that the page says about a comparison."""
    digits = decimals(found)
    return {
        "metric": found.metric,
        "words": sentences(found),
        "claims": found.claims,
        "rows": [_row(found, group, digits) | look(looks[group.index]) for group in found.groups],
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
        "seeds": seeds_of(found, group),
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
        "interval": between(pair.low, pair.high),
        "seeds_error": "" if math.isnan(pair.error) else number(pair.error, digits + 1),
        "images_error": "" if math.isnan(pair.image_error) else number(pair.image_error, digits + 1),
        "p": probability(pair.p).removeprefix("p ").removeprefix("= "),
        "family": probability(pair.p_family).removeprefix("p ").removeprefix("= "),
        "wilcoxon": probability(pair.p_wilcoxon).removeprefix("p ").removeprefix("= "),
        "verdict": VERDICTS[pair.verdict],
        "kind": pair.verdict,
    }


def runs(report: Report, folder: Path | None) -> dict[str, Any]:
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
    rows: list[dict[str, Any]] = []
    for record in report.records:
        cells = [_cell(record.state)]
        cells += [_cell(titles.get(id(record), ""))] if several else []
        cells += [_cell(record.config.get(full_key(key))) for key in keys]
        cells += [_cell(record.results.get("beta_eff"), 3), _cell(record.config.get("seed"))]
        cells += [_cell(record.numbers.get(name), NUMBERS.get(name, 4), fixed=True) for name in names]
        cells += [_cell(record.results.get("epochs")), _cell(record.numbers.get("time/train_s"), 1, fixed=True)]
        cells += [_cell(record.results.get("parameters"))]
        rows.append(
            {
                "name": record.name,
                "link": link(record, folder),
                "where": record.where,
                "counts": record.usable,
                "cells": cells,
                "is_copy": record.copy_of is not None,
            }
        )
    words = {column for row in rows for column, cell in enumerate(row["cells"], 1) if not cell["number"]}
    return {"head": [(name, column and column not in words) for column, name in enumerate(head)], "rows": rows}


def _cell(value: Any, digits: int = 4, fixed: bool = False) -> dict[str, Any]:
    if value is None or value == "None":
        return {"text": "", "sort": "", "number": True}
    if isinstance(value, int | float) and not isinstance(value, bool):
        text = number(float(value), digits) if fixed else f"{value:,d}" if isinstance(value, int) else f"{value:.{digits}g}"
        return {"text": text, "sort": repr(float(value)), "number": True}
    return {"text": str(value), "sort": str(value), "number": False}
