"""A trained run as functions: against the model's own mathematics, in the kind that came in, and with clear refusals."""

import dataclasses
import hashlib
import json
import math
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

import vae_lab
from tests.conftest import ROOT
from vae_lab.arrays import check_kind
from vae_lab.config import fingerprint
from vae_lab.data import load as load_data
from vae_lab.errors import CheckpointError, ConfigError, DataError
from vae_lab.resume import check_state
from vae_lab.trained import TrainedRun

QUICK = ("trainer.epochs=2", "hidden_dims=[32]", "latent_dim=4")
LINEAR_AE = ("model=autoencoder", "hidden_dims=[]", "loss=mse", "latent_dim=3", "trainer.epochs=2")
LINEAR_VAE = ("model=vae", "hidden_dims=[]", "loss=mse", "latent_dim=3", "trainer.epochs=2")


@pytest.fixture
def vae(trained) -> TrainedRun:
    return vae_lab.load(trained(*QUICK), device="cpu")


@pytest.fixture
def linear_ae(trained) -> TrainedRun:
    return vae_lab.load(trained(*LINEAR_AE), device="cpu")


@pytest.fixture
def x(compose) -> torch.Tensor:
    return load_data(compose()["data"]).test.x


def pixels(x: torch.Tensor) -> torch.Tensor:
    return x.float() / 255


def test_a_linear_autoencoder_encodes_and_decodes_with_its_matrices(linear_ae: TrainedRun, x: torch.Tensor) -> None:
    weights = dict(linear_ae.system.model.named_parameters())
    w, b = (weights[f"encoder.{name}"] for name in ("1.weight", "1.bias"))
    v, c = (weights[f"decoder.{name}"] for name in ("0.weight", "0.bias"))
    mu, variance = linear_ae.encode(x)
    expected = pixels(x).flatten(1) @ w.T + b
    torch.testing.assert_close(mu, expected)
    assert not variance.any()
    torch.testing.assert_close(linear_ae.decode(mu).flatten(1), expected @ v.T + c)
    torch.testing.assert_close(linear_ae.reconstruct(x), linear_ae.decode(mu))


def test_elbo_is_the_one_of_results_json(trained, vae: TrainedRun, x: torch.Tensor) -> None:
    reported = json.loads((trained(*QUICK) / "results.json").read_text())["test"]["elbo"]
    assert float(vae.elbo(x).double().mean()) == pytest.approx(reported, rel=1e-6)
    assert float(vae.elbo(x, seed=1).double().mean()) != pytest.approx(reported, rel=1e-6)


def test_elbo_of_a_linear_vae_has_a_closed_form(trained, x: torch.Tensor) -> None:
    """E_q |x - V z - c|^2 = |x - V mu - c|^2 + tr(V S V^T), and the KL of two normals."""
    run = vae_lab.load(trained(*LINEAR_VAE), device="cpu")
    weights = {name: tensor.double() for name, tensor in run.system.model.named_parameters()}
    v, c = weights["decoder.0.weight"], weights["decoder.0.bias"]
    mu, variance = (part.double() for part in run.encode(x[:20]))
    residual = (pixels(x[:20]).double().flatten(1) - mu @ v.T - c).square().sum(1)
    squared_error = residual + (variance * v.square().sum(0)).sum(1)
    nll = squared_error + 64 / 2 * np.log(np.pi)
    kl = 0.5 * (variance + mu.square() - 1 - variance.log()).sum(1)
    difference = run.elbo(x[:20], num_samples=4000).double() + nll + kl  # of deviation 10 a draw
    assert difference.abs().max() < 0.8
    assert difference.mean().abs() < 0.15


def test_the_answer_has_the_kind_of_the_question(vae: TrainedRun, x: torch.Tensor) -> None:
    bytes_, floats = x[:9].numpy(), pixels(x[:9])
    mu = vae.encode(floats).mu
    for images in (bytes_, bytes_[:, 0], floats.numpy(), floats.double().numpy(), floats.numpy().astype(">f4"), bytes_[::-1][::-1]):
        found = vae.encode(images)
        assert isinstance(found.mu, np.ndarray)
        assert isinstance(found.variance, np.ndarray)
        np.testing.assert_allclose(found.mu, mu.numpy(), rtol=1e-5, atol=1e-6)
    assert isinstance(vae.decode(mu.numpy()), np.ndarray)
    assert isinstance(vae.reconstruct(floats), torch.Tensor)
    assert isinstance(vae.elbo(bytes_), np.ndarray)
    assert isinstance(vae.anomaly_score(bytes_, "reconstruction_error"), np.ndarray)
    assert isinstance(vae.interpolate(bytes_[:2], bytes_[2:4]), np.ndarray)
    assert isinstance(vae.impute(bytes_, np.ones((8, 8), bool), steps=1).mean, np.ndarray)
    assert isinstance(vae.traverse(bytes_[:1]).images, np.ndarray)
    assert isinstance(vae.sample(3), torch.Tensor)


