"""Runs stacked into one model: R systems of equal architecture, called together, updated together.

Parameters and buffers of the R systems are stacked along a new first axis R (the *leaves*). With R > 1 the loss is
`vmap(functional_call)`; with R = 1 the system is called directly, its parameters being views into the leaves.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap

from vae_lab.blocks import Block, Layout, State
from vae_lab.config import Precision
from vae_lab.graphs import Graphs
from vae_lab.objectives.base import Batch, Noise, Terms
from vae_lab.settings import setting_names
from vae_lab.stacking import stack_key
from vae_lab.system import System
from vae_lab.undivided import UndividedLayers


class Cohort:
    """R systems as one.

    Attributes:
        layout: which parameter lies in which block.
        blocks: all trained parameters, each block [R, P].
        parameters: the same by name, each [R, ...], as views into the blocks.
        buffers: the other leaves, each [R, ...]; settings among them, which are not state.
    """

    def __init__(
        self,
        systems: Sequence[System],
        device: torch.device,
        precision: Precision = Precision.fp32,
        graphs: Graphs | None = None,
    ):
        distinct = {id(system): system for system in systems}.values()
        if len({stack_key(system) for system in distinct}) != 1:
            raise ValueError(f"These {len(systems)} systems differ in architecture and cannot be stacked.")
        for system in distinct:
            system.to(device).train()
        self.template = systems[0]
        self.size = len(systems)
        with torch.no_grad():
            parameters, buffers = stack_module_state([*systems])
            parameters = {name: leaf.detach() for name, leaf in parameters.items()}
        self.buffers: State = {name: leaf.detach().to(device) for name, leaf in buffers.items()}
        self.settings = setting_names(self.template)
        self.layout = Layout({name: leaf.shape[1:] for name, leaf in parameters.items()})
        self.blocks = [block.to(device) for block in self.layout.blocks(parameters)]
        self.parameters = self.layout.leaves([block.detach() for block in self.blocks])
        trained = self.parameters
        if self.size == 1:  # the system's own tensors are views into the leaves; else it is only a recipe
            trained = dict(self.template.named_parameters())
            for name, parameter in trained.items():
                parameter.data = self.parameters[name][0]
            for name, buffer in self.template.named_buffers():
                buffer.data = self.buffers[name][0]
        # What gradients are taken of; asking a module for its parameters takes longer than a small step's arithmetic.
        self._trained = [trained[name].requires_grad_() for name in self.parameters]
        self._small = torch.zeros_like(self.blocks[0])  # where the gradients of the small tensors lie in every step
        leaves = self.layout.leaves([self._small, *self.blocks[1:]]).values()
        self._small_views = [leaf[0] if self.size == 1 else leaf for leaf in leaves][: self.layout.num_small]
        self._weights: dict[torch.Size, Tensor] = {}  # what makes the sum of losses the sum of each run's mean
        self._bf16, self._graphs = precision is Precision.bf16, graphs

    def train(self, mode: bool = True) -> None:
        """Whether modules that train and evaluate differently are called as in training, or with `mode` false as after it."""
        self.template.train(mode)

    def terms(self, batch: Batch, noise: Noise, step: Int[Tensor, ""]) -> Terms:
        """Terms [R, B], or [B] of a cohort of one.

        With R > 1 the noise has a leading axis R; a batch without one is shared.
        """
        with self._autocast():
            if self.size == 1:
                return self.template(batch, noise, step)
            return self._stacked(self.parameters, self.buffers, batch, noise, step)

    def step(self, batch: Batch, noise: Noise, step: Int[Tensor, ""]) -> tuple[Terms, Callable[[], list[Block]]]:
        """The terms, and a function for the gradient of each run's own mean loss, a row of each block; it stands for one step."""
        if self._graphs is not None:
            terms, gradients = self._graphs.call(self._whole, self.blocks, self.buffers, batch, noise, step)
            return terms, lambda: gradients
        with torch.enable_grad():
            terms = self.terms(batch, noise, step)
        return terms, partial(self._backward, terms)

    def _stacked(self, parameters: State, buffers: State, batch: Batch, noise: Noise, step: Int[Tensor, ""]) -> Terms:
        """Terms [R, B] of several runs."""

        def one(parameters: State, buffers: State, batch: Batch, noise: Noise) -> Terms:
            with UndividedLayers() if self._bf16 else nullcontext():
                return functional_call(self.template, (parameters, buffers), (batch, noise, step))

        shared = None if batch.x.dim() == 4 else 0
        in_dims = (0, 0, Batch(*(None if part is None else shared for part in batch)), 0)  # type: ignore[arg-type]
        return vmap(one, in_dims=in_dims)(parameters, buffers, batch, noise)

    def _whole(
        self, blocks: list[Block], buffers: State, batch: Batch, noise: Noise, step: Int[Tensor, ""]
    ) -> tuple[Terms, list[Block]]:
        """Terms and gradients as a function of all that they depend on."""
        leaves = {name: leaf.detach().requires_grad_() for name, leaf in self.layout.leaves(blocks).items()}
        with torch.enable_grad(), self._autocast():
            if self.size == 1:
                own = {name: leaf[0] for name, leaf in (leaves | buffers).items()}
                terms = functional_call(self.template, own, (batch, noise, step))
            else:
                terms = self._stacked(leaves, buffers, batch, noise, step)
            mean = terms["loss"].mean(-1).sum()
        gradients = torch.autograd.grad(mean, list(leaves.values()), materialize_grads=True)
        return {name: term.detach() for name, term in terms.items()}, self.layout.blocks(dict(zip(leaves, gradients, strict=True)))

    def _backward(self, terms: Terms) -> list[Block]:
        loss = terms["loss"]
        if (weights := self._weights.get(loss.shape)) is None:
            weights = self._weights[loss.shape] = loss.new_full((loss.numel(),), 1 / loss.shape[-1], requires_grad=False)
        with torch.enable_grad():  # scalar, since torch imports half a second of sympy to look at the shape of a weight
            mean = torch.dot(loss.flatten(), weights)
        gradients = torch.autograd.grad(mean, self._trained, materialize_grads=True)
        num_small = self.layout.num_small
        large = [gradient.reshape(self.size, -1) for gradient in gradients[num_small:]]
        if num_small == 0:
            return large
        torch._foreach_copy_(self._small_views, gradients[:num_small])
        return [self._small, *large]

    def _autocast(self) -> AbstractContextManager[object]:
        return torch.autocast(self.blocks[0].device.type, dtype=torch.bfloat16) if self._bf16 else nullcontext()

    def run_state(self, index: int) -> State:
        """A copy of one run's parameters and buffers, under the names of its `state_dict`."""
        parameters = self.layout.leaves([block[index].clone() for block in self.blocks])
        kept = {name: leaf for name, leaf in self.buffers.items() if name not in self.settings}
        return parameters | {name: leaf[index].clone() for name, leaf in kept.items()}

    def load_run_state(self, index: int, state: State) -> None:
        """Overwrite one run's parameters and buffers."""
        with torch.no_grad():
            for name, leaf in (self.parameters | self.buffers).items():
                if name not in self.settings:
                    leaf[index].copy_(state[name])


def clip_gradients(gradients: list[Block], norms: Float[Tensor, " R"], max_norms: Float[Tensor, " R"]) -> None:
    """Scale each run's gradient in place so that its norm is at most its `max_norms` entry (inf: never)."""
    scale = (max_norms / (norms + 1e-6)).clamp(max=1.0)[:, None]
    for gradient in gradients:
        gradient.mul_(scale)


def gradient_norms(gradients: list[Block]) -> Float[Tensor, " R"]:
    """The Euclidean norm of each run's whole gradient."""
    return torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(gradient, dim=1) for gradient in gradients]), dim=0)
