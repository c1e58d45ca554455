"""A look at a system before it is trained: it is called once on two images, as everything else will call it.

What would be wrong for a whole training, or would die after it, is said here in one sentence that names the file.
"""

import inspect
import random
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

import vae_lab
from vae_lab import rng
from vae_lab.data import Images
from vae_lab.data.base import to_float
from vae_lab.distributions import reparameterize
from vae_lab.errors import ConfigError, VaeLabError, memory_errors
from vae_lab.objectives.base import Batch, Terms
from vae_lab.stacking import describe, incomparable
from vae_lab.system import System
from vae_lab.text import first_line

REQUIRED = ("loss", "nll")
OWN, TORCH = Path(vae_lab.__file__).parent, Path(torch.__file__).parent
PROBES = 64  # steps between the first and the last at which a loss is asked whether it still changes
TOLERANCE = 1e-3  # of terms alone and stacked; rounding is a hundred times smaller
DRAWS = "draws random numbers by itself; noise is an argument: ask for it in noise_shapes"
REASONS = {  # what torch says under vmap, and what it means here
    "randomness": DRAWS,
    "data-dependent": "branches on the value of a tensor; write arithmetic or torch.where",
    ".item()": "asks for a tensor's value (.item(), float(), int()); keep it a tensor",
    "data pointer": "asks for a tensor's values (tolist(), numpy()); keep them in tensors",
}


