"""What a command line and its YAML files may not contain: ways to run other code, secrets, and ways out of a run's folder."""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from vae_lab import foreign, places, secrecy
from vae_lab.errors import ConfigError

ALLOWED_HYDRA_KEYS = re.compile(
    r"hydra([./](run\.dir|sweep\.(dir|subdir)|mode|verbose|job\.name|output_subdir)$"
    r"|[./](launcher|sweeper)($|\.(?!.*_target_))|\.searchpath$)"
)
LAUNCHERS = (
    "hydra._internal.core_plugins.basic_launcher.BasicLauncher",
    "hydra_plugins.vae_lab_cohort.CohortLauncher",
    "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher",
    "hydra_plugins.hydra_submitit_launcher.submitit_launcher.LocalLauncher",
    "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher",
)
SWEEPERS = (
    "hydra._internal.core_plugins.basic_sweeper.BasicSweeper",
    "hydra_plugins.vae_lab_cohort.ProductSweeper",
    "hydra_plugins.vae_lab_optuna.OptunaSweeper",
)
TARGETS = {"hydra.launcher._target_": LAUNCHERS, "hydra.sweeper._target_": SWEEPERS}  # the only places where one may stand
TRUSTED_HANDLERS = ("logging.StreamHandler", "logging.FileHandler", "logging.NullHandler", "rich.logging.RichHandler")
STREAMS = ("ext://sys.stdout", "ext://sys.stderr")
OF_A_JOB = ("output_subdir", "job", "job_logging", "callbacks", "env")  # of hydra.*, what Hydra uses for every job
OF_A_COMMAND = ("run", "sweep", "launcher", "sweeper", "hydra_logging")  # and what it uses once
NO_CODE = "refused. Configs choose by name from the registry; no path to code is followed."
# What submitit writes into a shell script as it stands; and of other texts, what can be no more than a word there.
SHELL_KEYS = re.compile(r"(^|_)(setup|python|srun_args|additional_parameters)$")
PLAIN_WORD = re.compile(r"[\w.,:=+%*-]*|\$\{hydra\.job\.name\}|\$\{hydra\.sweep\.dir\}/\.submitit/%j")


def check_overrides(overrides: Iterable[Override]) -> None:
    """Refuse overrides that name code to run, or that reach into Hydra beyond where runs go and who launches them."""
    for override in overrides:
        check_override_key(override.key_or_group)
        secrecy.check_text("A key", override.key_or_group)
        secrecy.check_text(override.key_or_group, override.input_line or "")
        if override.key_or_group == "hydra.searchpath":
            searched(override)


def check_override_key(key: str) -> None:
    """The same for a key."""
    if "_target_" in key or "(" in key:
        raise ConfigError(f"{key}: {NO_CODE}")
    if re.match(r"hydra($|[./@:])", key) and not ALLOWED_HYDRA_KEYS.match(key):
        raise ConfigError(f"{key}: refused. Of hydra.*, run.dir, sweep.dir, sweep.subdir, launcher and sweeper may be set.")


def searched(override: Override) -> list[Path]:
    """The folders of a `hydra.searchpath`: on this disk, and their YAML checked.

    Raises:
        ConfigError: one is a package, which would be imported, or no folder.
    """
    value = override.value()
    folders = []
    for entry in value if isinstance(value, list) else [value]:
        text = str(entry)
        if not text.startswith("file://") or "${" in text:
            raise ConfigError(f"hydra.searchpath={text}: refused. Only folders are searched for YAML: file:///the/folder.")
        folders.append(Path(text.removeprefix("file://")))
        if not folders[-1].is_dir():
            raise ConfigError(f"hydra.searchpath={text}: no such folder.")
        foreign.check_yaml_folder(folders[-1])
    return folders


def check_config(cfg: DictConfig | dict[str, Any]) -> None:
    """Refuse secrets and paths to code in a config, `hydra` node included, as it stands: resolved or not.

    Raises:
        ConfigError: names the key.
    """
    plain = OmegaConf.to_container(cfg, resolve=False) if isinstance(cfg, DictConfig) else cfg
    leaves = sorted(_leaves(plain), key=lambda leaf: leaf[0].startswith("hydra."))  # the cause first, then what follows from it
    secrecy.check_values(leaves)
    for key, raw in leaves:
        special = any(part.startswith("_") and part.endswith("_") for part in key.split("."))
        if special and raw not in TARGETS.get(key, ()):
            why = "refused. Only Hydra's launchers and sweepers may be named, and only there."
            raise ConfigError(f"{key}: {why if key.startswith('hydra.') else NO_CODE}")
        if re.match(r"hydra\.(job|hydra)_logging\.", key):
            _check_logging(key, raw)
        if key.startswith("hydra.callbacks."):
            raise ConfigError(f"{key}: refused. Callbacks name code to run.")
        if re.match(r"hydra\.(env|job\.env_set|job\.env_copy)\.", key):
            raise ConfigError(f"{key}: refused. The environment chooses what programs do; set it where you start the command.")


