"""One run's mathematics as a single pure function, and how it is built from a config."""

import math
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from vae_lab import registry, rng
from vae_lab.errors import ConfigError
from vae_lab.models import Autoencoder
from vae_lab.networks.base import ImageShape
from vae_lab.objectives import Objective
from vae_lab.objectives.base import Batch, Noise, Terms


class System(nn.Module):
    """A model and an objective. Calling it draws nothing and keeps nothing."""

    def __init__(self, model: Autoencoder, objective: Objective[Any]):
        super().__init__()
        if not isinstance(model, objective.requires):
            raise ConfigError(
                f"objective={type(objective).__name__.lower()} needs a {objective.requires.__name__} (a model with a prior), "
                f"but {type(model).__name__} is none; use objective=reconstruction, or model=vae."
            )
        self.model = model
        self.objective = objective

    def noise_shapes(self) -> dict[str, tuple[int, ...]]:
        """Standard normal noise wanted per image."""
        return self.objective.noise_shapes(self.model)

    def forward(self, batch: Batch, noise: Noise, step: Int[Tensor, ""]) -> Terms:
        """Named terms [B] in nats per image, with 'sse' where the likelihood is Gaussian; 'loss' is minimised."""
        terms = self.objective(self.model, batch, noise, step)
        sse = self.model.loss.squared_error(terms["nll"], math.prod(batch.x.shape[1:]))
        return terms if sse is None else terms | {"sse": sse}

    def beta_eff(self) -> float | None:
        """The KL weight beside BCE (Bernoulli) or half the summed squared error (Gaussian); None without a KL term."""
        weight = self.objective.kl_weight()
        return None if weight is None else float((weight * self.model.loss.beta_scale()).detach())

    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())


def build_system(cfg: Any, image_shape: ImageShape) -> System:
    """Build a run's system on the CPU with parameters drawn from the run's own 'init' stream."""
    with rng.seeded(int(cfg["seed"]), "init"), torch.device("cpu"):
        network = registry.build("network", cfg["network"], image_shape=image_shape)
        loss = registry.build("loss", cfg["loss"])
        model = registry.build("model", cfg["model"], network=network, loss=loss)
        objective = registry.build("objective", cfg["objective"])
        return System(model, objective)