def test_colour_may_be_last(trained, tmp_path: Path) -> None:
    from PIL import Image

    generator = np.random.default_rng(0)
    for index in range(12):
        Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(tmp_path / f"{index:02d}.png")
    folder = trained("data=folder", f"data.root={tmp_path}", "data.size=8", "data.channels=3", "trainer.batch_size=4", *QUICK)
    run = vae_lab.load(folder, device="cpu")
    last = generator.integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    np.testing.assert_array_equal(run.encode(last).mu, run.encode(last.transpose(0, 3, 1, 2)).mu)


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (np.zeros((2, 1, 9, 8), np.uint8), r"shape \[2, 1, 9, 8\]: this model takes \[N, 1, 8, 8\] or \[N, 8, 8\]"),
        (np.zeros((2, 3, 8, 8), np.uint8), r"shape \[2, 3, 8, 8\]"),
        (np.zeros((8, 8), np.uint8), r"a single image: add a leading axis"),
        (np.zeros((2, 8, 8), np.int64), r"type int64: pass uint8 from 0 to 255, or floats"),
        (np.zeros((2, 8, 8), bool), r"type bool"),
        (torch.zeros(2, 8, 8, dtype=torch.int32), r"type torch.int32"),
        (np.full((2, 8, 8), 255.0), r"values from 255 to 255: floats must lie in \[0, 1\]. Divide by 255"),
        (np.full((2, 8, 8), -0.1), r"values from -0.1"),
        (np.full((2, 8, 8), np.nan), r"NaN or infinite"),
        (torch.full((2, 8, 8), float("inf")), r"NaN or infinite"),
    ],
)
def test_images_of_another_kind_are_refused(vae: TrainedRun, images, said: str) -> None:
    for method in (vae.encode, vae.reconstruct, vae.elbo, vae.anomaly_score):
        with pytest.raises(DataError, match=said):
            method(images)


def test_lists_are_refused() -> None:
    """Asked of the check itself: in the tests a wrong type already stops at the signature."""
    with pytest.raises(DataError, match="images: pass a NumPy array or a torch tensor, not list"):
        check_kind([[0.0]], "images")


@pytest.mark.parametrize(
    "codes", [np.zeros((2, 3), np.float32), np.zeros(4), torch.zeros(2, 4, dtype=torch.int64), np.full((1, 4), np.nan)]
)
def test_codes_of_another_kind_are_refused(vae: TrainedRun, codes) -> None:
    with pytest.raises(DataError, match="codes"):
        vae.decode(codes)


def every_answer(run: TrainedRun, x: torch.Tensor) -> dict[str, torch.Tensor]:
    hole = torch.zeros(8, 8, dtype=torch.bool)
    hole[4:] = True
    imputed = run.impute(x, hole, steps=3, num_chains=2)
    return {
        "mu": run.encode(x).mu,
        "variance": run.encode(x).variance,
        "images": run.reconstruct(x),
        "elbo": run.elbo(x, num_samples=2),
        "mean": imputed.mean,
        "samples": imputed.samples,
        "optimised": run.impute(x, hole, "optimise", steps=5).mean,
        "way": run.interpolate(x, x.flip(0), 3),
        **{kind: run.anomaly_score(x, kind) for kind in ("negative_elbo", "reconstruction_error", "latent_distance")},
    }


def test_batches_change_nothing(vae: TrainedRun, x: torch.Tensor) -> None:
    whole = every_answer(vae, x[:23])
    for size in (1, 7):
        parts = every_answer(dataclasses.replace(vae, batch_size=size), x[:23])
        for name, answer in whole.items():
            torch.testing.assert_close(parts[name], answer, rtol=1e-4, atol=1e-4, msg=f"{name}, {size}")


def test_no_images_are_refused(vae: TrainedRun, x: torch.Tensor) -> None:
    with pytest.raises(DataError, match="at least one"):
        vae.encode(x[:0])
    with pytest.raises(DataError, match="at least one"):
        vae.decode(torch.zeros(0, 4))


