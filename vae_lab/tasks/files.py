"""What a command writes: all of its files or none, each whole."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

from vae_lab.errors import ConfigError, StorageError
from vae_lab.interrupt import interrupts
from vae_lab.run_dir import storage_errors

Writer = Callable[[BinaryIO], object]


def output(out: str | None, default: Path, *suffixes: str) -> Path:
    """Where a command's main file goes; what else it writes lies beside it, under the same stem.

    Raises:
        ConfigError: a suffix that the command does not write, or a folder.
        StorageError: a folder that cannot be written to; better known before the work than after.
    """
    path = Path(out).expanduser() if out else default
    if path.is_dir():
        raise ConfigError(f"--out {path}: a folder; name a file that ends in {' or '.join(suffixes)}.")
    if suffixes and path.suffix.lower() not in suffixes:
        raise ConfigError(f"--out {path}: must end in {' or '.join(suffixes)}.")
    check_writable(path)
    return path


def check_writable(path: Path) -> None:
    """Raise `StorageError` where nothing can be written at `path`."""
    parent = next(parent for parent in path.absolute().parents if os.path.lexists(parent))
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise StorageError(f"Cannot write {path}: {parent} is no folder that can be written to.")


def write_all(files: Mapping[Path, Writer]) -> list[Path]:
    """Write every file beside its place, and only then move them all there; returns their paths."""
    interrupts.check()
    temporaries = {path: path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in files}
    made: list[Path] = []
    try:
        for path, writer in files.items():
            with storage_errors(path):
                made += [folder for folder in reversed(path.parents) if not folder.exists()]
                path.parent.mkdir(parents=True, exist_ok=True)
                temporaries[path].unlink(missing_ok=True)
                with temporaries[path].open("xb") as file:  # never through a link that somebody left there
                    writer(file)
                    file.flush()
                    os.fsync(file.fileno())
        for path, temporary in temporaries.items():
            with storage_errors(path):
                os.replace(temporary, path)
    except BaseException:
        for temporary in temporaries.values():
            temporary.unlink(missing_ok=True)
        for folder in reversed(made):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        raise
    return list(files)


def text(content: str) -> Writer:
    """A writer of UTF-8 text."""
    return lambda file: file.write(content.encode())
