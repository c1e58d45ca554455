"""Gaussian likelihood of variance 1/2: squared error summed over pixels, plus a constant."""

from dataclasses import dataclass
from enum import Enum

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution

from vae_lab.distributions import gaussian
from vae_lab.losses.base import Likelihood, gaussian_squared_error
from vae_lab.registry import register


class Output(Enum):
    """How decoder outputs become mean pixels: as they are, or squashed into (0, 1)."""

    identity = "identity"
    sigmoid = "sigmoid"

    def mean(self, output: Tensor) -> Tensor:
        return torch.sigmoid(output) if self is Output.sigmoid else output


@register("loss", "mse")
class MSE(Likelihood):
    """The negative log-likelihood is SSE + (C H W / 2) log(pi), so that gradients equal those of the summed squared error."""

    variance: Tensor

    @dataclass(frozen=True)
    class Config:
        name: str
        output: Output

    def __init__(self, config: Config):
        super().__init__()
        self.output = config.output
        self.setting("variance", 0.5)

    def forward(self, output: Float[Tensor, "*batch C H W"]) -> Distribution:
        return gaussian(self.output.mean(output.float()), self.variance)

    def beta_scale(self) -> Float[Tensor, ""]:
        return self.variance

    def squared_error(self, nll: Float[Tensor, "*batch"], num_pixels: int) -> Float[Tensor, "*batch"]:
        return gaussian_squared_error(nll, self.beta_scale(), num_pixels)
