"""Names from a config to classes: the only place where a name chooses code.

Each group is a package (or module) of `vae_lab`; all of its modules are imported once, so that a new file is known by
being there. Folders listed in the environment variable `VAE_LAB_PLUGINS` are searched too: `DIR/models/mine.py` joins
`vae_lab.models`. A file there that cannot be imported costs what it defines, and nothing else.
"""

import dataclasses
import importlib
import inspect
import os
import pkgutil
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from vae_lab.config import typed
from vae_lab.errors import ConfigError, VaeLabError, did_you_mean, memory_errors
from vae_lab.text import complain, first_line

C = TypeVar("C", bound=type)

PACKAGES = {
    "model": "models",
    "objective": "objectives",
    "loss": "losses",
    "network": "networks",
    "data": "data",
    "tracking": "tracking",
    "optimizer": "optimizers",
    "scheduler": "schedulers",
}
_entries: dict[str, dict[str, type]] = {group: {} for group in PACKAGES}
_broken: dict[Path, BaseException] = {}  # files of plugins, and why they were not imported


def register(group: str, name: str) -> Callable[[C], C]:
    """Class decorator: make a class available as `group=name`. The class nests a dataclass `Config`."""

    def add(cls: C) -> C:
        known = _entries[group].setdefault(name, cls)
        if known is not cls and known.__module__ != cls.__module__:
            raise ValueError(f"{group} '{name}' is defined in {known.__module__} and in {cls.__module__}.")
        _entries[group][name] = cls
        return cls

    return add


def plugin_folders() -> list[Path]:
    """The folders of VAE_LAB_PLUGINS that are there; each other one is named once, on stderr."""
    return _existing(os.environ.get("VAE_LAB_PLUGINS", ""))


@cache
def _existing(listed: str) -> list[Path]:
    folders = [Path(folder).absolute() for folder in listed.split(os.pathsep) if folder]
    for folder in folders:
        if not os.path.isdir(folder):  # noqa: PTH112, it answers for every name
            complain(f"warning: VAE_LAB_PLUGINS: {folder}: no such folder; nothing is read there.")
    return [folder for folder in folders if os.path.isdir(folder)]  # noqa: PTH112


@cache
def _add_plugins() -> None:
    """Let modules of every group be found in plugins too, so that one of them may import another."""
    for package in PACKAGES.values():
        path = importlib.import_module(f"vae_lab.{package}").__dict__.setdefault("__path__", [])
        path += [str(folder / package) for folder in plugin_folders()]


@cache
def _import_group(group: str) -> None:
    _add_plugins()
    package = importlib.import_module(f"vae_lab.{PACKAGES[group]}")
    folders = [str(folder / PACKAGES[group]) for folder in plugin_folders()]
    for module in pkgutil.iter_modules([place for place in package.__path__ if place not in folders]):
        importlib.import_module(f"{package.__name__}.{module.name}")
    for folder in folders:
        for module in pkgutil.iter_modules([folder]):
            _import_plugin(f"{package.__name__}.{module.name}", Path(folder) / module.name)


def _import_plugin(name: str, place: Path) -> None:
    """Import a plugin's module; one that cannot be imported is named, and registers nothing."""
    file = place if place.is_dir() else place.with_name(f"{place.name}.py")
    before = {group: dict(entries) for group, entries in _entries.items()}
    try:
        module = importlib.import_module(name)
        found = Path(module.__file__ or "")
        if found.parent not in (place, place.parent):
            raise ImportError(f"{found} has the same name; rename this one")
    except (Exception, SystemExit) as error:
        _entries.update(before)
        _broken[file] = error
        complain(f"warning: {file} is not used: {first_line(error)}")


def names(group: str) -> list[str]:
    """All names of a group, sorted."""
    _import_group(group)
    return sorted(_entries[group])


def get(group: str, name: str) -> type:
    """The class registered under a name; `ConfigError` lists the choices if there is none."""
    if name not in names(group):
        for file, error in _broken.items():
            if file.stem == name or _defines(file, group, name):
                why = f"{file} cannot be imported ({first_line(error)})."
                raise ConfigError(f"{group}={name}: {why}") from error
        raise ConfigError(f"Unknown {group} '{name}'. Choose from: {', '.join(names(group))}.{did_you_mean(name, names(group))}")
    return _entries[group][name]


def _defines(file: Path, group: str, name: str) -> bool:
    """Whether a module says that it registers a name, as far as its text shows."""
    source = file / "__init__.py" if file.is_dir() else file
    words = [rf"""['"]{re.escape(word)}['"]""" for word in (group, name)]
    registers = re.compile(r"register\(\s*" + r"\s*,\s*".join(words))
    return registers.search(source.read_text(encoding="utf-8", errors="replace")) is not None


def build(group: str, cfg: Any, **facts: Any) -> Any:
    """Check `cfg` against the `Config` of the class that `cfg.name` selects, and construct it with the given facts."""
    cls, config = typed_config(group, cfg)
    try:
        with memory_errors():
            return cls(config, **facts)
    except VaeLabError:
        raise
    except Exception as error:
        raise ConfigError(f"{_place(group, cls)} cannot be made: {first_line(error)}.") from error


def typed_config(group: str, cfg: Any) -> tuple[type, Any]:
    """The class that `cfg.name` selects, and `cfg` as an object of its nested `Config`, checked."""
    try:
        cls = get(group, str(cfg["name"]))
    except (KeyError, TypeError) as error:
        raise ConfigError(f"{group}: the key '{group}.name' is missing. Choose from: {', '.join(names(group))}.") from error
    schema: Any = getattr(cls, "Config", None)
    if not (isinstance(schema, type) and dataclasses.is_dataclass(schema)):
        raise ConfigError(f"{_place(group, cls)}: the class nests no dataclass Config.")
    return cls, typed(schema, cfg, group)


def _place(group: str, cls: type) -> str:
    return f"{inspect.getsourcefile(cls)}: the {group} {cls.__name__}"
