"""Going on in a run directory: what it holds, whether this command may go on there, and from where."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from filelock import FileLock

from vae_lab import foreign, lock, places
from vae_lab.config import complete, flatten, identity
from vae_lab.errors import CheckpointError, ConfigError, VaeLabError
from vae_lab.run_dir import FINISHED, RunDir, storage_errors
from vae_lab.text import complain

# Keys of results.json that the closing table of a run needs
SHOWN = (
    *("status", "name", "model", "objective", "loss", "data", "latent_dim", "parameters", "epochs"),
    *("steps", "best_epoch", "beta", "beta_eff", "test", "time", "note", "environment"),
)

if TYPE_CHECKING:
    from vae_lab.system import System


def read_resume(overrides: Sequence[str], folders: Sequence[str], sweep: bool) -> tuple[list[str], Path | None]:
    """Replace `resume=DIR` by overrides that give the config of the run in DIR; later ones on the command line stay.

    Nothing else in DIR says how to train: its config.yaml, checked, is all that is read.

    Args:
        overrides: of the command line.
        folders: the override that lets Hydra find further YAML.
        sweep: whether several runs are asked for.

    Raises:
        ConfigError: DIR holds no run, or its config is none.
    """
    wanted = [line.partition("=")[2].strip("'\"") for line in overrides if re.match(r"\+*resume=", line)]
    if not wanted or wanted[-1] in ("null", ""):
        return list(overrides), None
    if sweep:
        raise ConfigError("resume goes on in one run's folder. A sweep goes on by its own command and hydra.sweep.dir.")
    from vae_lab.reading import read_config
    from vae_lab.rebuild import overrides_of

    folder = Path(wanted[-1])
    places.check_run_folder(folder)
    if not RunDir(folder).config.is_file():
        raise ConfigError(f"resume={folder}: no run lies there (no config.yaml). Runs are below outputs/runs.")
    more = [line for line in overrides if not re.match(r"\+*resume=", line)]
    return overrides_of(read_config(RunDir(folder)), more, folders), folder


def reserve(folder: Path, plain: dict[str, Any], explicit: bool) -> tuple[Path, FileLock | None, dict[str, Any] | None]:
    """Create and lock the run directory, and see whether its run is finished.

    A folder that was not asked for by name gets a suffix where another run, of the same second, has it.

    Returns:
        The folder; its lock; and its results if there is nothing left to do.

    Raises:
        ConfigError: the folder holds another run; lists the keys that differ.
        LockedError: another process works there.
        StorageError: the folder cannot be made.
    """
    places.check_run_folder(folder)
    with storage_errors(folder):
        if not explicit:
            folder = _make_new(folder)
        run_dir = RunDir(folder)
        if run_dir.config.exists():
            changed = check_same(run_dir, plain)
            results = _whole_results(run_dir)
            if not changed and results is not None and results["status"] in FINISHED:
                return folder, None, results
    held, notice = lock.acquire(folder)
    if notice:
        complain(notice)
    return folder, held, None


def _whole_results(run_dir: RunDir) -> dict[str, Any] | None:
    """Those of a run that ended, with all that its closing table shows; damaged ones are named."""
    try:
        results = run_dir.read_results()
        if missing := [key for key in SHOWN if results is not None and key not in results]:
            raise ValueError(f"{', '.join(missing)} missing")
    except (OSError, ValueError) as error:
        again = "it is written again, from the run's checkpoints where it has any"
        complain(f"{run_dir.results} is damaged ({error}): {again}.")
        return None
    return results


def _make_new(folder: Path) -> Path:
    with storage_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        for number in range(1, 1000):
            candidate = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
            try:
                candidate.mkdir()
                return candidate
            except FileExistsError:
                continue
    raise ConfigError(f"hydra.run.dir={folder}: a thousand runs of this name exist.")


def check_same(run_dir: RunDir, plain: dict[str, Any]) -> dict[str, list[Any]]:
    """Compare a config with the one in a run directory.

    Returns:
        Keys that differ and may, by `resume_allow`, as {key: [old, new]}.

    Raises:
        ConfigError: lists the other keys that differ, with both values.
    """
    foreign.check_yaml_file(run_dir.config)
    try:
        stored = run_dir.read_config()
        old, new = identity(stored), identity(plain)
    except (yaml.YAMLError, AttributeError, TypeError) as error:
        raise ConfigError(f"{run_dir.config}: not readable as a run's config ({error}).") from error
    changed = {key: [old.get(key), new.get(key)] for key in sorted({*old, *new}) if old.get(key) != new.get(key)}
    allowed = [str(key) for key in plain.get("resume_allow") or []]
    refused = {key: pair for key, pair in changed.items() if not any(f".{key}".endswith(f".{name}") for name in allowed)}
    if refused:
        diff = "; ".join(f"{key}: {before} there, {now} here" for key, (before, now) in refused.items())
        if _same_shapes(stored, plain):
            way = f", or allow the change and lose the exact repeat: 'resume_allow=[{','.join(refused)}]'"
        else:
            way = ": its weights have other shapes"
        raise ConfigError(f"{run_dir.path} holds a run with another config ({diff}). Choose another hydra.run.dir{way}.")
    return changed


def _same_shapes(stored: dict[str, Any], plain: dict[str, Any]) -> bool:
    """Whether the weights of one config's system fit into the other's."""
    from vae_lab.data.base import dataset
    from vae_lab.system import build_system

    shapes = []
    try:
        for cfg in (complete(stored), plain):
            system = build_system(cfg, dataset(cfg["data"]).image_shape)
            shapes.append({name: tensor.shape for name, tensor in system.state().items()})
    except (VaeLabError, LookupError, TypeError, ValueError):  # of what lies there, no system can be made
        return False
    return shapes[0] == shapes[1]


def environment_changes(before: dict[str, Any], now: dict[str, Any]) -> dict[str, list[Any]]:
    """Facts that decide whether a resume is bit-exact, where they differ: {fact: [before, now]}."""
    facts = ("vae_lab", "torch", "device", "threads", "processor")
    return {key: [before.get(key), now[key]] for key in facts if before.get(key) != now[key]}


def check_state(path: Path, found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Raise `CheckpointError` with the tensors that are missing, extra, of another shape or type, NaN or infinite.

    What is not finite in the model as it is built may be so in a checkpoint: a mask of -inf, say.
    """
    problems = [f"missing {key}" for key in expected if key not in found]
    problems += [f"extra {key}" for key in found if key not in expected]
    common = [(key, found[key], expected[key]) for key in expected if key in found]
    problems += [
        f"{key} is {tuple(here.shape)}, not {tuple(there.shape)}" for key, here, there in common if here.shape != there.shape
    ]
    problems += [f"{key} is {here.dtype}, not {there.dtype}" for key, here, there in common if here.dtype != there.dtype]
    if problems:
        raise CheckpointError(f"{path} belongs to another model: {_first(problems)}.")
    built = {key: (here == there) | (here.isnan() & there.isnan()) for key, here, there in common}
    _check_numbers(path, {key: (here, here.isfinite() | built[key]) for key, here, _ in common})


