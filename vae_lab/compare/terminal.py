"""The comparison in the terminal."""

import math
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vae_lab.compare.analysis import Comparison
from vae_lab.compare.answer import seeds_of, sentences, standing
from vae_lab.compare.audit import KINDS, Finding, lost
from vae_lab.compare.collect import Record
from vae_lab.compare.groups import Group
from vae_lab.compare.wording import decimals, number, probability, seconds

COLOURS = {"best": "bold green", "worse": "", "": "", "noise": "yellow", "untested": "dim"}
MAX_ROWS, MAX_LINES = 24, 12
WIDE = 110  # columns of a terminal from which the table has everything


def show(console: Console, comparisons: Sequence[Comparison], findings: Sequence[Finding], records: Sequence[Record]) -> None:
    """A table and a paragraph for each comparison, then what to know before believing it."""
    for found in comparisons:
        console.print()
        console.print(_table(found, console.width >= WIDE))
        console.print(Text(" ".join(sentences(found))))
    dead = lost(records)
    lines = [f"{record.state}: {record.name}. {record.cause or ''}" for record in dead]
    lines += [f"{KINDS[finding.kind]}{f' ({finding.section})' if finding.section else ''}: {finding.text}" for finding in findings]
    console.print()
    for position, line in enumerate(lines[:MAX_LINES]):
        console.print(Text(f"- {line}", style="yellow" if position < len(dead) else "dim"))
    if len(lines) > MAX_LINES:
        console.print(Text(f"- and {len(lines) - MAX_LINES} more, on the page", style="dim"))


def _table(found: Comparison, wide: bool) -> Table:
    table = Table(title=Text(f"{found.section.title}: {found.metric.title}"), title_justify="left", title_style="bold")
    for group in found.groups[:MAX_ROWS]:
        kind, cells = _row(found, group)
        kept = cells if wide else {name: cells[name] for name in ("variant", "seeds", "mean", "against the best", "train")}
        if not table.columns:
            for name in kept:
                left = name in ("variant", "against the best")
                table.add_column(name, justify="left" if left else "right", overflow="fold", no_wrap=not left)
        table.add_row(*(Text(cell) for cell in kept.values()), style=COLOURS[kind])
    if len(found.groups) > MAX_ROWS:
        table.caption = f"{len(found.groups) - MAX_ROWS} more groups on the page"
    return table


def _row(found: Comparison, group: Group) -> tuple[str, dict[str, str]]:
    """How a group stands, and its cells by column."""
    row, pair, digits = found.table.loc[group.label], found.against_best(group), decimals(found)
    kind, words = standing(found, group)
    spread = "" if math.isnan(row["low"]) else f" ± {number(row['high'] - row['mean'], digits)}"
    return kind, {
        "variant": group.label,
        "seeds": seeds_of(found, group),
        "mean": number(row["mean"], digits) + spread,
        "against the best": words,
        "p": "" if pair is None else probability(pair.p_family).removeprefix("p ").removeprefix("= "),
        "rank": "" if math.isnan(row["rank"]) else f"{row['rank']:.2f}",
        "beta_eff": "" if group.beta_eff is None else f"{group.beta_eff:.3g}",
        "train": seconds(group.mean("time/train_s")),
        "parameters": f"{group.mean('parameters'):,.0f}",
    }
