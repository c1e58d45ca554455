"""What would be wrong for a whole training is said before it, in one sentence that names the file."""

import re
from pathlib import Path

import pytest
import torch

import tests.variants as variants
import vae_lab
from tests.test_settings import SMALL, quietly
from tests.variants import Base, BatchNormed, Dropped, ImportanceWeighted, Misbehaving, Tied, WrongSize, chosen
from vae_lab.data import load
from vae_lab.distributions import diag_normal
from vae_lab.entry import check
from vae_lab.errors import ConfigError, OutOfMemoryError
from vae_lab.inspection import Inspection
from vae_lab.job import make_run
from vae_lab.models.vae import VAE

HERE = re.escape(str(Path(variants.__file__)))
NETWORK = {"hidden_dims": [8]}
DEEDS = {
    "draws_by_torch": "draws random numbers by itself; noise is an argument",
    "draws_by_numpy": "draws random numbers by itself",
    "draws_by_python": "draws random numbers by itself",
    "misses_the_loss": "its terms are nll, kl; loss is missing",
    "misses_the_nll": "its terms are kl, loss; nll is missing",
    "returns_a_tensor": r"returns \[2\], not terms by name",
    "means_over_images": r"the term 'loss' of two images is \[\], not \[2\]: terms stay per image",
    "counts": "the term 'kl' is torch.int64, not floating point",
    "asks_for_a_value": "asks for a tensor's value",
    "asks_for_values": "asks for a tensor's value",
    "branches": "branches on the value of a tensor; write arithmetic or torch.where",
    "keeps_state": r"keeps state in its forward pass \(objective.calls\)",
    "replaces_a_buffer": "replaces one of its buffers in its forward pass",
    "writes_to_images": "changes its images or its noise in place",
    "writes_to_parameters": "writes to objective.scale in training",
    "writes_when_evaluated": "writes to objective.beta in evaluation",
    "trains_nothing": "the loss depends on no parameter",
    "raises": "KeyError: 'nothing here'",
    "leaves": "SystemExit: 0",
}


@pytest.mark.parametrize("deed", DEEDS)
def test_what_no_forward_pass_may_do(deed: str, monkeypatch, compose) -> None:
    cls = type(f"Deed_{deed}", (Misbehaving,), {"deed": deed, "__module__": variants.__name__})
    cfg = chosen(monkeypatch, compose(*SMALL), "objective", cls, beta=1.0)
    with pytest.raises(ConfigError, match=f"^{HERE}.*: {DEEDS[deed]}"):
        check(cfg)


def test_dropout_by_torch_is_refused_and_found(monkeypatch, compose) -> None:
    cfg = chosen(monkeypatch, compose(*SMALL), "network", Dropped, **NETWORK)
    with pytest.raises(ConfigError, match=rf"in model.encoder.2, a Dropout \(of {HERE}\): draws random numbers by itself"):
        check(cfg)


def test_a_decoder_of_another_size(monkeypatch, compose) -> None:
    """One pixel would be compared with all of them, without a word."""
    cfg = chosen(monkeypatch, compose(*SMALL), "network", WrongSize, **NETWORK)
    with pytest.raises(ConfigError, match=r"images are decoded to \[2, 1, 1, 1\], not \[2, 1, 8, 8\]"):
        check(cfg)


@pytest.mark.parametrize(("cls", "reason"), [
    (variants.Double, "the parameter model.encoder.2.weight is torch.float64; parameters have a shape and are float32"),
    (variants.Lazy, "the parameter model.encoder.2.weight is lazy"),
])  # fmt: skip
def test_parameters_that_cannot_be_stacked(cls: type, reason: str, monkeypatch, compose) -> None:
    with pytest.raises(ConfigError, match=f"^{HERE}: {reason}"):
        check(chosen(monkeypatch, compose(*SMALL), "network", cls, **NETWORK))


