"""From configs to finished run directories: build, train, evaluate, draw, report."""

import json
import logging
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

import vae_lab
from vae_lab import checkpoint, registry
from vae_lab.config import Device, EvaluationConfig, TrainerConfig, fingerprint, typed
from vae_lab.data import Splits, load
from vae_lab.data.base import dataset
from vae_lab.engine import Metrics, Run, fit, steps_per_epoch
from vae_lab.errors import ConfigError, NonFiniteError
from vae_lab.progress import ProgressBar, epoch_line, print_results, title
from vae_lab.run_dir import RunDir
from vae_lab.system import build_system
from vae_lab.tracking import Tracker
from vae_lab.tracking.base import RunFacts

log = logging.getLogger(__name__)
Config = dict[str, Any]

GREY_BERNOULLI = (
    "Bernoulli on grey pixels is not a normalised likelihood: compare these numbers only with runs of the same loss and data."
)


def choose_device(device: Device) -> torch.device:
    """The device a config asks for; `auto` takes CUDA, then MPS, then the CPU."""
    available = {Device.cuda: torch.cuda.is_available(), Device.mps: torch.backends.mps.is_available(), Device.cpu: True}
    if device is Device.auto:
        return torch.device(next(kind.value for kind, there in available.items() if there))
    if not available[device]:
        raise ConfigError(f"device={device.value}: this torch sees no such device here. Use device=auto.")
    return torch.device(device.value)


@dataclass
class Job:
    """One run: its config, its folder, and what is known of it while it trains."""

    cfg: Config
    run_dir: RunDir
    run: Run
    tracker: Tracker
    started: float = field(default_factory=time.perf_counter)
    last_metrics: Metrics = field(default_factory=dict)
    train_s: float = 0.0


def make_run(cfg: Config, splits: Splits) -> Run:
    """The engine's view of a config: a freshly initialised system and its optimiser settings."""
    trainer = typed(TrainerConfig, cfg["trainer"], "trainer")
    steps = steps_per_epoch(len(splits.train), trainer.batch_size)
    if trainer.batch_size > len(splits.train):
        raise ConfigError(f"trainer.batch_size={trainer.batch_size} exceeds the {len(splits.train)} training images.")
    if trainer.patience is not None and splits.val is None:
        raise ConfigError("trainer.patience needs validation images, but data.val_size=0; set one of the two.")
    return Run(
        name=cfg["name"],
        seed=cfg["seed"],
        system=build_system(cfg, dataset(cfg["data"]).image_shape),
        optimizer=registry.build("optimizer", cfg["optimizer"]),
        scheduler=registry.build("scheduler", cfg["scheduler"], steps_per_epoch=steps, total_steps=steps * trainer.epochs),
        patience=trainer.patience,
        clip_grad_norm=trainer.clip_grad_norm,
    )


class Recorder:
    """Writes what the engine tells into each run's folder and tracker."""

    def __init__(self, jobs: Sequence[Job], trainer: TrainerConfig, progress: ProgressBar, digest: str):
        self.jobs = {id(job.run): job for job in jobs}
        self.trainer, self.progress, self.digest = trainer, progress, digest

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
                log.info(text)

    def on_epoch(self, run: Run, metrics: Metrics) -> None:
        job = self.jobs[id(run)]
        row = {"epoch": run.epoch, "step": run.step, **metrics, "seconds": round(time.perf_counter() - job.started, 3)}
        job.last_metrics = row
        job.run_dir.append_metrics(row)
        job.tracker.log(row)
        self.progress.on_epoch(run.epoch, run.step, metrics)
        log.info(epoch_line(run.epoch, self.trainer.epochs, metrics, self.progress.images_per_s(run.step)))

    def on_state(self, run: Run) -> None:
        job = self.jobs[id(run)]
        facts = {"step": run.step, "epoch": run.epoch, "fingerprint": fingerprint(job.cfg), "data": self.digest}
        if run.best_state:
            best = {"epoch": run.best_epoch, "val_loss": run.best_loss}
            checkpoint.save(job.run_dir.checkpoints, "best", run.best_state, best, facts | {"epoch": run.best_epoch})
        if run.status != "failed":
            training = {
                "epoch": run.epoch,
                "step": run.step,
                "sums": run.sums,
                "status": run.status,
                "optimizer": run.optimizer_state,
                "best": {"epoch": run.best_epoch, "loss": run.best_loss, "state": run.best_state},
            }
            checkpoint.save(job.run_dir.checkpoints, "last", run.state, training, facts)

    def should_stop(self) -> bool:
        return False


