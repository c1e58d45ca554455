"""Distributions of images and latents. Models return these objects; an ELBO is then three lines.

All carry one event per image: `log_prob` of a batch of B images has shape [B], summed over pixels or latents, in nats.
Argument validation is off because it needs a host synchronisation and does not work under `torch.func.vmap`. The two
that every training step makes keep their parameters and build torch's own distribution, `base_dist`, when it is asked for.
"""

from collections.abc import Sequence
from functools import cached_property, partial

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.distributions import (
    Bernoulli,
    Distribution,
    Independent,
    Laplace,
    LowRankMultivariateNormal,
    MultivariateNormal,
    Normal,
    kl_divergence,
    register_kl,
)

from vae_lab.errors import ConfigError
from vae_lab.undivided import are_stacked, of_all_runs

NUM_DRAWS = 10_000  # that the quantiles of a prior are taken from, where it is not normal


class DiagNormal(Independent):
    """Normal with diagonal covariance exp(logvar), over codes [*batch, D]."""

    def __init__(self, mu: Float[Tensor, "*batch D"], logvar: Float[Tensor, "*batch D"]):
        Distribution.__init__(self, mu.shape[:-1], mu.shape[-1:], validate_args=False)
        self.reinterpreted_batch_ndims = 1
        self.mu, self.logvar = mu, logvar

    @cached_property
    def base_dist(self) -> Normal:
        return Normal(self.mu, torch.exp(0.5 * self.logvar), validate_args=False)

    @property
    def mean(self) -> Tensor:
        return self.mu

    def expand(self, batch_shape: Sequence[int], _instance: None = None) -> "DiagNormal":
        shape = (*batch_shape, *self.event_shape)
        return DiagNormal(self.mu.expand(shape), self.logvar.expand(shape))


class StandardNormal(DiagNormal):
    """Mean zero and variance one; `zeros` [D] says where and how many."""

    def __init__(self, zeros: Float[Tensor, " D"]):
        super().__init__(zeros, zeros)


class BernoulliPixels(Independent):
    """Independent Bernoulli pixels [*batch, C, H, W]. `log_prob` also takes grey values in [0, 1], where it is not normalised."""

    def __init__(self, logits: Float[Tensor, "*batch C H W"]):
        Distribution.__init__(self, logits.shape[:-3], logits.shape[-3:], validate_args=False)
        self.reinterpreted_batch_ndims = 3
        self.logits = logits

    @cached_property
    def base_dist(self) -> Bernoulli:
        return Bernoulli(logits=self.logits, validate_args=False)

    def log_prob(self, value: Float[Tensor, "*sample C H W"]) -> Float[Tensor, "*shape"]:
        return -self.cross_entropy(value)

    def cross_entropy(self, value: Float[Tensor, "*sample C H W"]) -> Float[Tensor, "*shape"]:
        """-log_prob, without its detour."""
        logits = self.logits
        if logits.shape != value.shape:
            logits, value = torch.broadcast_tensors(logits, value)
        pixels = partial(F.binary_cross_entropy_with_logits, reduction="none")
        terms = of_all_runs(pixels, logits, value) if are_stacked(logits) else pixels(logits, value)
        return terms.sum((-3, -2, -1))

    def expand(self, batch_shape: Sequence[int], _instance: None = None) -> "BernoulliPixels":
        return BernoulliPixels(self.logits.expand(*batch_shape, *self.event_shape))


def diag_normal(mu: Float[Tensor, "*batch D"], logvar: Float[Tensor, "*batch D"]) -> DiagNormal:
    """Normal with diagonal covariance exp(logvar)."""
    return DiagNormal(mu, logvar)


def bernoulli(logits: Float[Tensor, "*batch C H W"]) -> BernoulliPixels:
    """Independent Bernoulli pixels."""
    return BernoulliPixels(logits)


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
    if isinstance(q, DiagNormal) and eps is not None:
        return q.mu + torch.exp(0.5 * q.logvar) * eps
    base = q.base_dist if isinstance(q, Independent) else q
    if eps is None or not isinstance(base, Normal):
        raise TypeError(f"reparameterize needs noise and knows Normal and Delta, not {type(base).__name__}.")
    return base.loc + base.scale * eps


