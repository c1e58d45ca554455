"""What surrounds Hydra: everything that can be wrong with a command is found here, before a folder exists.

`prepare` runs before Hydra's main, composes the same config, checks it, and takes hold of the run directory; `run` is the
task that Hydra calls.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import yaml
from hydra import compose, initialize_config_dir
from hydra._internal import utils as hydra_utils
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vae_lab import foreign, places, security
from vae_lab.composer import Composer
from vae_lab.config import REGISTERED_GROUPS, RunConfig, flatten, to_plain, typed
from vae_lab.errors import ConfigError, Interrupted, VaeLabError, did_you_mean, memory_errors
from vae_lab.interrupt import interrupts
from vae_lab.registry import plugin_folders
from vae_lab.run_dir import RunDir, storage_error, storage_errors
from vae_lab.text import complain, first_line, survive_lost_output

if TYPE_CHECKING:
    from vae_lab.engine import Run

CONF = Path(__file__).resolve().parent.parent / "conf"
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
INSTALLED_BY = dict.fromkeys(
    ("hydra/launcher=joblib", "hydra/launcher=submitit_local", "hydra/launcher=submitit_slurm"),
    "It comes with: pip install -e '.[cluster]'",
)
COMPOSING_ERRORS = (HydraException, OmegaConfBaseException, ValueError)  # ValueError: a group that is no name
_held: list[Any] = []  # locks of this process, released when it ends
_run_folder: list[Path] = []  # of this command, if it trains one run
_sweep_folder: list[Path] = []  # of this command, if it is a sweep


def slug(text: str) -> str:
    """A file name: letters, digits and '._=,+-'; cut at 120, then told apart by eight digits of a hash."""
    clean = re.sub(r"[^\w.=,+-]+", "-", str(text)).strip(".-") or "run"
    if clean == text and len(clean.encode()) <= 120:
        return clean
    digest = hashlib.sha256(str(text).encode()).hexdigest()[:8]
    return f"{clean.encode()[:120].decode(errors='ignore')}-{digest}"


def variant(name: str, objective: str, _root_: DictConfig) -> str:
    """What a model is called: its YAML's name, with the objective where that is not the model's own."""
    chosen = _root_.objective.name
    return name if chosen == objective else f"{name}+{chosen}"


ConfigStore.instance().store(group="hydra/schema", name="config", node=RunConfig)
OmegaConf.register_new_resolver("slug", slug, replace=True)
OmegaConf.register_new_resolver("variant", variant, replace=True)


def prepare(argv: Sequence[str]) -> list[str]:
    """Check a command line; returns it ready for Hydra. Ends the process with one message where it is wrong."""
    from vae_lab.resume import read_resume, reserve

    survive_lost_output()
    with one_message():
        interrupts.install()
        args = hydra_utils.get_args_parser().parse_args(list(argv))
        for flag in ("config_path", "config_name", "experimental_rerun"):
            if getattr(args, flag) is not None:
                raise ConfigError(f"--{flag.replace('_', '-')}: refused. YAML of your own goes into a folder: --config-dir DIR.")
        flags = [word for word in argv if word not in args.overrides]
        found = config_folders(args.config_dir, args.overrides)
        folders = search_path(found)
        if args.help or args.hydra_help or args.info or args.shell_completion:
            return [*argv, *folders]
        if args.cfg and args.multirun:
            raise ConfigError("--cfg shows one run's config: leave out -m and swept values.")
        said = [line for line in args.overrides if not is_search_path(line)]
        overrides, folder = read_resume(said, folders, args.multirun)
        cfg, hydra = compose_checked([*overrides, *folders], sweep=args.multirun)
        is_sweep = args.multirun or hydra.mode == RunMode.MULTIRUN
        if folder is not None and is_sweep:
            raise ConfigError("resume goes on in one run's folder. A sweep goes on by its own command and hydra.sweep.dir.")
        if found:
            silent = [line for line in overrides if not re.match(r"\W*hydra\.(launcher|job|run|sweep)\.", line)]
            security.check_found(compose_checked([*silent, *folders], sweep=args.multirun)[1])
        if args.cfg:
            return [*flags, *overrides, *folders]
        if is_sweep:
            overrides = _prepare_sweep(overrides, folders, hydra)
        else:
            plain = to_plain(cfg)
            check(plain)
            explicit = folder is not None or any(_sets(line, "hydra.run.dir") for line in overrides)
            folder = folder or Path(hydra.run.dir)
            places.check_plain([folder / str(hydra.output_subdir), folder / f"{hydra.job.name}.log"])
            folder, lock, finished = reserve(folder, plain, explicit)
            if finished is not None:
                _say_finished(finished, folder)
            _held.append(lock)
            _run_folder.append(folder)
            overrides = with_folder(overrides, "hydra.run.dir", folder)
        return [*flags, *overrides, *folders]


def _prepare_sweep(overrides: list[str], folders: list[str], hydra: DictConfig) -> list[str]:
    """Check what a sweep adds to a command, and make its folder; returns the overrides ready for Hydra."""
    from vae_lab.planning import SweepOptions

    if hydra.runtime.choices["hydra/launcher"] == "cohort":
        SweepOptions.of(hydra.launcher)
        if hydra.runtime.choices["hydra/sweeper"] == "basic":
            overrides = ["hydra/sweeper=product", *(line for line in overrides if line != "hydra/sweeper=basic")]
    if hydra.runtime.choices["hydra/sweeper"] == "optuna":
        from vae_lab.tune import SearchOptions

        cfg, _ = compose_checked([*overrides, *folders, *SearchOptions.of(hydra.sweeper).examples()], sweep=True)
        check(to_plain(cfg))
    folder = security.sweep_folder(hydra)
    places.check_sweep_folder(folder)
    if hydra.runtime.choices["hydra/launcher"] != "cohort" and hydra.runtime.choices["hydra/sweeper"] == "basic":
        check_jobs([*overrides, *folders], hydra, folder)
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if "submitit_folder" in hydra.launcher and not any(line.startswith("hydra.launcher.submitit_folder=") for line in overrides):
        overrides = [*overrides, f"hydra.launcher.submitit_folder={quote(str(new_folder(folder / '.submitit') / '%j'))}"]
    if hydra.runtime.choices["hydra/launcher"] != "cohort" or hydra.launcher.cluster is not None:
        # Their jobs are programs of their own, which would import what lies in the working directory.
        path = os.pathsep.join(filter(None, (str(CONF.parent), os.environ.get("PYTHONPATH"))))
        os.environ |= {"PYTHONSAFEPATH": "1", "PYTHONPATH": path}
    _sweep_folder.append(folder)
    return with_folder(overrides, "hydra.sweep.dir", folder)


def with_folder(overrides: Sequence[str], key: str, folder: Path) -> list[str]:
    """Overrides in which `key` is this very folder, whatever characters its name has.

    Raises:
        ConfigError: Hydra would read another name, and write elsewhere than in the folder that is locked.
    """
    override = f"{key}={quote(str(folder))}"
    try:
        said = OverridesParser.create().parse_override(override).value()
        heard = OmegaConf.create({"folder": said}).folder
    except (HydraException, OmegaConfBaseException):
        heard = None
    if heard != str(folder):
        raise ConfigError(f"{key}={folder}: Hydra cannot take this name. Choose another.")
    return [*(line for line in overrides if not _sets(line, key)), override]


def _sets(line: str, key: str) -> bool:
    return OverridesParser.create().parse_override(line).key_or_group == key


def quote(text: str) -> str:
    """A string literal of Hydra's override grammar in which nothing is interpolated."""
    literal = re.sub(r"(\\*)\$\{", lambda found: 2 * found[1] + "\\${", text)  # OmegaConf's escape
    return QuotedString(literal, Quote.single).with_quotes()


