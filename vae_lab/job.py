"""One run and its folder: built from a config, saved, restored, finished."""

import contextlib
import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from vae_lab import checkpoint, registry, resume
from vae_lab.arithmetic import arithmetic
from vae_lab.config import Device, EvaluationConfig, Precision, TrainerConfig, complete, fingerprint, typed
from vae_lab.data import Splits
from vae_lab.data.base import dataset
from vae_lab.engine import Run
from vae_lab.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    Interrupted,
    StorageError,
    VaeLabError,
    did_you_mean,
    memory_errors,
)
from vae_lab.feed import steps_per_epoch
from vae_lab.inspection import Inspection
from vae_lab.interrupt import interrupts
from vae_lab.results import environment, summary
from vae_lab.run_dir import FINISHED, RunDir
from vae_lab.skipped import Skipped
from vae_lab.stacking import stack_key
from vae_lab.system import System, build_system
from vae_lab.tracking import Tracker
from vae_lab.tracking.base import RunFacts

log = logging.getLogger(__name__)
_terms: dict[tuple[str, str], list[str]] = {}  # of the systems that were looked at: those of a sweep are mostly alike
Config = dict[str, Any]


def choose_device(device: Device) -> torch.device:
    """The device a config asks for; `auto` takes CUDA, then MPS, then the CPU."""
    available = {Device.cuda: torch.cuda.is_available(), Device.mps: torch.backends.mps.is_available(), Device.cpu: True}
    if device is Device.auto:
        return torch.device(next(kind.value for kind, there in available.items() if there))
    if not available[device]:
        raise ConfigError(f"device={device.value}: this torch sees no such device here. Use device=auto.")
    return torch.device(device.value)


def make_run(cfg: Config, splits: Splits) -> Run:
    """The engine's view of a config: a freshly initialised system and its optimiser settings."""
    trainer = typed(TrainerConfig, cfg["trainer"], "trainer")
    steps = steps_per_epoch(len(splits.train), trainer.batch_size)
    if trainer.batch_size > len(splits.train):
        raise ConfigError(f"trainer.batch_size={trainer.batch_size} exceeds the {len(splits.train)} training images.")
    if trainer.patience is not None and splits.val is None:
        raise ConfigError("trainer.patience needs validation images, but data.val_size=0; set one of the two.")
    system = build_system(cfg, dataset(cfg["data"]).image_shape)
    settled_step = 0
    if trainer.patience is not None:
        settled_step = inspection(cfg, system, splits).settled_step(steps * trainer.epochs)
    return Run(
        name=cfg["name"],
        seed=cfg["seed"],
        system=system,
        optimizer=registry.build("optimizer", cfg["optimizer"]),
        scheduler=registry.build("scheduler", cfg["scheduler"], steps_per_epoch=steps, total_steps=steps * trainer.epochs),
        patience=trainer.patience,
        clip_grad_norm=trainer.clip_grad_norm,
        monitor=trainer.monitor or f"val/{system.objective.monitor}",
        total_steps=steps * trainer.epochs,
        settled_step=settled_step,
    )


def inspection(cfg: Config, system: System, splits: Splits) -> Inspection:
    """A look at a run's system with its training images; files of what its config chose are named."""
    sources = [registry.get(group, cfg[group]["name"]) for group in ("objective", "model", "loss", "network")]
    return Inspection(system, splits.train, sources)


def check_run(cfg: Config, run: Run, splits: Splits) -> None:
    """Raise `ConfigError` for what would go wrong in or after the training of a run."""
    look = inspection(cfg, run.system, splits)
    key = stack_key(run.system), splits.digest
    if key not in _terms:
        _terms[key] = look.check()
    known = [f"val/{name}" for name in _terms[key]]
    known += ["val/elbo"] if {"val/nll", "val/kl"} <= {*known} else []
    if run.monitor not in known:
        raise ConfigError(
            f"trainer.monitor={run.monitor}: this run has no such number. Choose from: {', '.join(known)}."
            f"{did_you_mean(run.monitor, known)}"
        )
    if cfg["trainer"].get("monitor") is not None and splits.val is None:
        raise ConfigError("trainer.monitor needs validation images, but data.val_size=0; set one of the two.")


