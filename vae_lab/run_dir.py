"""The files of a run directory: their names and their schema. Nothing else knows them, and torch is not needed here."""

import io
import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from vae_lab import foreign
from vae_lab.errors import ConfigError, StorageError
from vae_lab.foreign import read_regular

LEDGER = "sweep.json"  # of a sweep's folder
FINISHED = ("completed", "stopped_early")  # the status of a run with nothing left to do


class RunDir:
    """One run's folder."""

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.metrics = self.path / "metrics.jsonl"
        self.results = self.path / "results.json"
        self.test_terms = self.path / "test_terms.npz"  # of each test image, as results.json has their means
        self.checkpoints = self.path / "checkpoints"
        self.figures = self.path / "figures"
        self.log = self.path / "run.log"
        self.tasks = self.path / "tasks"  # what vae-lab's commands write
        self.export = self.path / "export"
        self.card = self.path / "README.md"
        self.manifest = self.checkpoints / "last" / "manifest.json"

    def write_config(self, plain: dict[str, Any]) -> None:
        """The resolved config, enough to repeat the run."""
        write_atomic(self.config, yaml.safe_dump(plain, sort_keys=False, allow_unicode=True))

    def read_config(self) -> dict[str, Any]:
        """What `write_config` wrote; a `yaml.YAMLError` for what it cannot have written."""
        try:
            foreign.check_yaml_file(self.config)
        except ConfigError as error:
            raise yaml.YAMLError(str(error)) from error
        cfg = yaml.load(self.config.read_text(encoding="utf-8"), Loader=foreign.Loader)
        if not isinstance(cfg, dict):
            raise yaml.YAMLError("not a run's config")
        return cfg

    def begin(self, plain: dict[str, Any], epochs: int) -> None:
        """Make the folder ready for training that goes on after `epochs`: config written, later rows and results gone."""
        self.write_config(plain)
        with storage_errors(self.results):
            self.results.unlink(missing_ok=True)
        rows = [row for row in self.read_metrics() if row["epoch"] <= epochs]
        if self.metrics.exists():
            write_atomic(self.metrics, "".join(strict_json(row) + "\n" for row in rows))

    def append_metrics(self, row: dict[str, Any]) -> None:
        """One strict-JSON line."""
        with storage_errors(self.metrics), self.metrics.open("a", encoding="utf-8") as file:
            file.write(strict_json(row) + "\n")

    def read_metrics(self) -> list[dict[str, Any]]:
        """All whole rows, in order, up to a torn or damaged one."""
        if not self.metrics.is_file():
            return []
        rows = []
        for line in read_regular(self.metrics).decode("utf-8", errors="replace").split("\n")[:-1]:
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                break  # what follows damage is trained again
            if not isinstance(row, dict):
                break
            if not _is_number(row.get("epoch")) or not _is_number(row.get("seconds", 0)):
                break
            rows.append(row)
        return rows

    def lost_epochs(self, epochs: int) -> str | None:
        """A sentence if metrics.jsonl does not hold all of so many epochs, else None."""
        if epochs and not self.metrics.exists():
            return f"{self.metrics} is gone: the numbers of its {epochs} epochs are lost, also to curves."
        found = sum(row["epoch"] <= epochs for row in self.read_metrics())
        if found < epochs:
            return f"{self.metrics} is damaged: it holds {found} of {epochs} epochs."
        return None

    def write_results(self, results: dict[str, Any]) -> None:
        """The summary. Its presence means that the run ended."""
        write_atomic(self.results, strict_json(results, indent=2) + "\n")

    def write_test_terms(self, terms: dict[str, Any]) -> None:
        """NumPy arrays [N], one number per test image each, compressed."""
        import numpy as np

        buffer = io.BytesIO()
        np.savez_compressed(buffer, **terms)
        write_atomic(self.test_terms, buffer.getvalue())

    def read_results(self) -> dict[str, Any] | None:
        """What `write_results` wrote; None if the run has not ended.

        Raises:
            ValueError: it is not that.
        """
        if not self.results.exists():
            return None
        results = read_json(self.results)
        kinds = {"status": str, "test": dict}
        if not isinstance(results, dict) or not all(isinstance(results.get(k), kind) for k, kind in kinds.items()):
            raise ValueError("not the results of a run")
        return results

    def is_run(self) -> bool:
        """Whether a run was ever here."""
        return self.results.is_file() or (self.config.is_file() and (self.metrics.is_file() or self.checkpoints.is_dir()))

    def count_lines(self) -> int:
        """Lines begun in metrics.jsonl; more than `read_metrics` returns if some are torn or damaged."""
        if not self.metrics.exists():
            return 0
        return sum(bool(line.strip()) for line in read_regular(self.metrics).split(b"\n"))

    def read_cohort(self) -> list[str]:
        """Fingerprints of the runs that were trained together with this one, itself included; empty if unknown."""
        try:
            cohort = read_json(self.manifest)["cohort"]
        except (OSError, ValueError, LookupError, TypeError):
            return []
        return cohort if isinstance(cohort, list) else []


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def read_json(path: Path) -> Any:
    """The content of a JSON file that anything may have happened to.

    Raises:
        OSError: it cannot be read.
        ValueError: it is damaged, or nested too deeply for Python.
    """
    try:
        return json.loads(read_regular(path))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def strict_json(row: dict[str, Any], indent: int | None = None) -> str:
    """JSON without NaN or infinity: they become null, and 'nonfinite' lists the keys that did."""
    wrong: list[str] = []

    def clean(value: Any, key: str) -> Any:
        if isinstance(value, float) and not math.isfinite(value):
            wrong.append(key)
            return None
        if isinstance(value, dict):
            return {name: clean(item, f"{key}.{name}".lstrip(".")) for name, item in value.items()}
        if isinstance(value, list | tuple):
            return [clean(item, f"{key}.{index}") for index, item in enumerate(value)]
        return value

    cleaned = clean(row, "")
    return json.dumps(cleaned | {"nonfinite": wrong} if wrong else cleaned, indent=indent, allow_nan=False)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Replace a file as a whole: a reader sees the old or the new one, also after a crash."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with storage_errors(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.unlink(missing_ok=True)
            with temporary.open("xb") as file:  # never through a link that somebody left there
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn an OSError into one message that names the file and the free space."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"Cannot write {path}: {error.strerror or error} ({free_space(path)}).") from error


def storage_error(error: OSError, otherwise: Path) -> StorageError:
    """The message for an OSError that was not foreseen: of its own file, or of the command's folder."""
    named = isinstance(error.filename, str | bytes)
    path = Path(os.fsdecode(error.filename)) if named else otherwise
    return StorageError(f"{path}: {error.strerror or error} ({free_space(path)}).")


def free_space(path: Path) -> str:
    """'1.2 GiB free on ...' for the nearest existing folder."""
    import shutil

    above = [path, *path.absolute().parents]  # os.path.isdir answers for a name that is too long; Path.is_dir raises
    folder = next((parent for parent in above if os.path.isdir(parent)), Path("/"))  # noqa: PTH112
    try:
        return f"{shutil.disk_usage(folder).free / 2**30:.1f} GiB free in {folder}"
    except OSError:
        return f"free space in {folder} unknown"
