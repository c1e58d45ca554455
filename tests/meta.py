"""A GPU without a GPU: torch's meta device stands in for one.

Its tensors have shapes and no values. An operation that mixes them with a CPU's raises as it would on a GPU, so that
whatever was left behind is found; whoever asks for values gets ones, and the line that asked is counted.
"""

import collections
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import vae_lab
from vae_lab import rng

META = torch.device("meta")
OWN = Path(vae_lab.__file__).parent
ASKING = ("tolist", "item", "cpu", "numpy", "__float__", "__int__", "__bool__", "__index__", "nonzero", "unique")


class Questions(collections.Counter[str]):
    """How often each line of the package asked a meta tensor for its values."""

    def ask(self) -> None:
        frames = [frame for frame in traceback.extract_stack() if Path(frame.filename).is_relative_to(OWN)]
        self[f"{Path(frames[-1].filename).relative_to(OWN)}: {frames[-1].line}" if frames else "outside"] += 1


@pytest.fixture
def questions(monkeypatch: pytest.MonkeyPatch) -> Iterator[Questions]:
    """Runs train, evaluate and load on the meta device inside the test."""
    asked = Questions()

    def answered(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def method(self: Tensor, *args: Any, **kwargs: Any) -> Any:
            if self.device != META:
                return original(self, *args, **kwargs)
            asked.ask()
            none_yet = name == "tolist" and not self.dtype.is_floating_point  # steps that turned bad
            values = torch.full(self.shape, -1 if none_yet else 1, dtype=self.dtype)
            return values if name == "cpu" else original(values, *args, **kwargs)

        return method

    for name in ASKING:
        monkeypatch.setattr(Tensor, name, answered(name, getattr(Tensor, name)))

    to = Tensor.to

    def moved(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        target = kwargs.get("device", args[0] if args else None)
        home = isinstance(target, str | torch.device) and torch.device(target).type == "cpu"
        return to(self.cpu() if self.device == META and home else self, *args, **kwargs)

    monkeypatch.setattr(Tensor, "to", moved)
    streams = rng.generator

    def generator(seed: int, purpose: str, *position: int, device: torch.device | str = "cpu") -> torch.Generator:
        return streams(seed, purpose, *position, device="cpu" if torch.device(device) == META else device)

    monkeypatch.setattr(rng, "generator", generator)
    for module in ("job", "train", "trained"):
        monkeypatch.setattr(f"vae_lab.{module}.choose_device", lambda device: META)
    for kind in (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD):
        monkeypatch.setattr(kind, "__init__", _unfused(kind.__init__))
    return asked


def _unfused(original: Callable[..., None]) -> Callable[..., None]:
    def init(self: torch.optim.Optimizer, params: Any, *args: Any, fused: bool | None = None, **kwargs: Any) -> None:
        original(self, params, *args, **kwargs)

    return init
