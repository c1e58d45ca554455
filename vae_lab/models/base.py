"""The two abstract classes that objectives ask for."""

from abc import ABC, abstractmethod
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution

from vae_lab.losses import Likelihood
from vae_lab.settings import Configured


class Autoencoder(Configured, ABC):
    """Images to codes and back."""

    deterministic: ClassVar[bool]  # the posterior is a single code, so that no noise is drawn
    latent_dim: int
    decoder: nn.Module
    loss: Likelihood

    @abstractmethod
    def posterior(self, x: Float[Tensor, "B C H W"]) -> Distribution:
        """q(z given x) over codes [B, D]."""

    def likelihood(self, z: Float[Tensor, "B D"]) -> Distribution:
        """p(x given z) over images [B, C, H, W]."""
        return self.loss(self.decoder(z))


class LatentVariableModel(Autoencoder, ABC):
    """An autoencoder with a prior over codes, so that it can be sampled and has an ELBO."""

    @abstractmethod
    def prior(self) -> Distribution:
        """p(z) over codes [D]."""
