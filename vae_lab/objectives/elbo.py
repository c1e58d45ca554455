"""The evidence lower bound, with a weight on its KL term."""

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from vae_lab.config import bounded
from vae_lab.distributions import kl, nll, reparameterize
from vae_lab.models import LatentVariableModel
from vae_lab.objectives.base import Batch, Noise, Objective, Terms
from vae_lab.registry import register


@register("objective", "elbo")
class ELBO(Objective[LatentVariableModel]):
    """nll + beta * KL(q(z given x), p(z)), one posterior sample per image.

    References:
        Kingma & Welling 2014, equation 10. https://arxiv.org/abs/1312.6114
        Higgins et al. 2017 (beta). https://openreview.net/forum?id=Sy2fzU9gl
    """

    requires = LatentVariableModel
    beta: Tensor

    @dataclass(frozen=True, kw_only=True)
    class Config:
        name: str
        beta: float = bounded(ge=0)

    def __init__(self, config: Config):
        super().__init__()
        self.setting("beta", config.beta)

    def forward(self, model: LatentVariableModel, batch: Batch, noise: Noise, step: Int[Tensor, ""]) -> Terms:
        q = model.posterior(batch.x)
        z = reparameterize(q, noise["eps"])
        distortion = nll(model.likelihood(z), batch.x)
        rate = kl(q, model.prior(), z)
        return {"loss": distortion + self.beta * rate, "nll": distortion, "kl": rate}

    def kl_weight(self) -> Float[Tensor, ""] | None:
        return self.beta