class Inspection:
    """A system on the CPU and two training images.

    Args:
        system: what is looked at. Its parameters and buffers are as they were after each call.
        images: training images.
        sources: the classes that the config chose, the most particular first: their files are named.
    """

    def __init__(self, system: System, images: Images, sources: Sequence[type] = ()):
        self.system = system
        files = [Path(inspect.getsourcefile(cls) or "") for cls in sources]
        self.files = [file for file in files if not file.is_relative_to(OWN)] or files[:1]
        x, y = images.take(torch.tensor([0, min(1, len(images) - 1)]))
        self.batch = Batch(to_float(x), y)
        for name, parameter in system.named_parameters():
            if isinstance(parameter, nn.UninitializedParameter) or parameter.dtype != torch.float32:
                self.refuse(f"the parameter {name} is {_kind(parameter)}; parameters have a shape and are float32")
        draws = rng.generator(0, "inspection")
        with self.explained():
            shapes = system.noise_shapes()
            self.noise = {name: torch.randn(2, *shape, generator=draws) for name, shape in shapes.items()}
            self.eps = torch.randn(2, system.model.latent_dim, generator=draws)

    def check(self) -> list[str]:
        """The names of the terms.

        Raises:
            ConfigError: the system draws by itself, keeps state, misses a term, has terms or images of a wrong shape,
                depends on the values of tensors, or computes something else when it is stacked.
        """
        for training in (True, False):
            with self.explained(), self.untouched(training), torch.no_grad():
                self._check_names(self.system.objective(self.system.model, self.batch, self.noise, torch.tensor(0)))
            with self.explained(), self.untouched(training), torch.no_grad():
                stacked = self.stacked()
                alone = self.alone()
            self._check_terms(alone)
            self._check_stacked(alone, stacked)
        with self.explained(), self.untouched(training=True):
            self._check_gradient(self.alone()["loss"])
        with self.explained(), self.untouched(training=False), torch.no_grad():
            self._check_images()
            self.system.beta_eff()
        return list(alone)

    def settled_step(self, total_steps: int) -> int:
        """The first step from which on the loss is the function that it is in the last one; 0 where no step matters."""
        with self.explained(), self.untouched(training=False), torch.no_grad():
            last = self.alone(total_steps)["loss"]
            steps = sorted({total_steps * probe // PROBES for probe in range(PROBES)})
            changing = [step for step in steps if not self._same(self.alone(step)["loss"], last)]
            if not changing:
                return 0
            before, after = changing[-1], min([*(step for step in steps if step > changing[-1]), total_steps])
            while after - before > 1:
                middle = (before + after) // 2
                if self._same(self.alone(middle)["loss"], last):
                    after = middle
                else:
                    before = middle
            return after

    @staticmethod
    def _same(one: Tensor, other: Tensor) -> bool:
        return torch.allclose(one, other, rtol=1e-6, atol=0.0, equal_nan=True)

    def alone(self, step: int = 0) -> Terms:
        """The terms [B]."""
        return self.system(self.batch, self.noise, torch.tensor(step))

    def stacked(self) -> Terms:
        """The terms [2, B] of two such runs."""
        tensors = [*self.system.named_parameters(), *self.system.named_buffers()]
        twice = {name: torch.stack([tensor.detach()] * 2) for name, tensor in tensors}
        batch = Batch(*(_twice(part) for part in self.batch))  # type: ignore[arg-type]
        noise = {name: torch.stack([draw, draw]) for name, draw in self.noise.items()}
        rows = Batch(*(None if part is None else 0 for part in self.batch))  # type: ignore[arg-type]

        def one(state: dict[str, Tensor], batch: Batch, noise: dict[str, Tensor]) -> Terms:
            return functional_call(self.system, state, (batch, noise, torch.tensor(0)))

        return vmap(one, in_dims=(0, rows, 0), randomness="error")(twice, batch, noise)

    def _check_names(self, terms: Any) -> None:
        if not isinstance(terms, dict):
            self.refuse(f"returns {_shape(terms)}, not terms by name")
        if missing := [name for name in REQUIRED if name not in terms]:
            self.refuse(f"its terms are {', '.join(terms)}; {' and '.join(missing)} is missing")

    def _check_terms(self, terms: Terms) -> None:
        for name, term in terms.items():
            if not isinstance(term, Tensor) or term.shape != (2,):
                self.refuse(f"the term '{name}' of two images is {_shape(term)}, not [2]: terms stay per image")
            if not term.is_floating_point():
                self.refuse(f"the term '{name}' is {term.dtype}, not floating point")

    def _check_gradient(self, loss: Tensor) -> None:
        if loss.requires_grad:
            parameters = list(self.system.parameters())
            gradients = torch.autograd.grad(loss.sum(), parameters, allow_unused=True)
            if any(gradient is not None for gradient in gradients):
                return
        self.refuse("the loss depends on no parameter, so that there is nothing to train")

    def _check_images(self) -> None:
        """A code of the posterior and the image it is decoded to."""
        model, x = self.system.model, self.batch.x
        q = model.posterior(x)
        for z in (reparameterize(q, self.eps), q.mean):
            if z.shape != self.eps.shape:
                self.refuse(f"the code of two images is {_shape(z)}, not {_shape(self.eps)}")
        mean = model.likelihood(q.mean).mean
        if mean.shape != x.shape:
            self.refuse(f"images are decoded to {_shape(mean)}, not {_shape(x)}")

    def _check_stacked(self, alone: Terms, stacked: Terms) -> None:
        for name, term in alone.items():
            if not torch.allclose(stacked[name], torch.stack([term, term]), TOLERANCE, TOLERANCE, equal_nan=True):
                self.refuse(
                    f"the term '{name}' is {term.tolist()} alone and {stacked[name][0].tolist()} in a cohort: runs or "
                    "images mix, where a shape was written that holds for one run only"
                )

    @contextmanager
    def untouched(self, training: bool) -> Iterator[None]:
        """Call the system in or out of training mode; its tensors are restored, and it must have kept nothing else."""
        own = [*self.system.named_parameters(), *self.system.named_buffers()]
        tensors = [tensor for _, tensor in own]
        copies = [tensor.detach().clone() for tensor in tensors]
        before, streams = describe(self.system), _streams()
        inputs = [self.batch.x, *self.noise.values()]
        versions = [tensor._version for tensor in inputs]
        mode = self.system.training
        self.system.train(training)
        try:
            yield
        finally:
            self.system.train(mode)
            written = []
            with torch.no_grad():
                for (name, tensor), copy in zip(own, copies, strict=True):
                    if not torch.equal(tensor, copy):
                        written.append(name)
                        tensor.copy_(copy)
        if _streams() != streams:
            self.stacked()  # where torch's draws are refused, and so found
            self.refuse(DRAWS)
        if [tensor._version for tensor in inputs] != versions:
            self.refuse("changes its images or its noise in place; make a new tensor")
        parameters = {name for name, _ in self.system.named_parameters()}
        if wrong := [name for name in written if not training or name in parameters]:
            mode_name = "training" if training else "evaluation"
            self.refuse(f"writes to {wrong[0]} in {mode_name}; a forward pass may write to buffers, in training")
        after = describe(self.system)
        changed = [name for name in after if before.get(name) != after[name]]
        if changed and not incomparable(self.system):
            self.refuse(f"keeps state in its forward pass ({changed[0]}); what a step needs is an argument, or a function of it")
        now = [*self.system.parameters(), *self.system.buffers()]
        if any(one is not other for one, other in zip(tensors, now, strict=True)):
            self.refuse("replaces one of its buffers in its forward pass; write into it with copy_")

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Turn whatever the system raises into one sentence that names the place."""
        try:
            with memory_errors():
                yield
        except VaeLabError:
            raise
        except (Exception, SystemExit) as error:
            said = first_line(error)
            reason = next((meaning for part, meaning in REASONS.items() if part in said), said)
            raise ConfigError(f"{self._place(error)}: {reason}.") from error

    def refuse(self, reason: str) -> None:
        """Raise a `ConfigError` that names the files of what was chosen."""
        raise ConfigError(f"{' or '.join(map(str, self.files))}: {reason}.")

    def _place(self, error: BaseException) -> str:
        """The last line of a plugin, else of this package, that an error passed, and the innermost module."""
        names = {id(module): name for name, module in self.system.named_modules()}
        frames = list(traceback.walk_tb(error.__traceback__))
        folders = {file.parent for file in self.files}
        lines = [(Path(frame.f_code.co_filename), number) for frame, number in frames]
        foreign = [line for line in lines if line[0].parent in folders]
        own = [line for line in lines if line[0].is_relative_to(OWN) and line[0] != Path(__file__)]
        file, number = (foreign or own or lines)[-1]
        modules = [frame.f_locals.get("self") for frame, _ in frames]
        inner = [module for module in modules if isinstance(module, nn.Module) and names.get(id(module))]
        where = f"{file}, line {number}"
        if not inner or foreign:
            return where
        files = "" if file in self.files else f" (of {' or '.join(map(str, self.files))})"
        return f"{where}, in {names[id(inner[-1])]}, a {type(inner[-1]).__name__}{files}"


def _streams() -> list[Any]:
    """The states of the generators that modules may not draw from."""
    return [torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state(legacy=False))]


def _twice(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else torch.stack([tensor, tensor])


def _kind(parameter: nn.Parameter) -> str:
    return "lazy" if isinstance(parameter, nn.UninitializedParameter) else str(parameter.dtype)


def _shape(value: Any) -> str:
    return str(list(value.shape)) if isinstance(value, Tensor) else f"a {type(value).__name__}"