def test_a_buffer_in_shared_memory_is_no_obstacle(monkeypatch, compose, tmp_path: Path) -> None:
    cfg = chosen(monkeypatch, compose(*SMALL, "trainer.epochs=1"), "network", variants.Expanded, **NETWORK)
    check(cfg)
    assert quietly(cfg, tmp_path / "run")["status"] == "completed"


def test_no_folder_is_left_by_a_refused_plugin(command, tmp_path: Path) -> None:
    source = Path(variants.__file__).read_text()
    (tmp_path / "plugins" / "objectives").mkdir(parents=True)
    (tmp_path / "plugins" / "conf" / "objective").mkdir(parents=True)
    file = tmp_path / "plugins" / "objectives" / "mine.py"
    registered = "registry.register('objective', 'mine')\nclass Mine(Misbehaving):\n    deed = 'branches'\n"
    file.write_text(f"{source}\n\n@{registered}")
    (tmp_path / "plugins" / "conf" / "objective" / "mine.yaml").write_text("name: mine\nbeta: 1.0\n")
    done = command("objective=mine", VAE_LAB_PLUGINS=str(tmp_path / "plugins"))
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(f"error: {file}, line ")
    assert "branches on the value of a tensor" in done.stderr
    assert not (tmp_path / "outputs").exists()


def test_the_look_leaves_a_system_as_it_was(monkeypatch, compose) -> None:
    cfg = chosen(monkeypatch, compose(*SMALL), "network", BatchNormed, **NETWORK)
    splits = load(cfg["data"])
    run = make_run(cfg, splits)
    before = {name: tensor.clone() for name, tensor in run.system.state_dict().items()}
    stream = torch.get_rng_state()
    assert Inspection(run.system, splits.train).check() == ["loss", "nll", "kl"]
    after = run.system.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert torch.equal(torch.get_rng_state(), stream)


def test_batch_norm_evaluates_with_the_statistics_of_training(monkeypatch, compose, tmp_path: Path) -> None:
    """results.json and `load` agree, and both differ from what training mode gives."""
    settings = (*SMALL, "trainer.epochs=3", "data.val_size=0")  # validation would leave evaluation mode behind
    cfg = chosen(monkeypatch, compose(*settings), "network", BatchNormed, **NETWORK)
    results = quietly(cfg, tmp_path / "run")
    run = vae_lab.load(tmp_path / "run", device="cpu")
    test = load(cfg["data"]).test
    assert float(run.elbo(test.x).mean()) == pytest.approx(results["test"]["elbo"], rel=1e-6)
    run.system.train()
    assert abs(float(run.elbo(test.x).mean()) - results["test"]["elbo"]) > 1e-3


def test_batch_norm_in_a_cohort(monkeypatch, compose) -> None:
    """Statistics are stacked, updated in training only, and each run's own."""
    from tests.test_engine import train

    cfgs = [chosen(monkeypatch, compose(*SMALL, "trainer.epochs=2", f"seed={seed}"), "network", BatchNormed, **NETWORK)
            for seed in (0, 1)]  # fmt: skip
    runs, rows = train(cfgs)
    for cfg, run, together in zip(cfgs, runs, rows, strict=True):
        (alone,), (expected,) = train([cfg])
        steps = run.state["model.encoder.2.num_batches_tracked"]
        assert steps == alone.state["model.encoder.2.num_batches_tracked"] == run.step
        assert together[-1]["val/loss"] == pytest.approx(expected[-1]["val/loss"], rel=1e-5)


@pytest.mark.parametrize("draws", [1, 5])
def test_evaluation_draws_its_own_code(draws: int, monkeypatch, compose, tmp_path: Path) -> None:
    """Noise of shape (K, D) neither broadcasts over images nor dies after the training."""
    cfg = chosen(monkeypatch, compose(*SMALL, "trainer.epochs=1"), "objective", ImportanceWeighted, beta=float(draws))
    test = quietly(cfg, tmp_path / "run")["test"]
    assert 0 < test["mse"] < 1
    plain = chosen(monkeypatch, cfg, "objective", Base, beta=1.0)
    assert quietly(plain, tmp_path / "plain")["test"]["mse"] == pytest.approx(test["mse"], rel=0.5)


