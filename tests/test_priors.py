"""What is drawn from a prior is drawn from that prior, whatever distribution over codes a plugin returns."""

import dataclasses
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.distributions import (
    Categorical,
    Cauchy,
    Distribution,
    Independent,
    Laplace,
    LowRankMultivariateNormal,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    Uniform,
)

import vae_lab
from tests.conftest import ROOT
from tests.test_trained import LINEAR_AE, QUICK, pixels
from vae_lab import figures, rng
from vae_lab.config import EvaluationConfig, typed
from vae_lab.data import load as load_data
from vae_lab.errors import ConfigError, DataError
from vae_lab.evaluate import Latents
from vae_lab.figures import Subject
from vae_lab.tasks.impute import _first_fill
from vae_lab.tasks.sample import draw_codes, fit_mixture
from vae_lab.trained import TrainedRun

PLANE = ("trainer.epochs=2", "hidden_dims=[32]", "latent_dim=2")
VAE_YAML = (ROOT / "conf" / "model" / "vae.yaml").read_text()
AE_PLANE = ("model=autoencoder", *PLANE)


class Sphere(Distribution):
    """Uniform on the unit sphere; it has no moments, and draws from torch's global generator."""

    arg_constraints = {}  # noqa: RUF012

    def __init__(self, dim: int):
        super().__init__(event_shape=torch.Size([dim]), validate_args=False)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        return torch.nn.functional.normalize(torch.randn(*sample_shape, *self.event_shape), dim=-1)

    def log_prob(self, value: Tensor) -> Tensor:
        half = self.event_shape[0] / 2
        return torch.full(value.shape[:-1], math.lgamma(half) - math.log(2) - half * math.log(math.pi))


def bimodal(dim: int) -> MixtureSameFamily:
    """Two equal normals of deviation 0.5 at -3 and 3 in each latent: nothing of it lies near its mean."""
    centres = torch.tensor([[-3.0], [3.0]]).expand(2, dim)
    return MixtureSameFamily(Categorical(torch.ones(2)), Independent(Normal(centres, 0.5), 1))


PRIORS: dict[str, Callable[[int], Distribution]] = {
    "mixture": bimodal,
    "laplace": lambda dim: Independent(Laplace(torch.ones(dim), 2.0 * torch.ones(dim)), 1),
    "low rank": lambda dim: LowRankMultivariateNormal(torch.arange(float(dim)), torch.ones(dim, 1), 0.5 * torch.ones(dim)),
    "covariance": lambda dim: MultivariateNormal(torch.zeros(dim), torch.eye(dim) + 0.5),
    "uniform": lambda dim: Independent(Uniform(-torch.ones(dim), 2.0), 1),
    "sphere": Sphere,
    "cauchy": lambda dim: Independent(Cauchy(torch.zeros(dim), torch.ones(dim)), 1),
}
MARGINALS: dict[str, Callable[[np.ndarray], np.ndarray]] = {  # of the last latent of four
    "mixture": lambda z: (stats.norm(-3, 0.5).cdf(z) + stats.norm(3, 0.5).cdf(z)) / 2,
    "laplace": stats.laplace(1, 2).cdf,
    "low rank": stats.norm(3, math.sqrt(1.5)).cdf,
    "covariance": stats.norm(0, math.sqrt(1.5)).cdf,
    "uniform": stats.uniform(-1, 3).cdf,
    "sphere": lambda z: (1 + stats.beta(0.5, 1.5).cdf(z**2) * np.sign(z)) / 2,
    "cauchy": stats.cauchy.cdf,
}


def with_prior(folder: Path, prior: Callable[[int], Distribution]) -> TrainedRun:
    """A trained VAE whose prior is another one."""
    run = vae_lab.load(folder, device="cpu")
    found = prior(run.model.latent_dim)
    run.model.prior = lambda: found  # type: ignore[method-assign, union-attr]
    return run


