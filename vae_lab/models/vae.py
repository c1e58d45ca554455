"""The variational autoencoder."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution

from vae_lab.config import bounded
from vae_lab.distributions import StandardNormal, diag_normal
from vae_lab.losses import Likelihood
from vae_lab.models.base import LatentVariableModel
from vae_lab.networks import Network
from vae_lab.registry import register


@register("model", "vae")
class VAE(LatentVariableModel):
    """Diagonal normal posterior, standard normal prior.

    References:
        Kingma & Welling 2014. https://arxiv.org/abs/1312.6114
        Rezende, Mohamed & Wierstra 2014. https://arxiv.org/abs/1401.4082
    """

    deterministic = False
    prior_mu: Tensor

    @dataclass(frozen=True, kw_only=True)
    class Config:
        name: str
        variant: str
        latent_dim: int = bounded(ge=1)

    def __init__(self, config: Config, network: Network, loss: Likelihood):
        super().__init__()
        self.latent_dim = config.latent_dim
        self.encoder = network.encoder(2 * config.latent_dim)
        self.decoder = network.decoder(config.latent_dim)
        self.loss = loss
        self.setting("prior_mu", torch.zeros(config.latent_dim))

    def posterior(self, x: Float[Tensor, "B C H W"]) -> Distribution:
        mu, logvar = self.encoder(x).float().chunk(2, dim=-1)
        return diag_normal(mu, logvar)

    def prior(self) -> Distribution:
        return StandardNormal(self.prior_mu)
