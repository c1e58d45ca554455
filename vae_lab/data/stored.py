"""Images in a file, decoded once: memory-mapped, so that a second start reads nothing, and sets larger than memory stream."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from filelock import FileLock
from jaxtyping import Int64, UInt8
from torch import Tensor

from vae_lab.run_dir import read_json, storage_errors, write_atomic

MEMORY_SHARE = 0.5  # of the free memory, up to which a set is read whole


@dataclass(frozen=True)
class StoredPixels:
    """Pixels [N, C, H, W] on disk. Indexing reads those images into memory, on `device`; selecting reads nothing."""

    file: Path
    stored: UInt8[Tensor, "M C H W"]  # memory-mapped
    rows: Int64[Tensor, " N"]
    digest: str  # of the whole file
    device: torch.device = torch.device("cpu")

    @classmethod
    def open(cls, file: Path, shape: tuple[int, ...], digest: str) -> "StoredPixels":
        mapped = np.memmap(file, dtype=np.uint8, mode="c", shape=shape)  # copy on write, which nobody does: torch wants it writable
        return cls(file, torch.from_numpy(mapped), torch.arange(shape[0]), digest)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self), *self.stored.shape[1:])

    def __getitem__(self, index: int | slice | Tensor) -> UInt8[Tensor, "*batch C H W"]:
        rows = self.rows[index.cpu() if isinstance(index, Tensor) else index]
        return self.stored[rows].to(self.device)

    def select(self, index: Tensor | slice) -> "StoredPixels":
        return replace(self, rows=self.rows[index])

    def to(self, device: torch.device) -> "StoredPixels":
        return replace(self, device=device)

    def resident(self) -> "UInt8[Tensor, 'N C H W'] | StoredPixels":
        """All pixels as a tensor where they fit into memory, else these."""
        num_bytes = len(self) * int(np.prod(self.shape[1:]))
        return self.stored[self.rows] if num_bytes <= MEMORY_SHARE * psutil.virtual_memory().available else self

    def content(self) -> bytes:
        """What stands for the pixels in a digest."""
        return self.digest.encode() + self.rows.numpy().tobytes()


class ImageStore:
    """One decoded set in a folder: FOLDER/NAME.pixels and, written last, FOLDER/NAME.json."""

    def __init__(self, folder: Path, name: str):
        self.pixels, self.manifest = folder / f"{name}.pixels", folder / f"{name}.json"

    def read_or_write(
        self, source: str, images: Iterator[np.ndarray], facts: dict[str, Any]
    ) -> tuple[StoredPixels, dict[str, Any]]:
        """What is there, else `images`, kept; one process at a time decodes them.

        Raises:
            StorageError: the folder cannot be written.
        """
        if (known := self.read(source)) is not None:
            return known
        with storage_errors(self.pixels):
            self.pixels.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.pixels.with_suffix(".lock"))
            lock.acquire()
        try:
            return self.read(source) or self.write(source, images, facts)
        finally:
            lock.release()

    def read(self, source: str) -> tuple[StoredPixels, dict[str, Any]] | None:
        """Pixels and facts, if they were made from `source` and are whole."""
        try:
            known = read_json(self.manifest)
            pixels = self.pixels.with_name(known["file"])
            if known["source"] != source or pixels.stat().st_size != int(np.prod(known["shape"])):
                return None
            return StoredPixels.open(pixels, tuple(known["shape"]), known["digest"]), known["facts"]
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, source: str, images: Iterable[np.ndarray], facts: dict[str, Any]) -> tuple[StoredPixels, dict[str, Any]]:
        """Keep images [C, H, W] of one shape, taken one by one; `facts` may be filled while they are.

        The pixels go into a file of a new name, so that a process that maps the old one keeps it.

        Raises:
            StorageError: the folder cannot be written.
        """
        file = self.pixels.with_name(f"{self.pixels.stem}-{os.urandom(4).hex()}.pixels")
        digest, number, shape = hashlib.sha256(), 0, ()
        with storage_errors(file):
            try:
                with file.open("wb") as output:
                    for image in images:
                        data = image.tobytes()
                        output.write(data)
                        digest.update(data)
                        number, shape = number + 1, image.shape
                    output.flush()
                    os.fsync(output.fileno())
            except BaseException:
                file.unlink(missing_ok=True)
                raise
            known = {"source": source, "file": file.name, "shape": [number, *shape], "digest": digest.hexdigest(), "facts": facts}
            write_atomic(self.manifest, json.dumps(known))
            for old in file.parent.glob(f"{self.pixels.stem}-*.pixels"):
                if old != file:
                    old.unlink(missing_ok=True)
        return StoredPixels.open(file, (number, *shape), digest.hexdigest()), facts
