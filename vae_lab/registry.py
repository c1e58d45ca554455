"""Names from a config to classes: the only place where a name chooses code.

Each group is a package (or module) of `vae_lab`; all of its modules are imported once, so that a new file is known by
being there. Folders listed in the environment variable `VAE_LAB_PLUGINS` are searched too: `DIR/models/mine.py` joins
`vae_lab.models`.
"""

import importlib
import os
import pkgutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from vae_lab.config import typed
from vae_lab.errors import ConfigError, did_you_mean

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


def register(group: str, name: str) -> Callable[[C], C]:
    """Class decorator: make a class available as `group=name`. The class nests a dataclass `Config`."""

    def add(cls: C) -> C:
        known = _entries[group].setdefault(name, cls)
        if known is not cls and known.__module__ != cls.__module__:
            raise ValueError(f"{group} '{name}' is defined in {known.__module__} and in {cls.__module__}.")
        _entries[group][name] = cls
        return cls

    return add


@cache
def _import_group(group: str) -> None:
    package = importlib.import_module(f"vae_lab.{PACKAGES[group]}")
    if not hasattr(package, "__path__"):
        return
    for folder in filter(None, os.environ.get("VAE_LAB_PLUGINS", "").split(os.pathsep)):
        package.__path__.append(str(Path(folder).resolve() / PACKAGES[group]))
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")


def names(group: str) -> list[str]:
    """All names of a group, sorted."""
    _import_group(group)
    return sorted(_entries[group])


def get(group: str, name: str) -> type:
    """The class registered under a name; `ConfigError` lists the choices if there is none."""
    if name not in names(group):
        raise ConfigError(f"Unknown {group} '{name}'. Choose from: {', '.join(names(group))}.{did_you_mean(name, names(group))}")
    return _entries[group][name]


def build(group: str, cfg: Any, **facts: Any) -> Any:
    """Check `cfg` against the `Config` of the class that `cfg.name` selects, and construct it with the given facts."""
    try:
        cls = get(group, str(cfg["name"]))
    except (KeyError, TypeError) as error:
        raise ConfigError(f"{group}: the key '{group}.name' is missing. Choose from: {', '.join(names(group))}.") from error
    return cls(typed(cls.Config, cfg, group), **facts)  # type: ignore[attr-defined]
