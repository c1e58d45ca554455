"""What is known about each number: its unit, which direction is better, and whether it depends on the likelihood."""

import math
from dataclasses import dataclass
from typing import Any

from vae_lab.errors import ConfigError, did_you_mean

NATS = "nats per image"
SPLITS = ("test", "val", "train")


@dataclass(frozen=True)
class Metric:
    """A number of a run that groups are compared by.

    `needs_likelihood`: its scale is that of one likelihood, so that runs with another `loss` are not ranked on it.
    `needs_objective`: its value contains the objective's own weights, so that runs with another beta are not either.
    """

    name: str
    unit: str
    higher_is_better: bool
    needs_likelihood: bool
    needs_objective: bool
    definition: str

    @property
    def sign(self) -> int:
        """+1 where higher is better, else -1."""
        return 1 if self.higher_is_better else -1

    @property
    def title(self) -> str:
        """'test/nll [nats per image, lower is better]'."""
        return f"{self.name} [{self.unit}, {'higher' if self.higher_is_better else 'lower'} is better]"


# term: unit, higher is better (None: neither), needs the same likelihood, definition
TERMS: dict[str, tuple[str, bool | None, bool, str]] = {
    "elbo": (NATS, True, True, "-(nll + kl): a lower bound on the log-likelihood log p(x); beta is never in it"),
    "nll": (NATS, False, True, "-log p(x given z): the reconstruction term, for a z drawn from the posterior of x"),
    "kl": (NATS, None, True, "KL(q(z given x), p(z)): the rate, what the code says about its image"),
    "loss": (NATS, False, True, "what is minimised, weights such as beta included"),
    "sse": ("squared error per image", False, False, "squared error of the reconstruction, summed over pixels"),
    "mse": ("squared error per pixel", False, False, "squared error of the reconstruction, per pixel"),
    "active_units": ("latents", None, False, "latents whose posterior mean varies over the test images by more than a threshold"),
}
OTHERS: dict[str, tuple[str, bool, str]] = {
    "parameters": ("parameters", False, "trained numbers of encoder and decoder together"),
    "time/train_s": ("s", False, "wall-clock time of training; of a cohort, an equal share for each of its runs"),
    "time/images_per_s": ("images/s", True, "training images a second, of all the runs of a cohort together"),
}
DEFAULT, RECONSTRUCTION = "test/elbo", "test/nll"


def find(name: str, known: list[str], direction: str | None) -> Metric:
    """The metric of a name that occurs in the runs, `known`; `direction` ('higher', 'lower') overrules what is better.

    Raises:
        ConfigError: no run has it, or it is not known which direction is better.
    """
    if name not in known:
        raise ConfigError(f"Unknown --metric '{name}'.{did_you_mean(name, known)} These runs have: {', '.join(sorted(known))}.")
    term = name.partition("/")[2]
    higher: bool | None
    if name in OTHERS:
        unit, higher, definition = OTHERS[name]
        likelihood = False
    else:
        unit, higher, likelihood, definition = TERMS.get(term, ("", None, True, "as the objective names it"))
    if direction is not None:
        higher = direction == "higher"
    if higher is None:
        raise ConfigError(f"--metric {name}: neither more nor less of it is better in itself. Add --direction higher or lower.")
    return Metric(name, unit, higher, likelihood, term == "loss", definition)


def of_run(results: dict[str, Any], cohort_size: int) -> dict[str, float]:
    """All single numbers of a run, by metric name; a training time is the run's share of its cohort's."""
    numbers: dict[str, float] = {}
    for split in SPLITS:
        part = results.get(split)
        for term, value in part.items() if isinstance(part, dict) else ():
            if isinstance(value, int | float) and not isinstance(value, bool):
                numbers[f"{split}/{term}"] = _float(value)
    times = results.get("time")
    times = times if isinstance(times, dict) else {}
    extra = {"parameters": results.get("parameters")} | {f"time/{key}": times.get(key) for key in ("train_s", "images_per_s")}
    for name, value in extra.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            numbers[name] = _float(value) / (cohort_size if name == "time/train_s" else 1)
    return numbers


def _float(value: int | float) -> float:
    try:
        return float(value)
    except OverflowError:  # JSON's whole numbers have no end
        return math.inf