def _check_logging(key: str, raw: Any) -> None:
    """Logging makes objects of texts, at any depth: handlers are known ones, and a text names no other object."""
    name, text = key.rpartition(".")[2], str(raw)
    if "(" in name or not name or (name == "class" and text not in TRUSTED_HANDLERS):
        raise ConfigError(f"{key}={raw}: refused. Logging handlers are {', '.join(TRUSTED_HANDLERS)}.")
    if re.match(r"\w+://", text) and text not in STREAMS:
        raise ConfigError(f"{key}={raw}: refused. Logs go to files, {' or '.join(STREAMS)}.")


def check_job(cfg: DictConfig, root: Path | None = None, number: int = 0) -> Path:
    """Refuse what a job's config is once resolved: code and secrets as above, and files outside of its folder.

    Args:
        cfg: the job's whole config, with the node `hydra`; its number and folder are set in it.
        root: the sweep's folder; None for a run of its own.
        number: in the sweep.

    Returns:
        The run directory.

    Raises:
        ConfigError: names the key.
    """
    with read_write(cfg.hydra), open_dict(cfg.hydra.job):
        cfg.hydra.job.id = cfg.hydra.job.num = number
    HydraConfig.instance().set_config(cfg)
    if root is None:
        folder = Path(_named("hydra.run.dir", cfg.hydra.run))
    else:
        folder = root / str(cfg.hydra.sweep.subdir)
        if Path(str(cfg.hydra.sweep.dir)).absolute() != root:
            raise ConfigError(f"hydra.sweep.dir={cfg.hydra.sweep.dir}: all jobs of a sweep go into one folder, {root}.")
        places.check_inside("hydra.sweep.subdir", str(cfg.hydra.sweep.subdir), root, "the sweep's folder")
    with read_write(cfg.hydra.runtime), open_dict(cfg.hydra.runtime):
        cfg.hydra.runtime.output_dir = str(folder.absolute())
    nodes = OF_A_JOB if number else (*OF_A_JOB, *OF_A_COMMAND)
    plain = {str(key): _resolved(cfg, str(key)) for key in cfg if key != "hydra"}
    hydra = {node: _resolved(cfg.hydra, node) for node in nodes}
    said = OmegaConf.to_container(cfg.hydra.overrides, resolve=False)  # as text: an interpolation may have no meaning there
    check_config(plain | {"hydra": hydra | {"overrides": said}})
    for key, file in places.outputs(hydra):
        places.check_inside(key, file, folder, f"the run's folder, {folder}")
    return folder


def _resolved(cfg: DictConfig, key: str) -> Any:
    value = cfg[key]
    return OmegaConf.to_container(value, resolve=True, enum_to_str=True) if OmegaConf.is_config(value) else value


def sweep_folder(hydra: DictConfig) -> Path:
    """Where the sweep goes that the user named; refused where a value in its name leads elsewhere."""
    return Path(_named("hydra.sweep.dir", hydra.sweep)).absolute()


def _named(key: str, node: DictConfig) -> str:
    raw = OmegaConf.to_container(node, resolve=False)
    assert isinstance(raw, dict)
    places.check_named(key, str(raw["dir"]), str(node.dir))
    return str(node.dir)


def check_found(hydra: DictConfig) -> None:
    """Refuse what YAML of a searched folder, rather than the user, says about launchers and where runs go.

    Args:
        hydra: the node `hydra` as it is without the overrides of the command line that set its values.

    Raises:
        ConfigError: names the key, to be said on the command line by whoever means it.
    """
    raw = OmegaConf.to_container(hydra, resolve=False)
    assert isinstance(raw, dict)
    for key, value in _leaves({"hydra": {node: raw[node] for node in ("launcher", "job")}}):
        shell = any(SHELL_KEYS.search(part) for part in key.split(".")[2:]) and value not in (None, {}, [])
        if not key.endswith("._target_") and (shell or (isinstance(value, str) and not PLAIN_WORD.fullmatch(value))):
            raise ConfigError(f"{key}: refused in YAML of --config-dir and hydra.searchpath; say it on the command line.")
    for key, folder in (("hydra.run.dir", hydra.run.dir), ("hydra.sweep.dir", hydra.sweep.dir)):
        places.check_inside(key, str(folder), Path.cwd(), "the working directory, unless it is said on the command line")


def _leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value with its dotted key; what is empty is a value."""
    if isinstance(node, Mapping) and node:
        for key, value in node.items():
            yield from _leaves(value, f"{path}.{key}".lstrip("."))
    elif isinstance(node, list) and node:
        for index, value in enumerate(node):
            yield from _leaves(value, f"{path}.{index}")
    else:
        yield path, node