@dataclass
class Job:
    """One run on its way to a finished directory."""

    cfg: Config
    run_dir: RunDir
    run: Run
    splits: Splits
    device: torch.device
    tracker: Tracker | None = None
    resumed: list[dict[str, Any]] = field(default_factory=list)  # each time it went on: the step, and what had changed
    started: float = field(default_factory=time.perf_counter)
    seconds_before: float = 0.0  # spent in earlier processes
    cohort: list[str] = field(default_factory=list)  # fingerprints of the runs trained together with this one, itself included
    error: BaseException | None = None  # what ended this run alone

    def __post_init__(self) -> None:
        self.skipped = Skipped(self.tag)

    @property
    def tag(self) -> dict[str, str]:
        """Marks a log record as this run's."""
        return {"folder": str(self.run_dir.path)}

    def seconds(self) -> float:
        """Wall-clock time of the run, over all processes that worked on it."""
        return self.seconds_before + time.perf_counter() - self.started

    def results(self, test: dict[str, Any] | None = None) -> dict[str, Any]:
        """results.json as it stands now."""
        rows = self.run_dir.read_metrics()
        train_s = sum(row.get("seconds", 0.0) for row in rows)
        images_per_s = len(self.splits.train) * len(rows) / train_s if train_s else 0.0
        times = {"train_s": round(train_s, 3), "total_s": round(self.seconds(), 3), "images_per_s": round(images_per_s, 1)}
        parts = summary(self.cfg, self.run, rows, self.splits, self.device, test)
        skipped = {"skipped": dict(self.skipped)} if self.skipped else {}
        return parts | {"resumed": self.resumed, "time": times} | skipped


def save(job: Job) -> None:
    """Write `best`, if there is one yet, and `last`, unless the run turned non-finite."""
    run, folder = job.run, job.run_dir.checkpoints
    facts = {
        "step": run.step,
        "epoch": run.epoch,
        "fingerprint": fingerprint(job.cfg),
        "data": job.splits.digest,
        "environment": environment(job.device),
        "cohort": job.cohort,
    }
    best = {"epoch": run.best_epoch, "loss": run.best_loss}
    if run.best_state:
        checkpoint.save(folder, "best", run.best_state, best, facts | {"epoch": run.best_epoch})
    if run.status != "failed":
        training = {
            "epoch": run.epoch,
            "step": run.step,
            "sums": run.sums,
            "status": run.status,
            "optimizer": run.optimizer_state,
            "best": best | {"state": run.best_state},
            "resumed": job.resumed,
            "seconds": job.seconds(),
        }
        checkpoint.save(folder, "last", run.state, training, facts)


def common_step(jobs: Sequence[Job]) -> int | None:
    """The newest step of which each of these runs has a checkpoint, if they were trained together, else None.

    A cohort that was killed while it wrote checkpoints left some of a later step than others. Together, from the same step, it
    goes on to the same bits. Where one has none yet, that step is 0.
    """
    if len(jobs) == 1:
        return None
    found = [checkpoint.manifests(job.run_dir.checkpoints) for job in jobs]
    known = [manifest for manifests in found for manifest in manifests]
    if not known or any(manifest.get("cohort") != jobs[0].cohort for manifest in known):
        return None
    return max(set.intersection(*({0} | {manifest["step"] for manifest in manifests} for manifests in found)))


def restore(job: Job, at: int | None = None) -> None:
    """Go on from the newest sound checkpoint of the run directory, if it has any; with `at`, from the one of that step.

    Raises:
        CheckpointError: there are checkpoints, but all are damaged or belong to another run.
        DataError: the data set is not the one that the run began with.
    """
    folder, run = job.run_dir.checkpoints, job.run
    if not job.run_dir.config.exists() or not checkpoint.present(folder) or at == 0:
        return
    changed = resume.check_same(job.run_dir, job.cfg)
    found, problems = checkpoint.load_newest(folder, at)
    manifest, training = found.manifest, found.training
    resume.check_written(folder, training, manifest)
    if manifest["fingerprint"] != fingerprint(job.run_dir.read_config()):
        raise CheckpointError(f"{folder} and {job.run_dir.config.name} beside it are of different runs (fingerprints differ).")
    if manifest["data"] != job.splits.digest:
        raise DataError(
            f"{job.run_dir.path} was trained on other images (digest {manifest['data']}, now {job.splits.digest}): the data set "
            "has changed since. Put the old files back, or start a new run."
        )
    system = run.system
    state = system.without_settings(found.model)
    resume.check_state(folder, state, system.state())
    resume.check_training(folder, training, system)
    run.epoch, run.step, run.sums, run.status = (training[key] for key in ("epoch", "step", "sums", "status"))
    if run.status == "completed" and run.epoch < job.cfg["trainer"]["epochs"]:
        run.status = "running"  # resume_allow=[trainer.epochs]
    run.state = {name: tensor.to(job.device) for name, tensor in state.items()}
    run.optimizer_state = training["optimizer"]
    best = training["best"]
    run.best_epoch, run.best_loss = best["epoch"], best["loss"]
    run.best_state = system.without_settings(best["state"])
    job.seconds_before = training["seconds"]
    differs = resume.environment_changes(manifest["environment"], environment(job.device))
    if changed:
        take_changes(run, make_run(complete(job.run_dir.read_config()), job.splits))
    if "vae_lab" in differs and system.noise_shapes():
        choose_anew(run)  # releases may validate with other noise
    if manifest["cohort"] != job.cohort:
        differs["cohort"] = [len(manifest["cohort"]), len(job.cohort)]
    job.resumed = [*training["resumed"], {"step": run.step, "environment": differs, "config": changed}]
    notes = [f"{job.cfg['name']} is going on at step {run.step}"]
    notes += [f"not at a later checkpoint: {' '.join(problems)}"] if problems else []
    notes += [f"not bit-exact: {resume.describe_changes(differs)}"] if differs else []
    log.warning("%s", "; ".join(notes), extra=job.tag)