def subject(run: TrainedRun) -> Subject:
    splits = load_data(run.config["data"])
    mu = run.encode(splits.test.x).mu
    config = typed(EvaluationConfig, run.config["evaluation"], "evaluation")
    return Subject("title", run.system, splits.test, Latents(mu, None), run.seed, config, splits.train)


def test_draws_of_a_mixture_prior_are_of_that_mixture(trained) -> None:
    """mean + stddev * eps, which is no draw of it, has 9.8 % below the 1 % quantile and most of its mass in the gap."""
    prior = bimodal(4)
    z = draw_codes(with_prior(trained(*QUICK), bimodal), 20_000, seed=1)
    entropy = 4 * (0.5 * math.log(2 * math.pi * math.e) + math.log(0.5)) + math.log(2)  # the two normals do not overlap
    assert float(prior.log_prob(z).mean()) == pytest.approx(-entropy, abs=0.03)
    lowest = float(stats.norm(-3, 0.5).ppf(0.02))  # the mixture's quantile of 1 %
    assert float((z[:, 0] < lowest).float().mean()) == pytest.approx(0.01, abs=0.003)
    assert not (z.abs() < 0.5).any()
    assert float((z[:, 0] > 0).float().mean()) == pytest.approx(0.5, abs=0.015)
    assert torch.equal(z[:, 0] > 0, z[:, 3] > 0), "all latents of a draw are of one component"


@pytest.mark.parametrize("kind", PRIORS)
def test_every_prior_is_drawn_from_itself(trained, kind: str) -> None:
    run = with_prior(trained(*QUICK), PRIORS[kind])
    torch.manual_seed(1)
    before = torch.get_rng_state()
    z = draw_codes(run, 5000, seed=3)
    assert torch.equal(torch.get_rng_state(), before), "torch's global generator is left alone"
    torch.manual_seed(2)
    assert torch.equal(draw_codes(run, 5000, seed=3), z), "and not read"
    assert not torch.equal(draw_codes(run, 5000, seed=4), z)
    assert stats.kstest(z[:, 3].numpy(), MARGINALS[kind]).pvalue > 0.001
    assert run.sample(3).shape == (3, 1, 8, 8)


def test_draws_of_a_normal_prior_are_what_they_were(trained) -> None:
    run = with_prior(trained(*QUICK), lambda dim: Independent(Normal(torch.arange(float(dim)), 0.3 * torch.ones(dim)), 1))
    eps = torch.randn(9, 4, generator=rng.generator(5, "sample"))
    assert torch.equal(draw_codes(run, 9, seed=5, temperature=0.7), torch.arange(4.0) + 0.3 * torch.ones(4) * (0.7 * eps))
    standard = vae_lab.load(trained(*QUICK), device="cpu")
    assert torch.equal(draw_codes(standard, 9, seed=5), eps)
    whole = subject(standard)
    eps = torch.randn(100, 4, generator=rng.generator(standard.seed, "samples"))
    assert torch.equal(figures._codes(whole, 100)[0], eps)


def test_a_temperature_scales_deviations_or_is_refused(trained) -> None:
    for kind in ("laplace", "low rank", "covariance"):
        run = with_prior(trained(*QUICK), PRIORS[kind])
        mean = PRIORS[kind](4).mean
        torch.testing.assert_close(draw_codes(run, 50, 1, 0.5), mean + 0.5 * (draw_codes(run, 50, 1) - mean))
    for kind in ("mixture", "uniform", "sphere", "cauchy"):
        run = with_prior(trained(*QUICK), PRIORS[kind])
        with pytest.raises(ConfigError, match=r"temperature=0.5: .* only 1"):
            draw_codes(run, 50, 1, 0.5)


