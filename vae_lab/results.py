"""The content of results.json."""

import platform
from collections.abc import Sequence
from typing import Any

import torch

import vae_lab
from vae_lab.config import fingerprint
from vae_lab.data import Splits
from vae_lab.engine import Run

GREY_BERNOULLI = (
    "Bernoulli on grey pixels is not a normalised likelihood: compare these numbers only with runs of the same loss and data."
)


def environment(device: torch.device) -> dict[str, Any]:
    """What a number may depend on beside the config."""
    return {
        "vae_lab": vae_lab.__version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "device": f"cuda ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "processor": torch.backends.cpu.get_cpu_capability(),
        "platform": platform.platform(),
    }


def summary(
    cfg: dict[str, Any],
    run: Run,
    rows: Sequence[dict[str, Any]],
    splits: Splits,
    device: torch.device,
    test: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """All of results.json but its times and resumes; `rows` are those of metrics.jsonl, `test` what `evaluate` returned."""
    weight = run.system.objective.kl_weight()
    best = next((row for row in rows if row["epoch"] == run.best_epoch), {})
    parts = {
        split: {key.removeprefix(f"{split}/"): value for key, value in best.items() if key.startswith(f"{split}/")}
        for split in ("train", "val")
    }
    grey = cfg["data"]["binarize"] == "none" and not run.system.model.loss.normalised_on_grey
    return {
        "status": run.status,
        "name": cfg["name"],
        "fingerprint": fingerprint(cfg),
        "model": cfg["model"]["variant"],
        "objective": cfg["objective"]["name"],
        "loss": cfg["loss"]["name"],
        "network": cfg["network"]["name"],
        "data": cfg["data"]["name"],
        "data_digest": splits.digest,
        "scale": {
            "images": splits.test.digest,
            "likelihood": "cross_entropy" if grey else run.system.model.loss.kind,
            "conditional": False,
        },
        "binarize": cfg["data"]["binarize"],
        "latent_dim": cfg["latent_dim"],
        "hidden_dims": cfg["hidden_dims"],
        "beta": None if weight is None else float(weight),
        "beta_eff": run.system.beta_eff(),
        "seed": cfg["seed"],
        "parameters": run.system.num_parameters(),
        "epochs": run.epoch,
        "steps": run.step,
        "best_epoch": run.best_epoch,
        **parts,
        "test": test or {},
        "error": run.error,
        "failure": run.failure,
        "note": GREY_BERNOULLI if grey else None,
        "environment": environment(device),
    }
