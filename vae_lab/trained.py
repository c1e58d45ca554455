"""A trained run as functions of images and codes: `vae_lab.load(run_dir)`.

Every method takes NumPy arrays or torch tensors and answers in kind, works in batches of the run's `evaluation.batch_size`,
and draws from generators of its own: the same call gives the same numbers, whatever else was drawn and however images are
batched.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution

from vae_lab import rng
from vae_lab.arrays import Array, Reader, code_reader, image_reader, in_kind
from vae_lab.config import Device, EvaluationConfig, complete, typed
from vae_lab.data.base import dataset
from vae_lab.distributions import kl, reparameterize
from vae_lab.errors import ConfigError, did_you_mean
from vae_lab.job import choose_device
from vae_lab.models import Autoencoder, LatentVariableModel
from vae_lab.networks.base import ImageShape
from vae_lab.reading import CHECKPOINTS, read_config, read_weights
from vae_lab.resume import check_state
from vae_lab.run_dir import RunDir
from vae_lab.system import System, build_system

if TYPE_CHECKING:
    from vae_lab.mixture import Mixture
    from vae_lab.tasks.impute import Imputation
    from vae_lab.tasks.traverse import Traversal

Progress = Callable[[int, int], None]  # images done, images in all


class Codes(NamedTuple):
    """Mean and variance of the posterior q(z given x), each [N, D]; the variance of an autoencoder without noise is zero."""

    mu: Any
    variance: Any


def _silent(done: int, total: int) -> None:
    pass


@dataclass(frozen=True)
class TrainedRun:
    """A run's model with the weights of one checkpoint. Made by `load`."""

    run_dir: RunDir
    config: dict[str, Any]
    system: System
    manifest: dict[str, Any]  # of the checkpoint: its epoch and step, the digest of the data it was trained on
    image_shape: ImageShape
    device: torch.device
    batch_size: int
    on_batch: Progress = field(default=_silent)

    @property
    def model(self) -> Autoencoder:
        return self.system.model

    @property
    def prior(self) -> Distribution | None:
        """p(z), or None for an autoencoder without one."""
        return self.model.prior() if isinstance(self.model, LatentVariableModel) else None

    @property
    def name(self) -> str:
        return self.config["name"]

    @property
    def seed(self) -> int:
        return self.config["seed"]

    def encode(self, x: Array) -> Codes:
        """Mean and variance of q(z given x), [N, D] each."""

        def step(part: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
            q = self.model.posterior(part)
            return q.mean, q.variance

        mu, variance = self.over_images(x, step)
        return Codes(mu, variance)

    def decode(self, z: Array) -> Array:
        """Mean images of p(x given z), [N, C, H, W], for codes [N, D]."""
        read = code_reader(z, self.model.latent_dim)
        (images,) = self.batched(read, len(z), lambda part, rows: (self.model.likelihood(part).mean,))
        return in_kind(images, z)

    def reconstruct(self, x: Array) -> Array:
        """Mean images decoded from the posterior means, [N, C, H, W]."""
        (images,) = self.over_images(x, lambda part, rows: (self.model.likelihood(self.model.posterior(part).mean).mean,))
        return images

    def elbo(self, x: Array, num_samples: int = 1, seed: int | None = None) -> Array:
        """The ELBO of each image in nats, [N]: the mean of log p(x given z) - KL(q, p) over `num_samples` draws of z.

        With the run's own test images, one sample and the run's seed, its mean is the `elbo` of results.json.
        """
        prior = self.needs_prior("an ELBO")
        if num_samples < 1:
            raise ConfigError(f"num_samples={num_samples}: at least 1.")
        draws = [self.draw(len(x), "evaluation", self.seed if seed is None else seed, number) for number in range(num_samples)]

        def step(part: Tensor, rows: slice) -> tuple[Tensor]:
            q = self.model.posterior(part)
            total = torch.zeros(len(part), device=self.device)
            for draw in draws:
                z = reparameterize(q, draw[rows])
                total += self.model.likelihood(z).log_prob(part) - kl(q, prior, z)
            return (total / num_samples,)

        (values,) = self.over_images(x, step)
        return values

    def sample(self, n: int, seed: int = 0, temperature: float = 1.0, mixture: "Mixture | None" = None) -> Tensor:
        """`n` mean images [n, C, H, W] of codes drawn from the prior, or from a mixture fitted by `tasks.sample.fit_mixture`.

        `temperature` scales the standard deviations of what is drawn from; a `ConfigError` for a prior that has no such.
        """
        from vae_lab.tasks.sample import draw_codes

        return self.decode(draw_codes(self, n, seed, temperature, mixture))

    def interpolate(self, a: Array, b: Array, steps: int = 10, kind: str = "linear") -> Array:
        """Images on the way from each `a` to each `b` in the latent space, [N, steps, C, H, W], end points included."""
        from vae_lab.tasks.interpolate import interpolate

        return interpolate(self, a, b, steps, kind)

    def traverse(
        self,
        x: np.ndarray | Tensor | None = None,
        latents: Sequence[int] | None = None,
        span: tuple[float, float] = (-3.0, 3.0),
        steps: int = 11,
    ) -> "Traversal":
        """Decoded images while one latent moves and the others stay, for the code of one image or the prior's mean."""
        from vae_lab.tasks.traverse import traverse

        return traverse(self, x, latents, span, steps)

    def impute(self, x: Array, missing: Array, method: str = "chains", **options: Any) -> "Imputation":
        """Fill in the pixels where `missing` is true; the others stay as they are."""
        from vae_lab.tasks.impute import impute

        return impute(self, x, missing, method, **options)

    def anomaly_score(self, x: Array, kind: str = "negative_elbo", **options: Any) -> Array:
        """How unusual each image is, [N]; larger is more unusual."""
        from vae_lab.tasks.anomaly import anomaly_score

        return anomaly_score(self, x, kind, **options)

    def over_images(self, x: Array, step: Callable[[Tensor, slice], tuple[Tensor, ...]]) -> tuple[Array, ...]:
        """Call `step` on batches of images on the run's device; the results of all, in the kind of `x`."""
        results = self.batched(image_reader(x, self.image_shape), len(x), step)
        return tuple(in_kind(result, x) for result in results)

    def batched(
        self, read: Reader, total: int, step: Callable[[Tensor, slice], tuple[Tensor, ...]], batch_size: int | None = None
    ) -> tuple[Tensor, ...]:
        """Results on the CPU of `step` on all batches: memory is that of one batch, the inputs and the results."""
        results: list[Tensor] = []
        size = batch_size or self.batch_size
        with torch.no_grad():
            for start in range(0, total, size):
                rows = slice(start, min(start + size, total))
                parts = step(read(rows).to(self.device), rows)
                if not results:
                    results = [torch.empty(total, *part.shape[1:], dtype=part.dtype) for part in parts]
                for result, part in zip(results, parts, strict=True):
                    result[rows] = part.cpu()
                self.on_batch(rows.stop, total)
        return tuple(results)

    def draw(self, n: int, purpose: str, seed: int, *position: int) -> Tensor:
        """Standard normal noise [n, D] of one stream; the first of a purpose is the one that training's evaluation draws."""
        stream = rng.generator(seed, purpose, *(position if any(position) else ()), device=self.device)
        return torch.randn(n, self.model.latent_dim, generator=stream, device=self.device)

    def needs_prior(self, what: str) -> Distribution:
        """The prior; a `ConfigError` that says what cannot be had without one."""
        if self.prior is None:
            raise ConfigError(f"{self.name}: an autoencoder without a prior has no {what.removeprefix('an ').removeprefix('a ')}.")
        return self.prior


def with_options(function: Callable[..., Any], options: dict[str, Any]) -> Callable[..., Any]:
    """`function` with some of its keywords set; a `ConfigError` that names them all for one that it does not have."""
    known = list(inspect.signature(function).parameters)[2:]
    if wrong := [name for name in options if name not in known]:
        raise ConfigError(f"Unknown option {wrong[0]!r}. Choose from: {', '.join(known)}.{did_you_mean(wrong[0], known)}")
    return partial(function, **options)


def load(run_dir: Path | str, checkpoint: str = "best", device: str = "auto", on_batch: Progress = _silent) -> TrainedRun:
    """A trained run from its directory: its config, checked, and the weights of one of its checkpoints, verified.

    Args:
        run_dir: what training left, or a copy with config.yaml and checkpoints/.
        checkpoint: 'best' by validation loss, or 'last'.
        device: auto, cpu, cuda or mps.
        on_batch: called with the images done and the images in all.

    Raises:
        ConfigError: no run lies there, or its config is none.
        CheckpointError: the checkpoint is missing, damaged or of another run.
    """
    if checkpoint not in CHECKPOINTS:
        raise ConfigError(f"checkpoint={checkpoint!r}: choose {' or '.join(CHECKPOINTS)}.")
    if device not in Device.__members__:
        raise ConfigError(f"device={device!r}: choose {', '.join(Device.__members__)}.")
    chosen, folder = choose_device(Device(device)), RunDir(run_dir)
    cfg = read_config(folder)
    found, manifest = read_weights(folder, checkpoint, cfg)
    cfg = complete(cfg)
    image_shape = dataset(cfg["data"]).image_shape
    system = build_system(cfg, image_shape)
    state = system.without_settings(found)
    check_state(folder.checkpoints / checkpoint, state, system.state())
    system.load_state(state)
    system.to(chosen).eval().requires_grad_(False)
    batch_size = typed(EvaluationConfig, cfg["evaluation"], "evaluation").batch_size
    return TrainedRun(folder, cfg, system, manifest, image_shape, chosen, batch_size, on_batch)
