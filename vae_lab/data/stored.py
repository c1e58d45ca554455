"""Images in a file, decoded once: memory-mapped, so that a second start reads nothing, and sets larger than memory stream."""

import contextlib
import errno
import glob
import hashlib
import json
import math
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from filelock import FileLock
from jaxtyping import Int64, UInt8
from torch import Tensor

from vae_lab.run_dir import storage_errors, write_atomic
from vae_lab.text import complain

MEMORY_SHARE = 0.5  # of the free memory, up to which a set is read whole
NOT_AS_WRITTEN = "its content is not what was written"


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
        """Map a file whose content has this digest; it is read once, in small parts, to see that it has.

        Raises:
            OSError: it is no file that can be read, or has another size or content.
        """
        with _open_file(file) as opened:
            size, wanted = os.fstat(opened.fileno()).st_size, math.prod(shape)
            if size != wanted:
                raise OSError(errno.EIO, f"{size:,} bytes, not {wanted:,}")
            if hashlib.file_digest(opened, "sha256").hexdigest() != digest:
                raise OSError(errno.EIO, NOT_AS_WRITTEN)
            mapped = np.memmap(opened, dtype=np.uint8, mode="c", shape=shape)  # never written to, but torch wants it writable
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


class DamagedError(Exception):
    """Stored images are not what was written."""


class ImageStore:
    """One decoded set in a folder: FOLDER/NAME.pixels and, written last, FOLDER/NAME.json."""

    def __init__(self, folder: Path, name: str):
        self.pixels, self.manifest = folder / f"{name}.pixels", folder / f"{name}.json"

    def read_or_write(
        self, source: str, images: Iterator[np.ndarray], facts: dict[str, Any]
    ) -> tuple[StoredPixels, dict[str, Any]]:
        """What is there, else `images`, kept; one process at a time decodes them. Says where what is there is damaged.

        Raises:
            StorageError: the folder cannot be written.
        """
        with contextlib.suppress(DamagedError):
            if (known := self.read(source)) is not None:
                return known
        with storage_errors(self.pixels):
            self.pixels.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.pixels.with_suffix(".lock"))
            lock.acquire()
        try:
            return self.read(source) or self.write(source, images, facts)  # another process may have made it meanwhile
        except DamagedError as error:
            complain(f"{error}. The images are decoded again.")
            return self.write(source, images, facts)
        finally:
            lock.release()

    def read(self, source: str) -> tuple[StoredPixels, dict[str, Any]] | None:
        """Pixels and facts, if they were made from `source`.

        Raises:
            DamagedError: they were, but are not what was written.
        """
        at = self.manifest
        try:
            with _open_file(at) as file:
                known = json.loads(file.read())
            if known.pop("sha256", None) != _sum(known):
                raise ValueError(NOT_AS_WRITTEN)
            if known["source"] != source:
                return None
            at = at.with_name(known["file"])
            return StoredPixels.open(at, tuple(known["shape"]), known["digest"]), known["facts"]
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            if isinstance(error, FileNotFoundError) and at == self.manifest:
                return None
            reason = error.strerror if isinstance(error, OSError) else error
            raise DamagedError(f"{at}: a damaged copy of the images ({reason})") from error

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
            write_atomic(self.manifest, json.dumps(known | {"sha256": _sum(known)}))
            for old in file.parent.glob(f"{glob.escape(self.pixels.stem)}-*.pixels"):
                if old != file:
                    with contextlib.suppress(OSError):  # a folder, say
                        old.unlink()
            return StoredPixels.open(file, (number, *shape), digest.hexdigest()), facts


def _open_file(path: Path) -> BufferedReader:
    """Open a regular file to read it. A link is not followed, and a pipe not waited for."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a file")
    return os.fdopen(descriptor, "rb")


def _sum(known: dict[str, Any]) -> str:
    """Of a manifest's content: classes and the pixels' digest are believed only where nothing in it has changed."""
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()
