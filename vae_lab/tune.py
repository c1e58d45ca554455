"""A search over hyperparameters: Optuna asks, a sweep trains each batch of trials, their results are told.

All that a search knows lies in its folder: optuna.db beside the run directories. Trials that a killed search had asked for
are trained first when it goes on, and the sampler depends on the number of trials alone, so that it asks for the same ones.
"""

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from rich.console import Console

from vae_lab import places
from vae_lab.config import bounded, typed
from vae_lab.console import say
from vae_lab.errors import ConfigError, DataError, StorageError
from vae_lab.run_dir import FINISHED, free_space, storage_errors, write_atomic
from vae_lab.text import complain, first_line

if TYPE_CHECKING:
    import optuna

DATABASE, BEST = "optuna.db", "best.json"
PRIVATE = {"showSendToCloud": False, "plotlyServerURL": ""}  # plotly.js would offer to upload a plot
Launch = Callable[[Sequence[Sequence[str]], int], Sequence[Any]]


class Direction(Enum):
    """Which way is better."""

    minimize = "minimize"
    maximize = "maximize"


@dataclass(frozen=True, kw_only=True)
class Range:
    """Numbers from `low` to `high`, both included; whole ones if both are whole."""

    low: int | float = bounded()
    high: int | float = bounded()
    log: bool = False
    step: int | float | None = bounded(gt=0)


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """The keys of the optuna sweeper."""

    metric: str
    direction: Direction
    num_trials: int = bounded(ge=1)
    batch_size: int = bounded(ge=1)
    seed: int = bounded(ge=0, lt=2**31)
    search_space: dict[str, Any] | None

    @classmethod
    def of(cls, sweeper: Any) -> "SearchOptions":
        """Check a sweeper's config.

        Raises:
            ConfigError: names the key and what is allowed; Optuna is missing.
        """
        from omegaconf import OmegaConf

        plain = OmegaConf.to_container(sweeper, resolve=True) if OmegaConf.is_config(sweeper) else dict(sweeper)
        assert isinstance(plain, dict)
        options = typed(cls, {str(key): value for key, value in plain.items() if key != "_target_"}, "hydra.sweeper")
        if not options.search_space:
            raise ConfigError(
                "hydra.sweeper.search_space is empty: say what to search, as in conf/experiment/tune_digits.yaml, or "
                "'hydra.sweeper.search_space={optimizer.lr:{low:1e-4,high:1e-2,log:true}}'."
            )
        options.distributions()
        return options

    def distributions(self) -> "dict[str, optuna.distributions.BaseDistribution]":
        """The search space in Optuna's terms."""
        try:
            from optuna import distributions
        except ImportError as error:
            raise ConfigError("hydra/sweeper=optuna needs Optuna: pip install -e '.[tune]'") from error
        space: dict[str, distributions.BaseDistribution] = {}
        for key, node in (self.search_space or {}).items():
            where = f"hydra.sweeper.search_space.{key}"
            if isinstance(node, dict) and set(node) == {"choices"} and isinstance(node["choices"], list) and node["choices"]:
                space[key] = distributions.CategoricalDistribution([_scalar(choice) for choice in node["choices"]])
                continue
            if not isinstance(node, dict) or "low" not in node or "high" not in node:
                raise ConfigError(f"{where}={node}: expected {{low: .., high: .., log: .., step: ..}} or {{choices: [..]}}.")
            span = typed(Range, {"log": False, "step": None} | node, where)
            whole = isinstance(span.low, int) and isinstance(span.high, int)
            try:
                if whole:
                    space[key] = distributions.IntDistribution(int(span.low), int(span.high), span.log, int(span.step or 1))
                else:
                    space[key] = distributions.FloatDistribution(span.low, span.high, span.log, span.step)
            except ValueError as error:
                raise ConfigError(f"{where}: {error}") from error
        return space

    def examples(self) -> list[str]:
        """An override of every searched key, to check that they exist."""
        return [override(key, _example(distribution)) for key, distribution in self.distributions().items()]


def _scalar(choice: Any) -> Any:
    """Optuna keeps scalars; a list such as hidden_dims becomes its text, which is also how an override writes it."""
    return json.dumps(choice).replace(" ", "") if isinstance(choice, list | dict) else choice


