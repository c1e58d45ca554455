"""vae_lab: train and compare autoencoders."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vae_lab.trained import TrainedRun as TrainedRun
    from vae_lab.trained import load as load

__version__ = "0.2.0"


def __getattr__(name: str) -> Any:
    """`vae_lab.load` and `vae_lab.TrainedRun`, imported when first used: torch takes seconds."""
    if name in ("load", "TrainedRun"):
        from vae_lab import trained

        return getattr(trained, name)
    raise AttributeError(f"module 'vae_lab' has no attribute '{name}'")
