"""What a network family provides."""

from abc import ABC, abstractmethod
from enum import Enum

from torch import nn

ImageShape = tuple[int, int, int]


class Activation(Enum):
    """What stands between two layers."""

    relu = "relu"
    elu = "elu"
    gelu = "gelu"
    silu = "silu"
    tanh = "tanh"


ACTIVATIONS: dict[Activation, type[nn.Module]] = {
    Activation.relu: nn.ReLU,
    Activation.elu: nn.ELU,
    Activation.gelu: nn.GELU,
    Activation.silu: nn.SiLU,
    Activation.tanh: nn.Tanh,
}


class Network(ABC):
    """A family of encoders and decoders for images of one shape (C, H, W).

    Layers must not share statistics between images or draw noise (LayerNorm and GroupNorm, no BatchNorm, no Dropout):
    a run inside a cohort could not equal the run alone.
    """

    def __init__(self, image_shape: ImageShape):
        self.image_shape = image_shape

    @abstractmethod
    def encoder(self, out_features: int) -> nn.Module:
        """A module from images [B, C, H, W] to features [B, out_features]."""

    @abstractmethod
    def decoder(self, in_features: int) -> nn.Module:
        """A module from codes [B, in_features] to pixel parameters [B, C, H, W], any real numbers."""
