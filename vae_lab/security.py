"""What a command line and its YAML files may not contain: secrets, and ways to run other code."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf

from vae_lab.errors import ConfigError
from vae_lab.run_dir import MAX_DEPTH

SECRET_NAME = re.compile(r"(key|token|secret|passw|credential|auth)", re.IGNORECASE)
ALLOWED_HYDRA_KEYS = re.compile(
    r"hydra([./](run\.dir|sweep\.(dir|subdir)|mode|verbose|job\.name|output_subdir)$"
    r"|[./](launcher|sweeper)($|\.(?!.*_target_))|\.searchpath$)"
)
TRUSTED_TARGETS = ("hydra._internal.core_plugins.", "hydra_plugins.")
TRUSTED_HANDLERS = ("logging.StreamHandler", "logging.FileHandler", "logging.NullHandler", "rich.logging.RichHandler")
NO_CODE = "refused. Configs choose by name from the registry; no path to code is followed."
OPENING = (
    yaml.FlowSequenceStartToken,
    yaml.FlowMappingStartToken,
    yaml.BlockSequenceStartToken,
    yaml.BlockMappingStartToken,
)
CLOSING = (yaml.FlowSequenceEndToken, yaml.FlowMappingEndToken, yaml.BlockEndToken)
MAX_YAML_BYTES, MAX_YAML_ALIASES = 1_000_000, 50


def secret_values() -> set[str]:
    """The values of environment variables with secret-like names."""
    return {value for name, value in os.environ.items() if SECRET_NAME.search(name) and len(value) >= 8}


def check_override_keys(keys: Iterable[str]) -> None:
    """Refuse overrides that name code to run, or that reach into Hydra beyond where runs go and who launches them."""
    for key in keys:
        if "_target_" in key or "(" in key:
            raise ConfigError(f"{key}: {NO_CODE}")
        if re.match(r"hydra[./]", key) and not ALLOWED_HYDRA_KEYS.match(key):
            raise ConfigError(f"{key}: refused. Of hydra.*, run.dir, sweep.dir, sweep.subdir, launcher and sweeper may be set.")


def check_config(cfg: DictConfig) -> None:
    """Refuse secrets and paths to code in a composed config, `hydra` node included.

    Raises:
        ConfigError: names the key.
    """
    secrets = secret_values()
    for key, raw in _raw_leaves(cfg):
        name = key.rpartition(".")[2]
        if isinstance(raw, str):
            for variable in re.findall(r"oc\.env:\s*['\"]?([A-Za-z0-9_]+)", raw):
                if SECRET_NAME.search(variable):
                    raise ConfigError(f"{key}: refused to copy {variable} from the environment; W&B reads its key itself.")
            if any(secret in raw for secret in secrets):
                raise ConfigError(f"{key}: holds the value of a secret environment variable; nothing secret belongs here.")
        if not key.startswith("hydra."):
            if name == "_target_" or (name.startswith("_") and name.endswith("_")):
                raise ConfigError(f"{key}: {NO_CODE}")
            if SECRET_NAME.search(name):
                raise ConfigError(f"{key}: refused. Nothing secret belongs in a config.")
            continue
        if name == "_target_" and not (isinstance(raw, str) and raw.startswith(TRUSTED_TARGETS)):
            raise ConfigError(f"{key}={raw}: refused. Only Hydra's launchers and sweepers may be named here.")
        if name == "()" or (".handlers." in key and name == "class" and raw not in TRUSTED_HANDLERS):
            raise ConfigError(f"{key}={raw}: refused. Logging handlers are {', '.join(TRUSTED_HANDLERS)}.")
        if key.startswith("hydra.callbacks."):
            raise ConfigError(f"{key}: refused. Callbacks name code to run.")


def _raw_leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, DictConfig | ListConfig):
        raw = OmegaConf.to_container(node, resolve=False)
        yield from _raw_leaves(raw, path)
    elif isinstance(node, Mapping):
        for key, value in node.items():
            yield from _raw_leaves(value, f"{path}.{key}".lstrip("."))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _raw_leaves(value, f"{path}.{index}")
    else:
        yield path, node


def check_yaml_folder(folder: Path) -> None:
    """Refuse YAML files that are too large, expand through aliases, or carry Python tags, before anything parses them."""
    for path in sorted([*folder.rglob("*.yaml"), *folder.rglob("*.yml")]):
        check_yaml_file(path)


def check_yaml_file(path: Path) -> None:
    """The same for one file."""
    if path.stat().st_size > MAX_YAML_BYTES:
        raise ConfigError(f"{path}: {path.stat().st_size:,} bytes of YAML; at most {MAX_YAML_BYTES:,} are read.")
    try:
        aliases = depth = 0
        for token in yaml.scan(path.read_text(encoding="utf-8")):
            aliases += isinstance(token, yaml.AliasToken)
            depth += isinstance(token, OPENING) - isinstance(token, CLOSING)
            if depth > MAX_DEPTH:
                raise ConfigError(f"{path}: YAML nested more than {MAX_DEPTH} deep.")
            if isinstance(token, yaml.TagToken) and token.value[1].startswith("python/"):
                raise ConfigError(f"{path}: the tag !!{token.value[1]} is refused.")
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not readable as YAML: {str(error).splitlines()[0]}") from error
    if aliases > MAX_YAML_ALIASES:
        raise ConfigError(f"{path}: {aliases} aliases; at most {MAX_YAML_ALIASES} are read.")


def redact_folder(folder: Path) -> None:
    """Blot out secret values in every file below a folder, byte for byte, so that offsets and lengths stay."""
    secrets = {secret.encode() for secret in secret_values()}
    for path in folder.rglob("*") if secrets else ():
        if path.is_file() and not path.is_symlink():
            data = path.read_bytes()
            clean = data
            for secret in secrets:
                clean = clean.replace(secret, b"*" * len(secret))
            if clean != data:
                path.write_bytes(clean)
