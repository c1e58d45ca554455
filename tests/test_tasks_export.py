"""Exports, loaded by what reads such files and not by us, give what the run gives."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch

import vae_lab
from tests.test_trained import LINEAR_AE, QUICK
from vae_lab.errors import ConfigError
from vae_lab.tasks.export import FORMATS
from vae_lab.trained import TrainedRun

RUNS = {
    "vae bce mlp": QUICK,
    "vae gaussian conv": ("loss=gaussian", "network=conv", "network.channels=[8,16]", "latent_dim=3", "trainer.epochs=1"),
    "autoencoder mse": LINEAR_AE,
}


@pytest.fixture(params=RUNS)
def run(trained, request: pytest.FixtureRequest) -> TrainedRun:
    return vae_lab.load(trained(*RUNS[request.param]), device="cpu")


def write(run: TrainedRun, format_: str, folder: Path) -> list[Path]:
    paths = []
    for name, data in FORMATS[format_](run).items():
        paths.append(folder / name)
        paths[-1].write_bytes(data)
    return paths


def inputs(run: TrainedRun, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(n)
    return torch.rand(n, *run.image_shape, generator=generator), torch.randn(n, run.model.latent_dim, generator=generator)


def check_programs(run: TrainedRun, encoder, decoder) -> None:
    """Both outputs of both programs, for several numbers of images."""
    for n in (1, 2, 7):
        x, z = inputs(run, n)
        mu, variance = encoder(x)
        torch.testing.assert_close(mu, run.encode(x).mu, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(variance, run.encode(x).variance, rtol=1e-5, atol=1e-5)
        mean, pixel_variance = decoder(z)
        torch.testing.assert_close(mean, run.decode(z), rtol=1e-5, atol=1e-5)
        px = run.model.likelihood(z)
        torch.testing.assert_close(pixel_variance, px.variance.expand_as(mean), rtol=1e-5, atol=1e-5)


def test_weights_are_equal(run: TrainedRun, tmp_path: Path) -> None:
    (path,) = write(run, "safetensors", tmp_path)
    (pickled,) = write(run, "state_dict", tmp_path)
    for state in (safetensors.torch.load_file(path), torch.load(pickled, weights_only=True)):
        assert state.keys() == run.system.state_dict().keys()
        assert all(torch.equal(state[name], tensor) for name, tensor in run.system.state_dict().items())
    with safetensors.safe_open(path, "pt") as file:
        config = json.loads(file.metadata()["vae_lab_config"])
    assert config["model"] == run.config["model"]
    assert "root" not in config["data"]


def test_torchscript_is_equal(run: TrainedRun, tmp_path: Path) -> None:
    encoder, decoder = (torch.jit.load(path) for path in write(run, "torchscript", tmp_path))
    check_programs(run, encoder, decoder)


def test_onnx_is_equal(run: TrainedRun, tmp_path: Path) -> None:
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    programs = []
    for path in write(run, "onnx", tmp_path):
        onnx.checker.check_model(str(path), full_check=True)
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        assert [output.name for output in session.get_outputs()] == ["mean", "variance"]
        programs.append(lambda x, session=session: [torch.from_numpy(np.array(y)) for y in session.run(None, {"input": x.numpy()})])
    check_programs(run, *programs)


def test_a_learned_sigma_is_carried(trained, tmp_path: Path) -> None:
    run = vae_lab.load(trained(*RUNS["vae gaussian conv"]), device="cpu")
    sigma = math.exp(float(run.model.loss.log_sigma))
    assert sigma != pytest.approx(0.5, abs=1e-3)  # where it began
    decoder = torch.jit.load(write(run, "torchscript", tmp_path)[1])
    _, variance = decoder(inputs(run, 2)[1])
    torch.testing.assert_close(variance, torch.full_like(variance, sigma**2))


def test_torchscript_needs_nothing_of_ours(trained, tmp_path: Path) -> None:
    run = vae_lab.load(trained(*QUICK), device="cpu")
    _, decoder = write(run, "torchscript", tmp_path)
    code = (
        f"import torch, sys; print(torch.jit.load({str(decoder)!r})(torch.zeros(1, 4))[0].sum().item(), 'vae_lab' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    total, ours = done.stdout.split()
    assert float(total) == pytest.approx(float(run.decode(torch.zeros(1, 4)).sum()), rel=1e-5)
    assert ours == "False"


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_extra_is_one_message(trained, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    run = vae_lab.load(trained(*QUICK), device="cpu")
    with pytest.raises(ConfigError, match=rf"--format onnx needs {package}, .* pip install -e '\.\[export\]'"):
        FORMATS["onnx"](run)
