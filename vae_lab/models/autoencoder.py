"""The plain autoencoder."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution

from vae_lab.config import bounded
from vae_lab.distributions import Delta
from vae_lab.losses import Likelihood
from vae_lab.models.base import Autoencoder
from vae_lab.networks import Network
from vae_lab.registry import register


@register("model", "autoencoder")
class PlainAutoencoder(Autoencoder):
    """One code per image, no noise, no prior.

    References:
        Hinton & Salakhutdinov 2006. https://doi.org/10.1126/science.1127647
    """

    deterministic = True

    @dataclass(frozen=True, kw_only=True)
    class Config:
        name: str
        variant: str
        latent_dim: int = bounded(ge=1)

    def __init__(self, config: Config, network: Network, loss: Likelihood):
        super().__init__()
        self.latent_dim = config.latent_dim
        self.encoder = network.encoder(config.latent_dim)
        self.decoder = network.decoder(config.latent_dim)
        self.loss = loss

    def posterior(self, x: Float[Tensor, "B C H W"]) -> Distribution:
        return Delta(self.encoder(x).float())