@pytest.mark.parametrize("kind", PRIORS)
def test_the_samples_in_figures_are_draws(trained, kind: str) -> None:
    whole = subject(with_prior(trained(*QUICK), PRIORS[kind]))
    z, source = figures._codes(whole, 5000)
    assert source == "the prior"
    assert stats.kstest(z[:, 3].numpy(), MARGINALS[kind]).pvalue > 0.001
    assert figures.samples(whole).width > 100


@pytest.mark.parametrize("kind", PRIORS)
def test_chains_begin_at_draws(trained, kind: str) -> None:
    run = with_prior(trained(*QUICK), PRIORS[kind])
    seen: list[Tensor] = []
    decode = run.model.likelihood
    run.model.likelihood = lambda z: (seen.append(z), decode(z))[1]  # type: ignore[method-assign]
    streams = [rng.generator(0, "impute", index) for index in range(500)]
    assert _first_fill(run, streams, 8).shape == (4000, 1, 8, 8)
    assert stats.kstest(seen[0][:, 3].numpy(), MARGINALS[kind]).pvalue > 0.001
    found = run.impute(pixels(load_data(run.config["data"]).test.x[:3]), torch.ones(8, 8, dtype=torch.bool), steps=2)
    assert torch.isfinite(found.mean).all()


@pytest.mark.parametrize("kind", PRIORS)
def test_the_latent_plane_goes_by_the_priors_quantiles(trained, kind: str) -> None:
    prior = PRIORS[kind](2)
    horizontal, vertical, source = figures._axes_of_the_plane(subject(with_prior(trained(*PLANE), lambda dim: prior)))
    assert "quantiles" in source
    drawn = draw_codes(with_prior(trained(*PLANE), lambda dim: prior), 200_000)
    levels = torch.linspace(0.02, 0.98, 20)
    for axis, values in enumerate((horizontal, vertical)):
        found = (drawn[:, axis, None] <= values).float().mean(0)  # the level at which each value lies
        torch.testing.assert_close(found, levels, rtol=0, atol=0.02)


def test_the_latent_plane_of_a_normal_prior_is_what_it_was(trained) -> None:
    mean, deviation = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 3.0])
    run = with_prior(trained(*PLANE), lambda dim: Independent(Normal(mean, deviation), 1))
    horizontal, vertical, source = figures._axes_of_the_plane(subject(run))
    quantiles = torch.special.ndtri(torch.linspace(0.02, 0.98, 20))
    assert torch.equal(horizontal, mean[0] + deviation[0] * quantiles)
    assert torch.equal(vertical, mean[1] + deviation[1] * quantiles)
    assert source == "each latent's quantiles under the prior"


def shifted(dim: int) -> Distribution:
    return Independent(Normal(torch.tensor([1.0, -2.0]), torch.tensor([0.5, 3.0])), 1)


@pytest.mark.parametrize("prior", [shifted, PRIORS["low rank"], PRIORS["covariance"]], ids=["shifted", "low rank", "covariance"])
def test_the_ellipse_is_the_priors(trained, prior: Callable[[int], Distribution]) -> None:
    """It was a circle around 0 for every prior."""
    run, p = with_prior(trained(*PLANE), prior), prior(2)
    (line,) = [line for line in figures.latent(subject(run)).axes[0].lines if line.get_label() == "95 % of prior"]
    edge = p.log_prob(torch.tensor(np.stack(line.get_data(), 1)).float())
    torch.testing.assert_close(edge, edge[:1].expand(200), rtol=0, atol=1e-3)  # a line of one density
    inside = p.log_prob(draw_codes(run, 20_000)) >= edge[0]
    assert float(inside.float().mean()) == pytest.approx(0.95, abs=0.005)


@pytest.mark.parametrize("kind", ["mixture", "laplace", "uniform", "sphere", "cauchy"])
def test_other_priors_show_draws_and_claim_no_share(trained, kind: str) -> None:
    axes = figures.latent(subject(with_prior(trained(*PLANE), PRIORS[kind]))).axes[0]
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert "draws of prior" in labels
    assert not any("95 %" in label for label in labels)


