"""A run directory that may come from anywhere: its config, results and weights, checked before anything is built from them."""

from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from vae_lab import checkpoint, foreign, security
from vae_lab.config import RunConfig, fingerprint, flatten, typed
from vae_lab.errors import CheckpointError, ConfigError, DataError
from vae_lab.run_dir import RunDir

CHECKPOINTS = ("best", "last")


def read_config(folder: RunDir) -> dict[str, Any]:
    """The config of a run directory, which may come from anywhere: plain values of a run's keys, nothing that resolves.

    Raises:
        ConfigError: no run lies there, or its config is none.
    """
    if not folder.config.exists():
        raise ConfigError(f"{folder.path}: no run lies there (no {folder.config.name}). Runs are below outputs/runs.")
    try:
        foreign.check_yaml_file(folder.config)
        cfg = folder.read_config()
        for key, value in flatten(cfg).items():
            if "${" in str(value):
                raise ConfigError(f"{folder.config}: {key} holds '${{': a run's config is resolved.")
        security.check_config(cfg)
        typed(RunConfig, cfg, "")
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{folder.config}: not readable as a run's config ({str(error).splitlines()[0]}).") from error
    return cfg


def data_here(stored: dict[str, Any], here: dict[str, Any]) -> dict[str, Any]:
    """A stored `data` group as this machine uses it.

    It is read where the run read it; what can be downloaded, only if that is a folder here. Nothing
    is written where only a run directory says so: the cache, and what is downloaded, go where this
    machine's own config has them.

    Args:
        stored: of a run directory.
        here: the group of the same data set, composed on this machine.
    """
    data = dict(stored)
    if "download" in data and not Path(str(data.get("root"))).expanduser().is_dir():
        data["root"] = here.get("root")
    if data.get("cache") is not None:
        data["cache"] = here.get("cache")
    if "download" in data and data.get("root") != here.get("root"):
        data["download"] = False
    return data


def read_results(folder: RunDir) -> dict[str, Any]:
    """results.json, or an empty dict where there is none yet.

    Raises:
        DataError: it is damaged.
    """
    try:
        results = folder.read_results() or {}
        if isinstance(results.get("test", {}), dict):
            return results
        raise TypeError("'test' is no object")
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise DataError(f"{folder.results}: damaged ({error}).") from error


def read_weights(folder: RunDir, name: str, cfg: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the manifest of a checkpoint.

    Raises:
        CheckpointError: it is missing, damaged or of another run.
    """
    path = folder.checkpoints / name
    if not path.exists():
        there = [other for other in CHECKPOINTS if (folder.checkpoints / other).exists()]
        hint = f" There is '{there[0]}': checkpoint={there[0]}." if there else " A run writes its first after some epochs."
        raise CheckpointError(f"{path}: no such checkpoint.{hint}")
    found = checkpoint.load(path)
    if found.manifest.get("fingerprint") != fingerprint(cfg):
        raise CheckpointError(f"{path} and {folder.config.name} beside it are of different runs (fingerprints differ).")
    return found.model, found.manifest
