"""Operations of stacked runs that vmap would take apart: computed whole, for all runs at once, as a run alone computes them.

Taken apart, they are other operations. The cross-entropy becomes what takes five times as long. In bf16, autocast decides too late:
a linear layer is by then a product and a sum, so that the product is rounded before its bias is added, and a convolution is one
that autocast does not know, and runs in single precision.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, baddbmm, bmm, is_tensor
from torch._C._functorch import _add_batch_dim, _remove_batch_dim, is_batchedtensor, peek_interpreter_stack
from torch._functorch.pyfunctorch import VmapInterpreter, retrieve_current_functorch_interpreter
from torch.overrides import TorchFunctionMode


def are_stacked(*inputs: Any) -> bool:
    """Whether any of these belongs to several runs: inside the one vmap over runs, and in no transform within it."""
    return any(is_batchedtensor(part) for part in inputs if is_tensor(part)) and peek_interpreter_stack().level() == 1


def of_all_runs(operation: Callable[..., Tensor], *tensors: Tensor | None) -> Tensor:
    """Call `operation` below vmap, with each tensor as [R, ...]; its result [R, ...] goes on under vmap."""
    interpreter = retrieve_current_functorch_interpreter()
    assert isinstance(interpreter, VmapInterpreter)
    level, num_runs = interpreter.level(), interpreter.batch_size()
    stacked = [None if tensor is None else _remove_batch_dim(tensor, level, num_runs, 0) for tensor in tensors]
    with interpreter.lower():
        out = operation(*stacked)
    return _add_batch_dim(out, 0, level)


class UndividedLayers(TorchFunctionMode):
    """Inside the vmap over runs, each layer of `LAYERS` is an operation that autocast sees whole."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        layer = LAYERS.get(function)
        if layer is None or not are_stacked(*args, *kwargs.values()):
            return function(*args, **kwargs)
        return layer(*args, **kwargs)


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    def of_all(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        rows = x.reshape(len(x), -1, x.shape[-1])
        product = bmm(rows, weight.mT) if bias is None else baddbmm(bias[:, None], rows, weight.mT)
        return product.reshape(*x.shape[:-1], weight.shape[1])

    return of_all_runs(of_all, input, weight, bias)


def _convolution(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def layer(input: Tensor, weight: Tensor, bias: Tensor | None = None, *settings: Any, **options: Any) -> Tensor:
        if input.dim() < weight.dim():  # one image, without the axis of a batch
            return layer(input[None], weight, bias, *settings, **options)[0]

        def of_all(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            given, more = list(settings), dict(options)
            if len(given) > GROUPS:
                given[GROUPS] *= len(x)
            else:
                more["groups"] = len(x) * more.get("groups", 1)
            bias = None if bias is None else bias.flatten()
            return _one_by_one(function(_side_by_side(x), weight.flatten(0, 1), bias, *given, **more), len(x))

        return of_all_runs(of_all, input, weight, bias)

    return layer


def _group_norm(
    input: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    def of_all(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        weight, bias = (None if part is None else part.flatten() for part in (weight, bias))
        return _one_by_one(F.group_norm(_side_by_side(x), len(x) * num_groups, weight, bias, eps), len(x))

    return of_all_runs(of_all, input, weight, bias)


def _layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Its parts in single precision and rounded once; autocast asks for the rounding on a CPU only."""
    out = F.layer_norm(input.float(), list(normalized_shape), weight, bias, eps)
    return out.to(input.dtype) if input.device.type == "cpu" else out


def _side_by_side(x: Tensor) -> Tensor:
    """[R, B, C, ...] as [B, R * C, ...]: the channels of all runs beside each other."""
    return x.transpose(0, 1).flatten(1, 2)


def _one_by_one(x: Tensor, num_runs: int) -> Tensor:
    """Undoes `_side_by_side`."""
    return x.unflatten(1, (num_runs, -1)).transpose(0, 1)


GROUPS = 3  # where `groups` stands behind the three tensors of a convolution, and of a transposed one
CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
LAYERS: dict[Any, Callable[..., Tensor]] = {
    F.linear: _linear,
    F.group_norm: _group_norm,
    F.layer_norm: _layer_norm,
} | {function: _convolution(function) for function in CONVOLUTIONS}
