"""Gaussian likelihood with one learned standard deviation for all pixels."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution

from vae_lab.config import bounded
from vae_lab.distributions import gaussian
from vae_lab.losses.base import Likelihood, gaussian_squared_error
from vae_lab.losses.mse import Output
from vae_lab.registry import register


@register("loss", "gaussian")
class Gaussian(Likelihood):
    """Sigma starts at `sigma` and is learned in log space; learning it balances reconstruction and KL by itself.

    References:
        Rybkin, Daniilidis & Levine 2021, sigma-VAE. https://arxiv.org/abs/2006.13202
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        name: str
        sigma: float = bounded(gt=0)
        output: Output

    def __init__(self, config: Config):
        super().__init__()
        self.output = config.output
        self.log_sigma = nn.Parameter(torch.tensor(math.log(config.sigma)))

    def forward(self, output: Float[Tensor, "*batch C H W"]) -> Distribution:
        return gaussian(self.output.mean(output.float()), self.beta_scale())

    def beta_scale(self) -> Float[Tensor, ""]:
        return torch.exp(2 * self.log_sigma)

    def squared_error(self, nll: Float[Tensor, "*batch"], num_pixels: int) -> Float[Tensor, "*batch"]:
        return gaussian_squared_error(nll, self.beta_scale(), num_pixels)
