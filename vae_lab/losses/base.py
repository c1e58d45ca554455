"""What a reconstruction likelihood provides."""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution

from vae_lab.settings import Configured


class Likelihood(Configured, ABC):
    """p(x given z) as a distribution made from the decoder's output."""

    kind: ClassVar[str] = "density"  # what its log-likelihoods are logarithms of; other kinds are other scales
    normalised_on_grey: ClassVar[bool] = True  # false: a density over {0, 1} only, whatever it is evaluated at

    @abstractmethod
    def forward(self, output: Float[Tensor, "*batch C H W"]) -> Distribution:
        """The distribution over images [*batch, C, H, W]; its mean is the reconstruction in [0, 1]."""

    @abstractmethod
    def beta_scale(self) -> Float[Tensor, ""]:
        """What a KL weight is multiplied by to read it on the common scale `beta_eff`.

        1 for a Bernoulli; the variance for a Gaussian, whose reconstruction term is then half the summed squared error.
        """

    def squared_error(self, nll: Float[Tensor, "*batch"], num_pixels: int) -> Float[Tensor, "*batch"] | None:
        """The summed squared error that a Gaussian's `nll` stands for; None for other likelihoods."""
        return None


def gaussian_squared_error(nll: Tensor, variance: Tensor, num_pixels: int) -> Tensor:
    """Solve nll = SSE / (2 variance) + num_pixels / 2 log(2 pi variance) for SSE."""
    return 2 * variance * nll - num_pixels * variance * torch.log(2 * torch.pi * variance)
