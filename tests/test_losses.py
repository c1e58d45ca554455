"""Likelihood constants and gradients."""

import math

import pytest
import torch

from vae_lab import registry


@pytest.fixture
def images() -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.rand(6, 1, 8, 8, generator=g), torch.randn(6, 1, 8, 8, generator=g)


def test_mse_is_the_squared_error_plus_a_constant(images: tuple[torch.Tensor, torch.Tensor]) -> None:
    x, output = images
    loss = registry.build("loss", {"name": "mse", "output": "identity"})
    sse = (x - output).square().flatten(1).sum(1)
    nll = -loss(output).log_prob(x)
    torch.testing.assert_close(nll, sse + 32 * math.log(math.pi))
    torch.testing.assert_close(loss.squared_error(nll, 64), sse)
    output.requires_grad_()
    (gradient,) = torch.autograd.grad(-loss(output).log_prob(x).sum(), output)
    torch.testing.assert_close(gradient, 2 * (output - x).detach())


def test_gaussian_learns_the_residual_variance(images: tuple[torch.Tensor, torch.Tensor]) -> None:
    x, output = images
    loss = registry.build("loss", {"name": "gaussian", "sigma": 1.0, "output": "identity"})
    optimizer = torch.optim.LBFGS(loss.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        nll = -loss(output).log_prob(x).sum()
        nll.backward()
        return nll

    optimizer.step(closure)
    assert loss.beta_scale().item() == pytest.approx((x - output).square().mean().item(), rel=1e-4)
    nll = -loss(output).log_prob(x)
    torch.testing.assert_close(loss.squared_error(nll, 64), (x - output).square().flatten(1).sum(1), rtol=1e-4, atol=1e-3)


def test_bce_of_grey_pixels_cannot_fall_below_their_entropy(images: tuple[torch.Tensor, torch.Tensor]) -> None:
    x, output = images
    loss = registry.build("loss", {"name": "bce"})
    entropy = -(x * x.log() + (1 - x) * (1 - x).log()).flatten(1).sum(1)
    assert torch.all(-loss(output).log_prob(x) > entropy)
    torch.testing.assert_close(-loss(torch.logit(x)).log_prob(x), entropy, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "beta_eff"), [("bce", 3.0), ("mse", 1.5), ("gaussian", 0.75)])
def test_beta_eff_reads_all_weights_on_one_scale(compose, name: str, beta_eff: float) -> None:
    from vae_lab.system import build_system

    system = build_system(compose(f"loss={name}", "objective.beta=3"), (1, 8, 8))
    assert system.beta_eff() == pytest.approx(beta_eff)


def test_sigmoid_output_keeps_means_inside_the_pixels(images: tuple[torch.Tensor, torch.Tensor]) -> None:
    _, output = images
    loss = registry.build("loss", {"name": "mse", "output": "sigmoid"})
    torch.testing.assert_close(loss(output).mean, torch.sigmoid(output))
