"""What can go wrong, and the exit code each kind of failure ends with.

A message says what is wrong, where (file, key or step) and what to do; nothing else is shown to the user.
"""

import contextlib
import difflib
from collections.abc import Iterable, Iterator

from vae_lab.text import first_line


class VaeLabError(Exception):
    """A failure with a message meant for the user."""

    exit_code = 1


class ConfigError(VaeLabError):
    """A key, value or combination in the configuration is wrong."""

    exit_code = 2


class DataError(VaeLabError):
    """A data set is missing, damaged or unusable."""

    exit_code = 3


class NonFiniteError(VaeLabError):
    """A loss or a gradient became NaN or infinite."""

    exit_code = 4


class CheckpointError(VaeLabError):
    """No usable checkpoint."""

    exit_code = 5


class StorageError(VaeLabError):
    """Files could not be written: disk full, read-only or vanished."""

    exit_code = 6


class LockedError(VaeLabError):
    """Another process works in the run directory."""

    exit_code = 7


class SweepError(VaeLabError):
    """A sweep is over, and some of its runs failed."""

    exit_code = 8


class ServiceError(VaeLabError):
    """A server refused what it was sent, or did not answer in time."""

    exit_code = 9


class OutOfMemoryError(VaeLabError):
    """Memory was asked for that this machine, or its GPU, does not have."""

    exit_code = 10


class Interrupted(VaeLabError):
    """SIGINT or SIGTERM arrived; the run left a checkpoint."""

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.signal = signal_number
        self.exit_code = 128 + signal_number


# What torch says where it raises a plain RuntimeError: of the CPU, Windows, CUDA and its libraries
NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


@contextlib.contextmanager
def memory_errors() -> Iterator[None]:
    """Turn Python's and torch's words for a lack of memory into one message that says what to lower."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not any(words in str(error) for words in NO_MEMORY):
            raise
        raise OutOfMemoryError(
            f"Not enough memory ({first_line(error)}). Lower trainer.batch_size or evaluation.batch_size, "
            "hidden_dims or latent_dim, data.limit, or in a sweep hydra.launcher.max_cohort and "
            "hydra.launcher.workers."
        ) from error


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ' Did you mean ...?' for the closest known words, or an empty string."""
    known = list(dict.fromkeys(known))
    close = difflib.get_close_matches(word, known, n=2, cutoff=0.6)
    if close and difflib.SequenceMatcher(None, word, close[0]).ratio() > 0.9:
        close = close[:1]
    if not close:
        last_part = word.rpartition(".")[2]
        close = [name for name in known if name.rpartition(".")[2] == last_part][:2]
    return f" Did you mean {' or '.join(repr(name) for name in close)}?" if close else ""
