"""The model card of a run: RUN_DIR/README.md with settings, numbers and pictures, as the Hugging Face Hub reads it."""

import argparse
from pathlib import Path
from typing import Any

import yaml

from vae_lab.config import flatten
from vae_lab.errors import ConfigError, DataError
from vae_lab.places import is_own_file
from vae_lab.reading import CHECKPOINTS, read_config, read_results
from vae_lab.run_dir import RunDir
from vae_lab.tasks.command import say_written
from vae_lab.tasks.files import text, write_all
from vae_lab.trained import load

PICTURES = {
    "reconstructions": "Test images over their reconstructions",
    "samples": "Samples",
    "latent": "Codes of the test images",
    "manifold": "The decoded latent plane",
    "curves": "Training and validation, by epoch",
}
UNITS = {
    "loss": "what training minimised, nats per image",
    "nll": "-log p(x given z), nats per image",
    "kl": "KL(q, p), nats per image",
    "elbo": "-(nll + kl), nats per image",
    "sse": "squared error per image",
    "mse": "squared error per pixel",
    "active_units": "latents whose mean code varies",
}
NEEDED = (
    "beta", "beta_eff", "parameters", "epochs", "best_epoch", "time", "environment", "fingerprint", "data_digest",
)  # fmt: skip
# Of this machine, or of no meaning elsewhere
HIDDEN = ("data.root", "data.cache", "resume", "resume_allow", "tracking", "device", "evaluation")


def command(arguments: argparse.Namespace) -> int:
    """`vae-lab card`."""
    load(arguments.run_dir, device="cpu")  # a card is for weights that can be used
    run_dir = RunDir(arguments.run_dir)
    return say_written(write_all({run_dir.card: text(card(run_dir, arguments.license))}))


def card(run_dir: RunDir, license: str | None = None, repo: str | None = None) -> str:
    """The text of the card.

    Raises:
        ConfigError: no run lies there, or it has no results yet.
        DataError: its results are damaged.
    """
    cfg, results = read_config(run_dir), read_results(run_dir)
    if not results.get("test"):
        raise ConfigError(f"{run_dir.path}: no test numbers in {run_dir.results.name}; let the run end first.")
    if missing := [key for key in NEEDED if key not in results]:
        raise DataError(f"{run_dir.results}: damaged ({', '.join(missing)} missing).")
    name, test = cfg["name"], {key: value for key, value in results["test"].items() if isinstance(value, int | float)}
    header = yaml.safe_dump(_metadata(cfg, test, license), sort_keys=False, allow_unicode=True)
    beta = "" if results["beta"] is None else f", beta {results['beta']:g} (beta_eff {results['beta_eff']:.4g})"
    parts = [
        f"---\n{header}---",
        f"# {name}",
        f"A {cfg['model']['variant']} trained with [vae_lab](#use) on {_data(cfg)}: objective {cfg['objective']['name']}{beta}, "
        f"loss {cfg['loss']['name']}, network {cfg['network']['name']} {cfg['hidden_dims']}, {cfg['latent_dim']} latents, "
        f"{results['parameters']:,} parameters, seed {cfg['seed']}, {results['epochs']} epochs (best: {results['best_epoch']}).",
        "## Numbers",
        _table(("test", "", "unit"), [(key, _number(value), UNITS.get(key, "")) for key, value in test.items()]),
        *([results["note"]] if results.get("note") else []),
        *_pictures(run_dir),
        *_use(run_dir, repo),
        "## Settings",
        _table(("key", "value"), [(f"`{key}`", f"`{value}`") for key, value in _settings(cfg)]),
        f"Trained in {results['time']['train_s']:.0f} s on {results['environment']['device']} with torch "
        f"{results['environment']['torch']}, vae_lab {results['environment']['vae_lab']}. Fingerprint `{results['fingerprint']}`, "
        f"data `{results['data_digest']}`.",
    ]
    return "\n\n".join(parts) + "\n"


def _metadata(cfg: dict[str, Any], test: dict[str, float], license: str | None) -> dict[str, Any]:
    """The front matter: https://huggingface.co/docs/hub/model-cards#model-card-metadata."""
    data = cfg["data"]["name"]
    metrics = [{"type": key, "name": f"test {key}", "value": value} for key, value in test.items()]
    task = {"type": "unconditional-image-generation", "name": "Image generation"}
    result = {"task": task, "dataset": {"name": data, "type": data, "split": "test"}, "metrics": metrics}
    return {
        "library_name": "vae_lab",
        **({"license": license} if license else {}),
        "pipeline_tag": task["type"],
        "tags": sorted({"autoencoder", cfg["model"]["variant"], cfg["loss"]["name"], "vae_lab"}),
        "model-index": [{"name": cfg["name"], "results": [result]}],
    }


def _pictures(run_dir: RunDir) -> list[str]:
    found = [(path.stem, PICTURES[path.stem]) for path in card_files(run_dir)]
    lines = [f"![{title}]({run_dir.figures.name}/{name}.png)\n\n*{title}.*" for name, title in found]
    return ["## Pictures", *lines] if lines else []


def _use(run_dir: RunDir, repo: str | None) -> list[str]:
    fetch = f'from huggingface_hub import snapshot_download\n\nfolder = snapshot_download("{repo}")' if repo else 'folder = "."'
    code = f"import vae_lab\n{fetch}\nrun = vae_lab.load(folder)\nimages = run.sample(16)  # [16, C, H, W] in [0, 1]"
    weights = f"{run_dir.checkpoints.name}/{CHECKPOINTS[0]}/model.safetensors"
    shell = "vae-lab sample FOLDER\nvae-lab encode FOLDER --data images/"
    return [
        "## Use",
        f"```python\n{code}\n```",
        f"```\n{shell}\n```",
        f"`{weights}` is a plain state dict: `safetensors.torch.load_file` reads it.",
    ]


def _data(cfg: dict[str, Any]) -> str:
    data = cfg["data"]
    kept = f", classes {data['classes']}" if data.get("classes") is not None else ""
    return f"{data['name']}{kept}" + ("" if data["binarize"] == "none" else f" (binarised: {data['binarize']})")


def _settings(cfg: dict[str, Any]) -> list[tuple[str, Any]]:
    flat = flatten(cfg)
    return [(key, value) for key, value in flat.items() if not any(f"{key}.".startswith(f"{hidden}.") for hidden in HIDDEN)]


def _table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def _number(value: int | float) -> str:
    return f"{value:,d}" if isinstance(value, int) else f"{value:.4f}" if abs(value) < 1 else f"{value:.3f}"


def card_files(run_dir: RunDir) -> list[Path]:
    """Everything that the card shows: files of the run directory, no links out of it."""
    return [path for name in PICTURES if is_own_file(run_dir.path, path := run_dir.figures / f"{name}.png")]
