"""A run's stored config as overrides that compose it again: what `resume=DIR` goes on with."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Quote, QuotedString

from vae_lab.config import REGISTERED_GROUPS, flatten, to_plain
from vae_lab.entry import CONF, compose_checked, parse
from vae_lab.errors import ConfigError
from vae_lab.reading import data_here
from vae_lab.registry import plugin_folders

GROUPS = (*REGISTERED_GROUPS, "trainer", "evaluation")
FIRST = ("seed", "latent_dim", "hidden_dims", "device")  # other values may follow from them
OF_THE_COMMAND = ("resume", "resume_allow")


def overrides_of(stored: dict[str, Any], more: Sequence[str], folders: Sequence[str]) -> list[str]:
    """Overrides that compose `stored` on this machine, and then those of the command line, which win.

    What follows from other values in YAML still does: latent_dim=3 later on the line changes the model's too. A group chosen
    there takes the place of the stored one.

    Raises:
        ConfigError: a group is chosen that sets keys of other groups.
    """
    chosen = {override.key_or_group for override in parse(more) if not override.is_sweep_override()}
    others = [key for key in chosen if key not in GROUPS and not key.startswith("hydra")]
    if several := [key for key in others if any((folder / key).is_dir() for folder in _searched(folders))]:
        raise ConfigError(
            f"{several[0]}=...: sets many keys at once, and resume goes on with the run's own. Say the keys to change."
        )
    kept = {key: value for key, value in stored.items() if key not in OF_THE_COMMAND and not (key in GROUPS and key in chosen)}
    options = {group: _option(group, kept[group], folders) for group in GROUPS if group in kept}
    lines = [f"{group}={option}" for group, option in options.items() if option is not None]
    lines += [f"{key}={literal(kept[key])}" for key in FIRST if key in kept]
    here = to_plain(compose_checked([*lines, *_groups(more), *folders])[0])
    if "data" in kept:
        kept["data"] = data_here(kept["data"], here["data"])
    wanted, composed = flatten(kept), flatten(here)
    lines += [f"++{key}={literal(value)}" for key, value in wanted.items() if key not in composed or composed[key] != value]
    strange = tuple(f"{group}." for group, option in options.items() if option is None)
    lines += [f"~{key}" for key in composed if key.startswith(strange) and key not in wanted]
    return [*lines, *more]


def _groups(more: Sequence[str]) -> list[str]:
    return [override.input_line or "" for override in parse(more) if override.key_or_group in GROUPS]


def _searched(folders: Sequence[str]) -> list[Path]:
    """`conf/`, those of plugins, and the folders of a search path."""
    entries = [entry for override in parse(folders) for entry in override.value()]  # type: ignore[union-attr]
    own = [CONF, *(folder / "conf" for folder in plugin_folders())]
    return [*own, *(Path(str(entry).removeprefix("file://")) for entry in entries)]


def _option(group: str, node: Any, folders: Sequence[str]) -> str | None:
    """The YAML that a stored group was probably made from, which has its keys; None if there is none of its name."""
    names = [node.get("variant"), node.get("name"), "default"] if isinstance(node, dict) else []
    files = [(name, folder / group / f"{name}.yaml") for name in names if name is not None for folder in _searched(folders)]
    return next((str(name) for name, file in files if str(name).isidentifier() and file.is_file()), None)


def literal(value: Any) -> str:
    """A value in the grammar of Hydra's overrides.

    Raises:
        ConfigError: it cannot be written there.
    """
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return QuotedString(value, Quote.single).with_quotes()
    if isinstance(value, list):
        return f"[{','.join(map(literal, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}:{literal(item)}' for key, item in value.items())}}}"
    raise ConfigError(f"{value!r}: a run's config holds numbers, texts, lists and mappings.")