def config_folders(config_dir: str | None, overrides: Sequence[str]) -> list[Path]:
    """Folders of YAML of `--config-dir` and searchpath, checked; so are those of plugins, which every composition finds."""
    if config_dir is not None and not os.path.isdir(config_dir):  # noqa: PTH112, answers for any name
        raise ConfigError(f"--config-dir {config_dir}: no such folder.")
    found = [Path(config_dir)] if config_dir else []
    for folder in [*(folder / "conf" for folder in plugin_folders()), *found]:
        foreign.check_yaml_folder(folder)
    for line in filter(is_search_path, overrides):
        found += security.searched(parse([line])[0])
    return found


def is_search_path(line: str) -> bool:
    """Whether an override says where to search for YAML; Hydra would take the first of several."""
    return re.match(r"[+~]*hydra\.searchpath\b", line) is not None


def search_path(folders: Sequence[Path]) -> list[str]:
    """The override that lets Hydra find YAML in these folders."""
    quoted = ", ".join(json.dumps(f"file://{folder.absolute()}") for folder in folders)
    return [f"hydra.searchpath=[{quoted}]"] if folders else []


def run(cfg: DictConfig) -> dict[str, Any]:
    """The task: train one run in the folder that Hydra made; returns its results."""
    from vae_lab.resume import reserve

    plain = to_plain(cfg)
    hydra_cfg = HydraConfig.get()
    folder = Path(hydra_cfg.runtime.output_dir)
    if hydra_cfg.mode == RunMode.MULTIRUN:
        interrupts.install()
        check(plain)
        _, lock, finished = reserve(folder, plain, explicit=True)
        if finished is not None:
            return finished
        _held.append(lock)
        return _train_one_of_many(plain, folder)
    from vae_lab.train import train

    with one_message():
        return train(plain, folder)