def _example(distribution: Any) -> Any:
    return distribution.choices[0] if hasattr(distribution, "choices") else distribution.low


def override(key: str, value: Any) -> str:
    """A parameter as a command line override."""
    return f"{key}={'null' if value is None else str(value).lower() if isinstance(value, bool) else value}"


def tune(launch: Launch, folder: Path, arguments: Sequence[str], options: SearchOptions) -> dict[str, Any]:
    """Search until `num_trials` trials have ended; returns the best one's parameters.

    Args:
        launch: trains jobs given as overrides, returns an object with each one's `return_value`.
        folder: sweep directory.
        arguments: overrides of every trial; each trial is trained at all values of those that are swept, and told their mean.
        options: what to search, and how.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with database_errors(folder / DATABASE):
        return _tune(launch, folder, arguments, options, _open(folder, options))


def _tune(launch: Launch, folder: Path, arguments: Sequence[str], options: SearchOptions, study: "optuna.Study") -> dict[str, Any]:
    """`tune` with its study open."""
    import optuna

    space = options.distributions()
    parsed = OverridesParser.create().parse_overrides(list(arguments))
    common = [list(_values(one)) for one in parsed]
    variants = [list(variant) for variant in product(*common)]
    console = Console()

    def train(trials: Sequence[tuple[int, dict[str, Any]]]) -> list[float | None]:
        jobs = [[*v, *(override(key, value) for key, value in params.items())] for _, params in trials for v in variants]
        returned = [job.return_value for job in launch(jobs, trials[0][0] * len(variants))]
        rows = [returned[i * len(variants) : (i + 1) * len(variants)] for i in range(len(trials))]
        return [_mean([metric(results, options.metric) for results in row]) for row in rows]

    earlier = [trial for trial in study.get_trials(deepcopy=False) if trial.state.name in ("COMPLETE", "RUNNING")]
    _check_found(earlier, space, folder)
    if earlier:
        values = train([(trial.number, trial.params) for trial in earlier])
        for frozen, value in zip(earlier, values, strict=True):
            if frozen.state.name == "RUNNING":
                _tell(study, frozen.number, value)
    while (number := len(study.get_trials(deepcopy=False))) < options.num_trials:
        study.sampler = optuna.samplers.TPESampler(seed=options.seed + number, constant_liar=True, multivariate=True)
        asked = [study.ask(space) for _ in range(min(options.batch_size, options.num_trials - number))]
        for trial, value in zip(asked, train([(trial.number, trial.params) for trial in asked]), strict=True):
            _tell(study, trial.number, value)
        if study.trials and any(trial.state.name == "COMPLETE" for trial in study.trials):
            say(console, f"{len(study.trials)} of {options.num_trials} trials; best {options.metric} {study.best_value:.4f}")
    return _conclude(study, folder, common, options, console)


@contextlib.contextmanager
def database_errors(path: Path) -> Iterator[None]:
    """Turn what Optuna, SQLAlchemy and SQLite raise about a search's database into one message.

    Raises:
        StorageError: it cannot be written.
        DataError: it is damaged.
    """
    from optuna.exceptions import OptunaError, StorageInternalError
    from sqlalchemy.exc import OperationalError, SQLAlchemyError

    try:
        yield
    except (SQLAlchemyError, OptunaError) as error:
        reason: BaseException = error
        while isinstance(reason, StorageInternalError | SQLAlchemyError) and reason.__cause__ is not None:
            reason = reason.__cause__
        outer = error.__cause__ if isinstance(error, StorageInternalError) else error
        if isinstance(outer, OperationalError):
            said = f"Cannot write {path}: {first_line(reason)} ({free_space(path)})."
            raise StorageError(said) from error
        raise DataError(
            f"{path}: damaged ({first_line(reason)}). Move it away, and the search begins anew; finished runs are kept."
        ) from error


def _check_found(trials: "Sequence[optuna.trial.FrozenTrial]", space: dict[str, Any], folder: Path) -> None:
    """Raise `ConfigError` for trials that this search cannot have asked for: they would become overrides of a command line."""
    for trial in trials:
        if any(space.get(key) != distribution for key, distribution in trial.distributions.items()):
            raise ConfigError(f"{folder / DATABASE}: trial {trial.number} is of another search. Choose another hydra.sweep.dir.")


def metric(results: dict[str, Any] | None, name: str) -> float | None:
    """'val/elbo' of a run's results; elbo is -(nll + kl) where it is not written. None for a run that did not end well."""
    if results is None or results["status"] not in FINISHED:
        return None
    split, _, term = name.rpartition("/")
    terms = results.get(split, {})
    known = terms | ({"elbo": -(terms["nll"] + terms["kl"])} if "kl" in terms else {})
    if not isinstance(known.get(term), int | float):
        both = [(f"{split}/{key}", value) for split in ("val", "test") for key, value in results[split].items()]
        choices = ", ".join(key for key, value in both if isinstance(value, int | float))
        raise ConfigError(f"hydra.sweeper.metric={name}: these runs have no such number. Choose from: {choices}.")
    return float(known[term])


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def _tell(study: "optuna.Study", number: int, value: float | None) -> None:
    import optuna

    study.tell(number, value, state=None if value is not None else optuna.trial.TrialState.FAIL)


