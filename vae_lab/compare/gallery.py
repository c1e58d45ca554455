"""Pictures of runs side by side: one run a group, all of the same seed, as thumbnails small enough for one page."""

import base64
import io
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from vae_lab.compare.collect import Record
from vae_lab.compare.groups import Group
from vae_lab.run_dir import RunDir

KINDS = {
    "reconstructions": "Reconstructions: test images above, decoded posterior means below",
    "samples": "Samples",
    "latent": "Codes of the test images",
    "manifold": "The decoded latent plane",
}
MAX_GROUPS = 12
BUDGET = 560_000  # bytes of all thumbnails of a page, before base64 adds a third
WIDTH, MIN_WIDTH = 520, 180  # pixels
MAX_PIXELS = 60_000_000


@dataclass(frozen=True)
class Picture:
    """A thumbnail as a data URI, and the run it is of."""

    label: str
    record: Record
    file: str
    uri: str
    width: int
    height: int


@dataclass(frozen=True)
class Gallery:
    """Pictures of one kind."""

    title: str
    pictures: list[Picture]


def choose(groups: Sequence[Group]) -> list[tuple[Group, Record]]:
    """A usable run of the first `MAX_GROUPS` groups, best first, of the seed that most have; in their section's order."""
    having = [group for group in groups if any(record.usable for record in group.records)][:MAX_GROUPS]
    having.sort(key=lambda group: group.index)
    seeds = Counter(seed for group in having for seed in {record.seed for record in group.records if record.usable})
    if not seeds:
        return []
    common = min(seeds, key=lambda seed: (-seeds[seed], seed))
    chosen = []
    for group in having:
        runs = sorted((record for record in group.records if record.usable), key=lambda r: (r.seed != common, r.seed))
        chosen.append((group, runs[0]))
    return chosen


def galleries(chosen: Sequence[tuple[Group, Record]], budget: int) -> tuple[list[Gallery], list[str]]:
    """Galleries of what these runs drew, within `budget` bytes; and sentences about pictures that cannot be read."""
    found, problems = [], []
    there = [(kind, group, record) for kind in KINDS for group, record in chosen if _file(record, kind) is not None]
    share = budget // max(1, len(there))
    for kind, title in KINDS.items():
        pictures: list[Picture] = []
        for group, record in ((g, r) for k, g, r in there if k == kind):
            try:
                width = pictures[-1].width if pictures else WIDTH  # what fitted before
                pictures.append(_picture(group.label, record, kind, share, width))
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
                problems.append(
                    f"{_file(record, kind)}: {str(error).splitlines()[0][:200] if str(error) else type(error).__name__}"
                )
        if pictures:
            found.append(Gallery(title, pictures))
    return found, problems


def _file(record: Record, kind: str) -> str | None:
    if record.path is None:
        return None
    path = RunDir(record.path).figures / f"{kind}.png"
    return str(path) if path.is_file() else None


def _picture(label: str, record: Record, kind: str, share: int, width: int) -> Picture:
    file = _file(record, kind)
    assert file is not None
    with Image.open(file, formats=("PNG",)) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"{image.width} x {image.height} pixels are more than a figure has")
        picture = image.convert("RGB")
    width = min(width, picture.width)
    small, data = _encode(picture, width)
    while len(data) > share and width > MIN_WIDTH:
        width = max(MIN_WIDTH, int(0.9 * width * math.sqrt(share / len(data))))
        small, data = _encode(picture, width)
    uri = "data:image/webp;base64," + base64.b64encode(data).decode()
    return Picture(label, record, f"figures/{kind}.png", uri, small.width, small.height)


def _encode(picture: Image.Image, width: int) -> tuple[Image.Image, bytes]:
    height = max(1, round(picture.height * width / picture.width))
    small = picture.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=2.0)
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=72, method=2)
    return small, buffer.getvalue()