def check_training(path: Path, training: dict[str, Any], system: "System") -> None:
    """Raise `CheckpointError` where the rest of a checkpoint is not what a run of `system` has saved.

    Optimiser state may be infinite, since the square of a finite gradient is, but never NaN.
    """
    expected = system.state()
    try:
        best, optimizer = training["best"]["state"], training["optimizer"]
        moments = {f"{name}.{key}": (part, expected[name]) for name, parts in optimizer.items() for key, part in parts.items()}
        problems = [
            f"{key} is {part.dtype} {tuple(part.shape)}"
            for key, (part, like) in moments.items()
            if not part.is_floating_point() or (part.dim() and (part.shape, part.dtype) != (like.shape, like.dtype))
        ]
        kinds = {tuple(parts) for parts in optimizer.values()}
        problems += ["not the same for every tensor"] if len(kinds) > 1 else []
        parameters = dict(system.named_parameters())
        problems += [f"missing {name}" for name in parameters if optimizer and name not in optimizer]
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: not what a run wrote ({type(error).__name__}: {error}).") from error
    if problems:
        raise CheckpointError(f"{path}: optimiser state of another model: {_first(problems)}.")
    _check_numbers(path, {f"optimiser state {key}": (part, ~part.isnan()) for key, (part, _) in moments.items()})
    if best:
        check_state(path / "best state", system.without_settings(best), expected)


def _check_numbers(path: Path, sound: dict[str, tuple[Any, Any]]) -> None:
    """`sound` has tensors, and where each is as it may be."""
    counts = {key: (tensor.numel() - int(good.sum()), tensor.numel()) for key, (tensor, good) in sound.items()}
    wrong = [f"{key} ({bad:,} of {total:,})" for key, (bad, total) in counts.items() if bad]
    if wrong:
        raise CheckpointError(
            f"{path}: {len(wrong)} of {len(sound)} tensors hold NaN or infinite numbers: {_first(wrong)}. Take another checkpoint, "
            "or train again."
        )


def _first(problems: Sequence[str], shown: int = 10) -> str:
    return "; ".join(problems[:shown]) + (f" and {len(problems) - shown} more" if len(problems) > shown else "")


WRITTEN: dict[str, dict[str, type]] = {  # what a run keeps in training.pt, and in its manifest: anything else came from elsewhere
    "training": {"epoch": int, "step": int, "sums": dict, "status": str, "optimizer": dict, "best": dict, "resumed": list},
    "manifest": {"fingerprint": str, "data": str, "environment": dict, "cohort": list},
}


def check_written(path: Path, training: dict[str, Any], manifest: dict[str, Any]) -> None:
    """Raise `CheckpointError` for a checkpoint that is sound, but is not what a run wrote."""
    for part, content in (("training", training), ("manifest", manifest)):
        for key, kind in WRITTEN[part].items():
            if not isinstance(content.get(key), kind):
                raise CheckpointError(f"{path}: not what a run wrote: '{key}' of its {part} is no {kind.__name__}.")
    complete = {"epoch", "loss", "state"} <= training["best"].keys() and isinstance(training.get("seconds"), int | float)
    if not complete or min(training["epoch"], training["step"]) < 0:
        raise CheckpointError(f"{path}: not what a run wrote: keys are missing, or of another model.")


def describe_changes(changes: dict[str, list[Any]]) -> str:
    """'threads 2 -> 1, torch 2.14 -> 2.15'."""
    return ", ".join(f"{key} {before} -> {now}" for key, (before, now) in flatten(changes).items())
