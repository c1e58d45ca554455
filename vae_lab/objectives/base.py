"""What an objective provides."""

from abc import ABC, abstractmethod
from typing import ClassVar, Generic, NamedTuple, TypeVar

from jaxtyping import Float, Int
from torch import Tensor

from vae_lab.models import Autoencoder
from vae_lab.settings import Configured

M = TypeVar("M", bound=Autoencoder)
Noise = dict[str, Tensor]
Terms = dict[str, Tensor]


class Batch(NamedTuple):
    """What a model sees of B images: pixels in [0, 1] and, where the data has them, class labels."""

    x: Float[Tensor, "B C H W"]
    y: Int[Tensor, " B"] | None = None


class Objective(Configured, ABC, Generic[M]):
    """A function of a model and a batch. Numbers that may be swept are settings, so that stacked runs keep their own."""

    requires: ClassVar[type[Autoencoder]]
    monitor: ClassVar[str] = "loss"  # the validation term that selects the best epoch, unless trainer.monitor names another

    def noise_shapes(self, model: M) -> dict[str, tuple[int, ...]]:
        """Standard normal noise wanted per image, by name and shape; the engine draws it from the run's own stream."""
        return {} if model.deterministic else {"eps": (model.latent_dim,)}

    @abstractmethod
    def forward(self, model: M, batch: Batch, noise: Noise, step: Int[Tensor, ""]) -> Terms:
        """Terms [B] in nats per image: 'loss' is what is minimised, weights included; 'nll' and 'kl' are without weights."""

    @abstractmethod
    def kl_weight(self) -> Float[Tensor, ""] | None:
        """The weight of the KL term as it stands in the loss; None where the objective has none."""
