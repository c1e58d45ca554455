"""Weights & Biases."""

import logging
import os
import queue
import secrets
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from vae_lab.config import bounded, flatten
from vae_lab.interrupt import interrupts
from vae_lab.registry import register
from vae_lab.secrecy import redact_folder
from vae_lab.tracking.base import RunFacts, Tracker

log = logging.getLogger(__name__)
GRACE_S = 3.0  # beyond W&B's own time limits, before it is given up


class Mode(Enum):
    """Send to a server, keep for `wandb sync`, or do nothing."""

    online = "online"
    offline = "offline"
    disabled = "disabled"


@register("tracking", "wandb")
class WandbTracker(Tracker):
    """One W&B run, offline unless told otherwise.

    All calls are made by a thread of their own, so that training never waits for W&B; `finish` waits for it, with a time
    limit. Whatever W&B does, the run goes on, and one warning says how to upload later.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        name: str
        mode: Mode | None
        project: str
        entity: str | None
        group: str | None
        tags: list[str]
        init_timeout: float = bounded(gt=0)  # seconds
        finish_timeout: float = bounded(gt=0)  # seconds

    def __init__(self, config: Config, facts: RunFacts):
        self.facts, self.config = facts, config
        self.run: Any = None
        self.id = ""
        self.calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._work, name="wandb tracker", daemon=True)
        self.thread.start()

    def log(self, metrics: dict[str, Any]) -> None:
        self.calls.put(lambda: self.run.log(metrics))

    def finish(self, results: dict[str, Any], figures: Sequence[Path]) -> None:
        self.calls.put(lambda: self._finish(results, figures))
        self.calls.put(None)
        limit = 0.0 if results["status"] == "interrupted" else self.config.init_timeout + self.config.finish_timeout
        self.thread.join(limit + GRACE_S)
        if self.thread.is_alive():
            self._warn("it did not answer in time")
        redact_folder(self.facts.run_dir.path / "wandb")

    def _work(self) -> None:
        """Start W&B, then make its calls one by one; after a failure the rest is dropped."""
        mode = self.config.mode.value if self.config.mode else os.environ.get("WANDB_MODE", "offline")
        try:
            self.run = self._start_online() if mode == "online" else self._init(mode)
            self.run.define_metric("epoch", hidden=True)
            self.run.define_metric("*", step_metric="epoch")
            while (call := self.calls.get()) is not None:
                call()
        except Exception as error:
            self._warn(_first_line(error))

    def _start_online(self) -> Any:
        """An online run, or, if the server fails or hangs, an offline one under a new id."""
        answers: queue.SimpleQueue[Any] = queue.SimpleQueue()

        def attempt() -> None:
            try:
                answers.put(self._init("online"))
            except Exception as error:
                answers.put(error)

        threading.Thread(target=attempt, name="wandb init", daemon=True).start()
        try:
            answer = answers.get(timeout=self.config.init_timeout + GRACE_S)
        except queue.Empty:
            self._warn("the server did not answer in time; this run is kept offline")
        else:
            if not isinstance(answer, Exception):
                return answer
            self._warn(f"{_first_line(answer)}; this run is kept offline")
        self._id_path().unlink(missing_ok=True)  # the service still holds the id of the attempt
        return self._init("offline")

    def _init(self, mode: str) -> Any:
        import wandb

        config = self.config
        settings = wandb.Settings(
            console="off",
            silent=True,
            init_timeout=config.init_timeout,
            finish_timeout=config.finish_timeout,
            x_disable_meta=True,  # it would upload sys.argv
            x_save_requirements=False,  # reads the metadata of every installed package, for every run
        )
        return wandb.init(
            project=config.project,
            entity=config.entity,
            group=config.group,
            tags=config.tags,
            name=self.facts.name,
            id=self._run_id(),
            config=self.facts.config | self.facts.flat,
            dir=str(self.facts.run_dir.path),
            mode=mode,  # type: ignore[arg-type]
            resume="allow",
            reinit="create_new",
            settings=settings,
        )

    def _id_path(self) -> Path:
        return self.facts.run_dir.path / "wandb" / "run-id"

    def _run_id(self) -> str:
        """The same for every process that works on this run directory."""
        path = self._id_path()
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(secrets.token_hex(4), encoding="utf-8")
        self.id = path.read_text(encoding="utf-8").strip()
        return self.id

    def _finish(self, results: dict[str, Any], figures: Sequence[Path]) -> None:
        import wandb

        if figures:
            self.run.log({f"figures/{path.stem}": wandb.Image(str(path)) for path in figures})
        summary = {key.replace(".", "/"): value for key, value in flatten(results).items()}
        self.run.summary.update({key: value for key, value in summary.items() if value is not None})
        self.run.finish(exit_code=1 if results["status"] == "failed" else 0)

    def _warn(self, what: str) -> None:
        if self.problem is None:
            # Without its id, so that the runs of a sweep say the same
            self.problem = f"W&B: {what.replace(self.id, 'ID') if self.id else what}"
            interrupts.before_leaving.append(_end_service)  # its client would wait at this process's end
            folder = self.facts.run_dir.path / "wandb"
            log.warning(
                "%s. The run and its files are not affected. To upload later: wandb sync %s/*run-*",
                self.problem,
                folder,
                extra={"folder": str(self.facts.run_dir.path), "once": self.problem},
            )


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"


def _end_service() -> None:
    """End this process's W&B service, which hangs and keeps the terminal's pipes open."""
    listing = subprocess.run(["ps", "-o", "pid=,args=", "--ppid", str(os.getpid())], capture_output=True, text=True, check=False)
    for line in listing.stdout.splitlines():
        pid, _, command = line.strip().partition(" ")
        if "wandb-core" in command:
            os.kill(int(pid), signal.SIGKILL)
