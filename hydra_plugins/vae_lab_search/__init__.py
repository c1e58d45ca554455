"""Hydra's way to YAML in the folders of VAE_LAB_PLUGINS, for every composition, help and tab completion."""

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin


class PluginSearchPath(SearchPathPlugin):
    """Adds `conf/` of each folder, after this project's own."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Called by Hydra before it looks for any config."""
        from vae_lab.registry import plugin_folders

        for folder in plugin_folders():
            if (folder / "conf").is_dir():
                search_path.append("vae_lab plugins", f"file://{folder / 'conf'}")