def _train_one_of_many(plain: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Train a job of a launcher that is not ours; what ends it is in its folder, and costs no other job."""
    from vae_lab.train import train

    try:
        return train(plain, folder)
    except Interrupted as error:
        fail(error)
    except (Exception, SystemExit) as error:
        results = None
        with contextlib.suppress(OSError, ValueError):
            results = RunDir(folder).read_results()
        if results is None:
            raise
        complain(f"failed: {folder.name}: {first_line(error)}")
        return results


def conclude() -> None:
    """What remains when Hydra has returned: the end of a sweep, with its exit code."""
    if _sweep_folder:
        from vae_lab import multirun

        with one_message():
            multirun.conclude(_sweep_folder[0])
    interrupts.leave(0)


def _say_finished(results: dict[str, Any], folder: Path) -> NoReturn:
    from rich.console import Console

    from vae_lab.console import say
    from vae_lab.progress import print_results

    print_results(Console(), results, str(folder), [])
    if lost := RunDir(folder).lost_epochs(results["epochs"]):
        say(Console(), lost, "yellow")
    say(Console(), "Nothing to do: this run is finished.")
    sys.exit(0)


def check(plain: dict[str, Any]) -> "Run":
    """Raise `ConfigError` or `DataError` for anything that would stop this config from training; returns the run it built."""
    from vae_lab import registry
    from vae_lab.config import Device, EvaluationConfig, Precision, TrainerConfig
    from vae_lab.data import load
    from vae_lab.graphs import check_compiler
    from vae_lab.job import check_run, choose_device, make_run

    for group in REGISTERED_GROUPS:
        if not isinstance(plain.get(group), dict):
            raise ConfigError(f"{group} is missing. Choose {group}=NAME from: {', '.join(registry.names(group))}.")
    typed(RunConfig, plain, "")
    for group, key in (("model", "latent_dim"), ("network", "hidden_dims")):
        if plain[group].get(key, plain[key]) != plain[key]:
            raise ConfigError(f"{group}.{key}={plain[group][key]} differs from {key}={plain[key]}. Set {key} alone.")
    trainer = typed(TrainerConfig, plain["trainer"], "trainer")
    typed(EvaluationConfig, plain["evaluation"], "evaluation")
    for group in REGISTERED_GROUPS:
        registry.typed_config(group, plain[group])
    device = choose_device(Device(plain["device"]))
    if trainer.precision is Precision.tf32 and device.type != "cuda":
        raise ConfigError(f"trainer.precision=tf32 is CUDA's, and this run trains on {device.type}. Use fp32 or bf16.")
    if trainer.compile:
        check_compiler()
    splits = load(plain["data"])
    run = make_run(plain, splits)
    check_run(plain, run, splits)
    return run


@contextlib.contextmanager
def one_message() -> Iterator[None]:
    """End the process with one message and the exit code of what went wrong.

    An OSError that nobody foresaw is the storage's where it names a file, or says that there is no room. All else that is no
    `VaeLabError` is a mistake in code, and raised. HYDRA_FULL_ERROR=1 shows every traceback.
    """
    shown = os.environ.get("HYDRA_FULL_ERROR") == "1"
    try:
        with memory_errors():
            yield
    except VaeLabError as error:
        if shown:
            raise
        fail(error)
    except OSError as error:
        if shown or (error.filename is None and error.errno not in NO_ROOM):
            raise
        fail(storage_error(error, next(iter([*_run_folder, *_sweep_folder]), Path.cwd())))


@contextlib.contextmanager
def hydra_in_one_message() -> Iterator[None]:
    """End as everywhere what goes wrong in Hydra's own work, as a full disk under its files."""
    report = hydra_utils.run_and_report

    def work_in_one_message(work: Callable[[], Any]) -> Any:
        with one_message():
            try:
                return work()
            except ValueError as error:  # logging's, for a handler whose file cannot be opened
                if isinstance(error.__cause__, OSError):
                    raise error.__cause__ from error
                raise

    hydra_utils.run_and_report = lambda func: report(lambda: work_in_one_message(func))
    try:
        yield
    finally:
        hydra_utils.run_and_report = report


def fail(error: VaeLabError) -> NoReturn:
    """Print the message and exit with the error's code."""
    complain(f"error: {error}")
    interrupts.leave(error.exit_code)
    sys.exit(error.exit_code)


@contextlib.contextmanager
def composing(what: str) -> Iterator[None]:
    """Turn Hydra's errors into one message that begins with what is composed."""
    try:
        yield
    except COMPOSING_ERRORS as error:
        raise ConfigError(f"{what}: {_first_lines(error)}") from error


def compose_checked(overrides: Sequence[str], sweep: bool = False) -> tuple[DictConfig, DictConfig]:
    """The resolved config of a command line, and Hydra's own.

    In a sweep every swept override stands at its first value: the jobs check themselves.

    Raises:
        ConfigError: names the override that is wrong, and what was probably meant.
    """
    parsed = parse(overrides)
    security.check_overrides(parsed)
    if sweep:
        parsed = [_first_of_sweep(override) for override in parsed]
    elif swept := [override.input_line for override in parsed if override.is_sweep_override()]:
        raise ConfigError(f"{swept[0]} lists several values: add -m to train a sweep, or quote the value.")
    lines = [override.input_line or "" for override in parsed]
    with initialize_config_dir(str(CONF), version_base="1.3", job_name="run"):
        try:
            cfg = compose("config", overrides=lines, return_hydra_config=True)
            security.check_config(cfg)
            app = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
            OmegaConf.resolve(app)
            if not OmegaConf.missing_keys(app):  # else `check` says what is missing
                security.check_job(cfg, security.sweep_folder(cfg.hydra) if sweep else None)
            return app, cfg.hydra
        except yaml.YAMLError as error:
            raise ConfigError(f"A YAML file cannot be read: {str(error).splitlines()[0]}") from error
        except COMPOSING_ERRORS as error:
            if (refused := re.match(r"ConfigError raised while resolving interpolation: (.*)", str(error))) is not None:
                raise ConfigError(f"{getattr(error, 'full_key', None) or 'A value'}: {refused[1]}") from error
            with contextlib.suppress(*COMPOSING_ERRORS):
                _explain(parsed)
            raise ConfigError(_first_lines(error)) from error


def parse(overrides: Sequence[str]) -> list[Override]:
    """Overrides as Hydra reads them.

    Raises:
        ConfigError: one cannot be read.
    """
    try:
        return OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        raise ConfigError(f"Cannot read the command line: {_first_lines(error)}") from error


def check_jobs(overrides: Sequence[str], hydra: DictConfig, folder: Path) -> None:
    """Check all jobs of a sweep whose launcher writes their folders itself, before any is there.

    Raises:
        ConfigError: names the job and the key.
    """
    given: dict[str, Any] = dict(hydra.sweeper.params or {})
    said = parse([*overrides, f"hydra.sweep.dir={quote(str(folder))}"])
    swept = [*parse([f"{key}={value}" for key, value in given.items()]), *(one for one in said if not one.is_hydra_override())]
    security.check_overrides(swept)
    with initialize_config_dir(str(CONF), version_base="1.3", job_name="run"):
        loader = GlobalHydra.instance().config_loader()
        fixed = [override.input_line or "" for override in said if not override.is_sweep_override()]
        composer = Composer(loader, loader.load_configuration("config", fixed, RunMode.MULTIRUN))  # type: ignore[arg-type]
        check_composed(composer, BasicSweeper.split_arguments(swept, None)[0], folder)


def check_composed(composer: Composer, jobs: Sequence[Sequence[str]], folder: Path, first: int = 0) -> None:
    """The same, for jobs given as overrides and numbered from `first`."""
    for number, job in enumerate(jobs, first):
        with composing(f"job {number} ({' '.join(job)})"):
            security.check_job(composer.job(job), folder, number)


def new_folder(parent: Path) -> Path:
    """A folder below `parent` that was not there before, so that nobody has put anything into it."""
    with storage_errors(parent):
        parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix="jobs-", dir=parent))


