"""Hydra's way to `vae_lab.tune`: a thin shell, since Hydra imports its plugins on every start."""

from collections.abc import Sequence
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
        self.config, self.loader = config, hydra_context.config_loader
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Search; returns the best trial's parameters."""
        from vae_lab.composer import Composer
        from vae_lab.entry import check_composed, one_message
        from vae_lab.tune import tune

        folder = Path(self.config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, folder / "multirun.yaml")

        def launch(jobs: Sequence[Sequence[str]], first: int) -> Sequence[Any]:
            check_composed(Composer(self.loader, self.config), jobs, folder, first)
            return self.launcher.launch(jobs, first)

        with one_message():
            return tune(launch, folder, arguments, self.options)
