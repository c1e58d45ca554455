"""The schema of a run: types, ranges, and the fingerprint that says which runs are the same.

Values live in `conf/`; the dataclasses here and the `Config` nested in every registered class hold types and ranges only.
"""

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeVar

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from vae_lab.errors import ConfigError, did_you_mean

T = TypeVar("T")


class Device(Enum):
    """Where to train; `auto` takes CUDA, then MPS, then the CPU."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
    mps = "mps"


class Precision(Enum):
    """Single precision; on CUDA with TensorFloat-32 products; or bfloat16 autocast with single-precision parameters."""

    fp32 = "fp32"
    tf32 = "tf32"
    bf16 = "bf16"


def bounded(*, length: int | None = None, **bounds: int | float) -> Any:
    """A required dataclass field whose value, or whose every element, must lie in a range (`ge`, `gt`, `le`, `lt`).

    `length` is the number of elements of a list. NaN and inf never pass, in no field.
    """
    return dataclasses.field(metadata={"bounds": bounds, "length": length})


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """How long and in which steps a run trains. All but `patience` and `clip_grad_norm` are common to a cohort."""

    epochs: int = bounded(ge=1, le=1_000_000)
    batch_size: int = bounded(ge=1)
    clip_grad_norm: float | None = bounded(gt=0)  # per run; null: no clipping
    patience: int | None = bounded(ge=1)  # epochs without a better monitor after warm-up; null: train all epochs
    monitor: str | None  # the validation metric that selects the best epoch; null: the objective's
    precision: Precision
    compile: bool
    checkpoint_every: int = bounded(ge=1)  # epochs
    checkpoint_seconds: float = bounded(ge=0)  # at least, between two checkpoints; 0: whenever the epochs say so
    log_every: int = bounded(ge=0)  # steps between progress lines in run.log; 0: one line an epoch


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What is measured and drawn after training."""

    batch_size: int = bounded(ge=1)
    active_threshold: float = bounded(gt=0)  # variance of a latent's posterior mean above which it counts as active
    figures: bool
    num_images: int = bounded(ge=1, le=10_000)  # in reconstructions.png; samples.png draws a square of as many rows
    manifold_steps: int = bounded(ge=2, le=200)  # images along each axis of the decoded latent plane
    # [z0 from, z0 to, z1 from, z1 to]; null: from the prior or the codes
    manifold_range: list[float] | None = bounded(length=4)


@dataclass(kw_only=True)
class RunConfig:
    """A whole run. `trainer` and `evaluation` are checked by the classes above, the other groups by the `Config` of the class
    that their `name` selects."""

    name: str
    seed: int = bounded(ge=0, lt=2**63)
    latent_dim: int = bounded(ge=1, le=1_000_000)
    hidden_dims: list[int] = bounded(ge=1, le=1_000_000)
    device: Device
    resume: str | None
    resume_allow: list[str]
    data: Any
    network: Any
    loss: Any
    objective: Any
    model: Any
    optimizer: Any
    scheduler: Any
    trainer: Any
    evaluation: Any
    tracking: Any


REGISTERED_GROUPS = ("data", "network", "loss", "objective", "model", "optimizer", "scheduler", "tracking")
# Keys that change nothing in a run's numbers
FREE_KEYS = (
    *("name", "device", "resume", "resume_allow", "tracking", "evaluation.figures", "data.root", "data.download", "data.cache"),
    *("trainer.checkpoint_every", "trainer.checkpoint_seconds"),
)


# Keys that came later, at the value that means what runs did before
LATER_KEYS = {"data.classes": None, "trainer.monitor": None}
# Keys that say nothing where they are null, so that the fingerprints of runs from before them stand
SILENT_KEYS = ("trainer.monitor",)


def complete(plain: dict[str, Any]) -> dict[str, Any]:
    """The config of an earlier run, with the keys that came since."""
    full = {group: dict(node) if isinstance(node, dict) else node for group, node in plain.items()}
    for key, value in LATER_KEYS.items():
        group, _, name = key.partition(".")
        full[group].setdefault(name, value)
    return full


def typed(schema: type[T], node: Any, path: str) -> T:
    """Turn a config node into `schema`, a dataclass, after checking keys, types and ranges.

    Raises:
        ConfigError: names the key, the value and what is allowed.
    """
    values = OmegaConf.to_container(node, resolve=True) if isinstance(node, DictConfig | ListConfig) else node
    if not isinstance(values, dict):
        raise ConfigError(f"{path}={values!r}: expected the keys {', '.join(_fields(schema))}.")
    for key in values:
        if key not in _fields(schema):
            full_key = f"{path}.{key!s}".lstrip(".")
            raise ConfigError(f"Unknown key '{full_key}'.{did_you_mean(str(key), _fields(schema))}")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(schema), values)
        instance = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        reason = "is missing" if isinstance(error, MissingMandatoryValue) else str(error).splitlines()[0]
        key = ".".join(filter(None, (path, str(error.full_key or ""))))
        raise ConfigError(f"{key}: {reason}") from error
    check_ranges(instance, path)
    return instance  # type: ignore[return-value]


def _fields(schema: type) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(schema))


def check_ranges(instance: Any, path: str = "") -> None:
    """Raise `ConfigError` for the first value of a dataclass that is not finite or out of its declared range."""
    for field in dataclasses.fields(instance):
        value, key = getattr(instance, field.name), f"{path}.{field.name}".lstrip(".")
        if dataclasses.is_dataclass(value):
            check_ranges(value, key)
        length = field.metadata.get("length")
        if isinstance(value, list) and length is not None and len(value) != length:
            raise ConfigError(f"{key}={value}: must have {length} elements, not {len(value)}.")
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int | float) and not isinstance(number, bool):
                _check_number(key, number, field.metadata.get("bounds", {}))


def _check_number(key: str, value: int | float, bounds: dict[str, int | float]) -> None:
    sign = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    inside = {
        "ge": lambda bound: value >= bound,
        "gt": lambda bound: value > bound,
        "le": lambda bound: value <= bound,
        "lt": lambda bound: value < bound,
    }
    if not math.isfinite(value) or not all(inside[kind](bound) for kind, bound in bounds.items()):
        wanted = " and ".join(f"{sign[kind]} {bound:g}" for kind, bound in bounds.items())
        raise ConfigError(f"{key}={value}: must be a finite number{' ' + wanted if wanted else ''}.")


def to_plain(cfg: DictConfig) -> dict[str, Any]:
    """The resolved config as plain dicts, lists, numbers and strings."""
    plain = OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)
    assert isinstance(plain, dict)
    return plain  # type: ignore[return-value]


def flatten(plain: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{'a': {'b': 1}} -> {'a.b': 1}; the empty dict stays a leaf."""
    flat: dict[str, Any] = {}
    for key, value in plain.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def identity(plain: dict[str, Any]) -> dict[str, Any]:
    """The flat part of a config that decides a run's numbers: all but `FREE_KEYS`."""
    free = tuple(f"{key}." for key in FREE_KEYS)
    return {
        key: value
        for key, value in flatten(plain).items()
        if key not in FREE_KEYS and not key.startswith(free) and not (value is None and key in SILENT_KEYS)
    }


def fingerprint(plain: dict[str, Any]) -> str:
    """Sixteen hex digits that two runs share exactly when their configs must give the same numbers."""
    text = json.dumps(identity(plain), sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
