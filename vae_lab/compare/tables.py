"""runs.csv, summary.csv and summary.md."""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from vae_lab.compare.analysis import Comparison
from vae_lab.compare.answer import seeds_of, sentences, standing
from vae_lab.compare.audit import KINDS, Finding, lost
from vae_lab.compare.collect import Record
from vae_lab.compare.groups import Section, full_key, short_key, varied
from vae_lab.compare.wording import decimals, number
from vae_lab.text import printable

# A spreadsheet reads a cell that begins with these as a formula; East Asian ones take the wide forms, too
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\uff1d", "\uff0b", "\uff0d", "\uff20")
ENVIRONMENT = ("vae_lab", "torch", "python", "device", "threads", "processor", "platform")


def inert(value: Any) -> Any:
    """Text that no spreadsheet takes for a formula; numbers stay numbers."""
    if isinstance(value, list | dict | bool):
        value = str(value)
    if isinstance(value, str) and value.strip().startswith(FORMULA):
        return "'" + value
    return value


def csv(frame: pd.DataFrame) -> str:
    """A table as CSV with inert cells."""
    safe = frame.astype(object).map(inert)
    safe.columns = [inert(str(column)) for column in frame.columns]
    return safe.to_csv(index=False, lineterminator="\n")


def runs(records: Sequence[Record], sections: Sequence[Section], by: Sequence[str], folder: Path) -> pd.DataFrame:
    """A row per run, whatever became of it; paths relative to `folder`."""
    places = {id(record): (section, group) for section in sections for group in section.groups for record in group.records}
    keys = list(dict.fromkeys([*by, *varied(records)]))
    names = list(dict.fromkeys(name for record in records for name in record.numbers))
    return pd.DataFrame([_row(record, places.get(id(record)), keys, names, folder) for record in records])


def _row(record: Record, place: Any, keys: Sequence[str], names: Sequence[str], folder: Path) -> dict[str, Any]:
    results, environment = record.results, record.results.get("environment")
    environment = environment if isinstance(environment, dict) else {}
    row: dict[str, Any] = {
        "run": record.name,
        "folder": None if record.path is None else printable(os.path.relpath(record.path, folder)),
        "state": record.state,
        "cause": record.cause,
        "section": place[0].title if place else None,
        "group": place[1].label if place else None,
        "counts": record.usable,
        "seed": record.config.get("seed"),
    }
    basic = ("model", "objective", "loss", "network", "data", "binarize", "latent_dim", "hidden_dims", "beta")
    row |= {short_key(key): record.config.get(full_key(key)) for key in (*basic, *keys)}
    row |= {key: results.get(key) for key in ("beta_eff", "data_digest", "epochs", "best_epoch", "fingerprint")}
    row |= {"cohort_size": record.cohort_size if results else None}
    row |= {name: record.numbers.get(name) for name in names}
    return row | {f"environment/{key}": environment.get(key) for key in ENVIRONMENT}


def summary(comparisons: Sequence[Comparison], by: Sequence[str]) -> pd.DataFrame:
    """A row per section, metric and group."""
    rows = []
    for found in comparisons:
        for group in found.groups:
            row, pair = found.table.loc[group.label], found.against_best(group)
            rows.append(
                {"section": found.section.title, "metric": found.metric.name, "unit": found.metric.unit, "group": group.label}
                | dict(zip(by, group.values, strict=True))
                | {
                    "beta": group.beta,
                    "beta_eff": group.beta_eff,
                    "seeds": int(row["n"]),
                    "seeds_planned": len(group.expected_seeds),
                    "lost": found.losses[group.label].words or None,
                }
                | {key: row[key] for key in ("mean", "sd", "low", "high", "rank", "wins")}
                | {"standing": standing(found, group)[1], "behind_best": pair.gain if pair else None}
                | {"p": pair.p if pair else None, "p_family": pair.p_family if pair else None}
                | {"error_seeds": pair.error if pair else None, "error_images": pair.image_error if pair else None}
                | {"claims": found.claims, "least_difference": found.least}
                | {"train_s": group.mean("time/train_s"), "parameters": group.mean("parameters")}
            )
    return pd.DataFrame(rows)


def markdown(title: str, comparisons: Sequence[Comparison], findings: Sequence[Finding], records: Sequence[Record]) -> str:
    """The answer, a table per comparison, and what to know before believing it."""
    lines = [f"# {_inline(title)}", ""]
    for found in comparisons:
        lines += [f"## {_inline(found.section.title)}: {found.metric.title}", "", _inline(" ".join(sentences(found))), ""]
        lines += [*_table(found), ""]
    dead = lost(records)
    if dead:
        lines += ["## Runs that do not count", ""]
        lines += [f"- {_inline(record.name)}: {record.state}. {_inline(record.cause or '')}".rstrip() for record in dead] + [""]
    if findings:
        lines += ["## Before you believe it", ""]
        for finding in findings:
            where = f" ({_inline(finding.section)})" if finding.section else ""
            lines.append(f"- {KINDS[finding.kind]}{where}: {_inline(finding.text)}")
    return "\n".join(lines).rstrip() + "\n"


def _table(found: Comparison) -> list[str]:
    digits = decimals(found)
    lines = [
        f"| variant | seeds | {found.metric.name} | 95 % interval | beta_eff | mean rank | against the best | training "
        "| parameters |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for group in found.groups:
        row = found.table.loc[group.label]
        cells = [
            group.label,
            seeds_of(found, group),
            number(row["mean"], digits),
            "" if math.isnan(row["low"]) else f"{number(row['low'], digits)} to {number(row['high'], digits)}",
            "" if group.beta_eff is None else f"{group.beta_eff:.3g}",
            "" if math.isnan(row["rank"]) else f"{row['rank']:.2f}",
            standing(found, group)[1],
            f"{group.mean('time/train_s'):.1f} s",
            f"{group.mean('parameters'):,.0f}",
        ]
        lines.append("| " + " | ".join(_inline(cell) for cell in cells) + " |")
    return lines


def _inline(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    text = " ".join(printable(str(text)).split())
    for sign in "\\`*_[]|#~$@!":
        text = text.replace(sign, f"\\{sign}")
    text = text.replace("://", "\\://").replace("www.", "www\\.")  # else GitHub makes links of them
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