def take_changes(run: Run, before: Run) -> None:
    """Have changes of the config count in a restored run: `before` is a new one of its earlier config."""
    then = dict(before.system.named_buffers())
    now = {name: buffer for name, buffer in run.system.named_buffers() if name in then and not torch.equal(buffer, then[name])}
    # A buffer that follows from the config is a setting, declared as one or not.
    run.state |= {name: buffer.to(run.state[name].device) for name, buffer in now.items() if name in run.state}
    if now or run.monitor != before.monitor or stack_key(run.system) != stack_key(before.system):
        choose_anew(run)


def choose_anew(run: Run) -> None:
    """Let the next epoch be the best so far: the losses until now are of another function."""
    if run.status == "running":
        run.best_loss, run.best_epoch = math.inf, run.epoch


def facts_of(job: Job) -> RunFacts:
    """What trackers are told."""
    cfg = job.cfg
    flat = {
        "model_name": cfg["model"]["variant"],
        "loss_name": cfg["loss"]["name"],
        "latent_dim": cfg["latent_dim"],
        "beta": cfg["objective"].get("beta"),
        "seed": cfg["seed"],
    }
    return RunFacts(job.run_dir, cfg["name"], cfg, flat)


def finish(job: Job) -> dict[str, Any]:
    """Evaluate the best state on the test images, draw it, report, and write results.json last; returns its content."""
    from vae_lab.evaluate import evaluate

    config = typed(EvaluationConfig, job.cfg["evaluation"], "evaluation")
    system = job.run.system.to(job.device).eval()
    system.load_state(job.run.best_state)
    test_images = job.splits.test.to(job.device)
    with arithmetic(Precision.fp32, job.device, 0.0):
        test, terms, latents = evaluate(system, test_images, job.run, config, job.skipped)
    job.run_dir.write_test_terms({name: values.numpy() for name, values in terms.items()})
    interrupts.check()
    figures: list[Path] = []
    if config.figures and latents is not None:
        from vae_lab.figures import Subject, draw_all

        caption = f"{job.cfg['name']}, {job.cfg['data']['name']}, {job.cfg['loss']['name']}"
        subject = Subject(caption, system, test_images, latents, job.run.seed, config, job.splits.train)
        figures = draw_all(subject, job.run_dir.read_metrics(), job.run.best_epoch, job.run_dir.figures, job.skipped)
    interrupts.check()
    results = job.results(test)
    close_tracker(job, results, figures)
    results["time"]["total_s"] = round(job.seconds(), 3)
    job.run_dir.write_results(results)
    return results


def close_tracker(job: Job, results: dict[str, Any], figures: Sequence[Path]) -> None:
    """Report the end; `results` says so if the tracker has not the whole run."""
    if job.tracker is not None:
        with job.skipped.costs_itself("tracking"):
            job.tracker.finish(results, figures)
        if job.tracker.problem is not None:
            job.skipped["tracking"] = job.tracker.problem
        if job.skipped:
            results["skipped"] = dict(job.skipped)


def _is_finished(run_dir: RunDir) -> bool:
    try:
        results = run_dir.read_results()
    except (OSError, ValueError):
        return False
    return results is not None and results["status"] in FINISHED


@contextlib.contextmanager
def concluded(job: Job) -> Iterator[None]:
    """If the block fails, leave results.json, run.log and the tracker with why, as far as the storage allows."""
    try:
        with memory_errors():
            yield
    except BaseException as error:
        status = "interrupted" if isinstance(error, Interrupted | KeyboardInterrupt) else "failed"
        if isinstance(error, VaeLabError):
            log.error("%s: %s", status, error, extra=job.tag)
        else:
            log.error("%s", status, exc_info=error, extra=job.tag)
        with contextlib.suppress(StorageError, OSError):
            # Without a config nothing of this run was written yet; finished results are those of an earlier command, which this
            # one did not begin to replace.
            if job.run_dir.config.exists() and not _is_finished(job.run_dir):
                results = job.results() | {"status": status, "error": f"{type(error).__name__}: {error}"}
                job.run_dir.write_results(results)
                close_tracker(job, results, [])
        if isinstance(error, Interrupted):
            where = f"{error} at step {job.run.step}. Go on with: python run.py resume={job.run_dir.path}"
            raise Interrupted(where, error.signal) from None
        raise
