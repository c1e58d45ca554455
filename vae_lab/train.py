"""Training runs alone and in cohorts, from configs to finished run directories."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.console import Console

from vae_lab import registry
from vae_lab.config import Device, TrainerConfig, complete, fingerprint, typed
from vae_lab.console import say
from vae_lab.data import load
from vae_lab.engine import Metrics, Run, fit
from vae_lab.errors import NonFiniteError
from vae_lab.feed import steps_per_epoch
from vae_lab.interrupt import interrupts
from vae_lab.job import Config, Job, choose_device, common_step, concluded, facts_of, finish, make_run, restore, save
from vae_lab.progress import Progress, ProgressBar, epoch_line, print_results, title
from vae_lab.run_dir import RunDir
from vae_lab.stacking import incomparable

log = logging.getLogger(__name__)


def train(cfg: Config, folder: Path, console: Console | None = None) -> dict[str, Any]:
    """Train, evaluate and draw one run in `folder`, going on where an earlier process stopped; returns its results.

    Raises:
        VaeLabError: with the exit code of what went wrong; results.json then says so too.
    """
    console = console or Console()
    (outcome,) = train_cohort([cfg], [folder], console)
    if isinstance(outcome, BaseException):
        raise outcome
    figures = sorted(path.name for path in RunDir(folder).figures.glob("*.png"))
    print_results(console, outcome, str(folder), figures)
    return outcome


def train_cohort(
    cfgs: Sequence[Config],
    folders: Sequence[Path],
    console: Console,
    progress: Callable[[int, int, int], Progress] | None = None,
) -> list[dict[str, Any] | BaseException]:
    """Train runs that may be stacked (same data, architecture, batch size and epochs) as one model.

    Runs that stand at different steps go on in separate groups. Whatever goes wrong with one run ends that run alone; what
    goes wrong with the training of several at once is raised. `progress` is made of epochs, images and steps of an epoch; a bar
    on the console if it is not given.

    Returns:
        Each run's results, or what ended it, in order.
    """
    cfgs = [complete(cfg) for cfg in cfgs]
    trainer = typed(TrainerConfig, cfgs[0]["trainer"], "trainer")
    splits, device = load(cfgs[0]["data"]), choose_device(Device(cfgs[0]["device"]))
    cohort = sorted(fingerprint(cfg) for cfg in cfgs)
    logging.raiseExceptions = False  # a full disk must not fill the terminal too
    jobs = [
        Job(cfg, RunDir(folder), make_run(cfg, splits), splits, device, cohort=cohort)
        for cfg, folder in zip(cfgs, folders, strict=True)
    ]
    outcomes: dict[int, dict[str, Any] | BaseException] = {}
    with interrupts.deferred(), warnings_on(console):
        together = common_step(jobs)
        for job in jobs:
            with outcome_of(job, outcomes):
                restore(job, together)
                job.run_dir.begin(job.cfg, job.run.epoch)
                if lost := job.run_dir.lost_epochs(job.run.epoch):
                    log.warning("%s", lost, extra=job.tag)
                with job.skipped.costs_itself("tracking"):
                    facts = facts_of(job)
                    job.tracker = registry.build("tracking", job.cfg["tracking"], facts=facts)
        ready = [job for job in jobs if id(job) not in outcomes]
        counts = f"{len(splits.train):,} training, {len(splits.val or ()):,} validation, {len(splits.test):,} test images"
        for job in ready:
            if obstacles := incomparable(job.run.system):
                what = ", ".join(obstacles[:3])
                log.info("%s cannot be compared: this run is never stacked with others", what, extra=job.tag)
            say(console, title(job.results()))
        say(console, f"{counts}, {device}")
        steps = steps_per_epoch(len(splits.train), trainer.batch_size)
        for _, group in groupby(sorted(ready, key=lambda job: job.run.step), key=lambda job: job.run.step):
            members = list(group)
            sizes = trainer.epochs, len(splits.train), steps
            alone = outcome_of(members[0], outcomes) if len(members) == 1 else contextlib.nullcontext()
            with alone, progress(*sizes) if progress else ProgressBar(console, *sizes) as shown:
                fit([job.run for job in members], splits, trainer, device, Recorder(members, trainer, shown))
        for job in ready:
            if id(job) in outcomes:
                continue
            with outcome_of(job, outcomes):
                if job.error is not None:
                    raise job.error
                if job.run.status == "failed":
                    raise NonFiniteError(f"{job.run.error} Checkpoints up to there are in {job.run_dir.checkpoints}.")
                interrupts.check()
                outcomes[id(job)] = finish(job)
    return [outcomes[id(job)] for job in jobs]


@contextlib.contextmanager
def outcome_of(job: Job, outcomes: dict[int, dict[str, Any] | BaseException]) -> Iterator[None]:
    """Keep what ends a run as its outcome, after its folder was told."""
    try:
        with concluded(job):
            yield
    except BaseException as error:
        outcomes[id(job)] = error


class Recorder:
    """Writes what the engine tells into each run's folder and tracker."""

    def __init__(self, jobs: Sequence[Job], trainer: TrainerConfig, progress: Progress):
        self.jobs = {id(job.run): job for job in jobs}
        self.trainer, self.progress = trainer, progress
        self.epoch_started = {id(job.run): time.perf_counter() for job in jobs}

    def on_step(self, runs: Sequence[Run], means: Callable[[], list[Metrics]]) -> None:
        step = runs[0].step

        def cohort_mean() -> Metrics:
            rows = means()
            return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}

        self.progress.on_step(step, cohort_mean)
        if self.trainer.log_every and step % self.trainer.log_every == 0:
            for run, row in zip(runs, means(), strict=True):
                terms = "  ".join(f"{name} {value:.3f}" for name, value in row.items())
                text = f"{run.name} step {step}, epoch {run.epoch + 1} so far:  {terms}"
                self.progress.line(text)
                log.info(text, extra=self.jobs[id(run)].tag)

    def on_epoch(self, run: Run, metrics: Metrics) -> None:
        job, now = self.jobs[id(run)], time.perf_counter()
        seconds = round(now - self.epoch_started[id(run)], 4)
        self.epoch_started[id(run)] = now
        row = {"epoch": run.epoch, "step": run.step, **metrics, "seconds": seconds}
        with self.costs_itself(job):
            job.run_dir.append_metrics(row)
            if job.tracker is not None:
                with job.skipped.costs_itself("tracking"):
                    job.tracker.log(row)
        if len(self.jobs) == 1:
            self.progress.on_epoch(run.epoch, run.step, metrics)
        line = epoch_line(run.epoch, self.trainer.epochs, metrics, self.progress.images_per_s(run.step))
        log.info("%s %s", run.name, line, extra=job.tag)

    def on_state(self, run: Run) -> None:
        job = self.jobs[id(run)]
        if job.error is None:
            with self.costs_itself(job):
                save(job)

    @contextlib.contextmanager
    def costs_itself(self, job: Job) -> Iterator[None]:
        """What goes wrong with one run's files ends that run, and no other of its cohort."""
        try:
            yield
        except Exception as error:
            job.error, job.run.status = error, "failed"

    def should_stop(self) -> bool:
        return interrupts.requested is not None


class ConsoleHandler(logging.Handler):
    """Shows warnings on the console too, beside run.log; those of several runs with the same `once`, once."""

    def __init__(self, console: Console):
        super().__init__(logging.WARNING)
        self.console = console
        self.said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        once = getattr(record, "once", message)
        # Errors end the process with their own message.
        if record.levelno == logging.WARNING and once not in self.said:
            self.said.add(once)
            say(self.console, message, "yellow")


@contextlib.contextmanager
def warnings_on(console: Console) -> Iterator[None]:
    """Show warnings of this package on a console inside the block."""
    logger, handler = logging.getLogger("vae_lab"), ConsoleHandler(console)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
