"""`vae-lab compare`: the sub-command's arguments, and what it writes where."""

import argparse
import json
import math
from pathlib import Path
from typing import Any

from vae_lab.errors import ConfigError
from vae_lab.places import check_plain
from vae_lab.run_dir import RunDir, write_atomic
from vae_lab.text import printable


def add_commands(commands: Any) -> None:
    """Add `compare` to the sub-commands of `vae-lab`."""
    command = commands.add_parser(
        "compare",
        help="compare runs: which variant is better, by how much, is it noise, at what cost",
        description="Compare finished runs. Reads run directories only; writes a page, tables and figures.",
    )
    command.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="a sweep's folder, a run's, or a folder of these")
    command.add_argument(
        "--by", metavar="KEYS", help="keys that tell groups apart, as model,latent_dim,optimizer.lr (default: what was swept)"
    )
    command.add_argument("--metric", help="number to rank by (default: test/elbo; test/nll where no run has an ELBO)")
    command.add_argument("--direction", choices=("higher", "lower"), help="what is better, for a metric of which it is not known")
    command.add_argument(
        "--least-difference",
        type=least_difference,
        metavar="X",
        help="in the metric's unit: nothing that differs by less is called better (default: 0.1 %% of the metric's scale)",
    )
    command.add_argument(
        "--out", type=Path, metavar="FILE.html", help="the page; the rest lies beside it (default: DIR/report.html)"
    )
    command.add_argument("--title", help="of the page (default: the names of the folders)")
    command.add_argument("--no-links", action="store_true", help="no links to run directories, for a page that goes elsewhere")
    command.add_argument("--wandb", metavar="ENTITY/PROJECT", help="upload what is offline, and publish a W&B report there")
    command.add_argument("--wandb-dry-run", type=Path, metavar="FILE", help="write that report's specification instead, offline")
    command.set_defaults(run=run)


def least_difference(text: str) -> float:
    """A finite number that is not negative.

    Raises:
        argparse.ArgumentTypeError: it is something else.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text}: must be a number from 0, in the metric's unit")
    return value


def run(arguments: argparse.Namespace) -> int:
    """Compare, print, write; 0, or a `VaeLabError`."""
    from rich.console import Console
    from rich.text import Text

    from vae_lab.compare import terminal
    from vae_lab.compare.report import build

    console = Console()
    by = [key.strip() for key in (arguments.by or "").split(",") if key.strip()]
    out = output_path(arguments.out, arguments.folders)
    with console.status("reading runs ..."):
        report = build(arguments.folders, by, arguments.metric, arguments.direction, arguments.least_difference)
    report.title = printable(arguments.title or report.title)
    if arguments.wandb_dry_run is not None and arguments.wandb is None:
        raise ConfigError("--wandb-dry-run names a file only; say --wandb ENTITY/PROJECT too.")
    request = None if arguments.wandb is None else wandb_request(report, arguments.wandb)
    terminal.show(console, report.comparisons, report.findings, report.records)
    with console.status("drawing ..."):
        written = write(report, out, links=not arguments.no_links)
    console.print(Text.assemble("\n", (printable(str(out)), "bold"), f"  ({', '.join(written)})"), soft_wrap=True)
    if request is not None:
        _publish(request, arguments.wandb_dry_run, console)
    return 0


def wandb_request(report: Any, project: str) -> Any:
    """What the W&B report of a comparison shows.

    Raises:
        ConfigError: `project` is not ENTITY/PROJECT.
    """
    from vae_lab.compare import tables
    from vae_lab.compare.wandb_report import Request

    sections = {part.section.title: [record.path for record in part.section.records if record.path] for part in report.parts}
    summary = tables.markdown(report.title, report.comparisons, report.findings, report.records)
    return Request(sections, report.by, [*report.by, *report.implied], report.metric.name, summary, project, report.title)


def _publish(request: Any, file: Path | None, console: Any) -> None:
    """Save the report in W&B and say where, or write its specification to `file`."""
    from rich.text import Text

    from vae_lab.compare.wandb_report import publish, specification

    if file is not None:
        write_atomic(file, json.dumps(specification(request), indent=1) + "\n")
        console.print(Text(printable(str(file)), "bold"), soft_wrap=True)
        return
    published = publish(request, say=lambda line: console.print(line, highlight=False, markup=False, soft_wrap=True))
    if published.untracked:
        names = ", ".join(printable(path.name) for path in published.untracked)
        console.print(f"not in it, since they were not logged to W&B: {names}", highlight=False, markup=False, soft_wrap=True)
    console.print(published.url, highlight=False, markup=False, soft_wrap=True)


def output_path(out: Path | None, folders: list[Path]) -> Path:
    """Where the page goes; beside it, never among a run's own files.

    Raises:
        ConfigError: `--out` is not the name of an HTML file.
    """
    if out is None:
        return folders[0] / "compare" / "report.html" if RunDir(folders[0]).is_run() else folders[0] / "report.html"
    if out.suffix.lower() not in (".html", ".htm") or out.is_dir():
        raise ConfigError(f"--out {out}: must be the name of an HTML file, as {out.with_suffix('.html')}.")
    if RunDir(out.parent).is_run():
        raise ConfigError(f"--out {out}: would mix with the files of the run in {out.parent}. Name another folder.")
    return out


def write(report: Any, out: Path, links: bool = True) -> list[str]:
    """Write the page, the tables and the figures; returns what lies beside the page."""
    from vae_lab.compare import page, static, tables
    from vae_lab.compare.chart import legend

    folder = out.parent
    check_plain([folder / "figures"])  # what is there may come from anywhere, and lead anywhere
    write_atomic(folder / "runs.csv", tables.csv(tables.runs(report.records, [p.section for p in report.parts], report.by, folder)))
    write_atomic(folder / "summary.csv", tables.csv(tables.summary(report.comparisons, report.by)))
    write_atomic(
        folder / "summary.md", tables.markdown(f"Comparison: {report.title}", report.comparisons, report.findings, report.records)
    )
    figures = 0
    for part in report.parts:
        names = legend(part.section.groups, report.by)
        for chart in part.charts:
            figures += len(static.export(chart, names, folder / "figures", part.section.slug))
    write_atomic(out, page.render(report, folder, links))
    return ["runs.csv", "summary.csv", "summary.md", f"figures/: {figures} files"]
