"""Fully connected encoder and decoder."""

import math
from dataclasses import dataclass
from itertools import pairwise

from torch import nn

from vae_lab.config import bounded
from vae_lab.networks.base import ACTIVATIONS, Activation, ImageShape, Network
from vae_lab.registry import register


def dense_stack(sizes: list[int], activation: type[nn.Module], layer_norm: bool) -> list[nn.Module]:
    """Linear layers through `sizes`, each followed by an optional LayerNorm and the activation."""
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), *([nn.LayerNorm(after)] if layer_norm else []), activation()]
    return layers


@register("network", "mlp")
class MLP(Network):
    """Dense layers of sizes `hidden_dims`, mirrored in the decoder. `hidden_dims=[]` is a linear network."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        name: str
        hidden_dims: list[int] = bounded(ge=1)
        activation: Activation
        layer_norm: bool

    def __init__(self, config: Config, image_shape: ImageShape):
        super().__init__(image_shape)
        self.config = config

    def _stack(self, sizes: list[int], out_features: int) -> list[nn.Module]:
        hidden = dense_stack(sizes, ACTIVATIONS[self.config.activation], self.config.layer_norm)
        return [*hidden, nn.Linear(sizes[-1], out_features)]

    def encoder(self, out_features: int) -> nn.Module:
        sizes = [math.prod(self.image_shape), *self.config.hidden_dims]
        return nn.Sequential(nn.Flatten(), *self._stack(sizes, out_features))

    def decoder(self, in_features: int) -> nn.Module:
        sizes = [in_features, *reversed(self.config.hidden_dims)]
        return nn.Sequential(*self._stack(sizes, math.prod(self.image_shape)), nn.Unflatten(-1, self.image_shape))
