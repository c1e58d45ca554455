"""Where a command may write: resolved output paths, and folders that somebody else may have prepared."""

import os
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from vae_lab.errors import ConfigError

# What runs and sweeps write, by name: nothing of it may be a link to somewhere else, or wait for a reader as a pipe does.
FILES_OF_RUN = (
    *("config.yaml", "metrics.jsonl", "results.json", "test_terms.npz", "run.log", "README.md"),
    *(".lock", ".lock.json"),
)
FOLDERS_OF_RUN = (".hydra", "checkpoints", "figures", "tasks", "export")
OF_WANDB = ("wandb", ".wandb", "wandb/run-id", ".wandb/run-id")  # below it W&B keeps links of its own, which it makes anew
OF_SWEEP = (
    *("sweep.json", "multirun.yaml", "best.json", ".lock", ".lock.json", ".submitit", "plotly.min.js"),
    *("optuna.db", "optuna.db-journal", "optuna.db-wal", "optuna.db-shm"),
    *("report.html", "runs.csv", "summary.csv", "summary.md", "figures"),
    *(f"{plot}.{kind}" for plot in ("optimization_history", "param_importances") for kind in ("html", "png")),
)
INTERPOLATION = re.compile(r"\$\{.*\}")  # from the first to the last: whatever they resolve to stands between two literal parts


def check_run_folder(folder: Path) -> None:
    """Refuse a run directory whose files are links, pipes or devices, before anything is read or written there.

    Raises:
        ConfigError: names the first such file.
    """
    if folder.is_symlink():
        raise ConfigError(f"{folder}: a symbolic link; name the folder itself.")
    for name in FILES_OF_RUN:
        _check_one(folder / name)
        if (folder / name).is_dir():
            raise ConfigError(f"{folder / name}: a folder, where a run has a file. Remove it.")
    check_plain(folder / name for name in FOLDERS_OF_RUN)
    for name in OF_WANDB:
        _check_one(folder / name)


def check_sweep_folder(folder: Path) -> None:
    """The same for a sweep's folder and all runs directly in it."""
    check_plain(folder / name for name in OF_SWEEP)
    if folder.is_dir():
        for child in folder.iterdir():
            is_job = re.match(r"\d+_", child.name) or any(os.path.lexists(child / name) for name in ("config.yaml", ".hydra"))
            if is_job:
                check_run_folder(child)


def check_plain(paths: Iterable[Path]) -> None:
    """Refuse links, pipes and devices at `paths`, and in the folders among them."""
    for path in paths:
        _check_one(path)
        for parent, folders, files in os.walk(path):
            for name in [*folders, *files]:
                _check_one(Path(parent) / name)


def _check_one(path: Path) -> None:
    try:
        kind = path.lstat().st_mode
    except OSError:  # nothing there
        return
    if stat.S_ISLNK(kind):
        raise ConfigError(f"{path}: a symbolic link. A run is written into its own folder only: put the file there, or remove it.")
    if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
        raise ConfigError(f"{path}: neither a file nor a folder, but a pipe, device or socket. Remove it.")


def is_own_file(folder: Path, path: Path) -> bool:
    """Whether `path` is a regular file below `folder`, with no link on the way to it."""
    steps = [path, *path.parents]
    below = steps[: steps.index(folder)]
    return not any(step.is_symlink() for step in below) and path.is_file()


def check_named(key: str, raw: str, resolved: str) -> None:
    """Refuse a folder that the user named, where what it interpolates leads elsewhere: a `name` with '..' or a leading '/'.

    Raises:
        ConfigError: names the key and the path.
    """
    literal = INTERPOLATION.sub("", raw)
    wild = Path(resolved).parts.count("..") > Path(literal).parts.count("..")
    jumps = Path(resolved).is_absolute() and not raw.startswith(("/", "${oc.env:", "${hydra:runtime.", "${hydra.runtime."))
    if wild or (jumps and not Path(literal).is_absolute()):
        raise ConfigError(f"{key}={resolved}: what stands in ${{}} leads out of the folder named. Use ${{slug:${{name}}}} there.")


def check_inside(key: str, path: str | Path, folder: str | Path, what: str) -> None:
    """Raise `ConfigError` for a path that does not lie below `folder`; both as they stand, nothing is looked up."""
    whole = Path(os.path.normpath(Path(folder).absolute() / path))
    root = Path(os.path.normpath(Path(folder).absolute()))
    if root not in whole.parents:
        raise ConfigError(f"{key}={path}: must stay inside {what}.")


def outputs(hydra: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Keys and files of a resolved `hydra` node that are written below the run directory."""
    if hydra.get("output_subdir") is not None:
        yield "hydra.output_subdir", str(hydra["output_subdir"])
    yield "hydra.job.name", f"{hydra['job']['name']}.log"
    for log in ("job_logging", "hydra_logging"):
        for name, handler in ((hydra.get(log) or {}).get("handlers") or {}).items():
            if isinstance(handler, dict) and "filename" in handler:
                yield f"hydra.{log}.handlers.{name}.filename", str(handler["filename"])
