"""Jobs composed one from another are those that Hydra composes one by one."""

from collections.abc import Iterator

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from tests.conftest import ROOT
from vae_lab import entry  # noqa: F401 (registers the schema)
from vae_lab.composer import Composer

JOBS = [
    ["model=vae", "size=tiny", "seed=0", "objective.beta=1"],
    ["model=vae", "size=tiny", "seed=1", "objective.beta=2e-3"],
    ["seed=1", "size=tiny", "model=vae"],
    ["model=autoencoder", "seed=3"],
    ["network=conv", "network.channels=[4,4]"],
    ["+tracking.tags=[a,b]", "++trainer.epochs=2"],
    ["~optimizer.betas"],
    ["name='a, b'", "hidden_dims=[]", "trainer.patience=null"],
    ["hydra.sweep.subdir=elsewhere", "seed=2"],
    ["latent_dim=7", "model.latent_dim=9"],
]


@pytest.fixture
def composer() -> Iterator[Composer]:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3", job_name="run"):
        loader = GlobalHydra.instance().config_loader()
        overrides = ["hydra/launcher=cohort", "hydra.sweep.dir=/tmp/sweep", "hydra.launcher.max_cohort=3"]
        master = loader.load_configuration("config", overrides, RunMode.MULTIRUN, from_shell=False)
        yield Composer(loader, master)  # type: ignore[arg-type]


def expected(composer: Composer, overrides: list[str]) -> DictConfig:
    return composer.loader.load_sweep_config(composer.master, overrides)


def test_every_job_is_the_one_that_hydra_composes(composer: Composer) -> None:
    for overrides in [*JOBS, *reversed(JOBS)]:  # what one job sets is not left over for the next
        ours, theirs = composer.job(overrides), expected(composer, overrides)
        assert OmegaConf.to_yaml(ours) == OmegaConf.to_yaml(theirs), overrides
        assert OmegaConf.is_struct(ours)
        assert OmegaConf.is_struct(theirs)
    assert len(composer.composed) < len(JOBS)


@pytest.mark.parametrize("wrong", ["seeed=3", "objective.betaa=1", "model=nope", "~nope", "latent_dim.x=1"])
def test_what_is_wrong_is_said_in_the_same_words(composer: Composer, wrong: str) -> None:
    with pytest.raises(HydraException) as ours:
        composer.job([wrong])
    with pytest.raises(HydraException) as theirs:
        expected(composer, [wrong])
    assert (type(ours.value), str(ours.value)) == (type(theirs.value), str(theirs.value))
