"""A trained run for other programs: its weights, or encoder and decoder as programs of their own.

encoder: images [N, C, H, W], floats in [0, 1] -> mean and variance of q(z given x), each [N, D].
decoder: codes [N, D] -> mean and variance of p(x given z), each [N, C, H, W]. A learned sigma is in that variance.
"""

import argparse
import importlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from vae_lab import rng
from vae_lab.errors import ConfigError, VaeLabError
from vae_lab.models import Autoencoder
from vae_lab.tasks.command import open_run, say_written
from vae_lab.tasks.files import Writer, check_writable, write_all
from vae_lab.trained import TrainedRun

TOLERANCE = 1e-5  # by which an exported program may differ
Pair = tuple[Tensor, Tensor]


class Encoder(nn.Module):
    """Images to mean and variance of the posterior."""

    def __init__(self, model: Autoencoder):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Pair:
        q = self.model.posterior(x)
        return q.mean, q.variance


class Decoder(nn.Module):
    """Codes to mean and variance of the pixels."""

    def __init__(self, model: Autoencoder):
        super().__init__()
        self.model = model

    def forward(self, z: Tensor) -> Pair:
        px = self.model.likelihood(z)
        return px.mean, px.variance.expand_as(px.mean)


def command(arguments: argparse.Namespace) -> int:
    """`vae-lab export`."""
    arguments.device = "cpu"
    run = open_run(arguments)
    folder = Path(arguments.out).expanduser() if arguments.out else run.run_dir.export
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--out {folder}: a file; name a folder.")
    check_writable(folder / "file")
    contents = FORMATS[arguments.format_](run)
    files: dict[Path, Writer] = {folder / name: _bytes(data) for name, data in contents.items()}
    return say_written(write_all(files))


def export_safetensors(run: TrainedRun) -> dict[str, bytes]:
    """All parameters and buffers, with the run's config as JSON in the header."""
    data = {key: value for key, value in run.config["data"].items() if key not in ("root", "cache")}
    config = run.config | {"data": data}
    return {"model.safetensors": safetensors.torch.save(_state(run), {"format": "pt", "vae_lab_config": json.dumps(config)})}


def export_state_dict(run: TrainedRun) -> dict[str, bytes]:
    """All parameters and buffers as torch.save writes them; `torch.load(file, weights_only=True)` reads them."""
    buffer = io.BytesIO()
    torch.save(_state(run), buffer)
    return {"model.pt": buffer.getvalue()}


def export_torchscript(run: TrainedRun) -> dict[str, bytes]:
    """encoder.torchscript.pt and decoder.torchscript.pt, for any number of images."""

    def trace(program: nn.Module, example: Tensor) -> tuple[bytes, Callable[[Tensor], Pair]]:
        with quiet():
            traced = torch.jit.trace(program, example, check_trace=False)
            buffer = io.BytesIO()
            torch.jit.save(traced, buffer)
            buffer.seek(0)
            return buffer.getvalue(), torch.jit.load(buffer)

    return _programs(run, ".torchscript.pt", trace)


def export_onnx(run: TrainedRun) -> dict[str, bytes]:
    """encoder.onnx and decoder.onnx, for any number of images.

    Raises:
        ConfigError: one of the packages that write and run ONNX is not installed.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        needs(package, "export", f"--format onnx needs {package}")
    import onnxruntime

    def convert(program: nn.Module, example: Tensor) -> tuple[bytes, Callable[[Tensor], Pair]]:
        with quiet():
            names: dict[str, Any] = {"input_names": ["input"], "output_names": ["mean", "variance"]}
            batch = ({0: torch.export.Dim("n", min=1)},)
            converted = torch.onnx.export(program, (example,), dynamo=True, dynamic_shapes=batch, verbose=False, **names)
        assert converted is not None
        data = converted.model_proto.SerializeToString()
        session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])

        def call(x: Tensor) -> Pair:
            mean, variance = session.run(None, {"input": x.numpy()})
            return torch.from_numpy(np.asarray(mean)), torch.from_numpy(np.asarray(variance))

        return data, call

    return _programs(run, ".onnx", convert)


FORMATS: dict[str, Callable[[TrainedRun], dict[str, bytes]]] = {
    "safetensors": export_safetensors,
    "state_dict": export_state_dict,
    "torchscript": export_torchscript,
    "onnx": export_onnx,
}


def _programs(
    run: TrainedRun, suffix: str, convert: Callable[[nn.Module, Tensor], tuple[bytes, Callable[[Tensor], Pair]]]
) -> dict[str, bytes]:
    """Convert encoder and decoder, load each back, and compare it on another number of images than it was made with."""
    stream = rng.generator(0, "export")
    images = torch.rand(5, *run.image_shape, generator=stream)
    codes = torch.randn(5, run.model.latent_dim, generator=stream)
    files = {}
    for name, program, inputs in (("encoder", Encoder(run.model), images), ("decoder", Decoder(run.model), codes)):
        program.eval()
        data, loaded = convert(program, inputs[:2])
        with torch.no_grad():
            pairs = zip(program(inputs), loaded(inputs), strict=True)
        worst = max(float(((mine - other).abs() / (1 + mine.abs())).max()) for mine, other in pairs)
        if not worst <= TOLERANCE:
            raise VaeLabError(f"{name}{suffix} differs from the model by {worst:.2g}, more than {TOLERANCE:g}; not written.")
        files[f"{name}{suffix}"] = data
    return files


def needs(package: str, extra: str, what: str) -> None:
    """Raise `ConfigError` with the command that installs a package of an optional extra, if it is not there."""
    try:
        importlib.import_module(package)
    except ImportError as error:
        raise ConfigError(f"{what}, which is not installed: pip install -e '.[{extra}]', or pip install {package}.") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Without the exporters' remarks on themselves."""
    levels = {name: logging.getLogger(name).level for name in ("torch.onnx", "onnxscript", "onnx_ir")}
    try:
        for name in levels:
            logging.getLogger(name).setLevel(logging.ERROR)
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _state(run: TrainedRun) -> dict[str, Tensor]:
    return {key: tensor.detach().cpu().contiguous() for key, tensor in run.system.state().items()}


def _bytes(data: bytes) -> Writer:
    return lambda file: file.write(data)
