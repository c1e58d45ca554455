"""report.html: one file that opens without network."""

import base64
import gzip
import json
import math
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from vae_lab.compare import gallery, plots, rows
from vae_lab.compare.audit import KINDS, lost
from vae_lab.compare.chart import columns_of, styles
from vae_lab.compare.metrics import OTHERS, SPLITS, TERMS
from vae_lab.compare.report import Part, Report


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
        runs=rows.runs(report, folder if links else None),
        links=links,
        lost=[
            {"name": r.name, "state": r.state, "cause": r.cause, "link": rows.link(r, folder if links else None)}
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
                | {"link": f"{link}/{p.file}" if (link := rows.link(p.record, folder)) else None}
                for p in one.pictures
            ],
        }
        for one in pictures
    ]
    legend = [{"label": group.label, "index": group.index, **rows.look(looks[group.index])} for group in part.section.groups]
    section = {
        "title": part.section.title,
        "slug": f"section-{index + 1}",
        "scale": part.section.scale,
        "comparisons": [rows.comparison(found, looks) for found in part.comparisons],
        "charts": charts,
        "galleries": shown,
        "left_out": max(0, len(part.section.groups) - gallery.MAX_GROUPS),
        "legend": legend,
    }
    return section, problems, figures


def _definitions(report: Report) -> list[tuple[str, str]]:
    terms = {name.partition("/")[2] for record in report.records for name in record.numbers if name.partition("/")[0] in SPLITS}
    found = [(term, f"{text} [{unit}].") for term, (unit, _, _, text) in TERMS.items() if term in terms]
    return found + [(name, f"{text} [{unit}].") for name, (unit, _, text) in OTHERS.items()]
