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


BROKEN = {
    "models/typo.py": "def :\n",
    "models/half.py": """
from vae_lab.models.vae import VAE
from vae_lab.registry import register

register("model", "half")(type("Half", (VAE,), {"__module__": __name__}))
raise RuntimeError("at import")
""",
    "losses/leaves.py": "import sys\nsys.exit(0)\n",
    "objectives/elbo.py": "raise AssertionError('shadowed by a file of the same name')\n",
    "optimizers/lion.py": """
from vae_lab.optimizers import SGD
from vae_lab.registry import register

register("optimizer", "lion")(type("Lion", (SGD,), {"__module__": __name__}))
""",
    "schedulers/flat.py": """
from vae_lab.registry import register
from vae_lab.schedulers import Constant

register("scheduler", "flat")(type("Flat", (Constant,), {"__module__": __name__}))
""",
    "tracking/silent.py": """
from vae_lab.registry import register
from vae_lab.tracking.base import NoTracker

register("tracking", "silent")(type("Silent", (NoTracker,), {"__module__": __name__}))
""",
    "objectives/of_mine.py": "from vae_lab.models.shifted import Shifted\n",
    "conf/optimizer/lion.yaml": "{name: lion, lr: 0.1, weight_decay: 0, momentum: 0, nesterov: false}\n",
    "conf/scheduler/flat.yaml": "{name: flat, warmup_epochs: 0}\n",
    "conf/tracking/silent.yaml": "name: silent\n",
    "conf/model/typo.yaml": "# @package _global_\nmodel: {name: typo, variant: typo, latent_dim: '${latent_dim}'}\n",
    "conf/model/half.yaml": "# @package _global_\nmodel: {name: half, variant: half, latent_dim: '${latent_dim}'}\n",
}
WARNINGS = (
    "models/typo.py is not used: SyntaxError: invalid syntax (typo.py, line 1)",
    "models/half.py is not used: RuntimeError: at import",
    "losses/leaves.py is not used: SystemExit: 0",
    "objectives/elbo.py is not used: ImportError: ",
    "/nope: no such folder; nothing is read there.",
)


def run(plugins: Path, *words: str, program: str = "run.py") -> subprocess.CompletedProcess:
    start = [str(ROOT / "run.py")] if program == "run.py" else ["-c", "from vae_lab.cli import main; main()"]
    return subprocess.run(
        [sys.executable, *start, *words],
        env=os.environ | {"VAE_LAB_PLUGINS": f"{plugins}{os.pathsep}/nope", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        cwd=plugins.parent,
        check=False,
    )


@pytest.fixture
def broken(plugins: Path) -> Path:
    for name, text in BROKEN.items():
        (plugins / name).parent.mkdir(parents=True, exist_ok=True)
        (plugins / name).write_text(text)
    return plugins


def test_d5_a_broken_plugin_costs_its_own_name(broken: Path, tmp_path: Path) -> None:
    """Each is named once; modules as well as packages are searched; a plugin imports another."""
    words = ["optimizer=lion", "scheduler=flat", "tracking=silent", "trainer.epochs=1", "evaluation.figures=false"]
    done = run(broken, *words, "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    for warning in WARNINGS:
        assert done.stderr.count(warning) == 1, done.stderr
    assert done.stderr.count("warning: ") == len(WARNINGS), done.stderr
    plain = (tmp_path / "run" / "config.yaml").read_text()
    assert all(f"name: {name}" in plain for name in ("lion", "flat", "silent"))
    drawn = run(broken, "sample", "run", "--n", "2", program="vae-lab")
    assert drawn.returncode == 0, drawn.stderr
    assert drawn.stderr.count(WARNINGS[0]) == 1


@pytest.mark.parametrize(("name", "why"), [("typo", "SyntaxError: invalid syntax"), ("half", "RuntimeError: at import")])
def test_d5_the_name_of_a_broken_plugin_gives_its_error(broken: Path, name: str, why: str) -> None:
    done = run(broken, f"model={name}")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    (said,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert f"model={name}: {broken}/models/{name}.py cannot be imported ({why}" in said


def test_d5_typos_and_help_with_plugins(broken: Path) -> None:
    """The same folders are searched when a mistake is explained, in the help, and for tab completion."""
    done = run(broken, "model=shifted", "loss=wide", "latnt_dim=2")
    assert done.returncode == 2
    assert "error: Unknown key 'latnt_dim'. Did you mean 'latent_dim'?" in done.stderr
    done = run(broken, "model=shiftd", "loss=wide")
    choices = "autoencoder, beta_vae, half, shifted, typo, vae"
    unknown = f"Unknown model 'shiftd'. Choose from: {choices}. Did you mean 'shifted'?"
    assert unknown in done.stderr
    done = run(broken.parent / "none", f"--config-dir={broken}/conf", "model=shiftd")
    assert unknown in done.stderr
    said = run(broken, "--help").stdout
    assert f"model: {choices}" in said
    assert "optimizer: adam, adamw, lion, rmsprop, sgd" in said
    if sys.platform == "linux":
        query = subprocess.run(
            [sys.executable, str(ROOT / "run.py"), "-sc", "query=bash"],
            env=os.environ | {"VAE_LAB_PLUGINS": str(broken), "COMP_LINE": "python run.py model=sh", "COMP_POINT": "22"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert query.stdout.split() == ["model=shifted"]
