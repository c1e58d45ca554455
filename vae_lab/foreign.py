"""Files that may come from anywhere: read without waiting for a pipe, running a tag, or expanding a bomb."""

import errno
import stat
from collections.abc import Iterable
from pathlib import Path

import yaml

from vae_lab.errors import ConfigError

MAX_YAML_BYTES, MAX_YAML_ALIASES, MAX_YAML_DEPTH, MAX_YAML_VALUES = 1_000_000, 50, 50, 100_000
Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times faster where libyaml is there


def check_regular(path: Path) -> None:
    """Raise an `OSError` for anything but a file: opening a pipe would wait for its writer."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))


def read_regular(path: Path) -> bytes:
    """The content of a file, and of nothing else."""
    check_regular(path)
    return path.read_bytes()


def check_yaml_folder(folder: Path) -> None:
    """Refuse YAML files that are too large, expand through aliases, or carry Python tags, before anything parses them."""
    for path in sorted([*folder.rglob("*.yaml"), *folder.rglob("*.yml")]):
        check_yaml_file(path)


def check_yaml_file(path: Path) -> None:
    """The same for one file; a pipe or device is not waited for."""
    if path.is_file() and path.stat().st_size > MAX_YAML_BYTES:
        raise ConfigError(f"{path}: {path.stat().st_size:,} bytes of YAML; at most {MAX_YAML_BYTES:,} are read.")
    try:
        _check_events(yaml.parse(read_regular(path).decode("utf-8"), Loader=Loader))
    except ValueError as error:  # of bytes that are no text too
        raise ConfigError(f"{path}: refused ({error}).") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not readable as YAML: {str(error).splitlines()[0]}") from error
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}.") from error


def _check_events(events: Iterable[yaml.Event]) -> None:
    """Raise `ValueError` for a tag of Python's, and for what is deep or large once its aliases are followed."""
    known: dict[str, int] = {}  # values below each anchor
    nodes: list[tuple[str | None, int]] = [(None, 0)]  # open ones: anchor, and values so far
    aliases = 0
    for event in events:
        if len(nodes) > MAX_YAML_DEPTH or aliases > MAX_YAML_ALIASES or nodes[-1][1] > MAX_YAML_VALUES:
            limits = f"{MAX_YAML_DEPTH} levels, {MAX_YAML_ALIASES} aliases, {MAX_YAML_VALUES:,} values"
            raise ValueError(f"at most {limits} are read")
        if (tag := str(getattr(event, "tag", None) or "").removeprefix("tag:yaml.org,2002:")).startswith("python/"):
            raise ValueError(f"the tag !!{tag}")
        if isinstance(event, yaml.CollectionStartEvent):
            nodes.append((event.anchor, 1))
            continue
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, values = nodes.pop()
        elif isinstance(event, yaml.AliasEvent):
            aliases += 1
            if event.anchor not in known:
                raise ValueError(f"the alias *{event.anchor} stands inside of what it names")
            anchor, values = None, known[event.anchor]
        elif isinstance(event, yaml.ScalarEvent):
            anchor, values = event.anchor, 1
        else:
            continue
        if anchor is not None:
            known[anchor] = values
        nodes[-1] = (nodes[-1][0], nodes[-1][1] + values)