def nll(p: Distribution, x: Float[Tensor, "*batch C H W"]) -> Float[Tensor, "*batch"]:
    """-log p(x) in nats per image."""
    return p.cross_entropy(x) if isinstance(p, BernoulliPixels) else -p.log_prob(x)


def kl(q: Distribution, p: Distribution, z: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch"]:
    """KL(q, p) in nats per image.

    Closed form where one is registered, else the one-sample estimate log q(z) - log p(z), which can be negative.

    References:
        Kingma & Welling 2014, appendix B. https://arxiv.org/abs/1312.6114
    """
    try:
        return kl_divergence(q, p)
    except NotImplementedError:
        return q.log_prob(z) - p.log_prob(z)


@register_kl(DiagNormal, DiagNormal)
def _kl_normal(q: DiagNormal, p: DiagNormal) -> Float[Tensor, "*batch"]:
    difference = q.logvar - p.logvar
    return 0.5 * (difference.exp() + (q.mu - p.mu).square() * torch.exp(-p.logvar) - 1 - difference).sum(-1)


@register_kl(DiagNormal, StandardNormal)
def _kl_standard_normal(q: DiagNormal, p: StandardNormal) -> Float[Tensor, "*batch"]:
    """The same with half the passes."""
    return 0.5 * (q.logvar.exp() + q.mu.square() - q.logvar - 1).sum(-1)


def draw(p: Distribution, n: int, generator: torch.Generator, temperature: float = 1.0) -> Float[Tensor, "n D"]:
    """`n` codes from a prior over codes [D], as a function of a CPU generator's state alone.

    Independent normals are mean + temperature * deviation * noise of that generator. Others draw by their own `sample`, which
    knows no generator: torch's global ones are seeded from this one meanwhile, and put back.

    Raises:
        ConfigError: `p` cannot be drawn from, or has no deviations that a temperature could scale.
    """
    base = _inner(p)
    if type(base) is Normal:
        noise = temperature * torch.randn(n, *p.mean.shape, generator=generator)
        z = p.mean + p.stddev * noise.to(p.mean.device)
        return z.detach().float().reshape(n, -1)  # [n, 1, D] where the prior is one of a batch
    if temperature != 1 and type(base) not in (Laplace, MultivariateNormal, LowRankMultivariateNormal):
        name = type(base).__name__
        raise ConfigError(f"temperature={temperature:g}: the prior, {name}, has no one deviation to scale; only 1 has a meaning.")
    seed = int(torch.randint(2**63 - 1, (), generator=generator))
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices), torch.no_grad():
        torch.manual_seed(seed)
        try:
            z = p.sample(torch.Size([n]))
        except NotImplementedError as error:
            raise ConfigError(f"The prior, {type(base).__name__}, cannot be drawn from: it has no sample().") from error
    return (z if temperature == 1 else p.mean + temperature * (z - p.mean)).detach().float().reshape(n, -1)


def normal_moments(p: Distribution) -> tuple[Float[Tensor, " D"], Float[Tensor, "D D"]] | None:
    """Mean and covariance of a normal prior over codes [D]; None for every other distribution, which they do not describe."""
    base = _inner(p)
    if type(base) is Normal:
        covariance = torch.diag(p.variance.flatten())
    elif type(base) is MultivariateNormal or type(base) is LowRankMultivariateNormal:
        covariance = base.covariance_matrix
    else:
        return None
    mean = p.mean.flatten().detach().float()
    return mean, covariance.view(len(mean), -1).detach().float()


def quantiles(p: Distribution, levels: Float[Tensor, " L"], generator: torch.Generator) -> Float[Tensor, "L D"]:
    """Quantiles of each latent of a prior over codes [D], on the CPU: exact for a normal, else those of `NUM_DRAWS` draws."""
    if (moments := normal_moments(p)) is not None:
        mean, deviation = moments[0].cpu(), moments[1].diagonal().sqrt().cpu()
        return mean + deviation * torch.special.ndtri(levels)[:, None]
    ordered = draw(p, NUM_DRAWS, generator).cpu().sort(0).values
    return ordered[(levels * (NUM_DRAWS - 1)).round().long()]


def _inner(p: Distribution) -> Distribution:
    """What is wrapped as independent; a class derived from these may draw otherwise, and counts as itself."""
    while type(p) in (Independent, DiagNormal, StandardNormal):
        p = p.base_dist  # type: ignore[attr-defined]
    return p