def test_no_batch_is_larger_than_the_runs(vae: TrainedRun, x: torch.Tensor, tmp_path: Path) -> None:
    """A memory-mapped array is read in slices: as floats 50 MB of images, and memory grows by a small part of it."""
    path = tmp_path / "many.npy"
    many = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(200_000, 1, 8, 8))
    del many
    seen = []
    small = dataclasses.replace(vae, batch_size=5000, on_batch=lambda done, total: seen.append((done, total)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    mu = small.encode(np.load(path, mmap_mode="r")).mu
    assert mu.shape == (200_000, 4)
    assert seen == [(5000 * (index + 1), 200_000) for index in range(40)]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 45_000  # KiB; as floats the images are 50,000


def test_global_random_states_are_left_alone_and_not_read(vae: TrainedRun, x: torch.Tensor) -> None:
    torch.manual_seed(1)
    np.random.seed(1)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    first = every_answer(vae, x[:5]) | {"new": vae.sample(4)}
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    torch.manual_seed(2)
    second = every_answer(vae, x[:5]) | {"new": vae.sample(4)}
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA here")
def test_a_gpu_gives_the_same(trained, x: torch.Tensor) -> None:
    folder = trained(*QUICK)
    cpu, cuda = (every_answer(vae_lab.load(folder, device=name), x[:23]) for name in ("cpu", "cuda"))
    drawn = ("elbo", "negative_elbo")  # noise of the evaluation is drawn where the run was evaluated
    for name in cpu:
        if name not in drawn:
            torch.testing.assert_close(cuda[name], cpu[name], rtol=1e-3, atol=1e-3, msg=name)
    assert float(cuda["elbo"].mean()) == pytest.approx(float(cpu["elbo"].mean()), rel=0.05)


def test_what_needs_a_prior(linear_ae: TrainedRun, x: torch.Tensor) -> None:
    asked: list[Callable] = [
        lambda: linear_ae.elbo(x),
        lambda: linear_ae.sample(3),
        lambda: linear_ae.traverse(),
        lambda: linear_ae.anomaly_score(x),
        lambda: linear_ae.anomaly_score(x, "latent_distance"),
    ]
    for ask in asked:
        with pytest.raises(ConfigError, match="prior"):
            ask()


def copy_of(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to))


def test_the_last_checkpoint_is_the_last(trained, tmp_path: Path, x: torch.Tensor) -> None:
    folder = trained(*QUICK, "trainer.patience=1", "optimizer.lr=0.3", "trainer.epochs=6")
    best, last = (vae_lab.load(folder, name, "cpu") for name in ("best", "last"))
    assert best.manifest["epoch"] < last.manifest["epoch"]
    assert not torch.equal(best.encode(x).mu, last.encode(x).mu)


def test_what_is_no_run_is_refused(trained, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no run lies there"):
        vae_lab.load(tmp_path / "nothing")
    with pytest.raises(ConfigError, match="choose best or last"):
        vae_lab.load(trained(*QUICK), "first")
    with pytest.raises(ConfigError, match="choose auto, cpu"):
        vae_lab.load(trained(*QUICK), device="tpu")
    folder = copy_of(trained(*QUICK), tmp_path / "run")
    weights = folder / "checkpoints" / "best" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(CheckpointError, match="checksum differs"):
        vae_lab.load(folder)
    shutil.rmtree(folder / "checkpoints" / "best")
    with pytest.raises(CheckpointError, match=r"no such checkpoint\. There is 'last'"):
        vae_lab.load(folder)
    shutil.rmtree(folder / "checkpoints")
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        vae_lab.load(folder)


def test_weights_of_another_run_are_refused(trained, tmp_path: Path) -> None:
    folder = copy_of(trained(*QUICK), tmp_path / "run")
    shutil.rmtree(folder / "checkpoints")
    shutil.copytree(trained(*LINEAR_VAE) / "checkpoints", folder / "checkpoints")
    with pytest.raises(CheckpointError, match="fingerprints differ"):
        vae_lab.load(folder)


def rewritten(folder: Path, name: str, change: Callable[[dict], object]) -> None:
    """A checkpoint of the same run with other tensors, and right checksums."""
    path = folder / "checkpoints" / name / "model.safetensors"
    tensors = load_tensors(path.read_bytes())
    change(tensors)
    data = save_tensors(tensors)
    path.write_bytes(data)
    manifest = json.loads(path.with_name("manifest.json").read_text())
    manifest["files"][path.name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    path.with_name("manifest.json").write_text(json.dumps(manifest))


WEIGHT = "model.encoder.1.weight"
UNSOUND: dict[str, tuple[Callable[[dict], object], str]] = {
    "NaN": (
        lambda found: found[WEIGHT].view(-1)[:5].fill_(math.nan),
        rf"1 of \d+ tensors hold NaN or infinite.*{WEIGHT} \(5 of 2,048",
    ),
    "infinite": (lambda found: found["model.decoder.0.bias"][0].fill_(math.inf), r"model.decoder.0.bias \(1 of 32\)"),
    "half": (lambda found: found.update({WEIGHT: found[WEIGHT].half()}), f"{WEIGHT} is torch.float16, not torch.float32"),
    "bfloat16": (lambda found: found.update({k: v.bfloat16() for k, v in found.items()}), "is torch.bfloat16, not torch.float32"),
    "double": (lambda found: found.update({WEIGHT: found[WEIGHT].double()}), f"{WEIGHT} is torch.float64"),
    "integers": (lambda found: found.update({WEIGHT: found[WEIGHT].int()}), f"{WEIGHT} is torch.int32"),
    "booleans": (lambda found: found.update({WEIGHT: found[WEIGHT] > 0}), f"{WEIGHT} is torch.bool"),
    "complex": (lambda found: found.update({WEIGHT: found[WEIGHT].cfloat()}), f"{WEIGHT} is torch.complex64"),
    "empty": (lambda found: found.update({WEIGHT: torch.zeros(0)}), rf"{WEIGHT} is \(0,\), not \(32, 64\)"),
    "nothing": (lambda found: found.clear(), rf"missing {WEIGHT}"),
    "fp8": (lambda found: found.update({WEIGHT: found[WEIGHT].to(torch.float8_e4m3fn)}), f"{WEIGHT} is torch.float8_e4m3fn"),
}


@pytest.mark.parametrize("name", ["best", "last"])
@pytest.mark.parametrize("kind", UNSOUND)
def test_weights_that_are_no_numbers_or_of_another_type_are_refused(trained, tmp_path: Path, kind: str, name: str) -> None:
    folder = copy_of(trained(*QUICK), tmp_path / "run")
    change, message = UNSOUND[kind]
    rewritten(folder, name, change)
    with pytest.raises(CheckpointError, match=message):
        vae_lab.load(folder, name, device="cpu")
    other = "last" if name == "best" else "best"
    assert vae_lab.load(folder, other, device="cpu").manifest["epoch"] > 0


def test_what_is_built_infinite_may_stay_so() -> None:
    """A mask of -inf is no damage; anywhere else it is."""
    built = {"mask": torch.tensor([0.0, -math.inf]), "unset": torch.tensor([math.nan]), "weight": torch.ones(2)}
    check_state(Path("here"), built, built)
    check_state(Path("here"), built | {"unset": torch.tensor([2.0]), "mask": torch.zeros(2)}, built)
    for wrong in ([-math.inf, 0.0], [0.0, math.inf], [0.0, math.nan]):
        with pytest.raises(CheckpointError, match=r"here: 1 of 3 tensors .*: mask \(1 of 2\)"):
            check_state(Path("here"), built | {"mask": torch.tensor(wrong)}, built)


def test_a_run_from_before_classes_could_be_chosen_loads(trained, tmp_path: Path, x: torch.Tensor) -> None:
    folder = copy_of(trained(*QUICK), tmp_path / "run")
    cfg = yaml.safe_load((folder / "config.yaml").read_text())
    del cfg["data"]["classes"]
    (folder / "config.yaml").write_text(yaml.safe_dump(cfg))
    manifest = folder / "checkpoints" / "best" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"fingerprint": fingerprint(cfg)}))
    assert torch.equal(vae_lab.load(folder, device="cpu").encode(x).mu, vae_lab.load(trained(*QUICK), device="cpu").encode(x).mu)


