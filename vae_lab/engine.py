"""The training loop. It knows cohorts and knows no model.

`fit` trains R runs over the same data as one cohort. A run that stops early or turns non-finite leaves; the others go on
as a smaller cohort, unchanged.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from vae_lab.arithmetic import arithmetic
from vae_lab.blocks import State
from vae_lab.cohort import Cohort, clip_gradients, gradient_norms
from vae_lab.config import TrainerConfig
from vae_lab.data import Splits
from vae_lab.data.base import to_float
from vae_lab.feed import NOISE_CHUNK, Feed
from vae_lab.graphs import Graphs, roomy
from vae_lab.health import Evidence, Health, describe, failure
from vae_lab.objectives.base import Batch, Terms
from vae_lab.optimizers import CohortOptimizer, Optimizer, setting_order
from vae_lab.optimizers import State as OptimizerState
from vae_lab.schedulers import Scheduler
from vae_lab.system import System

Metrics = dict[str, float]


@dataclass
class Run:
    """One run in training: what it is, and how far it has come. All of the second part is in a checkpoint."""

    name: str
    seed: int
    system: System
    optimizer: Optimizer
    scheduler: Scheduler
    patience: int | None
    clip_grad_norm: float | None
    monitor: str  # the validation metric that selects the best epoch, as 'val/loss'
    total_steps: int
    settled_step: int  # from here on the loss is the same function in every step: warm-up is over

    epoch: int = 0  # finished epochs
    step: int = 0  # finished steps
    sums: Metrics = field(default_factory=dict)  # of the unfinished epoch: each term over the images seen
    state: State = field(default_factory=dict)  # parameters and buffers, current whenever the engine hands the run over
    optimizer_state: OptimizerState = field(default_factory=dict)
    best_epoch: int = 0
    best_loss: float = math.inf  # of the monitored metric
    best_state: State = field(default_factory=dict)
    status: str = "running"  # then completed, stopped_early or failed
    error: str | None = None
    failure: dict[str, Any] | None = None  # of a non-finite run: step, epoch, terms, lr, beta and the batch's image indices


@runtime_checkable
class Observer(Protocol):
    """What the engine tells of the runs it trains together."""

    def on_step(self, runs: Sequence[Run], means: Callable[[], list[Metrics]]) -> None:
        """A step ended; `means` copies each run's means over the epoch so far from the device."""

    def on_epoch(self, run: Run, metrics: Metrics) -> None:
        """An epoch ended, with 'train/...' and 'val/...' means and the learning rate."""

    def on_state(self, run: Run) -> None:
        """The run's `state` and `optimizer_state` are current: a checkpoint is due, the run ended, or was interrupted."""

    def should_stop(self) -> bool:
        """Asked after every step; true ends training there, each run's state current and its status still 'running'."""


def fit(runs: Sequence[Run], splits: Splits, trainer: TrainerConfig, device: torch.device, observer: Observer) -> None:
    """Train all runs, which must be stackable and stand at the same step, until each has a final status."""
    splits = splits.to(device)
    runs = sorted(runs, key=lambda run: setting_order(run.optimizer, run.scheduler))
    widest = max((parameter.numel() for parameter in runs[0].system.parameters() if parameter.dim() == 2), default=0)
    graphs = Graphs(device) if trainer.compile else None
    while active := [run for run in runs if run.status == "running"]:
        with arithmetic(trainer.precision, device, float(len(active) * trainer.batch_size * widest)):
            stretch = _Stretch(active, splits, trainer, device, observer, graphs)
            while all(run.status == "running" for run in active):
                stretch.train_epoch()
                if observer.should_stop():
                    return


def monitored(metrics: Metrics, name: str) -> float:
    """What selects the best epoch: smaller is better, so that of an ELBO its negative."""
    return metrics["val/nll"] + metrics["val/kl"] if name == "val/elbo" else metrics[name]


