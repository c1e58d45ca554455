"""Where a run is reported beside its own files."""

from vae_lab.tracking.base import Tracker

__all__ = ["Tracker"]
