"""Networks keep shapes for every image they promise to take."""

import pytest
import torch

from vae_lab import registry
from vae_lab.errors import ConfigError

MLP = {"name": "mlp", "hidden_dims": [7, 5], "activation": "tanh", "layer_norm": True}
CONV = {"name": "conv", "channels": [8, 16], "hidden_dims": [12], "groups": 4, "activation": "gelu"}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [8, 9, 13, 28, 32, 33])
@pytest.mark.parametrize("cfg", [MLP, CONV, CONV | {"hidden_dims": []}, CONV | {"channels": [4, 8, 8]}])
def test_shapes(cfg: dict, side: int, channels: int) -> None:
    shape = (channels, side, side)
    network = registry.build("network", cfg, image_shape=shape)
    encoder, decoder = network.encoder(6), network.decoder(3)
    assert encoder(torch.rand(2, *shape)).shape == (2, 6)
    assert decoder(torch.randn(2, 3)).shape == (2, *shape)


def test_no_hidden_dims_is_linear() -> None:
    network = registry.build("network", MLP | {"hidden_dims": []}, image_shape=(1, 8, 8))
    encoder = network.encoder(3)
    a, b, zero = torch.rand(1, 1, 8, 8), torch.rand(1, 1, 8, 8), torch.zeros(1, 1, 8, 8)
    torch.testing.assert_close(encoder(a + b) + encoder(zero), encoder(a) + encoder(b))


@pytest.mark.parametrize(
    ("change", "shape", "message"),
    [
        ({}, (1, 8, 9), "square"),
        ({}, (1, 7, 7), "8x8"),
        ({"channels": []}, (1, 8, 8), "at least one stage"),
        ({"channels": [6]}, (1, 8, 8), "not divisible"),
        ({"channels": [4] * 4}, (1, 8, 8), "use at most 3"),
    ],
)
def test_conv_says_what_it_cannot_do(change: dict, shape: tuple, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        registry.build("network", CONV | change, image_shape=shape)
