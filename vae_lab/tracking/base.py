"""What a tracker provides. The files of the run directory are the truth; a tracker is a copy and may fail."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vae_lab.registry import register
from vae_lab.run_dir import RunDir


@dataclass(frozen=True)
class RunFacts:
    """What a tracker is told of its run; `flat` are the keys that reports group by."""

    run_dir: RunDir
    name: str
    config: dict[str, Any]
    flat: dict[str, Any]


class Tracker(ABC):
    """Reports one run."""

    problem: str | None = None  # why its copy of the run is not whole

    @abstractmethod
    def log(self, metrics: dict[str, Any]) -> None:
        """One epoch's row of metrics.jsonl."""

    @abstractmethod
    def finish(self, results: dict[str, Any], figures: Sequence[Path]) -> None:
        """The summary and the pictures; the run is over."""


@register("tracking", "none")
class NoTracker(Tracker):
    """Local files only."""

    @dataclass(frozen=True)
    class Config:
        name: str

    def __init__(self, config: Config, facts: RunFacts):
        pass

    def log(self, metrics: dict[str, Any]) -> None:
        pass

    def finish(self, results: dict[str, Any], figures: Sequence[Path]) -> None:
        pass
