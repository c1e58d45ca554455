"""Test metrics of one trained system."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Independent, Normal, kl_divergence

from vae_lab import rng
from vae_lab.config import EvaluationConfig
from vae_lab.data import Images
from vae_lab.data.base import to_float
from vae_lab.distributions import reparameterize
from vae_lab.engine import Run
from vae_lab.models import LatentVariableModel
from vae_lab.objectives.base import Batch
from vae_lab.skipped import Skipped
from vae_lab.system import System


@dataclass(frozen=True)
class Latents:
    """Posterior means of all test images and, for factorised normal posteriors and priors, the mean KL of each latent."""

    mu: Float[Tensor, "N D"]
    kl_per_latent: Float[Tensor, " D"] | None


@torch.no_grad()
def evaluate(
    system: System, images: Images, run: Run, config: EvaluationConfig, skipped: Skipped
) -> tuple[dict[str, Any], Latents | None]:
    """Mean terms of a run's system over `images`, which lie on its device, with noise from the run's own stream.

    What is measured beside the system's own terms costs itself where it raises, as `skipped` notes; without codes there are
    no `Latents`.

    Returns:
        loss, nll and, with a KL term, kl and elbo = -(nll + kl), in nats per image; sse (squared error summed over pixels)
        and mse (per pixel) of the reconstruction from the same posterior sample; active_units, the number of latents whose
        posterior mean varies by more than `active_threshold` (Burda et al. 2016, https://arxiv.org/abs/1509.00519);
        code_std, the standard deviation of each posterior mean over the images; and kl_per_latent.
    """
    model, device = system.model, images.x.device
    draws = rng.generator(run.seed, "evaluation", device=device)
    noise = {
        name: torch.randn(len(images), *shape, generator=draws, device=device) for name, shape in system.noise_shapes().items()
    }
    step = torch.tensor(run.step, device=device)
    sums: dict[str, float] = {}
    mus, kls = [], []
    for start in range(0, len(images), config.batch_size):
        here = slice(start, start + config.batch_size)
        batch = Batch(to_float(images.x[here]), None if images.y is None else images.y[here])
        terms = system(batch, {name: draw[here] for name, draw in noise.items()}, step)
        with skipped.costs_itself("test/codes"):
            q = model.posterior(batch.x)
            mus.append(q.mean)
            with skipped.costs_itself("test/sse"):
                z = reparameterize(q, noise["eps"][here] if "eps" in noise else None)
                error = model.likelihood(z).mean - batch.x
                terms = terms | {"sse": error.square().flatten(1).sum(1)}
            with skipped.costs_itself("test/kl_per_latent"):
                kls.append(_kl_per_latent(system, q))
        for name, term in terms.items():
            sums[name] = sums.get(name, 0.0) + float(term.double().sum())
    whole_sums = {name: value for name, value in sums.items() if f"test/{name}" not in skipped}
    metrics: dict[str, Any] = {name: value / len(images) for name, value in whole_sums.items()}
    if "kl" in metrics:
        metrics["elbo"] = -(metrics["nll"] + metrics["kl"])
    if "sse" in metrics:
        metrics["mse"] = metrics["sse"] / images.x[0].numel()
    if "test/codes" in skipped:
        return metrics, None
    mu = torch.cat(mus)
    with skipped.costs_itself("test/active_units"):
        metrics["active_units"] = int((mu.var(0) > config.active_threshold).sum())
    with skipped.costs_itself("test/code_std"):
        metrics["code_std"] = mu.std(0).tolist()
    whole = len(kls) == len(mus) and kls[0] is not None
    kl_per_latent = torch.cat(kls).mean(0) if whole else None  # type: ignore[arg-type]
    if kl_per_latent is not None:
        metrics["kl_per_latent"] = kl_per_latent.tolist()
    return metrics, Latents(mu.cpu(), None if kl_per_latent is None else kl_per_latent.cpu())


def _kl_per_latent(system: System, q: torch.distributions.Distribution) -> Float[Tensor, "B D"] | None:
    p = system.model.prior() if isinstance(system.model, LatentVariableModel) else None
    if not (isinstance(q, Independent) and isinstance(p, Independent)):
        return None
    if not (isinstance(q.base_dist, Normal) and isinstance(p.base_dist, Normal)):
        return None
    return kl_divergence(q.base_dist, p.base_dist)