def test_tied_layers_are_kept_loaded_and_exported(monkeypatch, compose, tmp_path: Path, call) -> None:
    cfg = chosen(monkeypatch, compose(*SMALL, "trainer.epochs=2"), "network", Tied, **NETWORK)
    results = quietly(cfg, tmp_path / "run")
    run = vae_lab.load(tmp_path / "run", device="cpu")
    assert float(run.elbo(load(cfg["data"]).test.x).mean()) == pytest.approx(results["test"]["elbo"], rel=1e-6)
    assert all(call("export", tmp_path / "run", "--format", kind) == 0 for kind in ("state_dict", "safetensors"))
    again = compose(*SMALL, "trainer.epochs=3", "resume_allow=[trainer.epochs]")
    assert quietly(chosen(monkeypatch, again, "network", Tied, **NETWORK), tmp_path / "run")["epochs"] == 3


class Unmade(Base):
    def __init__(self, config):
        raise ValueError("no such thing")


class WithoutConfig(Base):
    Config = None


class WithoutRequires(Base):
    requires = None


class AtWeight(Base):
    def kl_weight(self):
        return {"beta": 1.0}


class Hungry(Base):
    def keep(self, beta: float) -> None:
        super().keep(beta)
        self.table = torch.empty(2**48)


class Wordy(Base):
    def noise_shapes(self, model):
        return {"eps": "D"}


PLUGIN_MISTAKES = {
    Unmade: r"the objective Unmade cannot be made: ValueError: no such thing",
    WithoutConfig: r"the objective WithoutConfig: the class nests no dataclass Config",
    WithoutRequires: r"WithoutRequires does not say what it requires of a model",
    AtWeight: r"AttributeError|TypeError",
    Wordy: r"Type\w*Error",
}


@pytest.mark.parametrize("cls", PLUGIN_MISTAKES)
def test_mistakes_of_a_class_are_one_message(cls: type, monkeypatch, compose) -> None:
    with pytest.raises(ConfigError, match=PLUGIN_MISTAKES[cls]):
        check(chosen(monkeypatch, compose(*SMALL), "objective", cls, beta=1.0))


def test_a_class_that_needs_more_memory_than_there_is(monkeypatch, compose) -> None:
    with pytest.raises(OutOfMemoryError, match="Not enough memory"):
        check(chosen(monkeypatch, compose(*SMALL), "objective", Hungry, beta=1.0))


def model_of(posterior: object) -> type:
    """A VAE with another posterior."""

    class Other(VAE):
        Config = VAE.Config

        def posterior(self, x):
            return posterior(*self.encoder(x).float().chunk(2, dim=-1))

    return Other


@pytest.mark.parametrize(("posterior", "reason"), [
    (lambda mu, logvar: torch.distributions.Cauchy(mu, logvar.exp()), "reparameterize needs noise and knows Normal"),
    (lambda mu, logvar: torch.distributions.Normal(mu, logvar.exp()).sample(), "reparameterize"),
    (lambda mu, logvar: diag_normal(mu[:, :1], logvar[:, :1]), r"the code of two images is \[2, 1\], not \[2, 2\]"),
    (lambda mu, logvar: diag_normal(mu[:, None], logvar[:, None]), "Error"),
    (lambda mu, logvar: None, "Error"),
])  # fmt: skip
def test_posteriors_that_cannot_be_drawn_from(posterior: object, reason: str, monkeypatch, compose) -> None:
    cls = model_of(posterior)
    cfg = compose(*SMALL)
    with pytest.raises(ConfigError, match=reason):
        check(chosen(monkeypatch, cfg, "model", cls, variant="other", latent_dim=2))
