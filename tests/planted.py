"""Run directories with known numbers, written by RunDir's own writers: what statistics and pages are tested on."""

import copy
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vae_lab.config import fingerprint
from vae_lab.run_dir import RunDir

EPOCHS = 12
CONFIG: dict[str, Any] = {
    "name": "vae_z2_s0",
    "seed": 0,
    "latent_dim": 2,
    "hidden_dims": [16],
    "device": "auto",
    "resume": None,
    "resume_allow": [],
    "data": {"name": "digits", "binarize": "none", "limit": None, "val_size": 200, "split_seed": 0},
    "network": {"name": "mlp", "hidden_dims": [16], "activation": "relu", "layer_norm": False},
    "loss": {"name": "bce"},
    "objective": {"name": "elbo", "beta": 1.0},
    "model": {"name": "vae", "variant": "vae", "latent_dim": 2},
    "optimizer": {"name": "adam", "lr": 1e-3},
    "trainer": {"epochs": EPOCHS, "batch_size": 128},
    "evaluation": {"batch_size": 1000, "active_threshold": 0.01, "figures": True, "num_images": 10},
    "tracking": {"name": "none"},
}
ENVIRONMENT = {
    "vae_lab": "0.1.0",
    "python": "3.11.7",
    "torch": "2.15.0",
    "device": "cpu",
    "threads": 1,
    "processor": "AVX2",
    "platform": "L",
}


def config(**changes: Any) -> dict[str, Any]:
    """The config above with `objective__beta=4` and the like changed."""
    plain = copy.deepcopy(CONFIG)
    for key, value in changes.items():
        *path, last = key.split("__")
        node = plain
        for name in path:
            node = node[name]
        node[last] = value
    if "name" not in changes:
        plain["name"] = f"{plain['model']['variant']}_z{plain['latent_dim']}_s{plain['seed']}"
    return plain


def plant(
    folder: Path,
    plain: dict[str, Any],
    nll: float = 20.0,
    kl: float | None = 5.0,
    pictures: bool = False,
    **results: Any,
) -> Path:
    """Write one finished run with these test numbers; `results` replaces parts of results.json."""
    run = RunDir(folder)
    folder.mkdir(parents=True)
    run.write_config(plain)
    weight = plain["objective"].get("beta")
    terms = {"nll": nll} | ({} if kl is None else {"kl": kl})
    terms = {"loss": nll + (0.0 if kl is None else (weight or 0.0) * kl)} | terms
    for epoch in range(1, plain["trainer"]["epochs"] + 1):
        scale = 1 + 1 / epoch
        parts = {f"{split}/{name}": value * scale for split in ("train", "val") for name, value in terms.items()}
        run.append_metrics({"epoch": epoch, "step": epoch, **parts, "lr": 1e-3, "seconds": 0.1})
    test: dict[str, Any] = terms | {"sse": nll / 8, "mse": nll / 512, "active_units": plain["latent_dim"]}
    if kl is not None:
        test |= {"elbo": -(nll + kl), "kl_per_latent": [kl / plain["latent_dim"]] * plain["latent_dim"]}
    content = {
        "status": "completed",
        "name": plain["name"],
        "fingerprint": fingerprint(plain),
        "model": plain["model"]["variant"],
        "objective": plain["objective"]["name"],
        "loss": plain["loss"]["name"],
        "data": plain["data"]["name"],
        "data_digest": "0123456789abcdef",
        "binarize": plain["data"]["binarize"],
        "beta": weight,
        "beta_eff": weight,
        "seed": plain["seed"],
        "parameters": 1000 * plain["latent_dim"],
        "epochs": EPOCHS,
        "best_epoch": EPOCHS,
        "test": test,
        "error": None,
        "note": None,
        "environment": ENVIRONMENT,
        "resumed": [],
        "time": {"train_s": 1.0 + plain["latent_dim"], "total_s": 9.0, "images_per_s": 1000.0},
    }
    run.write_results(content | results)
    if pictures:
        run.figures.mkdir()
        for name, size in (
            ("reconstructions", (900, 200)),
            ("samples", (700, 740)),
            ("latent", (800, 700)),
            ("manifold", (700, 720)),
        ):
            Image.effect_noise(size, 60).save(run.figures / f"{name}.png")
    return folder


def plant_groups(folder: Path, nlls: dict[str, Sequence[float]], **changes: Any) -> Path:
    """A run per variant's name and seed, with the nll given for that seed."""
    for variant, values in nlls.items():
        for seed, nll in enumerate(values):
            plain = config(seed=seed, model__variant=variant, **changes)
            plant(folder / f"{variant}_{seed}", plain, nll)
    return folder


def scale(images: str = "feedfacefeedface", likelihood: str = "binary", conditional: bool = False) -> dict[str, Any]:
    """What results.json says of the scale of its numbers."""
    return {"scale": {"images": images, "likelihood": likelihood, "conditional": conditional}}


def plant_terms(folder: Path, **terms: Any) -> None:
    """test_terms.npz: a number per test image for each term."""
    np.savez_compressed(folder / "test_terms.npz", **{name: np.asarray(values, np.float32) for name, values in terms.items()})


def write_ledger(folder: Path, jobs: Sequence[dict[str, Any]]) -> None:
    """sweep.json with these jobs."""
    (folder / "sweep.json").write_text(json.dumps({"planned": len(jobs), "jobs": list(jobs)}))


Planter = Callable[..., Path]
