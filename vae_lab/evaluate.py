"""Test metrics of one trained system."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal, kl_divergence

from vae_lab import rng
from vae_lab.config import EvaluationConfig
from vae_lab.data import Images
from vae_lab.data.base import to_float
from vae_lab.distributions import reparameterize
from vae_lab.engine import Run
from vae_lab.models import Autoencoder, LatentVariableModel
from vae_lab.objectives.base import Batch
from vae_lab.skipped import Skipped
from vae_lab.system import System


class Evaluation(NamedTuple):
    """Test metrics; on the CPU the terms, elbo and sse of each image, whose means stand in them; and the codes."""

    metrics: dict[str, Any]
    terms: dict[str, Float[Tensor, " N"]]
    latents: "Latents | None"  # None where there are no codes


@dataclass(frozen=True)
class Latents:
    """Posterior means of all test images and, for factorised normal posteriors and priors, the mean KL of each latent."""

    mu: Float[Tensor, "N D"]
    kl_per_latent: Float[Tensor, " D"] | None


def squared_error(
    model: Autoencoder, q: Distribution, eps: Float[Tensor, "B D"] | None, x: Float[Tensor, "B C H W"]
) -> Float[Tensor, " B"]:
    """Of the reconstruction of each image from one code that is drawn from its posterior with `eps`, summed over pixels.

    The evaluation's own code, whatever noise the objective asked for.
    """
    return (model.likelihood(reparameterize(q, eps)).mean - x).square().flatten(1).sum(1)


@torch.no_grad()
def evaluate(system: System, images: Images, run: Run, config: EvaluationConfig, skipped: Skipped) -> Evaluation:
    """Mean terms of a run's system over `images`, which lie on its device, with noise from the run's own stream.

    The system must be in evaluation mode; its loss is that of the run's last step, schedules at their end. What is measured
    beside the system's own terms costs itself where it raises, as `skipped` notes.

    Returns:
        Metrics: loss, nll and, with a KL term, kl and elbo = -(nll + kl), in nats per image; sse (squared error summed over pixels)
        and mse (per pixel) of the reconstruction from the same posterior sample; active_units, the number of latents whose
        posterior mean varies by more than `active_threshold` (Burda et al. 2016, https://arxiv.org/abs/1509.00519);
        code_std, the standard deviation of each posterior mean over the images; and kl_per_latent.
    """
    model, device = system.model, images.x.device
    shape = None if model.deterministic else (len(images), model.latent_dim)
    own = rng.generator(run.seed, "evaluation", device=device)  # the draw that an objective with one code an image sees too
    eps = None if shape is None else torch.randn(shape, generator=own, device=device)
    draws = rng.generator(run.seed, "evaluation", device=device)
    noise = {
        name: torch.randn(len(images), *shape, generator=draws, device=device) for name, shape in system.noise_shapes().items()
    }
    step = torch.tensor(run.total_steps, device=device)
    parts: dict[str, list[Tensor]] = {}
    mus, kls = [], []
    for start in range(0, len(images), config.batch_size):
        here = slice(start, start + config.batch_size)
        batch = Batch(to_float(images.x[here]), None if images.y is None else images.y[here])
        terms = system(batch, {name: draw[here] for name, draw in noise.items()}, step)
        with skipped.costs_itself("test/codes"):
            q = model.posterior(batch.x)
            mus.append(q.mean)
            with skipped.costs_itself("test/sse"):
                part_eps = None if eps is None else eps[here]
                terms = terms | {"sse": squared_error(model, q, part_eps, batch.x)}
            with skipped.costs_itself("test/kl_per_latent"):
                kls.append(_kl_per_latent(system, q))
        for name, term in terms.items():
            parts.setdefault(name, []).append(term.cpu())
    whole_parts = {name: terms for name, terms in parts.items() if f"test/{name}" not in skipped}
    values = {name: torch.cat(terms) for name, terms in whole_parts.items()}
    metrics: dict[str, Any] = {
        name: sum(float(term.double().sum()) for term in terms) / len(images) for name, terms in whole_parts.items()
    }
    if "kl" in metrics:
        metrics["elbo"] = -(metrics["nll"] + metrics["kl"])
        values["elbo"] = -(values["nll"] + values["kl"])
    if "sse" in metrics:
        metrics["mse"] = metrics["sse"] / images.x[0].numel()
    if "test/codes" in skipped:
        return Evaluation(metrics, values, None)
    mu = torch.cat(mus)
    alone = len(mu) == 1  # a single image has no spread
    with skipped.costs_itself("test/active_units"):
        metrics["active_units"] = 0 if alone else int((mu.var(0) > config.active_threshold).sum())
    with skipped.costs_itself("test/code_std"):
        metrics["code_std"] = [math.nan] * mu.shape[1] if alone else mu.std(0).tolist()
    whole = len(kls) == len(mus) and kls[0] is not None
    kl_per_latent = torch.cat(kls).mean(0) if whole else None  # type: ignore[arg-type]
    if kl_per_latent is not None:
        metrics["kl_per_latent"] = kl_per_latent.tolist()
    latents = Latents(mu.cpu(), None if kl_per_latent is None else kl_per_latent.cpu())
    return Evaluation(metrics, values, latents)


def _kl_per_latent(system: System, q: Distribution) -> Float[Tensor, "B D"] | None:
    p = system.model.prior() if isinstance(system.model, LatentVariableModel) else None
    if not (isinstance(q, Independent) and isinstance(p, Independent)):
        return None
    if not (isinstance(q.base_dist, Normal) and isinstance(p.base_dist, Normal)):
        return None
    return kl_divergence(q.base_dist, p.base_dist)
