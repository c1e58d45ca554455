"""Runs stacked into one model: R systems of equal architecture, called together, updated together.

Parameters and buffers of the R systems are stacked along a new first axis R (the *leaves*). With R > 1 the loss is
`vmap(functional_call)`; with R = 1 the system is called directly, its parameters being views into the leaves.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap

from vae_lab.objectives.base import Batch, Noise, Terms
from vae_lab.system import System

State = dict[str, Tensor]


def stack_key(system: System) -> str:
    """Equal for two systems exactly when they may be stacked: same classes, attributes, tensor names, shapes and types.

    A number that a class keeps as a plain attribute and not as a buffer is part of the key, since stacked runs would share
    it: forgetting the buffer costs speed, never truth.
    """
    lines = []
    for name, module in system.named_modules():
        plain = {key: repr(value) for key, value in vars(module).items() if not key.startswith("_")}
        lines.append(f"{name}: {type(module).__qualname__} {sorted(plain.items())}")
    tensors = [*system.named_parameters(), *system.named_buffers()]
    lines += [f"{name}: {tuple(tensor.shape)} {tensor.dtype} {tensor.requires_grad}" for name, tensor in tensors]
    return "\n".join(lines)


class Cohort:
    """R systems as one.

    Attributes:
        parameters: trained leaves by name, each [R, ...]; they require no gradient, `gradients` says how they get one.
        buffers: the other leaves, each [R, ...].
    """

    def __init__(self, systems: Sequence[System], device: torch.device, compile: bool = False):
        keys = {stack_key(system) for system in systems}
        if len(keys) != 1:
            raise ValueError(f"These {len(systems)} systems differ in architecture and cannot be stacked.")
        self.template = systems[0]
        self.size = len(systems)
        with torch.no_grad():
            parameters, buffers = stack_module_state([*systems])
        self.parameters: State = {name: leaf.detach().to(device) for name, leaf in parameters.items()}
        self.buffers: State = {name: leaf.detach().to(device) for name, leaf in buffers.items()}
        self.template = self.template.to(device)
        self._tie_template()
        # What gradients are taken of; asking a module for its parameters takes longer than a small step's arithmetic.
        self._trained = list(self.template.parameters() if self.size == 1 else self.parameters.values())
        self._terms = torch.compile(self._call) if compile else self._call

    def _tie_template(self) -> None:
        """With R = 1, let the system's own tensors be views into the leaves; else it is only a recipe."""
        if self.size == 1:
            for name, parameter in self.template.named_parameters():
                parameter.data = self.parameters[name][0]
            for name, buffer in self.template.named_buffers():
                buffer.data = self.buffers[name][0]

    def _call(self, leaves: Sequence[Tensor], batch: Batch, noise: Noise, step: Tensor) -> Terms:
        """Terms [R, B]; `leaves` are the parameters in order of their names."""
        if self.size == 1:
            terms = self.template(
                batch if batch.x.dim() == 4 else _first(batch), {name: draw[0] for name, draw in noise.items()}, step
            )
            return {name: term[None] for name, term in terms.items()}

        def one(parameters: State, buffers: State, batch: Batch, noise: Noise) -> Terms:
            return functional_call(self.template, (parameters, buffers), (batch, noise, step))

        parameters = dict(zip(self.parameters, leaves, strict=True))
        shared = None if batch.x.dim() == 4 else 0
        in_dims = (0, 0, Batch(*(None if part is None else shared for part in batch)), 0)  # type: ignore[arg-type]
        return vmap(one, in_dims=in_dims)(parameters, self.buffers, batch, noise)

    def terms(self, batch: Batch, noise: Noise, step: Int[Tensor, ""]) -> Terms:
        """Terms [R, B], without gradients. The noise has a leading axis R; a batch without one is shared."""
        with torch.no_grad():
            return self._call(list(self.parameters.values()), batch, noise, step)

    def gradients(
        self, batch: Batch, noise: Noise, step: Int[Tensor, ""], autocast: Callable[[], Any]
    ) -> tuple[Terms, list[Tensor]]:
        """Terms [R, B], and for each parameter the gradient [R, ...] of each run's own mean loss."""
        if self.size > 1:
            for leaf in self._trained:
                leaf.requires_grad_()
        with autocast():
            terms = self._terms(self._trained, batch, noise, step)
        total = terms["loss"].sum() / batch.x.shape[-4]
        gradients = torch.autograd.grad(total, self._trained, materialize_grads=True)
        if self.size == 1:
            gradients = tuple(gradient[None] for gradient in gradients)
        # Fused optimisers read gradients in memory order; vmap may hand them out transposed.
        return {name: term.detach() for name, term in terms.items()}, [gradient.contiguous() for gradient in gradients]

    def run_state(self, index: int) -> State:
        """A copy of one run's parameters and buffers, under the names of its `state_dict`."""
        return {name: leaf[index].detach().clone() for name, leaf in (self.parameters | self.buffers).items()}

    def load_run_state(self, index: int, state: State) -> None:
        """Overwrite one run's parameters and buffers."""
        with torch.no_grad():
            for name, leaf in (self.parameters | self.buffers).items():
                leaf[index].copy_(state[name])


def _first(batch: Batch) -> Batch:
    return Batch(batch.x[0], None if batch.y is None else batch.y[0])


def clip_gradients(gradients: list[Tensor], norms: Float[Tensor, " R"], max_norms: Float[Tensor, " R"]) -> None:
    """Scale each run's gradients [R, ...] in place so that its own norm is at most its `max_norms` entry (inf: never)."""
    scale = (max_norms / (norms + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(scale.view(-1, *[1] * (gradient.dim() - 1)))


def gradient_norms(gradients: list[Tensor]) -> Float[Tensor, " R"]:
    """The Euclidean norm of each run's whole gradient."""
    if len(gradients[0]) == 1:
        return torch.nn.utils.get_total_norm(gradients)[None]
    norms = [torch.linalg.vector_norm(gradient.reshape(len(gradient), -1), dim=1) for gradient in gradients]
    return torch.linalg.vector_norm(torch.stack(norms), dim=0)
