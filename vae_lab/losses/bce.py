"""Bernoulli likelihood: binary cross-entropy summed over pixels."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution

from vae_lab.distributions import bernoulli
from vae_lab.losses.base import Likelihood
from vae_lab.registry import register


@register("loss", "bce")
class BCE(Likelihood):
    """Decoder outputs are logits. On grey pixels this is the usual cross-entropy, not a normalised likelihood."""

    kind = "binary"
    normalised_on_grey = False
    scale: Tensor

    @dataclass(frozen=True)
    class Config:
        name: str

    def __init__(self, config: Config):
        super().__init__()
        self.setting("scale", 1.0)

    def forward(self, output: Float[Tensor, "*batch C H W"]) -> Distribution:
        return bernoulli(output.float())

    def beta_scale(self) -> Float[Tensor, ""]:
        return self.scale
