"""The negative log-likelihood alone."""

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from vae_lab.distributions import nll, reparameterize
from vae_lab.models import Autoencoder
from vae_lab.objectives.base import Batch, Noise, Objective, Terms
from vae_lab.registry import register


@register("objective", "reconstruction")
class Reconstruction(Objective[Autoencoder]):
    """-log p(x given z) with z drawn from the posterior: the autoencoder's objective."""

    requires = Autoencoder

    @dataclass(frozen=True)
    class Config:
        name: str

    def __init__(self, config: Config):
        super().__init__()

    def forward(self, model: Autoencoder, batch: Batch, noise: Noise, step: Int[Tensor, ""]) -> Terms:
        z = reparameterize(model.posterior(batch.x), noise.get("eps"))
        distortion = nll(model.likelihood(z), batch.x)
        return {"loss": distortion, "nll": distortion}

    def kl_weight(self) -> Float[Tensor, ""] | None:
        return None