@pytest.mark.parametrize("kind", PRIORS)
def test_a_traversal_of_another_prior_goes_by_quantiles(trained, kind: str) -> None:
    found = with_prior(trained(*QUICK), PRIORS[kind]).traverse(latents=[3], span=(-2.0, 2.0), steps=5)
    levels = stats.norm.cdf([-2, -1, 0, 1, 2])
    if kind == "mixture":
        levels[2] = 0.5  # any value of the gap
    np.testing.assert_allclose(MARGINALS[kind](found.values[0].numpy().astype(float)), levels, atol=0.02)


def test_a_traversal_begins_at_a_probable_code(trained) -> None:
    """The mean of two modes lies where the prior has nothing."""
    run = with_prior(trained(*QUICK), bimodal)
    seen: list[Tensor] = []
    decode = run.model.likelihood
    run.model.likelihood = lambda z: (seen.append(z), decode(z))[1]  # type: ignore[method-assign]
    run.traverse(latents=[0], steps=3)
    assert (seen[0][:, 1:].abs() > 2).all()


def test_distances_ask_what_they_are_called(trained) -> None:
    x = load_data(vae_lab.load(trained(*QUICK)).config["data"]).test.x[:7]
    for kind in ("low rank", "covariance"):
        run, prior = with_prior(trained(*QUICK), PRIORS[kind]), PRIORS[kind](4)
        difference = (run.encode(x).mu - prior.mean).double()
        expected = (difference @ prior.covariance_matrix.double().inverse() * difference).sum(1).sqrt()
        found = run.anomaly_score(x, "latent_distance").double()
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    for kind in ("mixture", "laplace", "uniform", "sphere", "cauchy"):
        run = with_prior(trained(*QUICK), PRIORS[kind])
        with pytest.raises(ConfigError, match="not normal: pass the codes of training images as reference"):
            run.anomaly_score(x, "latent_distance")
        assert torch.isfinite(run.anomaly_score(x, "latent_distance", reference=run.encode(x).mu)).all()
        assert run.anomaly_score(x, "negative_elbo").shape == (7,)


def test_an_autoencoders_samples_have_one_source(trained) -> None:
    """Figures and `vae-lab sample` draw from the same mixture, fitted to the codes of training images."""
    from vae_lab.tasks import source
    from vae_lab.tasks.sample import training_mixture

    run = vae_lab.load(trained(*LINEAR_AE), device="cpu")
    whole = subject(run)
    mixture = figures._mixture(whole)
    other = training_mixture(run)
    assert all(torch.equal(getattr(mixture, part), getattr(other, part)) for part in ("weights", "means", "cholesky"))
    z, title = figures._codes(whole, 20_000)
    assert title == "a mixture of 10 Gaussians fitted to training codes"
    codes = run.encode(source.own_train(run).x).mu
    torch.testing.assert_close(z.mean(0), codes.mean(0), rtol=0, atol=0.05 * float(codes.std()))
    torch.testing.assert_close(torch.cov(z.T), torch.cov(codes.T), rtol=0.1, atol=0.05 * float(codes.var()))
    elsewhere = dataclasses.replace(whole, latents=Latents(whole.latents.mu + 100, None))
    assert torch.equal(figures._codes(elsewhere, 100)[0], figures._codes(whole, 100)[0]), "test codes are not asked"


def test_an_autoencoders_plane_spans_training_codes(trained) -> None:
    run = vae_lab.load(trained(*AE_PLANE), device="cpu")
    whole = subject(run)
    elsewhere = dataclasses.replace(whole, latents=Latents(whole.latents.mu + 100, None))
    horizontal, vertical, title = figures._axes_of_the_plane(elsewhere)
    assert title == "range of the training codes"
    codes = run.encode(load_data(run.config["data"]).train.x).mu
    low, high = codes.quantile(torch.tensor([0.02, 0.98]), dim=0)
    for axis, values in enumerate((horizontal, vertical)):
        torch.testing.assert_close(values, torch.linspace(float(low[axis]), float(high[axis]), 20))


