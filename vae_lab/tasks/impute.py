"""Fill in missing pixels."""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Independent

from vae_lab import rng
from vae_lab.arrays import Array, image_reader, in_kind
from vae_lab.distributions import draw, reparameterize
from vae_lab.errors import ConfigError
from vae_lab.tasks import picture, source
from vae_lab.tasks.command import open_run, say, say_written
from vae_lab.tasks.files import Writer, output, text, write_all
from vae_lab.tasks.masks import make_mask, mask_reader
from vae_lab.trained import TrainedRun, with_options


@dataclass(frozen=True)
class Imputation:
    """Filled images [N, C, H, W]; observed pixels are untouched in all of them.

    Attributes:
        mean: the estimate: the mean over chains, which has the least squared error, or the image of the optimised code.
        samples: the last state of each chain, [N, K, C, H, W]; None for the optimised code.
    """

    mean: Any
    samples: Any


def impute(run: TrainedRun, x: Array, missing: Array, method: str = "chains", **options: Any) -> Imputation:
    """Fill in the pixels where `missing` is true; `x` there is never looked at.

    Args:
        run: a trained run.
        x: images.
        missing: true where a pixel is missing: [H, W], [C, H, W], [N, H, W] or [N, C, H, W].
        method: 'chains' or 'optimise'.
        options: of `chains` (num_chains, steps, seed) or `optimise` (steps, lr, seed).

    Raises:
        ConfigError: an unknown method or option.
        DataError: images or masks of another shape or type.
    """
    methods: dict[str, Callable[..., Imputation]] = {"chains": chains, "optimise": optimise}
    if method not in methods:
        raise ConfigError(f"method={method!r}: choose {' or '.join(methods)}.")
    return with_options(methods[method], options)(run, x, missing)


