"""Weights & Biases."""

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from vae_lab.config import flatten
from vae_lab.registry import register
from vae_lab.tracking.base import RunFacts, Tracker

log = logging.getLogger(__name__)
TIMEOUT_S = 20


class Mode(Enum):
    """Send to a server, keep for `wandb sync`, or do nothing."""

    online = "online"
    offline = "offline"
    disabled = "disabled"


@register("tracking", "wandb")
class WandbTracker(Tracker):
    """One W&B run, offline unless told otherwise. Whatever W&B does, training goes on."""

    @dataclass(frozen=True)
    class Config:
        name: str
        mode: Mode | None
        project: str
        entity: str | None
        group: str | None
        tags: list[str]

    def __init__(self, config: Config, facts: RunFacts):
        self.facts, self.config = facts, config
        self.run: Any = None
        mode = config.mode.value if config.mode else os.environ.get("WANDB_MODE", "offline")
        self._try("start", lambda: self._start(mode))
        if self.run is None and mode == "online":
            self._try("start offline", lambda: self._start("offline"))

    def _start(self, mode: str) -> None:
        import wandb

        settings = wandb.Settings(console="off", silent=True, init_timeout=TIMEOUT_S, finish_timeout=TIMEOUT_S, x_disable_meta=True)
        self.run = wandb.init(
            project=self.config.project,
            entity=self.config.entity,
            group=self.config.group,
            tags=self.config.tags,
            name=self.facts.name,
            config=self.facts.config | self.facts.flat,
            dir=str(self.facts.run_dir.path),
            mode=mode,  # type: ignore[arg-type]
            reinit="create_new",
            settings=settings,
        )
        self.run.define_metric("epoch", hidden=True)
        self.run.define_metric("*", step_metric="epoch")

    def log(self, metrics: dict[str, Any]) -> None:
        if self.run is not None:
            self._try("log", lambda: self.run.log(metrics))

    def finish(self, results: dict[str, Any], figures: Sequence[Path]) -> None:
        if self.run is not None:
            self._try("finish", lambda: self._finish(results, figures))

    def _finish(self, results: dict[str, Any], figures: Sequence[Path]) -> None:
        import wandb

        self.run.log({f"figures/{path.stem}": wandb.Image(str(path)) for path in figures})
        summary = {key.replace(".", "/"): value for key, value in flatten(results).items()}
        self.run.summary.update({key: value for key, value in summary.items() if value is not None})
        self.run.finish(exit_code=1 if results["status"] == "failed" else 0)

    def _try(self, what: str, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:
            self.run = None
            log.warning(
                "W&B could not %s (%s: %s). The run goes on; its files are complete. To upload later: wandb sync %s",
                what,
                type(error).__name__,
                str(error).splitlines()[0] if str(error) else "",
                self.facts.run_dir.path / "wandb" / "offline-run-*",
            )
