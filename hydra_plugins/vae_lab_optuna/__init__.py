"""Hydra's way to `vae_lab.tune`: a thin shell, since Hydra imports its plugins on every start."""

from pathlib import Path
from typing import Any

from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf


class OptunaSweeper(Sweeper):
    """Asks Optuna for batches of trials and lets the launcher train them."""

    def __init__(self, **options: Any):
        from vae_lab.tune import SearchOptions

        self.options = SearchOptions.of(options)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what `sweep` needs."""
        self.config = config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Search; returns the best trial's parameters."""
        from vae_lab.entry import one_message
        from vae_lab.tune import tune

        folder = Path(self.config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, folder / "multirun.yaml")
        with one_message():
            return tune(self.launcher.launch, folder, arguments, self.options)