def _first_of_sweep(override: Override) -> Override:
    if not override.is_sweep_override():
        return override
    first = next(iter(override.sweep_string_iterator()))
    return OverridesParser.create().parse_override(f"{override.get_key_element()}={first}")


def _explain(overrides: Sequence[Override]) -> None:
    """Raise a better message than Hydra's for an unknown option or key, if that is what is wrong."""
    loader = GlobalHydra.instance().config_loader()
    groups = [group for group in loader.list_groups("") if group != "hydra"] + ["hydra/launcher", "hydra/sweeper"]
    where = [override for override in overrides if override.key_or_group == "hydra.searchpath"]
    chosen = [override.input_line or "" for override in where]
    _, repository = loader._parse_overrides_and_create_caching_repo("config", chosen)  # type: ignore[attr-defined]
    for override in overrides:
        key, value = override.key_or_group, override.value()
        if key not in groups or override.is_delete() or isinstance(value, dict):
            continue
        options = repository.get_group_options(key, ObjectType.CONFIG)
        for name in value if isinstance(value, list) else [value]:
            if name not in options:
                shown = "null" if name is None else name
                extra = INSTALLED_BY.get(f"{key}={name}", "")
                choices = f"Choose from: {', '.join(options)}.{did_you_mean(str(name), options)}"
                raise ConfigError(f"Unknown {key} '{shown}'. {extra or choices}")
        if isinstance(value, str):
            chosen.append(f"{key}={value}")
    known = [*flatten(OmegaConf.to_container(compose("config", overrides=chosen), enum_to_str=True)), *groups]  # type: ignore[arg-type]
    nodes = {".".join(key.split(".")[:depth]) for key in known for depth in range(1, 1 + key.count("."))}
    for override in overrides:
        key = override.key_or_group
        if not key.startswith("hydra") and not override.is_add() and key not in known and key not in nodes:
            raise ConfigError(f"Unknown key '{key}'.{did_you_mean(key, known)} All keys: python run.py --help")


def _first_lines(error: Exception) -> str:
    """The one or two lines that matter of Hydra's and OmegaConf's messages."""
    texts = [(str(error).strip().splitlines() or [type(error).__name__])[0]]
    if error.__cause__ is not None and str(error.__cause__):
        texts.append(str(error.__cause__).strip().splitlines()[0])
    return ": ".join(dict.fromkeys(texts))
