"""Streams of random numbers: independent where they must be, the same where runs are paired."""

import torch

from tests.test_engine import SMALL
from vae_lab import rng
from vae_lab.data import load
from vae_lab.feed import Feed
from vae_lab.job import make_run


def draw(seed: int, purpose: str, count: int = 50) -> torch.Tensor:
    return torch.randn(count, generator=rng.generator(seed, purpose))


def test_validation_and_test_have_noise_of_their_own(compose, monkeypatch) -> None:
    asked: list[str] = []
    noise = Feed.noise
    monkeypatch.setattr(Feed, "noise", lambda self, n, purpose, *at: asked.append(purpose) or noise(self, n, purpose, *at))
    from tests.test_engine import train

    train([compose(*SMALL, "trainer.epochs=1")])
    assert {"validation", "noise"} == {*asked}
    assert not torch.equal(draw(0, "validation"), draw(0, "evaluation"))
    assert abs(float(torch.corrcoef(torch.stack([draw(0, "validation", 10_000), draw(0, "evaluation", 10_000)]))[0, 1])) < 0.05


def test_a_cpu_generator_uses_32_bits(compose) -> None:
    """The two seeds share the low half of what is derived from them, and so their parameters: as the docstring says."""
    one, other = (rng.derive(seed, "init") for seed in (115954, 168185))
    assert one != other
    assert one % 2**32 == other % 2**32
    systems = [make_run(compose(f"seed={seed}"), load(compose()["data"])).system for seed in (115954, 168185)]
    same = [torch.equal(*pair) for pair in zip(*(system.parameters() for system in systems), strict=True)]
    assert all(same)
    assert "32" in rng.derive.__doc__


def test_equal_seeds_share_noise_where_the_latent_dimension_is_equal(compose) -> None:
    splits = load(compose(*SMALL)["data"])

    def first(dim: int, model: str) -> torch.Tensor:
        shapes = make_run(compose(*SMALL, f"latent_dim={dim}", f"model={model}"), splits).system.noise_shapes()
        return next(Feed([3], shapes, splits, 32, torch.device("cpu")).epoch(0, 0)).noise["eps"]

    assert torch.equal(first(2, "vae"), first(2, "beta_vae"))
    assert not torch.equal(first(2, "vae")[1], first(3, "vae")[1, :2])
