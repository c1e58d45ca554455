"""Which runs turned non-finite, in which step, and what that step saw."""

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from vae_lab.blocks import Block
from vae_lab.cohort import gradient_norms
from vae_lab.objectives.base import Terms

if TYPE_CHECKING:
    from vae_lab.engine import Run


@dataclass
class Evidence:
    """What one step saw: its images, its terms and, once they are there, its gradients."""

    step: int
    index: Int64[Tensor, "R B"]
    terms: Terms
    gradients: list[Block] = field(default_factory=list)

    def values(self, number: int) -> dict[str, float]:
        """Means of one run's terms, and its gradient norm."""
        runs = len(self.index)
        values = {name: float(term.reshape(runs, -1)[number].mean()) for name, term in self.terms.items()}
        return values | ({"gradient norm": float(gradient_norms(self.gradients)[number])} if self.gradients else {})


class Health:
    """Looks at the steps of one epoch.

    A CPU can be asked at any time, so that each loss is looked at before its update is made. A gradient's norm costs a pass over
    all parameters, 3 % of a step of 784-400-20: it is taken where something is about to be kept, or clipped, and to trace a
    bad loss to the update before it. To ask another device is to wait for it: what is bad is noted there, and read when due.
    """

    def __init__(self, num_runs: int, device: torch.device):
        self.immediate = device.type == "cpu"
        self.first_bad = torch.full((num_runs,), -1, device=device)
        self.now: Evidence | None = None

    def bad_losses(self, evidence: Evidence, sums: Float[Tensor, "T R"]) -> dict[int, Evidence]:
        """Runs whose loss is not finite, each with the step that is to blame: this one, or the one that spoilt its parameters."""
        before, self.now = self.now, evidence
        if not self.immediate:
            self._note(evidence.step, sums[0])
            return {}
        if all(map(math.isfinite, values := sums.tolist()[0])):
            return {}
        culprits = {number: evidence for number, value in enumerate(values) if not math.isfinite(value)}
        if before is not None:
            norms = gradient_norms(before.gradients).tolist()
            culprits |= {number: before for number in culprits if not math.isfinite(norms[number])}
        return culprits

    def bad_gradients(self, norms: Float[Tensor, " R"], due: bool) -> dict[int, Evidence]:
        """Runs whose gradient is not finite; of what was noted on a device, when it is `due`."""
        assert self.now is not None
        if self.immediate:
            return {number: self.now for number, norm in enumerate(norms.tolist()) if not math.isfinite(norm)}
        self._note(self.now.step, norms)
        steps = self.first_bad.tolist() if due else []
        return {number: replace(self.now, step=step) for number, step in enumerate(steps) if step >= 0}

    def _note(self, step: int, numbers: Float[Tensor, " R"]) -> None:
        self.first_bad = torch.where((self.first_bad < 0) & ~torch.isfinite(numbers), step, self.first_bad)


def failure(run: "Run", number: int, evidence: Evidence) -> dict[str, Any]:
    """What results.json says of a run that turned non-finite."""
    weight = run.system.objective.kl_weight()
    return {
        "step": evidence.step,
        "epoch": run.epoch + 1,
        "terms": evidence.values(number),
        "lr": run.optimizer.config.lr * run.scheduler.factor(evidence.step),
        "beta": None if weight is None else float(weight),
        "images": evidence.index[number].tolist(),
    }


def describe(name: str, failure: dict[str, Any]) -> str:
    """The same as a message, with what to try."""
    wrong = [f"{term} is {value}" for term, value in failure["terms"].items() if not math.isfinite(value)]
    beta = "" if failure["beta"] is None else f", beta {failure['beta']:g}"
    images = f"{failure['images'][:5]} (all {len(failure['images'])} are in results.json)"
    return (
        f"{name}: {', '.join(wrong) or 'the loss was not finite'} at step {failure['step']} (epoch {failure['epoch']}), "
        f"lr {failure['lr']:g}{beta}; training images {images}. "
        "Try a lower optimizer.lr, trainer.clip_grad_norm=1, or scheduler.warmup_epochs=1."
    )
