"""Which library multiplies matrices, and how precisely."""

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch

from vae_lab.config import Precision

LARGE = 2**22  # multiply-adds of a product from which on oneDNN is the faster library: 2 to 4 million


@contextmanager
def arithmetic(precision: Precision, device: torch.device, multiply_adds: float) -> Iterator[None]:
    """Single-precision products as `precision` says, by the library that is fastest for products of `multiply_adds`.

    On CUDA, fp32 is IEEE single precision also in convolutions, where torch prefers TensorFloat-32; tf32 is that everywhere.
    On x86 torch multiplies with MKL, which leaves AVX-512 unused on AMD processors: on 2 cores of an EPYC the products of
    784-400-20 run at 190 GFLOP/s, with oneDNN at 400 (LOG.md).
    """
    onednn = device.type == "cpu" and multiply_adds >= LARGE and onednn_is_faster()
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        torch.set_float32_matmul_precision("medium" if onednn else "high" if precision is Precision.tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = precision is Precision.tf32
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


@cache
def onednn_is_faster() -> bool:
    """Whether this is an AMD processor with AVX-512 on which oneDNN stays exact: a fixed answer for a machine, as runs repeat.

    torch asks oneDNN for single-precision products only at precision 'medium', where they may be computed in bfloat16. Without
    matrix units for that, oneDNN has none faster than its exact ones, and uses those; that it does is measured here, not believed.
    """
    described = Path("/proc/cpuinfo")
    processor = described.read_text() if described.exists() else platform.processor()
    if "AuthenticAMD" not in processor or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    before, draws = torch.get_float32_matmul_precision(), torch.Generator().manual_seed(0)
    try:
        torch.set_float32_matmul_precision("medium")
        return all(_error(*sizes, draws) < 1e-5 for sizes in ((128, 784, 400), (784, 128, 400), (16, 256, 2048)))
    finally:
        torch.set_float32_matmul_precision(before)


def _error(rows: int, inner: int, columns: int, draws: torch.Generator) -> float:
    """The largest error of products of normal numbers, plain and transposed; about 1e-6 in single precision, 1e-2 in bfloat16."""
    a, b = torch.randn(rows, inner, generator=draws), torch.randn(inner, columns, generator=draws)
    exact = a.double() @ b.double()
    found = (a @ b, a.t().contiguous().t() @ b, a @ b.t().contiguous().t(), (a[None] @ b[None])[0])
    return max(float((product - exact).abs().max() / inner**0.5) for product in found)
