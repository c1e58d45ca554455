"""Distributions of images and latents. Models return these objects; an ELBO is then three lines.

All carry one event per image: `log_prob` of a batch of B images has shape [B], summed over pixels or latents, in nats.
Argument validation is off because it needs a host synchronisation and does not work under `torch.func.vmap`.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Bernoulli, Distribution, Independent, Normal, kl_divergence


def diag_normal(mu: Float[Tensor, "*batch D"], logvar: Float[Tensor, "*batch D"]) -> Independent:
    """Normal with diagonal covariance exp(logvar)."""
    return Independent(Normal(mu, torch.exp(0.5 * logvar), validate_args=False), 1, validate_args=False)


def bernoulli(logits: Float[Tensor, "*batch C H W"]) -> Independent:
    """Independent Bernoulli pixels. Its `log_prob` also takes grey values in [0, 1], where it is not normalised."""
    return Independent(Bernoulli(logits=logits, validate_args=False), 3, validate_args=False)


def gaussian(mean: Float[Tensor, "*batch C H W"], variance: Float[Tensor, ""]) -> Independent:
    """Independent normal pixels that share one scalar variance."""
    return Independent(Normal(mean, variance.sqrt().expand_as(mean), validate_args=False), 3, validate_args=False)


class Delta(Distribution):
    """All mass on one code: the posterior of an autoencoder without noise."""

    arg_constraints = {}  # noqa: RUF012 (torch reads it as a class attribute)

    def __init__(self, mu: Float[Tensor, "*batch D"]):
        super().__init__(batch_shape=mu.shape[:-1], event_shape=mu.shape[-1:], validate_args=False)
        self.mu = mu

    @property
    def mean(self) -> Tensor:
        return self.mu

    @property
    def variance(self) -> Tensor:
        return torch.zeros_like(self.mu)


def reparameterize(q: Distribution, eps: Float[Tensor, "*sample D"] | None) -> Tensor:
    """A sample of q as a differentiable function of standard normal noise; a Delta needs none.

    References:
        Kingma & Welling 2014, section 2.4. https://arxiv.org/abs/1312.6114
    """
    if isinstance(q, Delta):
        return q.mu
    base = q.base_dist if isinstance(q, Independent) else q
    if eps is None or not isinstance(base, Normal):
        raise TypeError(f"reparameterize needs noise and knows Normal and Delta, not {type(base).__name__}.")
    return base.loc + base.scale * eps


def kl(q: Distribution, p: Distribution, z: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch"]:
    """KL(q, p) in nats per image.

    Closed form where torch registers one, else the one-sample estimate log q(z) - log p(z), which can be negative.

    References:
        Kingma & Welling 2014, appendix B. https://arxiv.org/abs/1312.6114
    """
    try:
        return kl_divergence(q, p)
    except NotImplementedError:
        return q.log_prob(z) - p.log_prob(z)