HOSTILE = {
    "a path to code": lambda cfg: cfg["model"].update(_target_="os.system"),
    "an interpolation": lambda cfg: cfg.update(name="${oc.env:HOME}"),
    "an unknown class": lambda cfg: cfg["model"].update(name="os.system"),
    "an unknown key": lambda cfg: cfg.update(hook="x"),
    "a missing group": lambda cfg: cfg.pop("model"),
    "a wrong type": lambda cfg: cfg.update(seed="none"),
    "no dict for a group": lambda cfg: cfg.update(network=[1, 2]),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_configs_are_refused(trained, tmp_path: Path, kind: str) -> None:
    folder = copy_of(trained(*QUICK), tmp_path / "run")
    cfg = yaml.safe_load((folder / "config.yaml").read_text())
    HOSTILE[kind](cfg)
    (folder / "config.yaml").write_text(yaml.safe_dump(cfg))
    with pytest.raises((ConfigError, CheckpointError)):
        vae_lab.load(folder)


@pytest.mark.parametrize("content", ["!!python/object/apply:os.system [touch marker]", "[1, 2]", "a: [", "\x00", ""])
def test_hostile_yaml_is_refused(trained, tmp_path: Path, content: str) -> None:
    folder = copy_of(trained(*QUICK), tmp_path / "run")
    (folder / "config.yaml").write_text(content)
    with pytest.raises(ConfigError):
        vae_lab.load(folder)


def test_neither_import_nor_help_imports_torch() -> None:
    code = (
        "import sys, vae_lab; sys.argv = ['vae-lab', '--help']\nfrom vae_lab.cli import main\n"
        "try: main()\nexcept SystemExit as end: print('torch' in sys.modules, 'numpy' in sys.modules, end.code)"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert "False False 0" in done.stdout
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.6
    with pytest.raises(AttributeError, match="no attribute 'loda'"):
        _ = vae_lab.loda