@pytest.mark.parametrize("batched", [lambda p: p.expand([1]), lambda p: p], ids=["one of a batch", "alone"])
def test_a_prior_that_is_one_of_a_batch(trained, batched: Callable[[Distribution], Distribution]) -> None:
    for kind in ("mixture", "laplace", "covariance"):
        run = with_prior(trained(*QUICK), lambda dim, kind=kind: batched(PRIORS[kind](dim)))
        assert draw_codes(run, 5).shape == (5, 4)
        assert run.traverse(steps=2).images.shape[:2] == (4, 2)


BIMODAL = """
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal
from vae_lab.models.base import LatentVariableModel
from vae_lab.models.vae import VAE
from vae_lab.distributions import diag_normal
from vae_lab.registry import register


@register("model", "bimodal")
class Bimodal(LatentVariableModel):
    deterministic = False
    Config = VAE.Config

    def __init__(self, config, network, loss):
        super().__init__()
        self.latent_dim = config.latent_dim
        self.encoder, self.decoder, self.loss = network.encoder(2 * config.latent_dim), network.decoder(config.latent_dim), loss
        self.register_buffer("centres", torch.tensor([[-3.0], [3.0]]).expand(2, config.latent_dim).clone())

    def posterior(self, x):
        return diag_normal(*self.encoder(x).float().chunk(2, dim=-1))

    def prior(self):
        parts = Independent(Normal(self.centres, 0.5, validate_args=False), 1, validate_args=False)
        weights = Categorical(torch.ones_like(self.centres[:, 0]), validate_args=False)
        return MixtureSameFamily(weights, parts, validate_args=False)
"""


def test_a_plugins_prior_needs_no_more_code(tmp_path: Path) -> None:
    """Trained, drawn, and asked by every command."""
    for name, text in (("models/bimodal.py", BIMODAL), ("conf/model/bimodal.yaml", VAE_YAML.replace("vae", "bimodal"))):
        (tmp_path / "plugins" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "plugins" / name).write_text(text)
    environment = os.environ | {"VAE_LAB_PLUGINS": str(tmp_path / "plugins"), "PYTHONPATH": str(ROOT)}

    def ask(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, *words], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    ask(str(ROOT / "run.py"), "model=bimodal", "latent_dim=2", "trainer.epochs=3", "tracking=none", "hydra.run.dir=run")
    drawn = {path.stem for path in (tmp_path / "run" / "figures").iterdir()}
    assert drawn == {"reconstructions", "samples", "latent", "manifold", "curves"}
    for command in ("sample", "traverse", "anomaly", "impute"):
        code = "import sys; from vae_lab.cli import main; sys.argv[0] = 'vae-lab'; main()"
        assert "wrote" in ask("-c", code, command, "run", *(["--n", "9"] if command in ("sample", "impute") else []))


class Learned(torch.nn.Module):
    """A mean and deviations that are trained, in double precision."""

    def __init__(self, dim: int):
        super().__init__()
        self.mean = torch.nn.Parameter(torch.ones(dim, dtype=torch.double))
        self.deviation = torch.nn.Parameter(torch.full((dim,), 0.5, dtype=torch.double))


