"""One Python file and one YAML add a model, objective, loss, network or data set; nothing else is edited."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from vae_lab import registry
from vae_lab.errors import ConfigError

PLUGINS = {
    "models/shifted.py": """
from vae_lab.models.vae import VAE
from vae_lab.models.base import LatentVariableModel
from vae_lab.distributions import diag_normal
from vae_lab.registry import register
import torch


@register("model", "shifted")
class Shifted(LatentVariableModel):
    deterministic = False
    Config = VAE.Config

    def __init__(self, config, network, loss):
        super().__init__()
        self.latent_dim = config.latent_dim
        self.encoder, self.decoder, self.loss = network.encoder(config.latent_dim), network.decoder(config.latent_dim), loss

    def posterior(self, x):
        mu = self.encoder(x)
        return diag_normal(mu, torch.zeros_like(mu))

    def prior(self):
        ones = torch.ones(self.latent_dim)
        return diag_normal(ones, ones)
""",
    "objectives/squared.py": """
from dataclasses import dataclass
from vae_lab.models import Autoencoder
from vae_lab.objectives import Objective
from vae_lab.registry import register


@register("objective", "squared")
class Squared(Objective):
    requires = Autoencoder

    @dataclass(frozen=True)
    class Config:
        name: str
        power: float

    def __init__(self, config):
        super().__init__()
        self.power = config.power

    def forward(self, model, batch, noise, step):
        nll = -model.likelihood(model.posterior(batch.x).mean).log_prob(batch.x)
        return {"loss": nll**self.power, "nll": nll}

    def kl_weight(self):
        return None
""",
    "losses/wide.py": """
from dataclasses import dataclass
import torch
from vae_lab.distributions import gaussian
from vae_lab.losses import Likelihood
from vae_lab.registry import register


@register("loss", "wide")
class Wide(Likelihood):
    @dataclass(frozen=True)
    class Config:
        name: str

    def __init__(self, config):
        super().__init__()
        self.register_buffer("variance", torch.tensor(2.0))

    def forward(self, output):
        return gaussian(output, self.variance)

    def beta_scale(self):
        return self.variance
""",
    "networks/one_layer.py": """
from dataclasses import dataclass
import math
from torch import nn
from vae_lab.networks import Network
from vae_lab.registry import register


@register("network", "one_layer")
class OneLayer(Network):
    @dataclass(frozen=True)
    class Config:
        name: str

    def __init__(self, config, image_shape):
        super().__init__(image_shape)

    def encoder(self, out_features):
        return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(self.image_shape), out_features))

    def decoder(self, in_features):
        return nn.Sequential(nn.Linear(in_features, math.prod(self.image_shape)), nn.Unflatten(-1, self.image_shape))
""",
    "data/stripes.py": """
from dataclasses import dataclass
import torch
from vae_lab.data import DataConfig, Dataset, Images
from vae_lab.registry import register


@register("data", "stripes")
class Stripes(Dataset):
    Config = DataConfig
    title = "Stripes"
    image_shape = (1, 8, 8)

    def read(self):
        x = torch.zeros(96, 1, 8, 8, dtype=torch.uint8)
        for index in range(96):
            x[index, 0, index % 8] = 255
        return Images(x[:64], torch.arange(64) % 8), Images(x[64:], torch.arange(32) % 8)
""",
    "conf/model/shifted.yaml": "# @package _global_\nmodel: {name: shifted, variant: shifted, latent_dim: '${latent_dim}'}\n",
    "conf/objective/squared.yaml": "name: squared\npower: 2.0\n",
    "conf/loss/wide.yaml": "name: wide\n",
    "conf/network/one_layer.yaml": "name: one_layer\n",
    "conf/data/stripes.yaml": "{name: stripes, binarize: none, classes: null, limit: null, val_size: 8, split_seed: 0}\n",
}


@pytest.fixture
def plugins(tmp_path: Path) -> Path:
    folder = tmp_path / "my plug-ins"
    for name, text in PLUGINS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize(
    "overrides", [["model=shifted", "loss=wide", "network=one_layer", "data=stripes"], ["model=shifted", "objective=squared"]]
)
def test_files_in_a_folder_are_enough(plugins: Path, tmp_path: Path, overrides: list[str]) -> None:
    done = subprocess.run(
        [
            sys.executable,
            str(ROOT / "run.py"),
            *overrides,
            "trainer.epochs=2",
            "tracking=none",
            "trainer.batch_size=16",
            "evaluation.figures=false",
            f"hydra.run.dir={tmp_path}/run",
        ],
        env=os.environ | {"VAE_LAB_PLUGINS": str(plugins)},
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["model"] == "shifted"
    assert results["test"]["loss"] > 0


def test_an_unknown_name_lists_the_choices() -> None:
    with pytest.raises(ConfigError, match=r"Unknown model 'vea'. Choose from: autoencoder, vae. Did you mean 'vae'\?"):
        registry.get("model", "vea")


def test_the_same_name_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="defined in"):
        registry.register("model", "vae")(type("Other", (), {"__module__": "elsewhere"}))
