"""What the tasks compute, against mathematics."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import mahalanobis
from scipy.stats import rankdata

import vae_lab
from tests.test_trained import LINEAR_AE, LINEAR_VAE, QUICK, pixels
from vae_lab.data import load as load_data
from vae_lab.errors import ConfigError, DataError
from vae_lab.tasks.anomaly import detection, latent_distance
from vae_lab.tasks.encode import flatten
from vae_lab.tasks.interpolate import path
from vae_lab.tasks.masks import make_mask, mask_reader
from vae_lab.tasks.sample import columns_for, draw_codes, fit_mixture
from vae_lab.trained import TrainedRun


@pytest.fixture
def vae(trained) -> TrainedRun:
    return vae_lab.load(trained(*QUICK), device="cpu")


@pytest.fixture
def linear(trained) -> TrainedRun:
    return vae_lab.load(trained(*LINEAR_VAE), device="cpu")


@pytest.fixture
def x(compose) -> torch.Tensor:
    return load_data(compose()["data"]).test.x


@pytest.mark.parametrize("kind", ["linear", "spherical"])
def test_ways_begin_and_end_at_the_reconstructions(vae: TrainedRun, x: torch.Tensor, kind: str) -> None:
    way = vae.interpolate(x[:6], x[6:12], 7, kind)
    assert way.shape == (6, 7, 1, 8, 8)
    torch.testing.assert_close(way[:, 0], vae.reconstruct(x[:6]), rtol=0, atol=1e-6)
    torch.testing.assert_close(way[:, -1], vae.reconstruct(x[6:12]), rtol=0, atol=1e-6)


def test_the_straight_way_has_equal_steps() -> None:
    a, b = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    steps = path(a, b, 11).diff(dim=1)
    torch.testing.assert_close(steps, ((b - a) / 10)[:, None].expand_as(steps), rtol=0, atol=1e-6)


def test_the_spherical_way_keeps_the_norm_and_turns_evenly() -> None:
    a, b = torch.nn.functional.normalize(torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0)).double(), dim=-1)
    way = path(3 * a, 3 * b, 11, "spherical")
    torch.testing.assert_close(way.norm(dim=-1), torch.full((5, 11), 3.0).double())
    angles = torch.acos((way[:, 1:] * way[:, :-1]).sum(-1) / 9)
    torch.testing.assert_close(angles, (torch.acos((a * b).sum(-1)) / 10)[:, None].expand_as(angles))
    longer = path(a, 2 * b, 5, "spherical").norm(dim=-1)
    torch.testing.assert_close(longer, torch.linspace(1, 2, 5).double().expand_as(longer))


@pytest.mark.parametrize("b", [[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
def test_where_there_is_no_great_circle_the_way_is_straight(b: list[float]) -> None:
    a = torch.tensor([[1.0, 0.0]])
    assert torch.equal(path(a, torch.tensor([b]), 5, "spherical"), path(a, torch.tensor([b]), 5))


@pytest.mark.parametrize("wrong", [{"steps": 1}, {"kind": "round"}])
def test_ways_that_cannot_be(vae: TrainedRun, x: torch.Tensor, wrong: dict) -> None:
    with pytest.raises(ConfigError):
        vae.interpolate(x[:1], x[1:2], **wrong)
    with pytest.raises(DataError, match="2 images to start from and 1"):
        vae.interpolate(x[:2], x[:1])


def test_traversal_moves_one_latent(vae: TrainedRun, x: torch.Tensor) -> None:
    code = vae.encode(x[:1]).mu[0]
    found = vae.traverse(x[:1], latents=[2, 0], span=(-1.0, 2.0), steps=4)
    assert torch.equal(found.values, torch.tensor([[-1.0, 0.0, 1.0, 2.0]]).expand(2, 4))
    for row, latent in enumerate([2, 0]):
        for column, value in enumerate([-1.0, 0.0, 1.0, 2.0]):
            moved = code.clone()
            moved[latent] = value
            torch.testing.assert_close(found.images[row, column], vae.decode(moved[None])[0])


def test_traversal_goes_by_kl(vae: TrainedRun) -> None:
    kl = vae.run_dir.read_results()["test"]["kl_per_latent"]
    found = vae.traverse(steps=3)
    assert found.kl == sorted(kl, reverse=True)
    assert found.latents == sorted(range(4), key=lambda index: -kl[index])
    torch.testing.assert_close(found.images[0, 1], vae.decode(torch.zeros(1, 4))[0])


def test_an_autoencoders_traversal_is_in_deviations_of_its_codes(trained, x: torch.Tensor) -> None:
    run = vae_lab.load(trained(*LINEAR_AE), device="cpu")
    deviation = run.encode(x).mu.std(0)
    found = run.traverse(x[:1], latents=[1], span=(-2.0, 2.0), steps=3)
    torch.testing.assert_close(found.values[0], run.encode(x[:1]).mu[0, 1] + deviation[1] * torch.tensor([-2.0, 0.0, 2.0]))


@pytest.mark.parametrize("wrong", [{"latents": [4]}, {"latents": []}, {"steps": 1}, {"span": (1.0, 1.0)}, {"span": (0.0, np.inf)}])
def test_traversals_that_cannot_be(vae: TrainedRun, wrong: dict) -> None:
    with pytest.raises(ConfigError):
        vae.traverse(**wrong)


def test_samples_of_the_prior_have_its_moments(vae: TrainedRun) -> None:
    z = draw_codes(vae, 20_000, seed=3, temperature=0.5)
    torch.testing.assert_close(z.mean(0), torch.zeros(4), rtol=0, atol=0.02)
    torch.testing.assert_close(torch.cov(z.T), 0.25 * torch.eye(4), rtol=0, atol=0.02)
    assert not draw_codes(vae, 5, temperature=0.0).any()
    assert torch.equal(vae.sample(5, seed=1), vae.sample(5, seed=1))
    assert not torch.equal(vae.sample(5, seed=1), vae.sample(5, seed=2))
    for wrong in ({"n": 0}, {"n": 1, "temperature": -1.0}, {"n": 1, "temperature": float("nan")}):
        with pytest.raises(ConfigError):
            vae.sample(**wrong)


def test_the_mixture_finds_planted_clusters(trained) -> None:
    run = vae_lab.load(trained(*LINEAR_AE), device="cpu")
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([[0.0, 0, 0], [9.0, 0, 0], [0.0, 9, 9]])
    shape = torch.tensor([[1.0, 0, 0], [0.8, 0.6, 0], [0, 0, 0.5]])
    which = torch.multinomial(torch.tensor([0.5, 0.3, 0.2]), 6000, replacement=True, generator=generator)
    codes = centres[which] + torch.randn(6000, 3, generator=generator) @ shape.T
    mixture = fit_mixture(codes, 3)
    order = mixture.weights.argsort(descending=True)
    torch.testing.assert_close(mixture.weights[order], torch.tensor([0.5, 0.3, 0.2]), rtol=0, atol=0.02)
    torch.testing.assert_close(mixture.means[order], centres, rtol=0, atol=0.1)
    drawn = draw_codes(run, 20_000, mixture=mixture)
    torch.testing.assert_close(drawn.mean(0), codes.mean(0), rtol=0, atol=0.15)
    torch.testing.assert_close(torch.cov(drawn.T), torch.cov(codes.T), rtol=0.05, atol=0.3)
    assert run.sample(7, mixture=mixture).shape == (7, 1, 8, 8)
    with pytest.raises(ConfigError, match="from 1 to the 2 codes"):
        fit_mixture(codes[:2], 3)


@pytest.mark.parametrize("method", ["chains", "optimise"])
@pytest.mark.parametrize("overrides", [QUICK, LINEAR_AE], ids=["vae", "autoencoder"])
def test_imputation_keeps_what_is_observed_and_does_not_look_at_the_rest(trained, x: torch.Tensor, overrides, method: str) -> None:
    run = vae_lab.load(trained(*overrides), device="cpu")
    images = pixels(x[:6])
    missing = make_mask("random", 6, (1, 8, 8), 0.5, None, seed=0)
    found = run.impute(images, missing, method, steps=4)
    hidden = torch.where(missing[:, None], torch.rand(images.shape, generator=torch.Generator().manual_seed(1)), images)
    again = run.impute(hidden, missing, method, steps=4)
    assert torch.equal(found.mean, again.mean)
    assert torch.equal(found.mean[~missing[:, None]], images[~missing[:, None]])
    assert not torch.equal(found.mean, images)
    if method == "chains":
        assert found.samples.shape == (6, 8, 1, 8, 8)
        kept = (~missing)[:, None, None].expand_as(found.samples)
        assert torch.equal(found.samples[kept], images[:, None].expand_as(found.samples)[kept])


def test_the_optimised_code_of_a_linear_vae_is_the_ridge_solution(linear: TrainedRun, x: torch.Tensor) -> None:
    """argmin |x_o - V_o z - c_o|^2 + |z|^2 / 2, solved by linear algebra."""
    weights = {name: tensor.double() for name, tensor in linear.system.model.named_parameters()}
    v, c = weights["decoder.0.weight"], weights["decoder.0.bias"]
    missing = torch.zeros(8, 8, dtype=torch.bool)
    missing[4:] = True
    seen = ~missing.flatten()
    images = pixels(x[:5]).double().flatten(1)
    z = torch.linalg.solve(v[seen].T @ v[seen] + 0.5 * torch.eye(3).double(), v[seen].T @ (images[:, seen] - c[seen]).T)
    expected = torch.where(seen, images, (v @ z).T + c)
    found = linear.impute(x[:5], missing, "optimise", steps=2000, lr=0.02).mean
    torch.testing.assert_close(found.double().flatten(1), expected, rtol=0, atol=1e-3)


def test_the_mean_of_chains_is_better_than_one_in_squared_error(vae: TrainedRun, x: torch.Tensor) -> None:
    images = pixels(x[:100])
    found = vae.impute(images, make_mask("lower", 100, (1, 8, 8), 0.5, None, 0), steps=10)
    single = (found.samples - images[:, None]).square().flatten(2).sum(2).mean()
    assert (found.mean - images).square().flatten(1).sum(1).mean() < single


def test_masks() -> None:
    shape = (1, 28, 28)
    assert make_mask("centre", 3, shape, 0.5, None, 0).sum() == 144
    assert make_mask("centre", 3, shape, 0.5, 12, 0)[8:20, 8:20].all()
    assert make_mask("lower", 3, shape, 0.5, None, 0)[14:].all()
    assert [int(make_mask(side, 3, shape, 0.5, None, 0).sum()) for side in ("lower", "upper", "left", "right")] == [392] * 4
    own = make_mask("random", 100, shape, 0.3, None, 0)
    assert own.float().mean().item() == pytest.approx(0.3, abs=0.01)
    assert not torch.equal(own[0], own[1])
    for wrong in (torch.ones(28, 28), np.ones((27, 28), bool), np.ones((2, 28, 28), bool)):
        with pytest.raises(DataError, match="mask"):
            mask_reader(wrong, 3, shape)
    assert mask_reader(np.ones((28, 28), bool), 3, (3, 28, 28))(slice(1, 3)).shape == (2, 3, 28, 28)


def test_unknown_methods_and_options(vae: TrainedRun, x: torch.Tensor) -> None:
    hole = torch.ones(8, 8, dtype=torch.bool)
    for ask in (
        lambda: vae.impute(x[:1], hole, "guess"),
        lambda: vae.impute(x[:1], hole, num_chains=0),
        lambda: vae.impute(x[:1], hole, "optimise", lr=-1.0),
        lambda: vae.impute(x[:1], hole, chains=3),
        lambda: vae.anomaly_score(x[:1], "guess"),
        lambda: vae.anomaly_score(x[:1], "reconstruction_error", seeds=3),
        lambda: vae.elbo(x[:1], num_samples=0),
    ):
        with pytest.raises(ConfigError):
            ask()


def test_distances_are_mahalanobis(vae: TrainedRun, x: torch.Tensor) -> None:
    mu = vae.encode(x).mu.double().numpy()
    found = latent_distance(vae, x[:20], reference=mu)
    inverse = np.linalg.inv(np.cov(mu.T))
    expected = [mahalanobis(code, mu.mean(0), inverse) for code in mu[:20]]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4)
    np.testing.assert_allclose(latent_distance(vae, x[:20]).numpy(), np.linalg.norm(mu[:20], axis=1), rtol=1e-5)


def test_scores_are_what_they_are_called(vae: TrainedRun, x: torch.Tensor) -> None:
    assert torch.equal(vae.anomaly_score(x, num_samples=2, seed=5), -vae.elbo(x, 2, 5))
    error = (vae.reconstruct(x) - pixels(x)).square().flatten(1).sum(1)
    torch.testing.assert_close(vae.anomaly_score(x, "reconstruction_error"), error)


def test_detection_of_planted_scores() -> None:
    """AUROC is the share of pairs in the right order (Mann-Whitney); the average precision of a perfect score is 1."""
    generator = np.random.default_rng(0)
    outlier = np.arange(500) < 100
    score = generator.normal(size=500) + outlier
    ranks = rankdata(score)[outlier].sum() - 100 * 101 / 2
    found = detection(score, outlier)
    assert found["auroc"] == pytest.approx(ranks / (100 * 400))
    assert found["outlier_share"] == 0.2
    assert 0.2 < found["average_precision"] < 1
    assert detection(outlier.astype(float), outlier) == {"auroc": 1, "average_precision": 1, "outlier_share": 0.2}


def test_grids_are_full_where_they_can_be() -> None:
    assert [columns_for(n) for n in (1, 2, 7, 10, 32, 64, 100)] == [1, 2, 3, 5, 8, 8, 10]
    assert all(columns_for(n) ** 2 >= n for n in range(1, 500))


def test_planes() -> None:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randn(200, 5, generator=generator) * torch.tensor([5.0, 3, 0.1, 0.1, 0.1])
    points, names = flatten(codes, "pca")
    singular = torch.linalg.svdvals(codes - codes.mean(0))[:2].numpy()
    np.testing.assert_allclose(np.linalg.norm(points, axis=0), singular, rtol=1e-5)
    assert "of variance" in names[0]
    clusters = torch.cat([torch.randn(60, 5, generator=generator), torch.randn(60, 5, generator=generator) + 20])
    first, second = np.split(flatten(clusters, "tsne")[0], 2)
    assert np.linalg.norm(first.mean(0) - second.mean(0)) > 2 * max(first.std(), second.std())
    assert np.array_equal(flatten(codes[:, :2], "plane")[0], codes[:, :2].double().numpy())
    with pytest.raises(ConfigError, match="at least two codes"):
        flatten(codes[:, :1], "pca")
