"""Learning-rate schedules: pure functions of the step, multiplied with the optimiser's learning rate."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from vae_lab.config import bounded
from vae_lab.registry import register


@dataclass(frozen=True, kw_only=True)
class SchedulerConfig:
    """Keys that every schedule has."""

    name: str
    warmup_epochs: float = bounded(ge=0)  # linear rise from zero


class Scheduler(ABC):
    """A factor in [0, 1] for every step."""

    def __init__(self, config: SchedulerConfig, steps_per_epoch: int, total_steps: int):
        self.config = config
        self.warmup_steps = round(config.warmup_epochs * steps_per_epoch)
        self.steps_per_epoch = steps_per_epoch
        self.total_steps = total_steps

    def factor(self, step: int) -> float:
        """The factor for step 0, 1, ..., total_steps - 1."""
        if step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)
        return self.decay(step)

    @abstractmethod
    def decay(self, step: int) -> float:
        """The factor after warm-up."""


@register("scheduler", "none")
class Constant(Scheduler):
    """No decay."""

    @dataclass(frozen=True, kw_only=True)
    class Config(SchedulerConfig):
        pass

    def decay(self, step: int) -> float:
        return 1.0


@register("scheduler", "cosine")
class Cosine(Scheduler):
    """Half a cosine from 1 after warm-up to `final` at the last step.

    References:
        Loshchilov & Hutter 2017. https://arxiv.org/abs/1608.03983
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(SchedulerConfig):
        final: float = bounded(ge=0, le=1)

    def __init__(self, config: Config, steps_per_epoch: int, total_steps: int):
        super().__init__(config, steps_per_epoch, total_steps)
        self.final = config.final

    def decay(self, step: int) -> float:
        progress = (step - self.warmup_steps) / max(1, self.total_steps - 1 - self.warmup_steps)
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


@register("scheduler", "step")
class Step(Scheduler):
    """Multiply by `gamma` every `every_epochs` epochs."""

    @dataclass(frozen=True, kw_only=True)
    class Config(SchedulerConfig):
        gamma: float = bounded(gt=0, le=1)
        every_epochs: int = bounded(ge=1)

    def __init__(self, config: Config, steps_per_epoch: int, total_steps: int):
        super().__init__(config, steps_per_epoch, total_steps)
        self.gamma, self.every_epochs = config.gamma, config.every_epochs

    def decay(self, step: int) -> float:
        return self.gamma ** (step // (self.steps_per_epoch * self.every_epochs))
