"""What a reader must know before believing the numbers: what failed, is missing, few, copied, mixed or damaged."""

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from vae_lab.compare.collect import Record
from vae_lab.compare.groups import Section, varied
from vae_lab.compare.scales import differing
from vae_lab.compare.statistics import FEW_SEEDS
from vae_lab.run_dir import FINISHED

TOLERANCE = 1e-6  # relative; copies whose numbers differ by more are said to differ


@dataclass(frozen=True)
class Finding:
    """A sentence of some kind: scale, missing, few, copies, mixed, files, note. `section` is empty if it concerns all."""

    kind: str
    text: str
    section: str = ""


KINDS = {
    "scale": "Not ranked together",
    "missing": "Missing seeds",
    "few": "Few seeds",
    "mixed": "Mixed",
    "copies": "Duplicates",
    "files": "Files",
    "note": "Notes",
}


def examine(records: Sequence[Record], sections: Sequence[Section], by: Sequence[str]) -> list[Finding]:
    """All findings, by kind in the order of `KINDS`."""
    found = _scales(sections) + _copies(records) + _files(records)
    for section in sections:
        title = section.title if len(sections) > 1 else ""
        found += [Finding(kind, text, title) for kind, text in _of_section(section, by)]
    return sorted(found, key=lambda finding: list(KINDS).index(finding.kind))


def lost(records: Sequence[Record]) -> list[Record]:
    """Runs whose numbers do not count: failed, interrupted, unfinished, never begun or damaged; not copies."""
    return [record for record in records if record.state not in FINISHED]


def _scales(sections: Sequence[Section]) -> list[Finding]:
    apart = differing(sections)
    if not apart:
        return []
    parts = [f"{key} ({', '.join(values)})" for key, values in apart.items()]
    text = (
        f"{len(sections)} sections, because these runs differ in {'; '.join(parts)}. With another likelihood, binarisation, data "
        "or evaluation an nll or ELBO is a number on another scale: ranking across sections would mean nothing."
    )
    return [Finding("scale", text)]


def _copies(records: Sequence[Record]) -> list[Finding]:
    found = []
    for record in records:
        first = record.copy_of
        if first is None:
            continue
        other = [
            name
            for name, value in record.numbers.items()
            if not name.startswith("time/") and not math.isclose(value, first.numbers.get(name, math.nan), rel_tol=TOLERANCE)
        ]
        same = "with the same numbers" if not other else f"but with other numbers ({', '.join(other[:4])})"
        text = f"{record.where} has the config of {first.where}, {same}; only the latter counts."
        found.append(Finding("copies", text))
    return found


def _files(records: Sequence[Record]) -> list[Finding]:
    return [Finding("files", f"{record.where}: {problem}.") for record in records for problem in record.problems]


def _of_section(section: Section, by: Sequence[str]) -> list[tuple[str, str]]:
    found = []
    for group in section.groups:
        if group.missing_seeds:
            gone = ", ".join(map(str, group.missing_seeds))
            found.append(("missing", f"{group.label}: n = {group.seeds} seeds; without seed {gone}."))
    counts = {group.label: len({record.seed for record in group.records if record.usable}) for group in section.groups}
    few = [label for label, count in counts.items() if 0 < count < FEW_SEEDS]
    if few:
        most = max(counts[label] for label in few)
        whom = "all groups" if len(few) == len([count for count in counts.values() if count]) else ", ".join(few)
        found.append(("few", f"{whom}: at most {most} seed{'s' if most > 1 else ''}. Intervals lean on the normal distribution."))
    found += _mixtures(section, by)
    notes = dict.fromkeys(str(record.results["note"]) for record in section.records if record.results.get("note"))
    found += [("note", note) for note in notes]
    collapsed = []
    for group in section.groups:
        units = [record.number("test/active_units") for record in group.records if record.usable]
        if units and max(units) == 0:
            collapsed.append(group.label)
    if collapsed:
        found.append(("note", f"no latent is active in any run (posterior collapse): {', '.join(collapsed)}."))
    return found


def _mixtures(section: Section, by: Sequence[str]) -> list[tuple[str, str]]:
    found = []
    usable = [record for record in section.records if record.usable]
    environments = [_environment(record) for record in usable]
    for key in dict.fromkeys(key for environment in environments for key in environment):
        counts = Counter(environment.get(key, "unknown") for environment in environments)
        if len(counts) > 1:
            values = ", ".join(f"{value} ({count} runs)" for value, count in counts.most_common())
            found.append(("mixed", f"environments differ in {key}: {values}."))
    changed = [record.name for record in usable if any(_changes(record))]
    if changed:
        found.append(("mixed", f"went on in another environment or with another config: {', '.join(changed)}."))
    for group in section.groups:
        runs = [record for record in group.records if record.usable]
        repeated = [seed for seed, count in Counter(record.seed for record in runs).items() if count > 1]
        keys = [key for key in varied(runs) if key not in by]
        if repeated:
            text = f"{group.label}: several runs of one seed ({len(runs)} runs, {len({r.seed for r in runs})} seeds)"
            why = f", which differ in {', '.join(keys)}: add it to --by to see them apart" if keys else ""
            found.append(("mixed", f"{text}{why}. Each seed counts once, with the mean of what is compared."))
        elif keys:
            found.append(("mixed", f"{group.label}: its runs differ in {', '.join(keys)} beside their seed."))
    return found


def _environment(record: Record) -> dict[str, str]:
    environment = record.results.get("environment")
    return {str(key): str(value) for key, value in environment.items()} if isinstance(environment, dict) else {}


def _changes(record: Record) -> list[str]:
    resumed = record.results.get("resumed")
    entries = [entry for entry in resumed if isinstance(entry, dict)] if isinstance(resumed, list) else []
    return [json.dumps(entry[key]) for entry in entries for key in ("environment", "config") if entry.get(key)]
