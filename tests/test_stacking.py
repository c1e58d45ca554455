"""Runs are stacked when they differ in nothing but numbers in their tensors; anything else keeps them apart."""

import functools
import random
from collections.abc import Callable
from enum import Enum
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from tests.test_engine import SMALL, train
from tests.variants import Base, Private, Stream, chosen
from vae_lab.data import load
from vae_lab.job import make_run
from vae_lab.planning import stacking_key
from vae_lab.stacking import incomparable, stack_key


class Colour(Enum):
    red = 1
    blue = 2


class Plain:
    def __init__(self, value: object):
        self.value = value


class Slotted:
    __slots__ = ("value",)

    def __init__(self, value: object):
        self.value = value


def adder(amount: float) -> Callable[[float], float]:
    return lambda value: value + amount


def near(last: float) -> torch.Tensor:
    tensor = torch.zeros(5000)
    tensor[2500] = last
    return tensor


def filled(value: float) -> nn.Linear:
    layer = nn.Linear(2, 2)
    nn.init.constant_(layer.weight, value)
    nn.init.constant_(layer.bias, 0.0)
    return layer


def holding(value: object) -> nn.Module:
    system = nn.Module()
    system._kept = [value]  # type: ignore[assignment]
    return system


MADE = {  # a way to make a value of a number
    "float": lambda number: number,
    "int": int,
    "text": str,
    "large tensor": near,
    "bfloat16": lambda number: torch.tensor(number, dtype=torch.bfloat16),
    "array": lambda number: near(number).numpy(),
    "enum": lambda number: Colour(int(number)),
    "dict": lambda number: {"a": {"b": (1, number)}},
    "set": lambda number: {number, 7.0},
    "object": Plain,
    "slots": Slotted,
    "namespace": lambda number: SimpleNamespace(a=number),
    "distribution": lambda number: torch.distributions.Normal(0.0, number),
    "closure": adder,
    "partial": lambda number: functools.partial(adder, number),
    "method": lambda number: Plain(number).__init__,
    "hidden module": filled,
    "dtype": lambda number: [torch.float32, torch.float64][int(number) - 1],
}


@pytest.mark.parametrize("kind", MADE)
def test_values_are_compared_not_their_names_or_places(kind: str) -> None:
    make = MADE[kind]
    one, same, other = (stack_key(holding(make(number))) for number in (1.0, 1.0, 2.0))
    assert one == same
    assert one != other


@pytest.mark.parametrize("value", [torch.Generator(), random.Random(0), iter([1]), np.random.default_rng(0)])
def test_what_cannot_be_compared_is_named_and_keeps_runs_apart(value: object) -> None:
    system = holding(value)
    assert stack_key(system) != stack_key(system)
    (named,) = {text.partition(" (")[0].split(".")[0] for text in incomparable(system)}
    assert named == "_kept"


def test_a_value_that_holds_itself() -> None:
    loop: list[object] = [1]
    loop.append(loop)
    assert stack_key(holding(loop)) == stack_key(holding(loop))


def made(weight: float) -> type:
    class Made(nn.Module):
        def forward(self, x):
            return weight * x

    return Made


def test_classes_of_one_name_are_told_apart() -> None:
    one, other = made(1.0), made(2.0)
    assert stack_key(one()) == stack_key(one())
    assert stack_key(one()) != stack_key(other())
    assert stack_key(holding(one)) != stack_key(holding(other))


def test_hooks_are_compared() -> None:
    one, other = nn.Linear(2, 2), nn.Linear(2, 2)
    assert stack_key(one) == stack_key(other)
    other.register_forward_hook(lambda module, inputs, output: 2 * output)
    assert stack_key(one) != stack_key(other)


def test_a_weight_kept_in_private_trains_each_run_with_its_own(monkeypatch, compose) -> None:
    """Two runs with beta 0 and 20: stacked they would both train with the first one's."""
    cfgs = [chosen(monkeypatch, compose(*SMALL), "objective", Private, beta=beta) for beta in (0.0, 20.0)]
    splits = load(cfgs[0]["data"])
    keys = {stacking_key(cfg, make_run(cfg, splits)) for cfg in cfgs}
    assert len(keys) == 2
    with pytest.raises(ValueError, match="cannot be stacked"):
        train(cfgs)


def test_settings_may_differ_in_a_cohort(monkeypatch, compose) -> None:
    cfgs = [chosen(monkeypatch, compose(*SMALL), "objective", Base, beta=beta) for beta in (0.0, 20.0)]
    runs, rows = train(cfgs)
    for cfg, together in zip(cfgs, rows, strict=True):
        _, (alone,) = train([cfg])
        assert together[-1]["train/nll"] == pytest.approx(alone[-1]["train/nll"], rel=1e-5)
    assert rows[0][-1]["train/kl"] > 2 * rows[1][-1]["train/kl"]
    assert all("objective.beta" not in run.state for run in runs)


def test_a_run_that_cannot_be_stacked_says_why(monkeypatch, compose, tmp_path) -> None:
    from io import StringIO

    from rich.console import Console

    from vae_lab.train import train as train_run

    cfg = chosen(monkeypatch, compose(*SMALL, "tracking=none", "evaluation.figures=false"), "objective", Stream, beta=1.0)
    records: list[str] = []
    monkeypatch.setattr("vae_lab.train.log.info", lambda text, *values, **_: records.append(text % values))
    train_run(cfg, tmp_path / "run", Console(file=StringIO()))
    assert any("objective.stream (a Generator) cannot be compared" in record for record in records)