def _values(parsed: Any) -> list[str]:
    if not parsed.is_sweep_override():
        return [parsed.input_line]
    return [f"{parsed.get_key_element()}={value}" for value in parsed.sweep_string_iterator()]


def _open(folder: Path, options: SearchOptions) -> "optuna.Study":
    """The study of a folder, new or as a killed search left it; refuses another search space or metric."""
    import optuna

    places.check_plain(folder / f"{DATABASE}{suffix}" for suffix in ("", "-journal", "-wal", "-shm"))
    study = optuna.create_study(
        study_name="vae_lab",
        storage=f"sqlite:///{(folder / DATABASE).absolute()}",
        direction=options.direction.value,
        load_if_exists=True,
    )
    asked = {"metric": options.metric, "direction": options.direction.value, "search_space": options.search_space}
    stored = study.user_attrs.get("asked", asked)
    if stored != asked:
        raise ConfigError(f"{folder} holds another search ({stored}). Choose another hydra.sweep.dir.")
    study.set_user_attr("asked", asked)
    return study


def _conclude(
    study: "optuna.Study", folder: Path, common: Sequence[Sequence[str]], options: SearchOptions, console: Console
) -> dict[str, Any]:
    """Plots, best.json, and the command that trains the best trial."""
    if all(trial.state.name != "COMPLETE" for trial in study.trials):
        say(console, "No trial completed.")
        return {}
    try:
        with storage_errors(folder):
            _plot(study, folder, options)
    except Exception as error:  # a plot costs itself
        if isinstance(error, StorageError):
            raise
        complain(f"warning: a plot of the search is left out: {first_line(error)}")
    best = study.best_trial
    fixed = [f"{values[0].partition('=')[0]}={','.join(value.partition('=')[2] for value in values)}" for values in common]
    words = [override(key, value) for key, value in best.params.items()]
    several = ["-m hydra/sweeper=basic"] if any(len(values) > 1 for values in common) else []
    command = " ".join(["python run.py", *several, *(f"'{word}'" if "[" in word else word for word in [*fixed, *words])])
    content = {"trial": best.number, options.metric: best.value, "params": best.params, "command": command}
    write_atomic(folder / BEST, json.dumps(content, indent=2) + "\n")
    say(console, f"best trial {best.number}: {options.metric} {best.value:.4f} with {', '.join(words)}")
    return dict(best.params)


def _plot(study: "optuna.Study", folder: Path, options: SearchOptions) -> None:
    """Optuna's own plots of history and importance: interactive, and as PNG."""
    import warnings

    import matplotlib
    from optuna import visualization
    from optuna.visualization import matplotlib as static

    matplotlib.use("agg")
    several = len({trial.value for trial in study.trials if trial.value is not None}) > 1
    for name in ("optimization_history", *(("param_importances",) if several else ())):
        page = getattr(visualization, f"plot_{name}")(study, target_name=options.metric)
        page.write_html(folder / f"{name}.html", include_plotlyjs="directory", config=PRIVATE)
        with warnings.catch_warnings(action="ignore"):  # optuna calls its matplotlib plots experimental
            axes = getattr(static, f"plot_{name}")(study, target_name=options.metric)
        axes.figure.savefig(folder / f"{name}.png", dpi=130, bbox_inches="tight", facecolor="white")
