"""A folder of the user's own images."""

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from vae_lab import rng
from vae_lab.config import bounded
from vae_lab.data.base import DataConfig, Dataset, Images
from vae_lab.data.files import SUFFIXES, class_labels, first_of, read_image
from vae_lab.data.stored import ImageStore, StoredPixels
from vae_lab.errors import ConfigError, DataError
from vae_lab.registry import register

SHOWN = 10
log = logging.getLogger(__name__)
CHUNK = 2048  # images decoded before they are written


class OnBad(Enum):
    """What to do with files that are no usable image."""

    stop = "stop"
    skip = "skip"


@register("data", "folder")
class Folder(Dataset):
    """Every PNG, JPEG, BMP and WebP file below `root`; sub-folders, where there are any, are the classes.

    Images are decoded once, into a file below `cache`; a second start verifies it by its checksum and maps it, and a set that does
    not fit into memory streams from it. A changed, added or removed image makes it anew. A fixed random part is the test split.
    16-bit grey images keep their range: 0..65535 becomes 0..255.
    """

    title = "own images"

    @dataclass(frozen=True, kw_only=True)
    class Config(DataConfig):
        root: str
        size: int = bounded(ge=1, le=4096)
        channels: int = bounded(ge=1, le=3)
        resize: bool  # crop the centre square and scale it to size, where an image has another size
        convert: bool  # turn palettes, alpha, CMYK, and colour or grey of the other kind into `channels`
        on_bad: OnBad
        test_fraction: float = bounded(gt=0, lt=1)
        cache: str | None

    config: Config

    def __init__(self, config: Config):
        super().__init__(config)
        if config.channels == 2:
            raise ConfigError("data.channels=2: images have 1 channel (grey) or 3 (colour).")
        self.image_shape = (config.channels, config.size, config.size)

    def read(self) -> tuple[Images, Images]:
        root = Path(self.config.root).expanduser()
        if not root.is_dir():
            raise DataError(f"data.root={root}: no such folder ({root.absolute()}). Say data.root=DIR.")
        try:
            found = sorted(_scan(str(root)))
        except OSError as error:
            raise DataError(f"data.root={root}: cannot read {error.filename}: {error.strerror}.") from error
        paths = [path for path, _, _ in found]
        if out := links_out(root, paths):
            log.warning("data.root=%s: %d of %d images are links out of it: %s", root, len(out), len(paths), first_of(out, SHOWN))
        if not paths:
            raise DataError(f"data.root={root}: no {', '.join(SUFFIXES)} files below it.")
        source = hashlib.sha256(json.dumps(found).encode()).hexdigest()
        decoding = {key: getattr(self.config, key) for key in ("size", "channels", "resize", "convert", "on_bad")}
        settings = json.dumps({"root": str(root.absolute())} | decoding, default=str)
        name = f"{root.name[:40]}-{hashlib.sha256(settings.encode()).hexdigest()[:12]}"
        store = None if self.config.cache is None else ImageStore(Path(self.config.cache), name)
        facts: dict[str, Any] = {"kept": [], "bad": []}
        if store is None:
            pixels = np.stack(list(self._decoded(root, paths, facts)))
            return self._parts(paths, torch.from_numpy(pixels), facts)
        return self._parts(paths, *store.read_or_write(source, self._decoded(root, paths, facts), facts))

    def _parts(self, paths: Sequence[str], x: torch.Tensor | StoredPixels, facts: dict[str, Any]) -> tuple[Images, Images]:
        """Classes, and the two splits."""
        images = Images(x, class_labels([paths[index] for index in facts["kept"]]))
        order = torch.randperm(len(images), generator=rng.generator(self.config.split_seed, "folder-test"))
        num_test = min(len(images) - 1, max(1, round(self.config.test_fraction * len(images))))
        return images.select(order[num_test:].sort().values), images.select(order[:num_test].sort().values)

    def _decoded(self, root: Path, paths: Sequence[str], facts: dict[str, Any]) -> Iterator[np.ndarray]:
        """Pixels of every usable image in order, a chunk at a time; notes in `facts` which were kept and which were not.

        Raises:
            DataError: names the first files that cannot be used, and how many there are.
        """
        kept, bad = facts["kept"], facts["bad"]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            starts = range(0, len(paths), CHUNK)
            for start in track(starts, f"reading {len(paths):,} images", console=Console(stderr=True), transient=True):
                here = [root / path for path in paths[start : start + CHUNK]]
                for index, found in enumerate(pool.map(self._read_one, here), start):
                    if isinstance(found, str):
                        bad.append(f"{paths[index]} ({found})")
                    else:
                        kept.append(index)
                        yield found
        if bad and (self.config.on_bad is OnBad.stop or len(kept) < 2):
            raise DataError(
                f"data.root={root}: {len(bad)} of {len(paths)} files cannot be used: {first_of(bad, SHOWN)}. "
                f"The model takes {self.config.channels}x{self.config.size}x{self.config.size} (data.channels, data.size). Mend or "
                "remove them, or say data.on_bad=skip, data.resize=true, data.convert=true."
            )
        if len(kept) < 2:
            raise DataError(f"data.root={root}: {len(kept)} image; at least 2 are needed, one of them to test on.")

    def _read_one(self, path: Path) -> np.ndarray | str:
        return read_image(path, self.image_shape, self.config.resize, self.config.convert)


def links_out(root: Path, paths: Sequence[str]) -> list[str]:
    """Those of `paths` below `root` that are links to places outside of it: 'a.png (to /x/b.png)'."""
    real = os.path.realpath(root)
    links = ((path, os.path.realpath(root / path)) for path in paths if os.path.islink(root / path))  # noqa: PTH114
    return [f"{path} (to {target})" for path, target in links if not target.startswith(f"{real}{os.sep}")]


def _scan(root: str, below: str = "") -> Iterator[tuple[str, int, int]]:
    """Path below `root`, size, and time of change in ns of every image file; with strings, since there may be a million.

    The later of two times: a file that took another's place may have kept the time of its content, but not that of its place.
    """
    with os.scandir(os.path.join(root, below)) as entries:  # noqa: PTH118
        for entry in entries:
            path = f"{below}{os.sep}{entry.name}" if below else entry.name
            if entry.is_dir(follow_symlinks=False):
                yield from _scan(root, path)
            elif entry.name.lower().endswith(SUFFIXES) and not entry.name.startswith("."):
                try:
                    status = entry.stat()
                    yield path, status.st_size, max(status.st_mtime_ns, status.st_ctime_ns)
                except OSError:  # a link to nothing, which is named when it is read
                    yield path, 0, 0
