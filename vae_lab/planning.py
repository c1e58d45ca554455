"""Which jobs of a sweep are stacked into one model, and which worker trains them."""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vae_lab.config import bounded, fingerprint, typed
from vae_lab.errors import ConfigError
from vae_lab.run_dir import FINISHED, RunDir

if TYPE_CHECKING:
    from vae_lab.engine import Run

# Multiply-adds of a training step. On a CPU core stacking saves the interpreter's time and makes products larger: steps of 3
# million took a third of their time, of 16 million 0.6; of 250 million, and in cohorts of more than 500, it gained nothing
# (benchmarks/README.md).
CPU_STEP, CPU_COHORT = 25e6, 500e6
GPU_RUNS = 1024


@dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """The keys of the cohort launcher."""

    max_cohort: int | str = bounded(ge=1)  # runs stacked into one model, or auto
    workers: int | None = bounded(ge=1)  # processes
    stall_seconds: float | None = bounded(gt=0)
    cluster: str | None  # of submitit: slurm, or local
    submitit: dict[str, Any] | None  # parameters of its executor

    @classmethod
    def of(cls, launcher: Any) -> "SweepOptions":
        """Check a launcher's config.

        Raises:
            ConfigError: names the key and what is allowed.
        """
        options = typed(cls, {key: value for key, value in launcher.items() if key != "_target_"}, "hydra.launcher")
        if isinstance(options.max_cohort, str) and options.max_cohort != "auto":
            raise ConfigError(f"hydra.launcher.max_cohort={options.max_cohort}: must be auto, or a number of runs from 1.")
        return options


@dataclass
class Planned:
    """One job of a sweep."""

    number: int
    cfg: dict[str, Any]
    folder: Path
    key: str  # runs with the same key may be stacked
    cost: "Cost"  # of one run
    state: str = "not_run"
    cause: str | None = None
    deaths: int = 0

    @property
    def epochs(self) -> int:
        return int(self.cfg["trainer"]["epochs"])

    def results(self) -> dict[str, Any] | None:
        """Its results, if they are those of this config."""
        try:
            results = RunDir(self.folder).read_results() or {}
            return results if results.get("fingerprint") == fingerprint(self.cfg) else None
        except (OSError, ValueError):  # damaged: this run is trained again
            return None

    def look(self) -> None:
        """Take over what its folder says."""
        results = self.results()
        if results is not None:
            self.state = {"failed": "failed", "interrupted": "interrupted"}.get(results["status"], "completed")
            self.cause = results.get("error")

    def is_finished(self) -> bool:
        """Whether its folder holds the end of this very config."""
        results = self.results()
        return results is not None and results["status"] in FINISHED


Cohort = list[Planned]


@dataclass(frozen=True)
class Cost:
    """What one run adds to a cohort: multiply-adds of a training step, and bytes held while it trains."""

    operations: float
    memory: float

    @classmethod
    def of(cls, run: "Run", image_shape: Sequence[int], batch_size: int) -> "Cost":
        """Counted on one image: a backward pass costs two forward passes, a state is kept about eight times.

        A system that fails here will fail in training, where it costs itself alone; it is not stacked.
        """
        import torch

        from vae_lab.objectives.base import Batch

        operations, values = 0.0, 0

        def count(module: torch.nn.Module, inputs: Any, output: Any) -> None:
            nonlocal operations, values
            weight = getattr(module, "weight", None)
            if isinstance(output, torch.Tensor):
                values += output.numel()
                if weight is not None and weight.dim() > 1:
                    positions = max(output[0, 0].numel(), inputs[0][0, 0].numel()) if weight.dim() > 2 else 1
                    operations += weight.numel() * positions

        hooks = [module.register_forward_hook(count) for module in run.system.modules()]
        noise = {name: torch.zeros(1, *shape) for name, shape in run.system.noise_shapes().items()}
        try:
            with torch.no_grad():
                run.system(Batch(torch.zeros(1, *image_shape), torch.zeros(1, dtype=torch.int64)), noise, torch.tensor(0))
        except (Exception, SystemExit):
            operations = math.inf
        finally:
            for hook in hooks:
                hook.remove()
        memory = 4 * (8 * run.system.num_parameters() + 4 * batch_size * (values + 2 * math.prod(image_shape)))
        return cls(3 * batch_size * operations, memory)


def stacking_key(cfg: dict[str, Any], run: "Run") -> str:
    """Equal for two jobs exactly when one cohort may train both."""
    from vae_lab.stacking import stack_key

    common = {key: cfg[key] for key in ("data", "device")} | {"optimizer": cfg["optimizer"]["name"]}
    trainer = {key: value for key, value in cfg["trainer"].items() if key not in ("patience", "clip_grad_norm")}
    return json.dumps([common, trainer, stack_key(run.system)], sort_keys=True)


def largest_cohort(cost: Cost, num_workers: int, on_gpu: bool) -> int:
    """How many runs of this cost one model should hold: what is fastest, and fits into half of the free memory."""
    if on_gpu:
        import torch

        by_speed, free = GPU_RUNS, torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else math.inf
    else:
        import psutil

        by_speed = int(CPU_COHORT / cost.operations) if cost.operations <= CPU_STEP else 1
        free = psutil.virtual_memory().available / num_workers
    by_memory = free / 2 / cost.memory
    return max(1, int(min(by_speed, by_memory)))


def plan(jobs: Sequence[Planned], max_cohort: int | str, num_workers: int, on_gpu: bool, spread: bool = True) -> list[Cohort]:
    """Stack what may be stacked, evenly, with `spread` so that every worker has some; the largest work first."""
    cohorts: list[Cohort] = []
    for _, group in groupby(sorted(jobs, key=lambda job: (job.key, job.number)), key=lambda job: job.key):
        members = list(group)
        if isinstance(max_cohort, int):
            size = max_cohort
        else:
            size = min(largest_cohort(members[0].cost, num_workers, on_gpu), -(-len(jobs) // num_workers) if spread else len(jobs))
        count = -(-len(members) // size)
        cuts = [len(members) * i // count for i in range(count + 1)]
        cohorts += [members[start:stop] for start, stop in pairwise(cuts)]
    return sorted(cohorts, key=lambda cohort: -(CPU_STEP + len(cohort) * cohort[0].cost.operations) * cohort[0].epochs)


def default_workers(on_gpu: bool, cluster: str | None = None) -> int:
    """One process per CPU core that this process may use; one on a GPU; eight jobs of a cluster."""
    if cluster not in (None, "local"):
        return 8
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 1 if on_gpu else cores
