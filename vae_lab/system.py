"""One run's mathematics as a single pure function, and how it is built from a config."""

import math
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from vae_lab import registry, rng
from vae_lab.blocks import State
from vae_lab.errors import ConfigError
from vae_lab.models import Autoencoder
from vae_lab.networks.base import ImageShape
from vae_lab.objectives import Objective
from vae_lab.objectives.base import Batch, Noise, Terms
from vae_lab.settings import setting_names


class System(nn.Module):
    """A model and an objective. Calling it draws nothing and keeps nothing."""

    def __init__(self, model: Autoencoder, objective: Objective[Any]):
        super().__init__()
        if not isinstance(getattr(objective, "requires", None), type):
            raise ConfigError(f"{type(objective).__name__} does not say what it requires of a model: requires = Autoencoder.")
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
        """Named terms [B] in nats per image, with 'sse' where the likelihood is Gaussian; 'loss', the first, is minimised."""
        terms = self.objective(self.model, batch, noise, step)
        terms = {"loss": terms["loss"], **terms}
        sse = self.model.loss.squared_error(terms["nll"], math.prod(batch.x.shape[1:]))
        return terms if sse is None else terms | {"sse": sse}

    def beta_eff(self) -> float | None:
        """The KL weight beside BCE (Bernoulli) or half the summed squared error (Gaussian); None without a KL term."""
        weight = self.objective.kl_weight()
        return None if weight is None else float((weight * self.model.loss.beta_scale()).detach())

    def state(self) -> State:
        """What a checkpoint holds: parameters and buffers but settings, each tied tensor once."""
        return dict(self.named_parameters()) | self.without_settings(dict(self.named_buffers()))

    def load_state(self, state: State) -> None:
        """Take over a state with the names of `state()`."""
        self.load_state_dict(self.without_settings(state), strict=False)

    def without_settings(self, state: State) -> State:
        """A state as it is kept now: earlier checkpoints held settings too, which a run takes from its config."""
        settings = setting_names(self)
        return {name: tensor for name, tensor in state.items() if name not in settings}

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
