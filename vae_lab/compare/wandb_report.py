"""A comparison as a W&B Report: the runs are uploaded where they are not, and shown by groups and one by one."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vae_lab.compare.wandb_client import ask
from vae_lab.compare.wandb_runs import TrackedRun, tracked, upload
from vae_lab.errors import ConfigError

if TYPE_CHECKING:
    import wandb_workspaces.reports.v2 as wr

SAVE_S = 120.0


@dataclass(frozen=True)
class Request:
    """What the report is to show.

    Attributes:
        sections: Run directories by the heading they stand under. Panels never span two sections: runs that share no scale
            (another likelihood, binarisation, data set or evaluation) belong into different ones.
        by: Keys of the groups, as in results.json (`model`, `latent_dim`, ...) or in config.yaml (`optimizer.lr`).
        swept: The keys that differ between the runs, named in the same ways.
        metric: What the runs are ranked by, such as `test/elbo`.
        summary: The comparison in words and tables, Markdown.
        project: `entity/project`.
        title: The report's.
    """

    sections: Mapping[str, Sequence[Path]]
    by: Sequence[str]
    swept: Sequence[str]
    metric: str
    summary: str
    project: str
    title: str = "Comparison of runs"

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[^/\\#?%:\s]{1,128}/[^/\\#?%:]{1,128}", self.project):
            raise ConfigError(
                f"--wandb {self.project}: expected ENTITY/PROJECT, your W&B user or team and a project of it, such as lab/vae."
            )

    @property
    def runs(self) -> list[Path]:
        """The run directories of all sections."""
        return [path for paths in self.sections.values() for path in paths]

    def to_json(self) -> dict[str, Any]:
        sections = {heading: [str(path.resolve()) for path in paths] for heading, paths in self.sections.items()}
        return {field.name: getattr(self, field.name) for field in fields(self)} | {"sections": sections}

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> "Request":
        sections = {heading: [Path(path) for path in paths] for heading, paths in plain["sections"].items()}
        return cls(**plain | {"sections": sections})


@dataclass(frozen=True)
class Published:
    """A saved report, the number of runs that were uploaded for it, and the runs that W&B cannot show."""

    url: str
    uploaded: int
    untracked: list[Path]


def publish(request: Request, say: Callable[[str], None] = lambda line: None) -> Published:
    """Upload the runs that the project lacks, and save the report there; each call saves a new one.

    Args:
        request: What to show.
        say: Called with lines of progress.

    Raises:
        ConfigError: nothing to show, no or a wrong key, an unknown entity.
        ServiceError: the server did not answer in time, or refused.
    """
    runs, untracked = _tracked(request)
    build(request)  # a wrong key of a group is found before anything is sent
    uploaded = upload(runs, request.project, say)
    say(f"saving the report of {len(runs)} runs")
    answer = ask("save", SAVE_S, **request.to_json())
    return Published(answer["url"], uploaded, untracked)


def specification(request: Request) -> dict[str, Any]:
    """The report as W&B stores it, made without any network: all but the number by which the server knows the project."""
    entity, _, project = request.project.partition("/")
    plain = json.loads(build(request)._to_model().model_dump_json(by_alias=True, exclude_none=True))
    for block in plain["spec"]["blocks"]:
        for runset in block.get("metadata", {}).get("runSets", []):
            runset["project"] = {"entityName": entity, "name": project}
    return plain


def build(request: Request, online: bool = False) -> "wr.Report":
    """The report.

    A runset that names its project asks the server for the project's number as soon as it is serialised, so only `online` does
    it name it; nothing of the library has to be patched.
    """
    import wandb_workspaces.reports.v2 as wr

    from vae_lab.compare.wandb_panels import blocks

    runs, untracked = _tracked(request)
    entity, _, project = request.project.partition("/")
    return wr.Report(
        entity=entity,
        project=project,
        title=re.sub(r"[^\w .,:=+()-]+", " ", request.title).strip()[:128],  # it becomes a part of the address
        description=f"{len(runs)} runs by {', '.join(request.by) or 'no key'}, made by vae-lab compare",
        blocks=blocks(request, runs, untracked, *((entity, project) if online else ("", ""))),
        width="fluid",
    )


def _tracked(request: Request) -> tuple[list[TrackedRun], list[Path]]:
    runs, untracked = tracked(request.runs)
    if not runs:
        raise ConfigError(
            f"None of the {len(untracked)} runs was logged to W&B, online or offline (tracking=none, or mode=disabled): there is "
            "nothing to show. Train with tracking=wandb, the default."
        )
    return runs, untracked
