"""Small runs on digits as cohorts and alone: what tests and `benchmarks/cohort_equality.py` compare."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from vae_lab.arithmetic import arithmetic
from vae_lab.cohort import Cohort
from vae_lab.config import EvaluationConfig, Precision, TrainerConfig, to_plain, typed
from vae_lab.data import load
from vae_lab.engine import Metrics, Run, fit
from vae_lab.entry import compose_checked
from vae_lab.evaluate import evaluate
from vae_lab.feed import Feed
from vae_lab.graphs import Graphs
from vae_lab.job import make_run
from vae_lab.objectives.base import Batch
from vae_lab.skipped import Skipped

CPU = torch.device("cpu")
NETWORKS = {
    "mlp": ["network=mlp"],
    "mlp, LayerNorm": ["network=mlp", "network.layer_norm=true"],
    "mlp, loss=gaussian": ["network=mlp", "loss=gaussian"],
    "conv": ["network=conv", "network.channels=[8,16]", "network.groups=4"],
    "conv, one-channel groups": ["network=conv", "network.channels=[8,8]", "network.groups=8"],
}
SMALL = ["hidden_dims=[32]", "latent_dim=4", "data.limit=400", "data.val_size=100", "trainer.batch_size=64"]
Config = dict[str, Any]
Named = dict[str, Tensor]


def configs(overrides: Iterable[str], seeds: Iterable[int]) -> list[Config]:
    """Configs of small runs on digits that differ in their seed."""
    fixed = ["tracking=none", "device=cpu", *SMALL, *overrides]
    cfg = to_plain(compose_checked(fixed)[0])
    return [cfg | {"seed": seed} for seed in seeds]


def first_step(cfgs: Sequence[Config], dtype: torch.dtype = torch.float32) -> tuple[Named, Named]:
    """Terms [R, B] and gradients [R, ...] of the runs' first step as one cohort; computed in `dtype` if that is double."""
    splits = load(cfgs[0]["data"])
    runs = [make_run(cfg, splits) for cfg in cfgs]
    systems = [run.system.to(dtype) for run in runs]
    trainer = typed(TrainerConfig, cfgs[0]["trainer"], "trainer")
    feed = Feed([run.seed for run in runs], systems[0].noise_shapes(), splits, trainer.batch_size, CPU)
    step = next(feed.epoch(0, 0))
    batch = Batch(step.batch.x.to(dtype), step.batch.y)
    noise = {name: draw.to(dtype) for name, draw in step.noise.items()}
    precision = Precision.fp32 if dtype is torch.float64 else trainer.precision
    with arithmetic(precision, CPU, 0.0):
        cohort = Cohort(systems, CPU, precision, Graphs(CPU) if trainer.compile and dtype is not torch.float64 else None)
        terms, backward = cohort.step(batch, noise, torch.tensor(0))
        gradients = cohort.layout.leaves([block.clone() for block in backward()])
    return {name: term.detach().reshape(len(cfgs), -1).clone() for name, term in terms.items()}, gradients


def first_steps_alone(cfgs: Sequence[Config]) -> tuple[Named, Named]:
    """The same of each run by itself, stacked."""
    alone = [first_step([cfg]) for cfg in cfgs]
    terms, gradients = ({name: torch.cat([part[which][name] for part in alone]) for name in alone[0][which]} for which in (0, 1))
    return terms, gradients


def distance(found: Named, expected: Named) -> float:
    """The largest distance of any run's tensor of any name, relative to the norm of the expected one."""
    pairs = [(_rows(found[name]), _rows(expected[name])) for name in expected]
    return max(float(((a - b).norm(dim=1) / b.norm(dim=1).clamp_min(1e-30)).max()) for a, b in pairs)


def _rows(tensor: Tensor) -> Tensor:
    return tensor.double().reshape(len(tensor), -1)


class Rows:
    """Keeps each run's metrics, by epoch."""

    def __init__(self) -> None:
        self.rows: dict[int, list[Metrics]] = {}

    def on_step(self, runs: Sequence[Run], means: object) -> None:
        """Nothing is shown."""

    def on_epoch(self, run: Run, metrics: Metrics) -> None:
        self.rows.setdefault(id(run), []).append(metrics)

    def on_state(self, run: Run) -> None:
        """Nothing is saved."""

    def should_stop(self) -> bool:
        return False


def trained(cfgs: Sequence[Config]) -> list[tuple[list[Metrics], dict[str, Any]]]:
    """Train the runs as one cohort; each one's metrics by epoch, and those of its last state on the test images."""
    splits = load(cfgs[0]["data"])
    runs, listener = [make_run(cfg, splits) for cfg in cfgs], Rows()
    fit(runs, splits, typed(TrainerConfig, cfgs[0]["trainer"], "trainer"), CPU, listener)
    results = []
    for run, cfg in zip(runs, cfgs, strict=True):
        run.system.load_state(run.state)
        config = typed(EvaluationConfig, cfg["evaluation"], "evaluation")
        found = evaluate(run.system.eval(), splits.test, run, config, Skipped())
        results.append((listener.rows[id(run)], found.metrics))
    return results