@pytest.mark.parametrize("kind", ["normal", "laplace", "mixture", "covariance"])
def test_a_learned_prior_in_double_precision(trained, kind: str) -> None:
    kept = Learned(2)
    normal = Independent(Normal(kept.mean, kept.deviation), 1)
    prior = {
        "normal": normal,
        "laplace": Independent(Laplace(kept.mean, kept.deviation), 1),
        "mixture": MixtureSameFamily(Categorical(kept.deviation), Independent(Normal(kept.mean[:, None].expand(2, 2), 0.5), 1)),
        "covariance": MultivariateNormal(kept.mean, torch.diag(kept.deviation)),
    }[kind]
    run = with_prior(trained(*PLANE), lambda dim: prior)
    whole = subject(run)
    for draw_one in (figures.samples, figures.manifold, figures.latent):
        assert draw_one(whole) is not None
    assert run.sample(3).dtype == torch.float32
    assert run.traverse(steps=3).images.shape == (2, 3, 1, 8, 8)
    x = load_data(run.config["data"]).test.x[:2]
    assert run.impute(x, torch.ones(8, 8, dtype=torch.bool), steps=2).mean.shape == (2, 1, 8, 8)
    if kind in ("normal", "covariance"):
        assert torch.isfinite(run.anomaly_score(x, "latent_distance")).all()


def test_a_prior_that_cannot_be_drawn_from_is_named(trained) -> None:
    run = with_prior(trained(*QUICK), lambda dim: Distribution(event_shape=torch.Size([dim]), validate_args=False))
    with pytest.raises(ConfigError, match=r"The prior, Distribution, cannot be drawn from: it has no sample\(\)"):
        run.sample(3)


@pytest.mark.parametrize(
    "codes",
    [
        torch.zeros(50, 3),
        torch.full((50, 3), 1e6),
        torch.randn(200, 1) @ torch.ones(1, 20) * 1e5,
        torch.randn(200, 1) @ torch.ones(1, 20) * 1e-6,
        torch.randn(1, 4),
        torch.randn(3, 4),
        torch.randn(300, 1),
        torch.cat([torch.zeros(99, 2), torch.full((1, 2), 1e9)]),
    ],
    ids=["constant", "constant and far", "one line, wide", "one line, narrow", "one", "three", "one latent", "one far away"],
)
def test_any_codes_have_a_mixture(codes: Tensor) -> None:
    mixture = fit_mixture(codes)
    z = mixture.draw(5000, torch.Generator().manual_seed(0))
    assert torch.isfinite(z).all()
    assert torch.equal(fit_mixture(codes).means, mixture.means)
    scale = codes.abs().max() + 1e-6
    torch.testing.assert_close(z.mean(0) / scale, codes.mean(0) / scale, rtol=0, atol=0.1)
    if len(codes) >= 50:
        assert float((z - z.mean(0)).norm()) / 5000**0.5 < 3 * float((codes - codes.mean(0)).norm()) / len(codes) ** 0.5 + 1e-5


def test_many_latents_have_fewer_components() -> None:
    """A mixture of ten in 700 dimensions takes minutes, which no picture is worth."""
    generator = torch.Generator().manual_seed(0)
    for dim, components in ((2, 10), (64, 10), (128, 2), (700, 1)):
        assert len(fit_mixture(torch.randn(100, dim, generator=generator)).weights) == components


def test_codes_that_are_no_numbers_have_none() -> None:
    with pytest.raises(DataError, match="NaN or infinite"):
        fit_mixture(torch.tensor([[1.0], [math.nan]]))


@pytest.mark.parametrize("dim", [1, 3, 40])
def test_an_autoencoder_of_any_size_is_drawn(train_quiet, tmp_path: Path, dim: int) -> None:
    small = ("model=autoencoder", "hidden_dims=[2]", f"latent_dim={dim}", "trainer.epochs=1", "evaluation.figures=true")
    assert train_quiet(*small, "data.limit=20", "trainer.batch_size=1", "data.val_size=0")["status"] == "completed"
    assert train_quiet(*small, "data.limit=1", "trainer.batch_size=1", "data.val_size=0", folder="one")["status"] == "completed"
    one = vae_lab.load(tmp_path / "one", device="cpu")
    with pytest.raises(ConfigError, match=r"no results\.json that tells the spread"):  # one test image has none
        one.traverse(load_data(one.config["data"]).test.x)
