"""A sweep's jobs composed one from another: Hydra takes 0.11 s for each, most of it to choose and read files."""

import copy
from collections.abc import Sequence

from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException


class Composer:
    """What `load_sweep_config` of Hydra gives, composed once for each choice of groups; values are set in copies."""

    def __init__(self, loader: ConfigLoaderImpl, master: DictConfig):
        self.loader, self.master = loader, master
        self.composed: dict[tuple[str, ...], DictConfig] = {}

    def job(self, overrides: Sequence[str]) -> DictConfig:
        """The whole config of a job, with the node `hydra`.

        Raises:
            HydraException: as Hydra's own.
        """
        parsed = OverridesParser.create().parse_overrides(list(overrides))
        values = [override for override in parsed if self._is_value(override)]
        files = tuple(text for text, override in zip(overrides, parsed, strict=True) if override not in values)
        if files not in self.composed:
            self.composed[files] = self.loader.load_sweep_config(self.master, list(files))
        cfg = copy.deepcopy(self.composed[files])
        try:
            self.loader._apply_overrides_to_config(values, cfg)
        except OmegaConfBaseException as error:  # as load_configuration says it
            raise ConfigCompositionException() from error
        task = [override for override in parsed if not override.is_hydra_override()]
        cfg.hydra.overrides.task = [override.input_line for override in task]
        shown = cfg.hydra.job.config.override_dirname
        cfg.hydra.job.override_dirname = get_overrides_dirname(
            overrides=task, kv_sep=shown.kv_sep, item_sep=shown.item_sep, exclude_keys=shown.exclude_keys
        )
        OmegaConf.copy_cache(from_config=self.master, to_config=cfg)
        return cfg

    def _is_value(self, override: Override) -> bool:
        """Whether it sets a number or text of the run: it chooses no file, and says nothing to Hydra."""
        key = override.key_or_group
        is_group = override.package is not None or self.loader.repository.group_exists(key)
        return not is_group and not override.is_hydra_override()