def train(cfg: Config, folder: Path, console: Console | None = None) -> dict[str, Any]:
    """Train, evaluate and draw one run in `folder`; returns its results.

    Raises:
        VaeLabError: with the exit code of what went wrong; results.json then says so too.
    """
    console = console or Console()
    started = time.perf_counter()
    trainer = typed(TrainerConfig, cfg["trainer"], "trainer")
    device = choose_device(Device(cfg["device"]))
    splits = load(cfg["data"])
    run = make_run(cfg, splits)
    run_dir = RunDir(folder)
    run_dir.write_config(cfg)
    flat = {
        "model_name": cfg["model"]["variant"],
        "loss_name": cfg["loss"]["name"],
        "latent_dim": cfg["latent_dim"],
        "beta": cfg["objective"].get("beta"),
        "seed": cfg["seed"],
    }
    tracker = registry.build("tracking", cfg["tracking"], facts=RunFacts(run_dir, cfg["name"], cfg, flat))
    job = Job(cfg, run_dir, run, tracker, started)
    results = summary(job, device, splits)
    counts = f"{len(splits.train):,} training, {len(splits.val or ()):,} validation, {len(splits.test):,} test images"
    console.print(f"{title(results)}\n{counts}, {results['environment']['device']}", highlight=False, soft_wrap=True)
    steps = steps_per_epoch(len(splits.train), trainer.batch_size)
    with ProgressBar(console, trainer.epochs, len(splits.train), steps) as progress:
        training_started = time.perf_counter()
        fit([run], splits, trainer, device, Recorder([job], trainer, progress, splits.digest))
        job.train_s = time.perf_counter() - training_started
    if run.status == "failed":
        results = summary(job, device, splits)
        run_dir.write_results(results)
        tracker.finish(results, [])
        raise NonFiniteError(f"{run.error} The last good checkpoint is in {run_dir.checkpoints}.")
    figures = finish(job, splits, device)
    results = json.loads(run_dir.results.read_text(encoding="utf-8"))
    print_results(console, results, str(folder), [path.name for path in figures])
    return results


def finish(job: Job, splits: Splits, device: torch.device) -> list[Path]:
    """Evaluate the best state on the test images, draw it, report, and write results.json last."""
    from vae_lab.evaluate import evaluate

    config = typed(EvaluationConfig, job.cfg["evaluation"], "evaluation")
    system = job.run.system
    system.load_state_dict(job.run.best_state)
    test_images = splits.test.to(device)
    test, latents = evaluate(system, test_images, job.run, config)
    figures: list[Path] = []
    if config.figures:
        from vae_lab.figures import Subject, draw_all

        caption = f"{job.cfg['name']}, {job.cfg['data']['name']}, {job.cfg['loss']['name']}"
        subject = Subject(caption, system, test_images, latents, job.run.seed, config)
        figures = draw_all(subject, job.run_dir.read_metrics(), job.run.best_epoch, job.run_dir.figures)
    results = summary(job, device, splits, test)
    job.tracker.finish(results, figures)
    results["time"]["total_s"] = round(time.perf_counter() - job.started, 3)
    job.run_dir.write_results(results)
    return figures


def summary(job: Job, device: torch.device, splits: Splits, test: dict[str, Any] | None = None) -> dict[str, Any]:
    """The content of results.json."""
    cfg, run = job.cfg, job.run
    weight = run.system.objective.kl_weight()
    best = next((row for row in job.run_dir.read_metrics() if row["epoch"] == run.best_epoch), {})
    parts = {
        split: {key.removeprefix(f"{split}/"): value for key, value in best.items() if key.startswith(f"{split}/")}
        for split in ("train", "val")
    }
    grey = cfg["data"]["binarize"] == "none" and not run.system.model.loss.normalised_on_grey
    return {
        "status": run.status,
        "name": cfg["name"],
        "fingerprint": fingerprint(cfg),
        "model": cfg["model"]["variant"],
        "objective": cfg["objective"]["name"],
        "loss": cfg["loss"]["name"],
        "network": cfg["network"]["name"],
        "data": cfg["data"]["name"],
        "data_digest": splits.digest,
        "binarize": cfg["data"]["binarize"],
        "latent_dim": cfg["latent_dim"],
        "hidden_dims": cfg["hidden_dims"],
        "beta": None if weight is None else float(weight),
        "beta_eff": run.system.beta_eff(),
        "seed": cfg["seed"],
        "parameters": run.system.num_parameters(),
        "epochs": run.epoch,
        "steps": run.step,
        "best_epoch": run.best_epoch,
        **parts,
        "test": test or {},
        "error": run.error,
        "note": GREY_BERNOULLI if grey else None,
        "time": {
            "train_s": round(job.train_s, 3),
            "total_s": round(time.perf_counter() - job.started, 3),
            "images_per_s": round(run.step / run.scheduler.steps_per_epoch * len(splits.train) / job.train_s, 1)
            if job.train_s
            else 0.0,
        },
        "environment": {
            "vae_lab": vae_lab.__version__,
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "device": f"cuda ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else device.type,
            "threads": torch.get_num_threads(),
            "platform": platform.platform(),
        },
    }
