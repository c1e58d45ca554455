"""Variants with something special about them, as a plugin might write them; `chosen` puts them into the registry."""

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from vae_lab import registry
from vae_lab.distributions import kl, nll, reparameterize
from vae_lab.models import LatentVariableModel
from vae_lab.networks import Network
from vae_lab.objectives import Objective


@dataclass(frozen=True)
class Named:
    """A config without anything but its name."""

    name: str


@dataclass(frozen=True)
class Weighted:
    """A config with a weight."""

    name: str
    beta: float


class Base(Objective[LatentVariableModel]):
    """The ELBO with a weight that subclasses keep in their own way."""

    requires = LatentVariableModel
    Config = Weighted

    def __init__(self, config: Weighted):
        super().__init__()
        self.keep(config.beta)

    def keep(self, beta: float) -> None:
        self.setting("beta", beta)

    def weight(self, step: torch.Tensor) -> Any:
        return self.beta

    def forward(self, model, batch, noise, step):
        q = model.posterior(batch.x)
        z = reparameterize(q, noise["eps"])
        distortion, rate = nll(model.likelihood(z), batch.x), kl(q, model.prior(), z)
        return {"nll": distortion, "kl": rate, "loss": distortion + self.weight(step) * rate}

    def kl_weight(self):
        return torch.as_tensor(self.weight(torch.tensor(10**9)), dtype=torch.float32)


class Private(Base):
    """A weight that stacked runs would share."""

    def keep(self, beta: float) -> None:
        self._beta = beta

    def weight(self, step: torch.Tensor) -> Any:
        return self._beta


class Undeclared(Base):
    """A weight kept as a buffer that is state."""

    def keep(self, beta: float) -> None:
        self.register_buffer("beta", torch.tensor(beta))


class Warm(Base):
    """`beta` is the number of steps over which the weight rises to one."""

    def weight(self, step: torch.Tensor) -> Any:
        return (step / self.beta).clamp(max=1.0)


class Stream(Base):
    """Keeps something that cannot be compared."""

    def keep(self, beta: float) -> None:
        super().keep(beta)
        self.stream = torch.Generator()


class ImportanceWeighted(Base):
    """`beta` draws an image, noise (K, D)."""

    def keep(self, beta: float) -> None:
        self.draws = int(beta)

    def noise_shapes(self, model):
        return {"eps": (self.draws, model.latent_dim)}

    def forward(self, model, batch, noise, step):
        q = model.posterior(batch.x)
        z = q.mean + q.variance.sqrt() * noise["eps"].movedim(1, 0)  # [K, B, D]
        images = model.likelihood(z.flatten(0, 1))
        x = batch.x.expand(len(z), *batch.x.shape).flatten(0, 1)
        log_weights = (model.prior().log_prob(z) - q.log_prob(z)) + images.log_prob(x).view(z.shape[:2])
        bound = torch.logsumexp(log_weights, 0) - torch.log(torch.tensor(float(len(z))))
        return {"loss": -bound, "nll": -images.log_prob(x).view(z.shape[:2]).mean(0)}

    def kl_weight(self):
        return None


