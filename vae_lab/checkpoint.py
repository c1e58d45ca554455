"""Checkpoints of one run: `last` to go on from, `best` to use.

A checkpoint is a folder with model.safetensors (parameters and buffers), training.pt (everything else a resume needs) and
manifest.json (size and SHA-256 of both, step, config fingerprint). It is written beside its final place, synced, and
renamed, so that a crash at any moment leaves a whole one; `last` moves to `previous` and stays until the next is in place.
"""

import contextlib
import hashlib
import io
import json
import os
import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch.utils._pytree import tree_leaves, tree_map

from vae_lab.blocks import State
from vae_lab.errors import CheckpointError, StorageError
from vae_lab.foreign import check_regular
from vae_lab.run_dir import free_space, read_json

MODEL, TRAINING, MANIFEST = "model.safetensors", "training.pt", "manifest.json"
FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """`training` holds tensors and plain values only."""

    model: State
    training: dict[str, Any]
    manifest: dict[str, Any]


def save(folder: Path, name: str, model: State, training: dict[str, Any], facts: dict[str, Any]) -> None:
    """Write checkpoint `folder/name` durably; `facts` (step, fingerprint, ...) go into the manifest.

    Raises:
        StorageError: names the file and the free space; the previous checkpoint is untouched.
    """
    buffer = io.BytesIO()
    torch.save(tree_map(_on_cpu, training), buffer)
    contents = {MODEL: safetensors.torch.save({k: v.contiguous().cpu() for k, v in model.items()}), TRAINING: buffer.getvalue()}
    temporary, final, previous, doomed = (folder / n for n in (f".{name}.tmp", name, "previous", ".doomed"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove(temporary)
        temporary.mkdir()
        files = {file: {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)} for file, data in contents.items()}
        for file, data in contents.items():
            _write(temporary / file, data)
        manifest = {"format": FORMAT, **facts, "files": files}
        _write(temporary / MANIFEST, json.dumps(manifest, indent=2).encode())
        _sync(temporary)
        _remove(doomed)
        if final.exists():
            if name == "last":
                if previous.exists():
                    os.rename(previous, doomed)
                os.rename(final, previous)
            else:
                os.rename(final, doomed)
        os.rename(temporary, final)
        _sync(folder)
        _remove(doomed)
    except (OSError, RuntimeError) as error:
        with contextlib.suppress(OSError):
            _remove(temporary)
        raise StorageError(f"Cannot write the checkpoint {final}: {error} ({free_space(folder)}).") from error


def load(path: Path) -> Checkpoint:
    """Read one checkpoint folder and verify it.

    Raises:
        CheckpointError: names the file and what is wrong with it.
    """
    try:
        for part in (path, path / MANIFEST, path / MODEL, path / TRAINING):
            if part.is_symlink():
                raise CheckpointError(f"{part}: a symbolic link is not followed.")
        for file in (MANIFEST, MODEL, TRAINING):
            check_regular(path / file)
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        files = manifest["files"]
        if manifest["format"] != FORMAT:
            raise CheckpointError(f"{path / MANIFEST}: format {manifest['format']}, this release reads {FORMAT}.")
        if not isinstance(manifest["step"], int):
            raise TypeError("the step is no whole number")
        contents = {}
        for file in (MODEL, TRAINING):
            data = contents[file] = (path / file).read_bytes()
            if len(data) != files[file]["size"]:
                raise CheckpointError(f"{path / file}: {len(data)} bytes, expected {files[file]['size']}: truncated.")
            if hashlib.sha256(data).hexdigest() != files[file]["sha256"]:
                raise CheckpointError(f"{path / file}: checksum differs from {MANIFEST}: damaged.")
        model = safetensors.torch.load(contents[MODEL])
        training = _load_training(contents[TRAINING])
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"{error.filename or path}: {error.strerror or error}.") from error
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        raise CheckpointError(f"{path}: unreadable or refused ({type(error).__name__}: {reason}).") from error
    return Checkpoint(model, training, manifest)


def present(folder: Path) -> bool:
    """Whether a checkpoint to go on from was ever written, sound or not."""
    return any((folder / name).exists() or (folder / name).is_symlink() for name in ("last", "previous"))


def manifests(folder: Path) -> list[dict[str, Any]]:
    """Those of `last` and `previous`, as far as they can be read; nothing is verified."""
    found = []
    for name in ("last", "previous"):
        with contextlib.suppress(OSError, ValueError):
            found.append(read_json(folder / name / MANIFEST))
    return [manifest for manifest in found if isinstance(manifest, dict) and isinstance(manifest.get("step"), int)]


def load_newest(folder: Path, at: int | None = None) -> tuple[Checkpoint, list[str]]:
    """The newest sound one of `last` and `previous`, by step, and a message for each that is damaged.

    With `at`, the one of that step, if it is among the sound ones.

    Raises:
        CheckpointError: there is none; lists each and what is wrong with it.
    """
    sound, problems, damaged = [], [], []
    for name in ("last", "previous"):
        path = folder / name
        if path.exists() or path.is_symlink():
            try:
                sound.append(load(path))
            except CheckpointError as error:
                problems.append(str(error))
                damaged.append(path)
    if not sound:
        raise CheckpointError(f"No usable checkpoint in {folder}: {' '.join(problems) or 'there is none.'}")
    for path in damaged:  # aside, so that the next save does not prune the sound one in its favour
        with contextlib.suppress(OSError):
            path.rename(path.with_name(f".damaged-{path.name}-{os.getpid()}"))
    return max(sound, key=lambda checkpoint: (checkpoint.manifest["step"] == at, checkpoint.manifest["step"])), problems


def _load_training(data: bytes) -> dict[str, Any]:
    """Plain values and dense tensors only: no pickled code, no other archive than torch.save's, nothing that inflates."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > len(data):
            raise ValueError("the archive is compressed, which torch.save never does")
    training = torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    if not isinstance(training, dict):
        raise TypeError("not a dict")
    if any(isinstance(leaf, torch.Tensor) and leaf.layout is not torch.strided for leaf in tree_leaves(training)):
        raise TypeError("sparse tensors are not read")
    return training


def _on_cpu(leaf: Any) -> Any:
    """Whatever a checkpoint was trained on, it is read anywhere."""
    return leaf.cpu() if isinstance(leaf, torch.Tensor) else leaf


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    if os.name == "nt":
        return  # Windows cannot open folders
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.exists():
        shutil.rmtree(path)
