"""What a run leaves out rather than fail: a picture, a metric or a tracker that raises costs itself."""

import contextlib
import logging
from collections.abc import Iterator

from vae_lab.errors import Interrupted, StorageError
from vae_lab.text import first_line

log = logging.getLogger(__name__)


class Skipped(dict[str, str]):
    """What was left out of one run, and why, as results.json says it: {'figures/latent': 'ValueError: ...'}."""

    def __init__(self, tag: dict[str, str] | None = None):
        super().__init__()
        self.tag = tag  # marks log records as those of the run

    @contextlib.contextmanager
    def costs_itself(self, name: str) -> Iterator[None]:
        """Note and warn if the block raises, and go on; a storage that fails, and a signal, still end the run."""
        try:
            yield
        except (StorageError, Interrupted):
            raise
        except Exception as error:
            if name not in self:
                self[name] = first_line(error)
                once = f"{name} is left out: {self[name]}"
                log.warning("%s", once, exc_info=error, extra={**(self.tag or {}), "once": once})