class Misbehaving(Base):
    """Does what no forward pass may; `deed` says what."""

    deed = ""

    def keep(self, beta: float) -> None:
        super().keep(beta)
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, model, batch, noise, step):
        terms = super().forward(model, batch, noise, step)
        instead = getattr(self, self.deed)(terms, batch)
        return terms if instead is None else instead

    def draws_by_torch(self, terms, batch):
        terms["loss"] = terms["loss"] + torch.randn_like(terms["loss"])

    def draws_by_numpy(self, terms, batch):
        terms["loss"] = terms["loss"] + np.random.randn()

    def draws_by_python(self, terms, batch):
        terms["loss"] = terms["loss"] + random.random()

    def misses_the_loss(self, terms, batch):
        del terms["loss"]

    def misses_the_nll(self, terms, batch):
        del terms["nll"]

    def returns_a_tensor(self, terms, batch):
        return terms["loss"]

    def means_over_images(self, terms, batch):
        terms["loss"] = terms["loss"].mean()

    def counts(self, terms, batch):
        terms["kl"] = torch.ones(len(batch.x), dtype=torch.int64)

    def asks_for_a_value(self, terms, batch):
        terms["loss"] = terms["loss"] * float(terms["kl"].mean())

    def asks_for_values(self, terms, batch):
        terms["loss"] = terms["loss"] * max(terms["kl"].tolist())

    def branches(self, terms, batch):
        if terms["kl"].mean() > 0:
            terms["loss"] = 2 * terms["loss"]

    def keeps_state(self, terms, batch):
        self.calls = getattr(self, "calls", 0) + 1

    def replaces_a_buffer(self, terms, batch):
        self.beta = self.beta + 1

    def raises(self, terms, batch):
        raise KeyError("nothing here")

    def writes_to_images(self, terms, batch):
        batch.x.mul_(0.5)

    def writes_to_parameters(self, terms, batch):
        with torch.no_grad():
            self.scale.mul_(1.5)

    def writes_when_evaluated(self, terms, batch):
        if not self.training:
            self.beta.mul_(1.5)

    def trains_nothing(self, terms, batch):
        terms["loss"] = terms["loss"].detach()

    def leaves(self, terms, batch):
        raise SystemExit(0)


@dataclass(frozen=True)
class Sized:
    """Networks without a choice but hidden_dims, which they ignore."""

    name: str
    hidden_dims: list[int]


class Dense(Network):
    """One hidden layer with something in it."""

    Config = Sized

    def __init__(self, config, image_shape):
        super().__init__(image_shape)
        self.pixels = int(np.prod(image_shape))

    def inside(self) -> nn.Module:
        raise NotImplementedError

    def encoder(self, out_features: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(self.pixels, 16), self.inside(), nn.ReLU(), nn.Linear(16, out_features))

    def decoder(self, in_features: int) -> nn.Module:
        layers = [nn.Linear(in_features, 16), nn.ReLU(), nn.Linear(16, self.pixels)]
        return nn.Sequential(*layers, nn.Unflatten(-1, self.image_shape))


class BatchNormed(Dense):
    """With batch norm in the encoder."""

    def inside(self) -> nn.Module:
        return nn.BatchNorm1d(16)


class Dropped(Dense):
    """With dropout in the encoder."""

    def inside(self) -> nn.Module:
        return nn.Dropout(0.5)


class WrongSize(Dense):
    """Decodes one pixel, which every image's pixels can be compared with."""

    def inside(self) -> nn.Module:
        return nn.Identity()

    def decoder(self, in_features: int) -> nn.Module:
        return nn.Sequential(nn.Linear(in_features, 1), nn.Unflatten(-1, (1, 1, 1)))


class Double(Dense):
    """With parameters in double precision."""

    def inside(self) -> nn.Module:
        return nn.Linear(16, 16).double()


class Lazy(Dense):
    """With a layer that learns its shape when it is called."""

    def inside(self) -> nn.Module:
        return nn.LazyLinear(16)


class Expanded(Dense):
    """With a buffer whose elements share their memory."""

    def inside(self) -> nn.Module:
        layer = nn.Linear(16, 16)
        layer.register_buffer("constant", torch.ones(1).expand(16))
        return layer


class Tied(Dense):
    """A decoder that ends in a layer which the encoder has too."""

    def __init__(self, config, image_shape):
        super().__init__(config, image_shape)
        self.shared = nn.Linear(16, 16)

    def inside(self) -> nn.Module:
        return self.shared

    def decoder(self, in_features: int) -> nn.Module:
        layers = [nn.Linear(in_features, 16), nn.ReLU(), self.shared, nn.Linear(16, self.pixels)]
        return nn.Sequential(*layers, nn.Unflatten(-1, self.image_shape))


def chosen(monkeypatch: pytest.MonkeyPatch, cfg: dict, group: str, cls: type, **values: Any) -> dict:
    """A copy of a config with `cls` in one group, registered for this test under its own name."""
    registry.names(group)
    monkeypatch.setitem(registry._entries[group], cls.__name__.lower(), cls)
    return cfg | {group: {"name": cls.__name__.lower(), **values}}
