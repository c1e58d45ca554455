"""torch's optimisers, one for a whole cohort."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any, ClassVar

import torch
from torch import Tensor

from vae_lab.blocks import Block, Layout
from vae_lab.config import bounded
from vae_lab.registry import register
from vae_lab.schedulers import Scheduler

State = dict[str, dict[str, Tensor]]


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Keys that every optimiser has."""

    name: str
    lr: float = bounded(gt=0, le=1e9)
    weight_decay: float = bounded(ge=0)


class Optimizer:
    """A kind of optimiser and one setting of it."""

    kind: ClassVar[type[torch.optim.Optimizer]]

    def __init__(self, config: OptimizerConfig):
        self.config = config

    def options(self) -> dict[str, Any]:
        """Keyword arguments of a parameter group."""
        return {key: value for key, value in asdict(self.config).items() if key != "name"}


@register("optimizer", "adam")
class Adam(Optimizer):
    """References: Kingma & Ba 2015. https://arxiv.org/abs/1412.6980"""

    kind: ClassVar[type[torch.optim.Optimizer]] = torch.optim.Adam

    @dataclass(frozen=True, kw_only=True)
    class Config(OptimizerConfig):
        betas: list[float] = bounded(ge=0, lt=1, length=2)
        eps: float = bounded(gt=0)


@register("optimizer", "adamw")
class AdamW(Adam):
    """References: Loshchilov & Hutter 2019. https://arxiv.org/abs/1711.05101"""

    kind: ClassVar[type[torch.optim.Optimizer]] = torch.optim.AdamW


@register("optimizer", "sgd")
class SGD(Optimizer):
    """Stochastic gradient descent with heavy-ball or Nesterov momentum."""

    kind = torch.optim.SGD

    @dataclass(frozen=True, kw_only=True)
    class Config(OptimizerConfig):
        momentum: float = bounded(ge=0, lt=1)
        nesterov: bool


@register("optimizer", "rmsprop")
class RMSprop(Optimizer):
    """References: Tieleman & Hinton 2012, lecture 6.5 of Neural Networks for Machine Learning."""

    kind = torch.optim.RMSprop

    @dataclass(frozen=True, kw_only=True)
    class Config(OptimizerConfig):
        alpha: float = bounded(ge=0, lt=1)
        momentum: float = bounded(ge=0, lt=1)
        eps: float = bounded(gt=0)


class CohortOptimizer:
    """One torch optimiser over the blocks [R, P] of a cohort, with a parameter group per distinct setting.

    All kinds here treat each number by itself, so that a block may hold several tensors. Runs must be ordered so that equal
    settings stand together: a group then holds contiguous rows of each block, as detached views that share its storage.
    """

    def __init__(self, blocks: Sequence[Block], layout: Layout, runs: Sequence[tuple[Optimizer, Scheduler]]):
        self.layout = layout
        self.rows: list[slice] = []
        groups = []
        for _, members in groupby(enumerate(runs), key=lambda item: _setting(*item[1])):
            indices = [index for index, _ in members]
            rows = slice(indices[0], indices[-1] + 1)
            optimizer, scheduler = runs[indices[0]]
            groups.append({"params": [block.detach()[rows] for block in blocks], **optimizer.options(), "scheduler": scheduler})
            self.rows.append(rows)
        kind = runs[0][0].kind
        options: dict[str, Any] = {} if blocks[0].device.type == "mps" or kind is torch.optim.RMSprop else {"fused": True}
        self.bare_step = _without_compiler(kind)
        self.torch = kind(groups, **options)
        self.base_lrs = [group["lr"] for group in groups]

    def step(self, gradients: Sequence[Block], step: int) -> None:
        """Update every run, at its own learning rate and schedule."""
        for group, rows, base_lr in zip(self.torch.param_groups, self.rows, self.base_lrs, strict=True):
            group["lr"] = base_lr * group["scheduler"].factor(step)
            for view, gradient in zip(group["params"], gradients, strict=True):
                view.grad = gradient if len(self.rows) == 1 else gradient[rows]
        with torch.no_grad():
            self.bare_step(self.torch)

    def run_state(self, index: int) -> State:
        """A copy of one run's optimiser state, by parameter name; empty before the first step."""
        views, offset = self._locate(index)
        states: State = {name: {} for name in self.layout.leaves(views)}
        for key, value in self.torch.state.get(views[0], {}).items():
            if not isinstance(value, Tensor):
                continue
            values = [self.torch.state[view][key] for view in views]
            parts = dict.fromkeys(states, value) if key in SHARED else self.layout.leaves([value[offset] for value in values])
            for name, part in parts.items():
                states[name][key] = part.clone()
        return states

    def load_run_state(self, index: int, saved: State) -> None:
        """Overwrite one run's optimiser state."""
        views, offset = self._locate(index)
        for key, value in next(iter(saved.values()), {}).items():
            for view in views:
                if key not in self.torch.state[view]:
                    like = value if key in SHARED else view
                    self.torch.state[view][key] = torch.zeros_like(like, dtype=value.dtype)
            here = [self.torch.state[view][key] for view in views]
            if key in SHARED:
                for shared in here:
                    shared.copy_(value)
            else:
                for name, part in self.layout.leaves([rows[offset] for rows in here]).items():
                    part.copy_(saved[name][key])

    def _locate(self, index: int) -> tuple[list[Tensor], int]:
        """The views that hold a run, and its row there."""
        for group, rows in zip(self.torch.param_groups, self.rows, strict=True):
            if rows.start <= index < rows.stop:
                return group["params"], index - rows.start
        raise IndexError(index)


def _without_compiler(kind: type[torch.optim.Optimizer]) -> Callable[[torch.optim.Optimizer], Any]:
    """The optimiser's bare `step`, to be called without gradients.

    Torch's decorators around it and around three other methods import its compiler, 1.5 s in every process, to say that these
    methods are not compiled. Nothing here compiles them, and nobody hooks into them.
    """
    for method in (torch.optim.Optimizer.add_param_group, torch.optim.Optimizer.state_dict, torch.optim.Optimizer.load_state_dict):
        if (plain := getattr(method, "__wrapped__", None)) is not None:
            plain.__dynamo_disable = plain
    return inspect.unwrap(kind.step)


SHARED = frozenset({"step"})  # optimiser state that is one number for all runs of a group


def _setting(optimizer: Optimizer, scheduler: Scheduler) -> tuple[Any, Any]:
    return optimizer.config, scheduler.config


def setting_order(optimizer: Optimizer, scheduler: Scheduler) -> str:
    """A sort key that puts equal settings together."""
    return repr(_setting(optimizer, scheduler))
