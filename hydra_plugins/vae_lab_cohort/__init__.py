"""Hydra's way to `vae_lab.sweep`: a thin shell, since Hydra imports its plugins on every start."""

from collections.abc import Sequence
from pathlib import Path

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus, _save_config, configure_log, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write


class ProductSweeper(BasicSweeper):
    """All combinations; each job is composed once, by the launcher, and not before that to see whether it can be."""

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Left to the launcher."""


class CohortLauncher(Launcher):
    """Composes every job, then trains them together; leaves the folders that the basic launcher would."""

    def __init__(self, **options: object):
        from vae_lab.planning import SweepOptions

        self.options = SweepOptions.of(options)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what `launch` needs."""
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Train all jobs; those that fail do not stop the others, and end the command with code 8."""
        from vae_lab.composer import Composer
        from vae_lab.entry import composing, one_message
        from vae_lab.interrupt import interrupts
        from vae_lab.multirun import lead, warm_up

        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        interrupts.install()
        folder = Path(self.config.hydra.sweep.dir).absolute()
        workers = warm_up(folder, str(self.config.device), len(job_overrides), self.options)
        composer = Composer(self.hydra_context.config_loader, self.config)
        with one_message():
            composed = []
            for i, overrides in enumerate(job_overrides):
                with composing(f"job {initial_job_idx + i} ({' '.join(overrides)})"):
                    composed.append(_placed(composer.job(overrides), initial_job_idx + i, folder))
            results = lead(
                folder,
                [(config, folder) for config, folder, _ in composed],
                prepare_folder=lambda index, folder: _write_hydra_files(composed[index][2], folder),
                workers=workers,
                options=self.options,
            )
        return [_job_return(config, full, result) for (config, _, full), result in zip(composed, results, strict=True)]


def _placed(full: DictConfig, number: int, root: Path) -> tuple[DictConfig, Path, DictConfig]:
    """A job's own config, its folder, and all with its number; checked, since every job may resolve to something else."""
    from vae_lab.security import check_job

    folder = check_job(full, root, number)
    task = OmegaConf.masked_copy(full, [str(key) for key in full if key != "hydra"])
    return task, folder, full


def _write_hydra_files(full: DictConfig, folder: Path) -> None:
    """The `.hydra` files of Hydra's own `run_job`."""
    with read_write(full.hydra.runtime), open_dict(full.hydra.runtime):
        full.hydra.runtime.output_dir = str(folder.absolute())
    HydraConfig.instance().set_config(full)
    if full.hydra.output_subdir is not None:
        target = folder / full.hydra.output_subdir
        _save_config(OmegaConf.masked_copy(full, [str(key) for key in full if key != "hydra"]), "config.yaml", target)
        _save_config(OmegaConf.masked_copy(full, ["hydra"]), "hydra.yaml", target)
        _save_config(full.hydra.overrides.task, "overrides.yaml", target)


def _job_return(config: DictConfig, full: DictConfig, result: object) -> JobReturn:
    done = JobReturn(cfg=config, hydra_cfg=full, overrides=list(full.hydra.overrides.task))
    done.return_value, done.status = result, JobStatus.COMPLETED
    return done
