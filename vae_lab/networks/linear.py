"""A linear layer whose large products run where they are fastest.

torch multiplies single-precision matrices on x86 with MKL, which does not use AVX-512 on AMD processors; oneDNN, which torch
carries too, does. On 2 cores of an AMD EPYC the products of 784-400-20 run at 190 and 390 GFLOP/s (LOG.md).
"""

import platform
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

LARGE = 2**22  # multiply-adds of a product from which on the call to oneDNN costs less than it saves


class Linear(nn.Linear):
    """`nn.Linear`, with its parameters and its results up to rounding."""

    def forward(self, x: Float[Tensor, "*batch N"]) -> Float[Tensor, "*batch M"]:
        if torch.compiler.is_compiling() or torch.jit.is_tracing() or not self._is_large(x):
            return F.linear(x, self.weight, self.bias)
        return _Product.apply(x, self.weight, self.bias)

    def _is_large(self, x: Tensor) -> bool:
        """Whether oneDNN is worth its call, and the faster one here."""
        plain = x.dim() == 2 and x.dtype == torch.float32 and x.device.type == "cpu" and self.bias is not None
        large = plain and len(x) * self.weight.numel() >= LARGE
        return large and amd_with_avx512() and not torch.is_autocast_enabled("cpu")


@cache
def amd_with_avx512() -> bool:
    """Whether this processor is one, and this torch has what it takes. A fixed answer for a machine: runs are to repeat."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    described = Path("/proc/cpuinfo")
    return "AuthenticAMD" in (described.read_text() if described.exists() else platform.processor())


def _multiply(x: Float[Tensor, "B N"], weight: Float[Tensor, "M N"], bias: Float[Tensor, " M"] | None) -> Float[Tensor, "B M"]:
    """x times the transpose of `weight`, plus `bias`."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return _multiply(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wanted, gradient = ctx.needs_input_grad, gradient.contiguous()
        return (
            _multiply(gradient, weight.t(), None) if wanted[0] else None,
            _multiply(gradient.t(), x.t(), None) if wanted[1] else None,
            gradient.sum(0) if wanted[2] else None,
        )

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Tensor) -> tuple[Tensor, int]:
        parts = zip(inputs, in_dims, strict=True)
        runs = [part.expand(info.batch_size, *part.shape) if dim is None else part.movedim(dim, 0) for part, dim in parts]
        return torch.stack([_Product.apply(*one) for one in zip(*runs, strict=True)]), 0
