"""All that a comparison says, before it is written anywhere."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vae_lab.compare import analysis, audit, groups, metrics, scales, views, views_training
from vae_lab.compare.analysis import Comparison
from vae_lab.compare.audit import Finding
from vae_lab.compare.chart import Chart
from vae_lab.compare.collect import Record, collect
from vae_lab.compare.groups import Section
from vae_lab.compare.metrics import Metric
from vae_lab.errors import ConfigError
from vae_lab.text import printable


@dataclass(eq=False)
class Part:
    """A section, its comparisons (none if no run of it has the metric), and its charts."""

    section: Section
    comparisons: list[Comparison]
    charts: list[Chart]


@dataclass(eq=False)
class Report:
    """`by` are the keys that groups differ in, `implied` those that vary with them."""

    title: str
    by: list[str]
    implied: list[str]
    metric: Metric
    records: list[Record]
    parts: list[Part]
    findings: list[Finding]

    @property
    def comparisons(self) -> list[Comparison]:
        """Those of all sections."""
        return [found for part in self.parts for found in part.comparisons]


def build(
    folders: Sequence[Path],
    by: Sequence[str] = (),
    metric: str | None = None,
    direction: str | None = None,
    least: float | None = None,
) -> Report:
    """Read the runs below `folders` and compare them; `by` defaults to what was swept, `metric` to the ELBO where there is one.

    Differences below `least` are not called better; None: below a thousandth of the metric's scale. Claims are made about
    `metric` alone, and all sections share one rate of false claims.

    Raises:
        ConfigError: no runs, none that ended well, an unknown key or metric.
    """
    records = collect(folders)
    usable = [record for record in records if record.usable]
    if not usable:
        states = ", ".join(f"{record.name}: {record.state}" for record in records[:5])
        raise ConfigError(f"{printable(str(folders[0]))}: none of {len(records)} runs ended with numbers to compare ({states}).")
    known = sorted({name for record in usable for name in record.numbers})
    default = metrics.DEFAULT if metrics.DEFAULT in known else metrics.RECONSTRUCTION
    chosen = metrics.find(metric or default, known, direction)
    keys, implied = (groups.check_by(by, records), []) if by else groups.default_by(records)
    if by:
        implied = [key for key in groups.varied(records) if key not in keys]
    parts = []
    sections = scales.sections(records, keys, chosen)
    families = sum(sum(bool(group.usable(chosen.name)) for group in section.groups) > 1 for section in sections)
    for section in sections:
        compared = [
            analysis.compare(section, one, keys, families if one == chosen else 0, least if one == chosen else None)
            for one in analysis.metrics_of(section, chosen)
        ]
        comparisons = [found for found in compared if found is not None]
        parts.append(Part(section, comparisons, _charts(section, comparisons, keys, implied)))
    findings = audit.examine(records, [part.section for part in parts], keys)
    title = printable(", ".join(dict.fromkeys(folder.resolve().name or str(folder) for folder in folders)))
    return Report(title, keys, implied, chosen, records, parts, findings)


def _charts(section: Section, comparisons: Sequence[Comparison], by: Sequence[str], implied: Sequence[str]) -> list[Chart]:
    """What there is to see; a plot that has nothing to show is not there."""
    if not comparisons:
        return []
    several = [found for found in comparisons if len(found.groups) > 1]
    charts = [
        views.outcome(comparisons),
        views.gains(several),
        views_training.rate_distortion(section),
        *views.against(several, by, implied),
        views.cost(several),
        views_training.latents(section),
        views_training.curves(section),
    ]
    return [chart for chart in charts if chart is not None]