class _Stretch:
    """A cohort between two changes of its membership."""

    def __init__(
        self,
        runs: list[Run],
        splits: Splits,
        trainer: TrainerConfig,
        device: torch.device,
        observer: Observer,
        graphs: Graphs | None = None,
    ):
        self.runs, self.splits, self.trainer, self.device, self.observer = runs, splits, trainer, device, observer
        # Where runs are expected to leave a compiled cohort, the last one also stands in the places they left.
        leaving = graphs is not None and any(run.patience is not None for run in runs)
        self.places = runs + runs[-1:] * (roomy(len(runs)) - len(runs) if leaving else 0)
        self.cohort = Cohort([run.system for run in self.places], device, trainer.precision, graphs)
        settings = [(run.optimizer, run.scheduler) for run in self.places]
        self.optimizer = CohortOptimizer(self.cohort.blocks, self.cohort.layout, settings)
        for index, run in enumerate(self.places):
            if run.state:
                self.cohort.load_run_state(index, run.state)
                self.optimizer.load_run_state(index, run.optimizer_state)
        limits = [math.inf if run.clip_grad_norm is None else run.clip_grad_norm for run in self.places]
        self.max_norms = torch.tensor(limits, device=device) if any(map(math.isfinite, limits)) else None
        shapes = runs[0].system.noise_shapes()
        self.feed = Feed([run.seed for run in self.places], shapes, splits, trainer.batch_size, device)
        self.sum_dtype = torch.float32 if device.type == "mps" else torch.float64
        self.checkpoint_at = time.monotonic() + trainer.checkpoint_seconds
        self.val_noise = {} if splits.val is None else self.feed.noise(len(splits.val), "validation")

    @torch.no_grad()
    def train_epoch(self) -> None:
        """Train to the end of the epoch, or until interrupted or nobody is left."""
        runs, last = self.runs, self.feed.num_steps - 1
        names = list(runs[0].sums)
        sums = torch.tensor([list(run.sums.values()) for run in self.places], dtype=self.sum_dtype, device=self.device).T
        step = torch.tensor(runs[0].step, device=self.device)
        health = Health(len(self.places), self.device)
        self.cohort.train()
        for position, index, batch, noise in self.feed.epoch(runs[0].epoch, runs[0].step - runs[0].epoch * (last + 1)):
            terms, backward = self.cohort.step(batch, noise, step)
            step_sums = self._sums(terms)
            seen = Evidence(runs[0].step, index, terms)
            if self._fail(health.bad_losses(seen, step_sums)):
                return
            seen.gradients = backward()
            if self.max_norms is not None or position == last or not health.immediate:
                norms = gradient_norms(seen.gradients)
                due = (position + 1) % NOISE_CHUNK == 0 or position == last
                if self._fail(health.bad_gradients(norms, due)):
                    return
                if self.max_norms is not None:
                    clip_gradients(seen.gradients, norms, self.max_norms)
            self.optimizer.step(seen.gradients, runs[0].step)
            sums = sums + step_sums if names else step_sums
            names = names or list(terms)
            step += 1
            for run in runs:
                run.step += 1
            num_seen = min((position + 1) * self.trainer.batch_size, self.feed.num_images)
            self.observer.on_step(runs, partial(self._means, names, sums, num_seen))
            if position < last and self.observer.should_stop():
                if self._fail(health.bad_gradients(gradient_norms(seen.gradients), True)):
                    return
                for run, columns in zip(runs, self._means(names, sums, 1), strict=True):
                    run.sums = columns
                self._hand_over([run for run in runs if run.status != "failed"])
                return
        self._end_epoch(self._means(names, sums, self.feed.num_images))

    def _end_epoch(self, train: list[Metrics]) -> None:
        lr_factors = [run.scheduler.factor(run.step - 1) for run in self.runs]
        val = self._validate()
        for index, run in enumerate(self.runs):
            run.epoch, run.sums = run.epoch + 1, {}
            metrics = {f"train/{name}": value for name, value in train[index].items()}
            metrics |= {f"val/{name}": value for name, value in val[index].items()} if val else {}
            metrics["lr"] = run.optimizer.config.lr * lr_factors[index]
            if run.status == "failed":
                continue
            loss = monitored(metrics, run.monitor) if val else -math.inf  # without validation the last epoch is the best
            if loss < run.best_loss or loss == -math.inf:
                run.best_epoch, run.best_loss, run.best_state = run.epoch, loss, self.cohort.run_state(index)
            if run.epoch >= self.trainer.epochs:
                run.status = "completed"
            elif run.patience is not None and run.epoch - max(run.best_epoch, self._settled(run)) >= run.patience:
                run.status = "stopped_early"
            if run.status != "running" and not run.best_state:
                run.status, run.error = "failed", f"{run.name}: {run.monitor} was never finite, so that no epoch is the best."
            self.observer.on_epoch(run, metrics)
        due = self.runs[0].epoch % self.trainer.checkpoint_every == 0 and time.monotonic() >= self.checkpoint_at
        changed = any(run.status != "running" for run in self.runs)
        if due or changed or self.observer.should_stop():
            self._hand_over([run for run in self.runs if run.status != "failed"])
            self.checkpoint_at = time.monotonic() + self.trainer.checkpoint_seconds

    def _settled(self, run: Run) -> int:
        """The epoch with which a run's warm-up is over."""
        return -(-run.settled_step // self.feed.num_steps)

    def _hand_over(self, runs: Sequence[Run]) -> None:
        """Copy states from the cohort to the runs, and say so."""
        for index, run in enumerate(self.runs):
            if run in runs:
                run.state, run.optimizer_state = self.cohort.run_state(index), self.optimizer.run_state(index)
                self.observer.on_state(run)

    def _fail(self, culprits: dict[int, Evidence]) -> bool:
        """Mark the runs that turned non-finite; true if none is left."""
        for number, evidence in culprits.items():
            run = self.places[number]
            if run.status == "running":
                run.status, run.failure = "failed", failure(run, number, evidence)
                run.error = describe(run.name, run.failure)
                self.observer.on_state(run)
        return bool(culprits) and all(run.status == "failed" for run in self.runs)

    def _validate(self) -> list[Metrics]:
        """Mean terms over the validation images, by the loss of the last step and the same noise, so that epochs compare."""
        val = self.splits.val
        if val is None:
            return []
        size = 4 * self.trainer.batch_size
        self.cohort.train(False)
        step = torch.tensor(self.runs[0].total_steps, device=self.device)
        sums: Tensor | None = None
        names: list[str] = []
        for start in range(0, len(val), size):
            here = slice(start, start + size)
            noise = {name: draw.narrow(self.feed.axis, start, min(size, len(val) - start)) for name, draw in self.val_noise.items()}
            terms = self.cohort.terms(Batch(to_float(val.x[here]), None if val.y is None else val.y[here]), noise, step)
            names, part_sums = list(terms), self._sums(terms)
            sums = part_sums if sums is None else sums + part_sums
        assert sums is not None
        return self._means(names, sums, len(val))

    def _sums(self, terms: Terms) -> Float[Tensor, "T R"]:
        """Each term of each run, over the images of a batch."""
        return torch.stack(list(terms.values())).sum(-1, dtype=self.sum_dtype).view(-1, len(self.places))

    def _means(self, names: list[str], sums: Float[Tensor, "T R"], num_images: int) -> list[Metrics]:
        """One dict of numbers per run: the only copy from device to host."""
        columns = (sums / num_images).T.tolist()[: len(self.runs)]
        return [dict(zip(names, column, strict=True)) for column in columns]
