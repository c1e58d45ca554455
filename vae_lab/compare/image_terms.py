"""Terms of single test images, from a run's test_terms.npz: how far a difference would move with another test set."""

import math
import zipfile
import zlib
from collections.abc import Iterable, Sequence

import numpy as np

from vae_lab.compare.collect import Record
from vae_lab.text import printable

FILE = "test_terms.npz"
MAX_BYTES = 2**28  # unpacked, of one term
TOLERANCE = 1e-3  # relative: single precision, and the run's own mean in double


def of_groups(groups: dict[str, Sequence[Sequence[Record]]], metric: str) -> dict[str, np.ndarray]:
    """For each group whose runs all have them: a value per test image, averaged over its cells and their runs."""
    split, _, term = metric.partition("/")
    if split != "test":
        return {}
    found = {}
    for label, cells in groups.items():
        means = [_mean(_read(record, term, metric) for record in runs) for runs in cells]
        whole = _mean(means)
        if whole is not None:
            found[label] = whole
    return found


def _mean(parts: Iterable[np.ndarray | None]) -> np.ndarray | None:
    known = list(parts)
    if not known or any(part is None for part in known) or len({len(part) for part in known if part is not None}) > 1:
        return None
    return np.mean([part for part in known if part is not None], axis=0)


def _read(record: Record, term: str, metric: str) -> np.ndarray | None:
    """One run's values in double precision; None without a sound file, which is then said among the run's problems."""
    path = None if record.path is None else record.path / FILE
    if path is None or not path.is_file():
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            if f"{term}.npy" not in archive.namelist():
                return None
            if archive.getinfo(f"{term}.npy").file_size > MAX_BYTES:
                raise ValueError("too large")
        with np.load(path, allow_pickle=False) as arrays:
            values = arrays[term]
        if values.ndim != 1 or values.dtype.kind != "f" or not np.isfinite(values).all():
            raise ValueError(f"'{term}' is not one finite number per image")
        values = values.astype(float)
        if not math.isclose(values.mean(), record.numbers[metric], rel_tol=TOLERANCE, abs_tol=TOLERANCE):
            raise ValueError(f"the mean of '{term}' is not {metric} of results.json")
        return values
    except (OSError, ValueError, LookupError, EOFError, MemoryError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        problem = f"{FILE} is not used: {printable((str(error).splitlines() or ['damaged'])[0][:120])}"
        if problem not in record.problems:
            record.problems.append(problem)
        return None
