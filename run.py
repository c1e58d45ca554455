"""Train a run, or with -m a sweep: python run.py model=vae latent_dim=2. See --help."""

import sys

import hydra
from omegaconf import DictConfig

from vae_lab.entry import conclude, hydra_in_one_message, prepare


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> object:
    """The task that Hydra calls for a run, and for each job of a sweep."""
    from vae_lab.entry import run

    return run(cfg)


if __name__ == "__main__":
    sys.argv[1:] = prepare(sys.argv[1:])
    with hydra_in_one_message():
        main()
    conclude()
