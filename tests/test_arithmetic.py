"""Products are exact single precision unless asked otherwise, whoever computes them, and torch's switches are left as found."""

import contextlib
import math
from collections.abc import Callable

import pytest
import torch

from vae_lab import arithmetic as module
from vae_lab.arithmetic import arithmetic, onednn_is_faster
from vae_lab.config import Precision

CPU = torch.device("cpu")


def switches() -> tuple[str, bool]:
    return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize(
    ("precision", "expected"),
    [(Precision.fp32, ("highest", False)), (Precision.tf32, ("high", True)), (Precision.bf16, ("highest", False))],
)
def test_switches_are_set_and_put_back(precision: Precision, expected: tuple[str, bool]) -> None:
    before = switches()
    with contextlib.suppress(ZeroDivisionError), arithmetic(precision, CPU, 0.0):
        assert switches() == expected
        raise ZeroDivisionError
    assert switches() == before


@pytest.mark.skipif(not onednn_is_faster(), reason="oneDNN is chosen on AMD processors with AVX-512 only")
@pytest.mark.parametrize(("multiply_adds", "expected"), [(module.LARGE, "medium"), (module.LARGE - 1, "highest")])
def test_onednn_is_chosen_for_large_products(multiply_adds: int, expected: str) -> None:
    with arithmetic(Precision.fp32, CPU, float(multiply_adds)):
        assert switches()[0] == expected


@pytest.mark.parametrize("shape", [(128, 784, 400), (37, 1000, 63), (400, 128, 20)])
def test_large_products_stay_exact(shape: tuple[int, int, int]) -> None:
    rows, inner, columns = shape
    draws = torch.Generator().manual_seed(1)
    a, b = torch.randn(rows, inner, generator=draws), torch.randn(inner, columns, generator=draws)
    with arithmetic(Precision.fp32, CPU, math.inf):
        found = a @ b
    assert float((found - a.double() @ b.double()).abs().max()) < 1e-5 * inner**0.5


@pytest.mark.parametrize(("error", "chosen"), [(1e-2, False), (1e-6, True)])
def test_onednn_is_not_chosen_where_it_rounds(monkeypatch: pytest.MonkeyPatch, error: float, chosen: bool) -> None:
    monkeypatch.setattr(module, "_error", lambda *_: error)
    monkeypatch.setattr(module.Path, "read_text", lambda *_: "vendor_id : AuthenticAMD")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    assert onednn_is_faster.__wrapped__() is chosen


@pytest.mark.parametrize(("vendor", "capability"), [("GenuineIntel", "AVX512"), ("AuthenticAMD", "AVX2")])
def test_other_processors_keep_torchs_choice(monkeypatch: pytest.MonkeyPatch, vendor: str, capability: str) -> None:
    monkeypatch.setattr(module.Path, "read_text", lambda *_: vendor)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert onednn_is_faster.__wrapped__() is False


def test_tf32_is_refused_without_cuda(command: Callable) -> None:
    done = command("trainer.precision=tf32", "device=cpu")
    assert done.returncode == 2
    assert "trainer.precision=tf32 is CUDA's" in done.stderr
