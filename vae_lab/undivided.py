"""Layers of stacked runs that autocast must see whole.

Under vmap, autocast decides too late: a linear layer is by then a product and a sum, and a convolution one that autocast does
not know. Left so, a cohort's convolutions run in single precision, and its products are rounded before their bias is added.
Inside `Undivided` each such layer of all runs is one operation of torch's, under autocast, with the rounding of a run alone.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._C._functorch import is_batchedtensor, peek_interpreter_stack
from torch.overrides import TorchFunctionMode


class Undivided(TorchFunctionMode):
    """Inside the one vmap over the runs, computes the layers named in `LAYERS` by one operation each."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        layer, kwargs = LAYERS.get(function), kwargs or {}
        outermost = layer is not None and peek_interpreter_stack().level() == 1
        if layer is None or not outermost or not any(map(is_batchedtensor, filter(torch.is_tensor, [*args, *kwargs.values()]))):
            return function(*args, **kwargs)
        return layer(*args, **kwargs)


class _OfAllRuns(torch.autograd.Function):
    """Calls an operation with its tensors as they are below vmap, each with a leading axis R; gradients are its own."""

    @staticmethod
    def forward(operation: Callable[..., Tensor], *tensors: Tensor | None) -> Tensor:
        raise NotImplementedError("only called under vmap")

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """torch asks for it."""

    @staticmethod
    def vmap(info: Any, in_dims: Any, operation: Callable[..., Tensor], *tensors: Tensor | None) -> tuple[Tensor, int]:
        def stacked(tensor: Tensor | None, dim: int | None) -> Tensor | None:
            if tensor is None or dim is not None:
                return None if tensor is None else tensor.movedim(dim, 0)
            return tensor.expand(info.batch_size, *tensor.shape)  # one for all runs

        return operation(*map(stacked, tensors, in_dims[1:])), 0


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    def of_all(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        rows = x.reshape(len(x), -1, x.shape[-1])
        product = torch.bmm(rows, weight.mT) if bias is None else torch.baddbmm(bias[:, None], rows, weight.mT)
        return product.reshape(*x.shape[:-1], weight.shape[1])

    return _OfAllRuns.apply(of_all, input, weight, bias)


def _convolution(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def layer(input: Tensor, weight: Tensor, bias: Tensor | None = None, *settings: Any, **options: Any) -> Tensor:
        if input.dim() != weight.dim():  # one image, without the axis of a batch
            return function(input, weight, bias, *settings, **options)

        def of_all(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            given, more = list(settings), dict(options)
            if len(given) > GROUPS:
                given[GROUPS] *= len(x)
            else:
                more["groups"] = len(x) * more.get("groups", 1)
            bias = None if bias is None else bias.flatten()
            return _one_by_one(function(_side_by_side(x), weight.flatten(0, 1), bias, *given, **more), len(x))

        return _OfAllRuns.apply(of_all, input, weight, bias)

    return layer


def _group_norm(
    input: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    def of_all(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        weight, bias = (None if part is None else part.flatten() for part in (weight, bias))
        return _one_by_one(F.group_norm(_side_by_side(x), len(x) * num_groups, weight, bias, eps), len(x))

    return _OfAllRuns.apply(of_all, input, weight, bias)


def _layer_norm(
    input: Tensor, normalized_shape: list[int], weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    rows = input.flatten(-len(normalized_shape)).flatten(0, -2)
    weight, bias = (None if part is None else part.flatten() for part in (weight, bias))
    return _group_norm(rows, 1, weight, bias, eps).reshape(input.shape)


def _side_by_side(x: Tensor) -> Tensor:
    """[R, B, C, ...] as [B, R * C, ...]: the runs' channels beside each other."""
    return x.transpose(0, 1).flatten(1, 2)


def _one_by_one(x: Tensor, num_runs: int) -> Tensor:
    return x.unflatten(1, (num_runs, -1)).transpose(0, 1)


GROUPS = 3  # the place of `groups` behind a convolution's tensors, also behind a transposed one's
CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
LAYERS: dict[Callable[..., Any], Callable[..., Tensor]] = {
    F.linear: _linear,
    F.group_norm: _group_norm,
    F.layer_norm: _layer_norm,
} | {function: _convolution(function) for function in CONVOLUTIONS}
