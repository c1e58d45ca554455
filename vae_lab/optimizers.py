"""torch's optimisers, one for a whole cohort."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any, ClassVar

import torch
from torch import Tensor

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
    """One torch optimiser over stacked parameters [R, ...], with a parameter group per distinct setting.

    Runs must be ordered so that equal settings stand together: a group then holds contiguous slices of each leaf, as
    detached views that share its storage.
    """

    def __init__(self, parameters: dict[str, Tensor], runs: Sequence[tuple[Optimizer, Scheduler]]):
        self.names = list(parameters)
        self.slices: list[slice] = []
        groups = []
        for _, members in groupby(enumerate(runs), key=lambda item: _setting(*item[1])):
            indices = [index for index, _ in members]
            runs_of_group = slice(indices[0], indices[-1] + 1)
            optimizer, scheduler = runs[indices[0]]
            views = [leaf.detach()[runs_of_group] for leaf in parameters.values()]
            groups.append({"params": views, **optimizer.options(), "scheduler": scheduler})
            self.slices.append(runs_of_group)
        kind = runs[0][0].kind
        on_mps = any(leaf.device.type == "mps" for leaf in parameters.values())
        options: dict[str, Any] = {} if on_mps or kind is torch.optim.RMSprop else {"fused": True}
        self.bare_step = _without_compiler(kind)
        self.torch = kind(groups, **options)
        self.base_lrs = [group["lr"] for group in groups]

    def step(self, gradients: Sequence[Tensor], step: int) -> None:
        """Update every run from its gradients [R, ...], at its own learning rate and schedule."""
        for group, runs, base_lr in zip(self.torch.param_groups, self.slices, self.base_lrs, strict=True):
            group["lr"] = base_lr * group["scheduler"].factor(step)
            for view, gradient in zip(group["params"], gradients, strict=True):
                view.grad = gradient if len(self.slices) == 1 else gradient[runs]
        with torch.no_grad():
            self.bare_step(self.torch)

    def run_state(self, index: int) -> State:
        """A copy of one run's optimiser state, by parameter name; empty before the first step."""
        group, offset = self._locate(index)
        states = {name: self.torch.state.get(view, {}) for name, view in zip(self.names, group["params"], strict=True)}
        return {
            name: {key: _of_run(key, value, offset).clone() for key, value in state.items() if isinstance(value, Tensor)}
            for name, state in states.items()
        }

    def load_run_state(self, index: int, saved: State) -> None:
        """Overwrite one run's optimiser state."""
        group, offset = self._locate(index)
        for name, view in zip(self.names, group["params"], strict=True):
            state = self.torch.state[view]
            for key, value in saved.get(name, {}).items():
                if key not in state:
                    state[key] = torch.zeros_like(value if key in SHARED else view, dtype=value.dtype)
                _of_run(key, state[key], offset).copy_(value)

    def _locate(self, index: int) -> tuple[dict[str, Any], int]:
        for group, runs in zip(self.torch.param_groups, self.slices, strict=True):
            if runs.start <= index < runs.stop:
                return group, index - runs.start
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


def _of_run(key: str, value: Tensor, offset: int) -> Tensor:
    return value if key in SHARED else value[offset]


def _setting(optimizer: Optimizer, scheduler: Scheduler) -> tuple[Any, Any]:
    return optimizer.config, scheduler.config


def setting_order(optimizer: Optimizer, scheduler: Scheduler) -> str:
    """A sort key that puts equal settings together."""
    return repr(_setting(optimizer, scheduler))
