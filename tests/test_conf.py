"""Every YAML composes, builds and trains; names in conf/ and in the registry match both ways."""

from pathlib import Path

import pytest
import torch
import yaml

from vae_lab import registry
from vae_lab.config import to_plain
from vae_lab.data.base import dataset
from vae_lab.entry import CONF, compose_checked
from vae_lab.objectives.base import Batch
from vae_lab.system import build_system

OPTIONS = sorted((path.parent.name, path.stem) for path in CONF.glob("*/*.yaml") if path.parent.name not in ("hydra", "experiment"))
EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))


def one_step(cfg: dict) -> tuple[dict, torch.nn.Module]:
    """Terms of one batch of random images of the config's shape, with gradients left in the system."""
    shape = dataset(cfg["data"]).image_shape
    system = build_system(cfg, shape)
    g = torch.Generator().manual_seed(0)
    batch = Batch(torch.rand(4, *shape, generator=g), torch.zeros(4, dtype=torch.int64))
    noise = {name: torch.randn(4, *size, generator=g) for name, size in system.noise_shapes().items()}
    terms = system(batch, noise, torch.tensor(0))
    terms["loss"].mean().backward()
    return terms, system


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_composes_builds_and_has_gradients(group: str, option: str) -> None:
    cfg = to_plain(compose_checked([f"{group}={option}", *(["model=autoencoder"] if option == "reconstruction" else [])])[0])
    terms, system = one_step(cfg)
    assert all(term.shape == (4,) and torch.isfinite(term).all() for term in terms.values())
    missing = [name for name, parameter in system.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    assert not missing
    for registered in ("optimizer", "scheduler"):
        facts = {"steps_per_epoch": 3, "total_steps": 9} if registered == "scheduler" else {}
        registry.build(registered, cfg[registered], **facts)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_composes_and_builds(experiment: str) -> None:
    cfg = to_plain(compose_checked([f"experiment={experiment}"])[0])
    assert cfg["name"].startswith(experiment)
    one_step(cfg)


@pytest.mark.parametrize("model", ["autoencoder", "vae", "beta_vae"])
@pytest.mark.parametrize("loss", ["bce", "mse", "gaussian"])
@pytest.mark.parametrize("network", ["mlp", "conv"])
def test_every_combination_has_gradients(model: str, loss: str, network: str) -> None:
    terms, system = one_step(to_plain(compose_checked([f"model={model}", f"loss={loss}", f"network={network}"])[0]))
    assert set(terms) == {"loss", "nll"} | ({"kl"} if model != "autoencoder" else set()) | ({"sse"} if loss != "bce" else set())
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in system.parameters())


@pytest.mark.parametrize("group", sorted(registry.PACKAGES))
def test_registry_and_yaml_match_both_ways(group: str) -> None:
    files: dict[str, Path] = {path.stem: path for path in (CONF / group).glob("*.yaml")}
    assert set(registry.names(group)) <= set(files), "a registered name has no YAML"
    for stem, path in files.items():
        content = yaml.safe_load(path.read_text())
        content = content.get(group, content)
        assert content["name"] in registry.names(group), f"{path} names nothing registered"
        called = content.get("variant", content["name"]).removeprefix("${variant:").partition(",")[0]
        assert stem == called, f"{path} is called otherwise inside"


def test_objective_on_the_command_line_wins_over_the_models() -> None:
    cfg = to_plain(compose_checked(["model=vae", "objective=reconstruction"])[0])
    assert (cfg["model"]["variant"], cfg["name"]) == ("vae+reconstruction", "vae+reconstruction_z2_s0")
    assert cfg["objective"] == {"name": "reconstruction"}
    terms, _ = one_step(cfg)
    assert "kl" not in terms


def test_beta_vae_is_the_vae_with_another_beta() -> None:
    plain, beta = (to_plain(compose_checked([f"model={model}"])[0]) for model in ("vae", "beta_vae"))
    assert beta["objective"] == {"name": "elbo", "beta": 4.0}
    beta["objective"]["beta"], beta["model"]["variant"], beta["name"] = 1.0, "vae", plain["name"]
    assert plain == beta
