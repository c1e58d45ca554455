"""Convolutional encoder and decoder for square images."""

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn

from vae_lab.config import bounded
from vae_lab.errors import ConfigError
from vae_lab.networks.base import ACTIVATIONS, Activation, ImageShape, Network
from vae_lab.networks.mlp import dense_stack
from vae_lab.registry import register


@register("network", "conv")
class Conv(Network):
    """Strided 3x3 convolutions with GroupNorm, one stage per entry of `channels`, each halving the image (rounded up).

    `hidden_dims` are dense layers between the last stage and the latent, mirrored in the decoder; `[]` is legal.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        name: str
        channels: list[int] = bounded(ge=1)
        hidden_dims: list[int] = bounded(ge=1)
        groups: int = bounded(ge=1)
        activation: Activation

    def __init__(self, config: Config, image_shape: ImageShape):
        super().__init__(image_shape)
        self.config = config
        _, height, width = image_shape
        if height != width or height < 8:
            raise ConfigError(f"network=conv needs square images of 8x8 or more, not {height}x{width}; use network=mlp.")
        if not config.channels:
            raise ConfigError("network.channels=[]: network=conv needs at least one stage; use network=mlp without any.")
        for channels in config.channels:
            if channels % config.groups:
                raise ConfigError(f"network.channels: {channels} is not divisible by network.groups={config.groups}.")
        self.sides = [height]
        for _ in config.channels:
            self.sides.append(math.ceil(self.sides[-1] / 2))
        if self.sides[-2] < 2:
            raise ConfigError(
                f"network.channels={config.channels}: {len(config.channels)} stages shrink {height}x{height} images below "
                f"one pixel; use at most {math.ceil(math.log2(height))}."
            )

    def encoder(self, out_features: int) -> nn.Module:
        config, layers = self.config, list[nn.Module]()
        for before, after in pairwise([self.image_shape[0], *config.channels]):
            layers += self._normalised(nn.Conv2d(before, after, 3, stride=2, padding=1))
        sizes = [self._flat_features(), *config.hidden_dims]
        dense = dense_stack(sizes, ACTIVATIONS[config.activation], layer_norm=False)
        return nn.Sequential(*layers, nn.Flatten(), *dense, nn.Linear(sizes[-1], out_features))

    def decoder(self, in_features: int) -> nn.Module:
        config = self.config
        sizes = [in_features, *reversed(config.hidden_dims), self._flat_features()]
        layers = dense_stack(sizes, ACTIVATIONS[config.activation], layer_norm=False)
        layers.append(nn.Unflatten(-1, (config.channels[-1], self.sides[-1], self.sides[-1])))
        widths = [*reversed(config.channels), self.image_shape[0]]
        for stage, (before, after) in enumerate(pairwise(widths)):
            even = self.sides[-2 - stage] % 2 == 0  # an even side needs one more row than 2 * side - 1
            layer = nn.ConvTranspose2d(before, after, 3, stride=2, padding=1, output_padding=int(even))
            layers += self._normalised(layer) if stage < len(widths) - 2 else [layer]
        return nn.Sequential(*layers)

    def _normalised(self, layer: nn.Conv2d | nn.ConvTranspose2d) -> list[nn.Module]:
        if layer.out_channels == self.config.groups:
            # Groups of one channel subtract its bias: the gradient is rounding noise, which RMSprop and Adam scale up to
            # full steps. So it is zero for good, under the name that older checkpoints have for it.
            del layer.bias
            layer.register_buffer("bias", torch.zeros(layer.out_channels))
        norm = nn.GroupNorm(self.config.groups, layer.out_channels)
        return [layer, norm, ACTIVATIONS[self.config.activation]()]

    def _flat_features(self) -> int:
        return self.config.channels[-1] * self.sides[-1] ** 2
