"""What stands in the W&B report: text, the runs as W&B selects and groups them, and the panels."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import wandb_workspaces.reports.v2 as wr
import yaml

from vae_lab.compare.wandb_runs import TrackedRun
from vae_lab.config import flatten
from vae_lab.errors import ConfigError, did_you_mean
from vae_lab.run_dir import RunDir

if TYPE_CHECKING:
    from vae_lab.compare.wandb_report import Request

WIDTH = 24  # columns of a report's grid
MAX_LINES = 100  # runs or groups in a panel; W&B draws ten unless told
# What the tracker logs flat in W&B's config, by its names in results.json and config.yaml
FLAT_KEYS = {"model": "model_name", "model.variant": "model_name", "loss": "loss_name", "loss.name": "loss_name"}
FLAT_KEYS |= {"beta": "beta", "objective.beta": "beta", "latent_dim": "latent_dim", "seed": "seed"}
UNITS = {"sse": "squared error per image", "mse": "squared error per pixel"}
LOWER_IS_BETTER = ("loss", "nll", "kl", "sse", "mse")
PICTURES = ("reconstructions", "samples", "latent", "manifold", "curves")  # first to last


@dataclass(frozen=True)
class Key:
    """Where W&B keeps a value of a run: `config` or `summary`."""

    section: str
    name: str
    label: str

    @property
    def metric(self) -> wr.Config | wr.SummaryMetric:
        return wr.Config(self.name) if self.section == "config" else wr.SummaryMetric(self.name)

    @property
    def column(self) -> str:
        """Of the table of runs: W&B wraps each top-level value of a config in `value`."""
        first, *rest = self.name.split(".")
        return f"config:{'.'.join([first, 'value', *rest])}" if self.section == "config" else f"summary:{self.name}"


class Values:
    """What the run directories hold, as far as the report must know it."""

    def __init__(self, folders: Iterable[Path]):
        self.folders = list(folders)
        self.results = [_read_results(folder) for folder in self.folders]

    def key(self, name: str) -> Key:
        """A key of results.json (`model`, `test/elbo`) or config.yaml (`optimizer.lr`), where W&B keeps it.

        Raises:
            ConfigError: no run has it.
        """
        if name in FLAT_KEYS:
            return Key("config", FLAT_KEYS[name], name)
        known: dict[str, None] = {}
        for results in self.results:
            flat = [key.replace(".", "/") for key in flatten(results)]
            if "/" in name and name in flat:
                return Key("summary", name, name)
            known |= dict.fromkeys(flat)
        for folder in self.folders:
            config = _read_config(folder)
            if found := next((key for key in (name, f"{name}.name") if key in config), None):
                return Key("config", found, name)
        if name in known:
            return Key("summary", name, name)
        raise ConfigError(f"Unknown key '{name}': no run has it.{did_you_mean(name, [*FLAT_KEYS, *known])}")

    def terms(self) -> list[str]:
        """What was logged of training or validation, `loss` and `nll` and so on."""
        splits = [results.get(split, {}) for results in self.results for split in ("train", "val")]
        return list(dict.fromkeys(term for split in splits for term in split))

    def any_tested(self, term: str) -> bool:
        return any(term in results.get("test", {}) for results in self.results)

    def pictures(self) -> list[str]:
        """Names of the pictures that any run drew."""
        found = {path.stem for folder in self.folders for path in RunDir(folder).figures.glob("*.png")}
        return sorted(found, key=lambda stem: (PICTURES.index(stem) if stem in PICTURES else len(PICTURES), stem))


def _read_results(folder: Path) -> dict[str, Any]:
    """results.json; of a run that did not end, or left it damaged, what its metrics tell."""
    run_dir = RunDir(folder)
    try:
        results = run_dir.read_results()
    except ValueError:
        results = None
    if results is not None:
        return results
    first = next(iter(run_dir.read_metrics()), {})
    names = [key.partition("/") for key in first if "/" in key]
    return {split: {term: None for part, _, term in names if part == split} for split in ("train", "val")}


def _read_config(folder: Path) -> dict[str, Any]:
    """config.yaml by flat keys; nothing of a missing or damaged one."""
    try:
        return flatten(RunDir(folder).read_config() or {})
    except (OSError, ValueError, yaml.YAMLError):
        return {}


class Keys:
    """The keys of a request."""

    def __init__(self, values: Values, request: "Request"):
        self.by = [values.key(name) for name in request.by]
        self.swept = [values.key(name) for name in request.swept]
        self.metric = values.key(request.metric)

    def columns(self) -> list[str]:
        """Of the table of runs, from the left; a beta means little without `beta_eff`, which puts it on the common scale."""
        columns = [self.metric.column]
        for key in (*self.by, *self.swept):
            columns += [key.column, "summary:beta_eff"] if key.name == "beta" else [key.column]
        return list(dict.fromkeys(columns))


def blocks(request: "Request", runs: Sequence[TrackedRun], untracked: Sequence[Path], entity: str, project: str) -> list[Any]:
    """The report from top to bottom; its runsets name their place by `entity` and `project`, which may be empty."""
    keys = Keys(Values(run.folder for run in runs), request)
    found: list[Any] = [wr.H1("Summary"), wr.MarkdownBlock(request.summary)]
    if untracked:
        what = f"{len(untracked)} of {len(runs) + len(untracked)} runs were not logged to W&B and are not in the panels below:"
        found += [wr.P(what), wr.UnorderedList(items=["/".join(path.resolve().parts[-2:]) for path in untracked])]
    for heading, paths in request.sections.items():
        folders = {path.resolve() for path in paths}
        if members := [run for run in runs if run.folder in folders]:
            found += [wr.H1(heading), *_section(keys, members, entity, project)]
    return found


def _section(keys: Keys, runs: Sequence[TrackedRun], entity: str, project: str) -> list[Any]:
    """Curves by groups, then comparisons and pictures run by run."""
    values = Values(run.folder for run in runs)
    order = wr.OrderBy(wr.SummaryMetric(keys.metric.name), ascending=keys.metric.name.rpartition("/")[2] in LOWER_IS_BETTER)

    def runset(name: str, grouping: Sequence[Key]) -> wr.Runset:
        return wr.Runset(
            entity=entity,
            project=project,
            name=name,
            filters=f'Metric("ID") in {[run.run_id for run in runs]!r}',  # other runs of the project stay out
            groupby=[f"{key.section}.{key.name}" for key in grouping],
            order=[order],
            pinned_columns=keys.columns(),
        )

    bands = "Each line is the median of a group's runs, its band reaches from the lowest to the highest."
    found: list[Any] = [wr.H2("Learning curves"), wr.P(bands if keys.by else "Each line is a run.")]
    found += [wr.PanelGrid(runsets=[runset("groups" if keys.by else "runs", keys.by)], panels=curves(values.terms()))]
    found += [wr.H2("Run by run"), wr.P("Each point or line is a run.")]
    found += [wr.PanelGrid(runsets=[runset("runs", [])], panels=comparisons(values, keys.swept or keys.by, keys.metric))]
    if names := values.pictures():
        found += [wr.H2("Pictures"), wr.PanelGrid(runsets=[runset("runs", [])], panels=pictures(names), hide_run_sets=True)]
    return found


def curves(terms: Sequence[str]) -> list[Any]:
    """Each term over the epochs, training on the left and validation on the right."""
    return arranged(
        [
            wr.LinePlot(
                title=f"{term}, {split}",
                x="epoch",
                y=[f"{key}/{term}"],
                title_x="epoch",
                title_y=UNITS.get(term, "nats per image"),
                groupby_aggfunc="median",
                groupby_rangefunc="minmax",
                max_runs_to_show=MAX_LINES,
                smoothing_type="none",
            )
            for term in terms
            for key, split in (("train", "training"), ("val", "validation"))
        ],
        per_row=2,
        height=8,
    )


def comparisons(values: Values, swept: Sequence[Key], metric: Key) -> list[Any]:
    """Rate and distortion, parallel coordinates from the swept keys to the metric, and the runs side by side."""
    panels: list[Any] = []
    if values.any_tested("kl"):
        rate, distortion = wr.SummaryMetric("test/kl"), wr.SummaryMetric("test/nll")
        title = "Rate (test/kl) and distortion (test/nll), nats per image"
        panels += arranged([wr.ScatterPlot(title=title, x=rate, y=distortion)], per_row=1, height=10)
    axes = {key.column: key for key in (*swept, metric)}.values()
    columns = [wr.ParallelCoordinatesPlotColumn(metric=key.metric, display_name=key.label) for key in axes]
    parallel = wr.ParallelCoordinatesPlot(title=f"From settings to {metric.label}", columns=columns)
    wide = [parallel, wr.RunComparer(diff_only="split")]
    return panels + arranged(wide, per_row=1, height=12, top=10 if panels else 0)


def pictures(names: Sequence[str]) -> list[Any]:
    """A panel for each kind of picture, with the runs side by side."""
    panels = [wr.MediaBrowser(title=name, media_keys=[f"figures/{name}"], num_columns=3) for name in names]
    return arranged(panels, per_row=1, height=12)


def arranged(panels: Sequence[Any], per_row: int, height: int, top: int = 0) -> list[Any]:
    """The panels in rows, from left to right, from row `top` of the grid on."""
    width = WIDTH // per_row
    for number, panel in enumerate(panels):
        row, column = divmod(number, per_row)
        panel.layout = wr.Layout(x=column * width, y=top + row * height, w=width, h=height)
    return list(panels)
