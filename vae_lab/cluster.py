"""Cohorts as jobs of a cluster: the same work as in `pool`, handed to submitit instead of a process of this machine."""

import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from vae_lab.errors import ConfigError
from vae_lab.planning import Cohort
from vae_lab.pool import Worker


def train_order(file: str) -> None:
    """In the job: train the cohort of an order file, on all cores that the job was given."""
    from vae_lab.interrupt import interrupts
    from vae_lab.worker import work

    interrupts.install()
    work(json.loads(Path(file).read_text(encoding="utf-8")))
    if interrupts.requested is None:
        Path(file).unlink()


class ClusterWorker(Worker):
    """One submitit job, for one cohort. The sweep's folder must be seen from where the job runs."""

    def __init__(self, folder: Path, cluster: str, parameters: dict[str, Any]):
        try:
            import submitit
        except ImportError as error:
            raise ConfigError("hydra.launcher.cluster needs submitit: pip install -e '.[cluster]'") from error
        from vae_lab.entry import new_folder

        super().__init__()
        self.folder = new_folder(folder / ".submitit")  # submitit unpickles what lies there
        descriptor, name = tempfile.mkstemp(prefix="work-", suffix=".json", dir=self.folder)
        os.close(descriptor)
        self.order = Path(name)
        self.order.unlink()
        try:
            self.executor = submitit.AutoExecutor(folder=str(self.folder), cluster=cluster)
            self.executor.update_parameters(**{"name": "vae_lab", **parameters})
        except (RuntimeError, NameError, TypeError, ValueError) as error:
            raise ConfigError(f"hydra.launcher.cluster={cluster}, submitit={parameters}: {error}") from error
        self.job: submitit.Job[None] | None = None

    @property
    def work(self) -> Path:
        return self.order

    def give(self, cohort: Cohort, threads: int) -> None:
        self.write_order(cohort, threads if self.executor.cluster == "local" else None)  # elsewhere the scheduler limits them
        self.job = self.executor.submit(train_order, str(self.order))

    @property
    def alive(self) -> bool:
        return self.job is None or not self.job.done()

    def silent_for(self) -> float:
        """A job that waits in a queue is not silent."""
        return time.time() - self.note.stat().st_mtime if self.note.exists() else 0.0

    def interrupt(self) -> None:
        if self.job is not None:
            self.job.cancel()

    kill = interrupt

    def last_words(self) -> str:
        if self.job is None:
            return "its cluster job never started"
        tail = (self.job.stderr() or "").strip().splitlines()[-3:]
        return f"its cluster job {self.job.job_id} ended as {self.job.state}. {' / '.join(tail)}".strip()

    def close(self) -> None:
        if self.busy:
            self.interrupt()
        for path in (self.work, self.note):
            path.unlink(missing_ok=True)
