"""One run from the command line to its files, W&B's copy, and its pictures."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from tests.offline_wandb import read_offline_run
from vae_lab.checkpoint import load as load_checkpoint
from vae_lab.run_dir import RunDir, strict_json

FILES = {
    "test_terms.npz",
    *(".lock", "config.yaml", "metrics.jsonl", "results.json", "run.log"),
    *(f".hydra/{name}.yaml" for name in ("config", "hydra", "overrides")),
    *(f"checkpoints/{name}/{file}" for name in ("last", "best") for file in ("model.safetensors", "training.pt", "manifest.json")),
    *(f"figures/{name}.png" for name in ("reconstructions", "samples", "latent", "manifold", "curves")),
}
RESULTS = {
    "status", "name", "fingerprint", "model", "objective", "loss", "data", "latent_dim", "hidden_dims", "beta", "beta_eff", "seed",
    "parameters", "epochs", "steps", "best_epoch", "train", "val", "test", "time", "environment",
}  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunDir, str]:
    """A small VAE trained by the command, with everything on."""
    import os
    import subprocess
    import sys

    from tests.conftest import ROOT

    folder = tmp_path_factory.mktemp("finished")
    done = subprocess.run(
        [
            sys.executable,
            str(ROOT / "run.py"),
            "trainer.epochs=12",
            "loss=mse",
            "model=beta_vae",
            "trainer.checkpoint_every=5",
            "trainer.checkpoint_seconds=0",
        ],
        cwd=folder,
        env=os.environ | {name: str(folder / "home") for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (run_dir,) = (folder / "outputs" / "runs").iterdir()
    return RunDir(run_dir), done.stdout


def test_the_files_of_a_run(finished: tuple[RunDir, str]) -> None:
    run_dir, _ = finished
    found = {str(path.relative_to(run_dir.path)) for path in run_dir.path.rglob("*") if path.is_file()}
    assert {name for name in found if not name.startswith(("wandb/", "checkpoints/previous/"))} == FILES
    assert any(name.endswith(".wandb") for name in found)


def test_results(finished: tuple[RunDir, str]) -> None:
    results = finished[0].read_results()
    assert results is not None
    assert set(results) >= RESULTS
    assert results["status"] == "completed"
    assert (results["model"], results["loss"], results["beta"], results["beta_eff"]) == ("beta_vae", "mse", 4.0, 2.0)
    test = results["test"]
    assert test["elbo"] == pytest.approx(-(test["nll"] + test["kl"]))
    assert test["loss"] == pytest.approx(test["nll"] + 4 * test["kl"], rel=1e-5)
    assert test["nll"] == pytest.approx(test["sse"] + 32 * math.log(math.pi), rel=1e-5)
    assert test["mse"] == pytest.approx(test["sse"] / 64)
    assert sum(test["kl_per_latent"]) == pytest.approx(test["kl"], rel=1e-4)
    assert 0 <= test["active_units"] <= 2
    assert len(test["code_std"]) == 2
    assert results["parameters"] == 34884


def test_metrics_are_one_strict_line_per_epoch(finished: tuple[RunDir, str]) -> None:
    rows = finished[0].read_metrics()
    assert [row["epoch"] for row in rows] == list(range(1, 13))
    assert [row["step"] for row in rows] == [11 * epoch for epoch in range(1, 13)]
    keys = {f"{split}/{term}" for split in ("train", "val") for term in ("loss", "nll", "kl", "sse")}
    assert all(set(row) == keys | {"epoch", "step", "lr", "seconds"} for row in rows)
    assert rows[-1]["train/loss"] < rows[0]["train/loss"]


def test_the_config_repeats_the_run(finished: tuple[RunDir, str], tmp_path: Path) -> None:
    from io import StringIO

    from rich.console import Console

    from vae_lab.train import train

    cfg = finished[0].read_config()
    again = train(cfg | {"tracking": {"name": "none"}}, tmp_path / "again", Console(file=StringIO()))
    results = finished[0].read_results()
    assert results is not None
    assert again["fingerprint"] == results["fingerprint"]
    assert again["test"]["elbo"] == pytest.approx(results["test"]["elbo"], rel=1e-4)


def test_the_terminal_says_what_and_where(finished: tuple[RunDir, str]) -> None:
    run_dir, said = finished
    assert "beta 4 (beta_eff 2)" in said
    assert re.search(r"elbo\s+│\s+-\d", said)
    assert str(run_dir.path.name) in said
    assert len(re.findall(r"^epoch \d+/12 ", said, flags=re.M)) == 12
    assert len(re.findall(r"epoch \d+/12 ", run_dir.log.read_text())) == 12


def test_pictures_are_not_blank(finished: tuple[RunDir, str]) -> None:
    for path in finished[0].figures.iterdir():
        pixels = np.asarray(Image.open(path).convert("L"))
        assert pixels.shape[0] > 150
        assert pixels.std() > 10, f"{path.name} is blank"
        assert (pixels < 128).mean() > 0.002


def test_best_weights_load_into_plain_torch(finished: tuple[RunDir, str]) -> None:
    """The weights are a state dict of plain layers: a decoder written without this library gives the same images."""
    weights = load_file(finished[0].checkpoints / "best" / "model.safetensors")
    prefix = "model.decoder."
    decoder = nn.Sequential(nn.Linear(2, 256), nn.ReLU(), nn.Linear(256, 64))
    decoder.load_state_dict({name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)})
    with torch.no_grad():
        image = decoder(torch.zeros(1, 2)).view(8, 8)
    assert 0 < float(image.mean()) < 1


def test_checkpoints_know_their_place(finished: tuple[RunDir, str]) -> None:
    run_dir, _ = finished
    results = run_dir.read_results()
    assert results is not None
    last, best = (load_checkpoint(run_dir.checkpoints / name) for name in ("last", "best"))
    assert last.manifest["step"] == last.training["step"] == results["steps"]
    assert best.manifest["epoch"] == results["best_epoch"]
    assert last.manifest["fingerprint"] == results["fingerprint"]


def test_wandb_holds_the_same_numbers_and_pictures(finished: tuple[RunDir, str]) -> None:
    run_dir, _ = finished
    offline = read_offline_run(run_dir.path / "wandb")
    rows, results = run_dir.read_metrics(), run_dir.read_results()
    assert results is not None
    logged = [row for row in offline.history if "train/loss" in row]
    assert len(logged) == len(rows)
    for row, original in zip(logged, rows, strict=True):
        assert {key: row[key] for key in original} == original
    assert offline.config["model_name"] == "beta_vae"
    assert offline.config["loss_name"] == "mse"
    assert (offline.config["latent_dim"], offline.config["beta"], offline.config["seed"]) == (2, 4.0, 0)
    assert offline.config["trainer"]["epochs"] == 12
    assert offline.summary["test/elbo"] == results["test"]["elbo"]
    assert offline.step_metric == "epoch"
    assert {image.stem.split("_")[0] for image in offline.images} == {
        "reconstructions",
        "samples",
        "latent",
        "manifold",
        "curves",
    }
    for image in offline.images:
        assert np.asarray(Image.open(image).convert("L")).std() > 10


def test_tracking_none_leaves_wandb_out(command, tmp_path: Path) -> None:
    done = command("tracking=none", "trainer.epochs=1", "evaluation.figures=false", "hydra.run.dir=here")
    assert done.returncode == 0
    assert not (tmp_path / "here" / "wandb").exists()
    assert not (tmp_path / "here" / "figures").exists()


@pytest.mark.parametrize("arguments", [["latent_dim=1"], ["latent_dim=5", "model=autoencoder"], ["network=conv", "loss=gaussian"]])
def test_pictures_for_every_kind_of_latent(train_quiet, arguments: list[str]) -> None:
    results = train_quiet(*arguments, "trainer.epochs=2", "evaluation.figures=true")
    drawn = {path.stem for path in RunDir(results["dir"]).figures.iterdir()}
    assert drawn == {"reconstructions", "samples", "latent", "curves"} | ({"manifold"} if results["latent_dim"] == 2 else set())


def test_a_diverging_run_ends_with_code_4(command, tmp_path: Path) -> None:
    done = command("optimizer.lr=1e6", "trainer.epochs=20", "hydra.run.dir=here")
    assert done.returncode == 4
    assert re.search(r"error: vae_z2_s0: .*at step \d+ \(epoch \d+\), lr 1e\+06, beta 1; training images \[", done.stderr)
    assert "Traceback" not in done.stderr
    results = RunDir(tmp_path / "here").read_results()
    assert results is not None
    assert results["status"] == "failed"
    assert "lr 1e+06" in results["error"]


def test_strict_json_has_no_nan() -> None:
    text = strict_json({"a": math.nan, "b": [1.0, math.inf], "c": {"d": -math.inf, "e": 2}})
    assert json.loads(text, parse_constant=pytest.fail) == {
        "a": None, "b": [1.0, None], "c": {"d": None, "e": 2}, "nonfinite": ["a", "b.1", "c.d"],
    }  # fmt: skip