def chains(run: TrainedRun, x: Array, missing: Array, num_chains: int = 8, steps: int = 50, seed: int = 0) -> Imputation:
    """Fill by `num_chains` Markov chains of `steps` rounds each: encode, draw a code, decode, keep the observed pixels.

    z_t ~ q(z given x_t); the missing pixels of x_{t+1} are the mean of p(x given z_t), the others stay. A chain begins at a
    decoded draw from the prior, or, without a prior, at uniform noise. `mean` is over all chains and the second half of their
    rounds.

    References:
        Rezende, Mohamed & Wierstra 2014, missing data imputation. https://arxiv.org/abs/1401.4082
    """
    if num_chains < 1 or steps < 1:
        raise ConfigError(f"num_chains={num_chains}, steps={steps}: at least 1 each.")
    model, shape = run.model, run.image_shape
    read, holes = image_reader(x, shape), mask_reader(missing, len(x), shape)

    def step(part: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        hole = holes(rows).to(run.device)
        every_hole, observed = (tensor.repeat_interleave(num_chains, 0) for tensor in (hole, part))
        streams = [rng.generator(seed, "impute", index) for index in range(rows.start, rows.stop)]
        state = torch.where(every_hole, _first_fill(run, streams, num_chains), observed)
        total = torch.zeros_like(part)
        for number in range(steps):
            z = reparameterize(model.posterior(state), _noise(run, streams, num_chains, model.latent_dim))
            state = torch.where(every_hole, model.likelihood(z).mean, observed)
            if number >= steps // 2:
                total += state.view(len(part), num_chains, *shape).mean(1)
        mean = torch.where(hole, total / (steps - steps // 2), part)
        return mean, state.view(len(part), num_chains, *shape)

    mean, samples = run.batched(read, len(x), step, max(1, run.batch_size // num_chains))
    return Imputation(in_kind(mean, x), in_kind(samples, x))


def _first_fill(run: TrainedRun, streams: list[torch.Generator], num_chains: int) -> Tensor:
    if run.prior is not None:
        prior = run.prior
        z = torch.cat([draw(prior, num_chains, stream) for stream in streams])  # a stream of its own for each image, as in _noise
        return run.model.likelihood(z.to(run.device)).mean
    uniform = [torch.rand(num_chains, *run.image_shape, generator=stream) for stream in streams]
    return torch.cat(uniform).to(run.device)


def _noise(run: TrainedRun, streams: list[torch.Generator], num_chains: int, dim: int) -> Tensor:
    """Each image draws from a stream of its own, so that batching changes nothing."""
    parts = [torch.randn(num_chains, dim, generator=stream) for stream in streams]
    return torch.cat(parts).to(run.device)


def optimise(run: TrainedRun, x: Array, missing: Array, steps: int = 200, lr: float = 0.1, seed: int = 0) -> Imputation:
    """Fill with the image of the code that explains the observed pixels best.

    Minimises -log p(observed given z) - log p(z) by Adam from the code of the image whose missing pixels are those of one short
    chain; without a prior, the first term alone.
    """
    if steps < 1 or not lr > 0:
        raise ConfigError(f"steps={steps}, lr={lr}: at least one step, of a positive size.")
    model, prior, shape = run.model, run.prior, run.image_shape
    read, holes = image_reader(x, shape), mask_reader(missing, len(x), shape)
    begin = torch.as_tensor(chains(run, x, missing, num_chains=1, steps=20, seed=seed).mean)  # checks x and missing too

    def step(part: Tensor, rows: slice) -> tuple[Tensor]:
        hole = holes(rows).to(run.device)
        z = model.posterior(begin[rows].to(run.device)).mean.clone()
        with torch.enable_grad():
            z.requires_grad_()
            optimizer = torch.optim.Adam([z], lr=lr)
            for _ in range(steps):
                loss = (pixel_nll(model.likelihood(z), part) * ~hole).sum()
                loss = loss if prior is None else loss - prior.log_prob(z).sum()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        return (torch.where(hole, model.likelihood(z.detach()).mean, part),)

    (mean,) = run.batched(read, len(x), step)
    return Imputation(in_kind(mean, x), None)


def pixel_nll(px: torch.distributions.Distribution, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
    """-log p of each pixel, which only likelihoods of independent pixels have."""
    if not isinstance(px, Independent):
        raise ConfigError(f"method='optimise' needs a likelihood of independent pixels, not {type(px).__name__}.")
    return -px.base_dist.log_prob(x)


def command(arguments: argparse.Namespace) -> int:
    """`vae-lab impute`."""
    run = open_run(arguments)
    path = output(arguments.out, run.run_dir.tasks / "imputation.png", ".png")
    images = source.read(run, arguments.data, arguments.fit).first(arguments.n)
    x = picture.as_float(images.x)
    missing = make_mask(arguments.mask, len(x), run.image_shape, arguments.share, arguments.side, arguments.seed)
    missing = mask_reader(missing, len(x), run.image_shape)(slice(0, len(x)))
    fill = source.own_train(run).x.float().mean(0) / 255
    filled = {"mean-filling": torch.where(missing, fill, x)}
    if arguments.method != "optimise":
        found = chains(run, x, missing, arguments.chains, arguments.steps, arguments.seed)
        filled |= {f"mean of {arguments.chains} chains": found.mean, "one chain": found.samples[:, 0]}
    if arguments.method != "chains":
        filled["optimised code"] = optimise(run, x, missing, seed=arguments.seed).mean
    errors = {name: float((image - x).square().sum() / len(x)) for name, image in filled.items()}
    numbers = {
        "images": images.title,
        "num_images": len(x),
        "mask": arguments.mask,
        "missing_pixels_per_image": float(missing[:, 0].flatten(1).sum(1).double().mean()),
        "squared_error_per_image": errors,
        "relative_to_mean_filling": {name: error / errors["mean-filling"] for name, error in errors.items()},
    }
    for name, error in errors.items():
        say(f"{name:>18}: squared error on the missing pixels {error:7.3f} per image, {error / errors['mean-filling']:.1%}")
    best = list(filled)[-1] if arguments.method == "optimise" else f"mean of {arguments.chains} chains"
    files: dict[Path, Writer] = {
        path: picture.png(_picture(run, x, missing, filled, f"{run.name}: {images.title}, missing: {arguments.mask}")),
        path.with_suffix(".npy"): lambda file: np.save(file, filled[best].numpy()),
        path.with_suffix(".json"): text(json.dumps(numbers, indent=2) + "\n"),
    }
    return say_written(write_all(files))


def _picture(run: TrainedRun, x: Tensor, missing: Tensor, filled: dict[str, Tensor], title: str) -> "picture.Figure":
    """A row each: what is known, every way to fill it, and the truth; a column per image."""
    shown = min(len(x), 10)
    rows = {"given": picture.holes_shown(x, missing), **filled, "truth": x}
    images = torch.stack([image[:shown].expand(-1, 3, -1, -1) for image in rows.values()])
    return picture.table(images, title, list(rows), note="blue pixels are missing")
