"""What the tasks are worth on the real MNIST, for the VAE of `experiment=mnist_vae_h400_z20` after its 5 epochs."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vae_lab
from tests.test_trained import copy_of
from vae_lab import pictures
from vae_lab.tasks import picture, source
from vae_lab.tasks.anomaly import detection
from vae_lab.tasks.files import write_all
from vae_lab.tasks.interpolate import decode_path, path
from vae_lab.tasks.masks import make_mask, mask_reader
from vae_lab.trained import TrainedRun

pytestmark = pytest.mark.mnist
EXPERIMENT = "experiment=mnist_vae_h400_z20"


@pytest.fixture
def folder(trained, mnist_root: Path) -> Path:
    return trained(EXPERIMENT, f"data.root={mnist_root}")


@pytest.fixture
def run(folder: Path) -> TrainedRun:
    return vae_lab.load(folder, device="cpu")


def test_digit_0_is_an_outlier_to_a_model_trained_without_it(trained, mnist_root: Path) -> None:
    without = trained(EXPERIMENT, f"data.root={mnist_root}", "data.classes=[1,2,3,4,5,6,7,8,9]")
    run = vae_lab.load(without, device="cpu")
    assert len(source.own_train(run)) == 60_000 - 5923
    images = source.read(run, "mnist:test:0-9")
    score = run.anomaly_score(images.x).double().numpy()
    found = detection(score, images.y.numpy() == 0)
    assert found["auroc"] >= 0.90
    assert found["average_precision"] >= 0.40  # guessing: 0.098


# Squared error on the missing pixels, at most, as a part of mean-filling's: mean of 8 chains, optimised code
LIMITS = {"random": (0.35, 0.30), "centre": (0.85, 0.65), "lower": (1.0, 0.80)}


@pytest.mark.parametrize("mask", LIMITS)
def test_imputation_against_mean_filling(run: TrainedRun, mask: str) -> None:
    x = source.read(run).x[:300].float() / 255
    holes = mask_reader(make_mask(mask, 300, run.image_shape, 0.5, 12, seed=0), 300, run.image_shape)(slice(0, 300))
    fill = source.own_train(run).x.float().mean(0) / 255

    def error(filled: torch.Tensor) -> float:
        return float((filled - x).square().sum())

    mean_filling = error(torch.where(holes, fill, x))
    chains = run.impute(x, holes, num_chains=8)
    single = float(np.mean([error(chains.samples[:, chain]) for chain in range(8)]))
    optimised = run.impute(x, holes, "optimise").mean
    assert error(chains.mean) <= LIMITS[mask][0] * mean_filling
    assert error(optimised) <= LIMITS[mask][1] * mean_filling
    assert single > error(chains.mean)


def test_a_gif_of_40_frames_takes_less_than_3_seconds(run: TrainedRun, tmp_path: Path) -> None:
    x = source.read(run).x
    began = time.perf_counter()
    ends = run.encode(x[:2]).mu
    frames = decode_path(run, path(ends[:1], ends[1:], 40))
    sheets = [picture.enlarge(pictures.grid(frames[:, index], 1), 112) for index in range(40)]
    write_all({tmp_path / "way.gif": picture.gif(sheets)})
    assert time.perf_counter() - began < 3
    with Image.open(tmp_path / "way.gif") as image:
        assert image.n_frames == 78


def test_the_commands_on_mnist(call, folder: Path, tmp_path: Path) -> None:
    run = copy_of(folder, tmp_path / "run")
    for command in (
        ("encode", "--plot"), ("sample",), ("reconstruct",), ("interpolate", "--classes", "3", "8", "--frames", "40"),
        ("traverse",), ("anomaly",), ("impute", "--n", "20"), ("card",), ("export", "--format", "torchscript"),
    ):  # fmt: skip
        assert call(command[0], run, *command[1:]) == 0, command
    written = {path.name: path.stat().st_size for path in (run / "tasks").iterdir()}
    assert all(size < 400_000 for name, size in written.items() if name.endswith((".gif", ".png"))), written
    assert json.loads((run / "tasks" / "imputation.json").read_text())["missing_pixels_per_image"] == pytest.approx(392, rel=0.02)
