"""Distributions against Monte Carlo and against their formulas."""

import math

import pytest
import torch
from torch.distributions import Categorical, Independent, Laplace, MixtureSameFamily, Normal, kl_divergence

from vae_lab.distributions import Delta, StandardNormal, bernoulli, diag_normal, gaussian, kl, nll, reparameterize


@pytest.fixture
def q() -> Independent:
    g = torch.Generator().manual_seed(0)
    return diag_normal(torch.randn(5, 3, generator=g), torch.randn(5, 3, generator=g))


@pytest.fixture
def p() -> Independent:
    return diag_normal(torch.zeros(3), torch.zeros(3))


def test_kl_closed_form_equals_monte_carlo(q: Independent, p: Independent) -> None:
    eps = torch.randn(200_000, 5, 3, generator=torch.Generator().manual_seed(1))
    z = reparameterize(q, eps)
    estimates = q.log_prob(z) - p.log_prob(z)
    error = estimates.std(0) / math.sqrt(len(z))
    closed = kl(q, p, z[0])
    assert torch.all((estimates.mean(0) - closed).abs() < 5 * error)
    assert torch.all(closed > 0)


def test_kl_formula_and_zero(p: Independent) -> None:
    mu, logvar = torch.tensor([[0.5, -1.0, 2.0]]), torch.tensor([[0.0, 1.0, -2.0]])
    expected = 0.5 * (logvar.exp() + mu**2 - 1 - logvar).sum(1)
    torch.testing.assert_close(kl(diag_normal(mu, logvar), p, mu), expected)
    assert kl(p, p, torch.zeros(3)) == 0


def test_kl_without_closed_form_is_a_one_sample_estimate(q: Independent) -> None:
    parts = Independent(Normal(torch.tensor([[-1.0] * 3, [1.0] * 3]), torch.ones(2, 3)), 1)
    p = MixtureSameFamily(Categorical(torch.ones(2)), parts)
    z = reparameterize(q, torch.zeros(5, 3))
    with pytest.raises(NotImplementedError):
        kl_divergence(q, p)
    torch.testing.assert_close(kl(q, p, z), q.log_prob(z) - p.log_prob(z))


def test_reparameterised_gradient_equals_the_exact_one() -> None:
    """d/dmu E[z^2] = 2 mu and d/dlogvar E[z^2] = var, for z ~ N(mu, var)."""
    mu, logvar = torch.tensor([[0.7]], requires_grad=True), torch.tensor([[-0.4]], requires_grad=True)
    eps = torch.randn(400_000, 1, generator=torch.Generator().manual_seed(0))
    reparameterize(diag_normal(mu, logvar), eps).square().mean().backward()
    assert mu.grad is not None
    assert logvar.grad is not None
    assert mu.grad.item() == pytest.approx(1.4, abs=0.01)
    assert logvar.grad.item() == pytest.approx(math.exp(-0.4), abs=0.01)


def test_delta_needs_no_noise() -> None:
    q = Delta(torch.ones(2, 3))
    assert torch.equal(reparameterize(q, None), torch.ones(2, 3))
    assert torch.equal(q.variance, torch.zeros(2, 3))


def test_reparameterize_refuses_what_it_does_not_know() -> None:
    with pytest.raises(TypeError, match="Laplace"):
        reparameterize(Independent(Laplace(torch.zeros(2), torch.ones(2)), 1), torch.zeros(2))


def test_bernoulli_is_the_cross_entropy() -> None:
    g = torch.Generator().manual_seed(0)
    logits, x = torch.randn(4, 1, 8, 8, generator=g), torch.rand(4, 1, 8, 8, generator=g)
    prob = torch.sigmoid(logits)
    expected = (x * prob.log() + (1 - x) * (1 - prob).log()).flatten(1).sum(1)
    torch.testing.assert_close(bernoulli(logits).log_prob(x), expected)


def test_gaussian_density() -> None:
    g = torch.Generator().manual_seed(0)
    mean, x, variance = torch.randn(4, 1, 8, 8, generator=g), torch.rand(4, 1, 8, 8, generator=g), torch.tensor(0.3)
    expected = -((x - mean) ** 2).flatten(1).sum(1) / 0.6 - 32 * math.log(2 * math.pi * 0.3)
    torch.testing.assert_close(gaussian(mean, variance).log_prob(x), expected)


def test_the_standard_normal_is_a_normal_with_half_the_work(q: Independent, p: Independent) -> None:
    standard = StandardNormal(torch.zeros(3))
    torch.testing.assert_close(kl(q, standard, q.mean), kl(q, p, q.mean))
    torch.testing.assert_close(kl(q, standard, q.mean), kl_divergence(q.base_dist, p.base_dist).sum(-1))
    torch.testing.assert_close(standard.log_prob(q.mean), p.log_prob(q.mean))
    assert torch.equal(standard.stddev, torch.ones(3))


def test_nll_is_the_negative_log_probability() -> None:
    g = torch.Generator().manual_seed(0)
    logits, x = torch.randn(4, 1, 8, 8, generator=g), torch.rand(4, 1, 8, 8, generator=g)
    for px in (bernoulli(logits), gaussian(logits, torch.tensor(0.5))):
        torch.testing.assert_close(nll(px, x), -px.log_prob(x))


def test_they_can_be_expanded_and_broadcast(q: Independent) -> None:
    g = torch.Generator().manual_seed(0)
    assert q.expand([7, 5]).sample().shape == (7, 5, 3)
    px, x = bernoulli(torch.randn(4, 1, 8, 8, generator=g)), torch.rand(3, 1, 1, 8, 8, generator=g)
    assert px.expand([2, 4]).mean.shape == (2, 4, 1, 8, 8)
    torch.testing.assert_close(px.log_prob(x), Independent(px.base_dist, 3).log_prob(x))
