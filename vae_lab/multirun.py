"""`-m` between Hydra and the sweep: jobs composed by Hydra are checked, planned, trained, and concluded with one exit code."""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig

from vae_lab import lock
from vae_lab.config import Device, to_plain
from vae_lab.console import say
from vae_lab.errors import SweepError
from vae_lab.interrupt import interrupts
from vae_lab.planning import Cost, Planned, SweepOptions, default_workers, plan, stacking_key
from vae_lab.pool import Process, Worker
from vae_lab.run_dir import LEDGER, RunDir, storage_errors
from vae_lab.sweep import Sweep
from vae_lab.sweep_display import print_closing
from vae_lab.text import complain, first_line

_sweeps: list[tuple[Sweep, Any]] = []  # of this process, with the lock of its folder


def warm_up(folder: Path, device: str, num_jobs: int, options: SweepOptions) -> list[Worker]:
    """Start the workers of a new sweep, which import while Hydra composes; without torch, a GPU is known by its driver."""
    if options.cluster is not None or any(sweep.folder == folder for sweep, _ in _sweeps):
        return []
    on_gpu = device in ("cuda", "mps") or (device == "auto" and (Path("/dev/nvidiactl").exists() or sys.platform == "darwin"))
    return [Process() for _ in range(min(num_jobs, options.workers or default_workers(on_gpu)))]


def lead(
    folder: Path,
    composed: Sequence[tuple[DictConfig, Path]],
    prepare_folder: Callable[[int, Path], None],
    workers: list[Worker],
    options: SweepOptions,
) -> list[dict[str, Any] | None]:
    """Check and train jobs of the sweep in `folder`, some of which may have been trained before.

    Args:
        folder: sweep directory, locked from here on.
        composed: each job's config and the folder that Hydra would give it.
        prepare_folder: writes what Hydra leaves in a job's folder, given its place in `composed`.
        workers: of `warm_up`.
        options: of the launcher.

    Returns:
        Each job's results, None where it has none.
    """
    from vae_lab.job import choose_device

    earlier = next((sweep for sweep, _ in _sweeps if sweep.folder == folder), None)
    offset = len(earlier.jobs) if earlier else 0
    jobs = _planned(folder, composed, offset)
    if earlier is None:
        held, _ = lock.acquire(folder)
        earlier = Sweep(folder, workers, partial(_start_worker, folder, options), options.stall_seconds)
        _sweeps.append((earlier, held))
    sweep = earlier
    sweep.settle_folders(jobs)
    sweep.jobs += jobs
    for job in jobs:
        job.state = "completed" if job.is_finished() else "not_run"
        trained = (job.results() or {}).get("epochs", 0) if job.state == "completed" else 0
        if lost := RunDir(job.folder).lost_epochs(trained):
            say(sweep.console, lost, "yellow")
    todo = [job for job in jobs if job.state == "not_run"]
    for job in todo:  # what ended before is tried again, and must not be mistaken for its outcome
        results = RunDir(job.folder).results
        with storage_errors(results):
            results.unlink(missing_ok=True)
    on_gpu = choose_device(Device(jobs[0].cfg["device"])).type != "cpu"
    num_workers = options.workers or default_workers(on_gpu, options.cluster)
    # A job of a cluster waits and imports before it trains, so that few large cohorts are better than many small ones.
    cohorts = plan(todo, options.max_cohort, num_workers, on_gpu, spread=options.cluster is None)
    say(sweep.console, _intention(jobs, todo, cohorts))
    try:
        with interrupts.deferred():
            sweep.train(cohorts, num_workers, lambda job: prepare_folder(job.number - offset, job.folder))
    except BaseException:  # the storage of the sweep itself
        sweep.close()
        raise
    if interrupts.requested is not None:
        _close()
        interrupts.check()
    return [job.results() for job in jobs]


def _start_worker(folder: Path, options: SweepOptions) -> Worker:
    if options.cluster is None:
        return Process()
    from vae_lab.cluster import ClusterWorker

    return ClusterWorker(folder, options.cluster, options.submitit or {})


def _planned(folder: Path, composed: Sequence[tuple[DictConfig, Path]], offset: int) -> list[Planned]:
    from vae_lab.data.base import dataset
    from vae_lab.entry import check
    from vae_lab.stacking import incomparable

    costs: dict[str, Cost] = {}
    apart: set[str] = set()
    jobs = []
    for index, (cfg, path) in enumerate(composed):
        plain = to_plain(cfg)
        if plain["tracking"].get("group", "") is None:
            plain["tracking"]["group"] = folder.name
        run = check(plain)
        key = stacking_key(plain, run)
        apart |= set(incomparable(run.system))
        if key not in costs:
            costs[key] = Cost.of(run, dataset(plain["data"]).image_shape, plain["trainer"]["batch_size"])
        jobs.append(Planned(offset + index, plain, path, key, costs[key]))
    if apart:
        what = ", ".join(sorted(apart)[:3])
        complain(f"runs are not stacked, since {what} cannot be compared")
    return jobs


def _intention(jobs: Sequence[Planned], todo: Sequence[Planned], cohorts: Sequence[Sequence[Planned]]) -> str:
    sizes = [len(cohort) for cohort in cohorts]
    stacked = ", ".join(f"{sizes.count(size)} of {size}" for size in sorted({*sizes}, reverse=True))
    before = f", {len(jobs) - len(todo)} finished before" if len(todo) < len(jobs) else ""
    return f"{len(jobs)} runs{before}; cohorts: {stacked or 'none'}"


def _close() -> None:
    """End the workers, and print the table of all runs."""
    for sweep, held in _sweeps:
        sweep.close()
        print_closing(sweep.console, sweep.jobs)
        counts = ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in sweep.counts().items())
        say(sweep.console, f"{counts}  {sweep.folder}")
        if held is not None:
            lock.release(sweep.folder, held)


def _account(folder: Path) -> None:
    """The ledger of a sweep that another launcher trained, from the folders that it left."""
    sweep = Sweep(folder, [], Process, None)
    for number, hydra_files in enumerate(sorted(folder.glob("*/.hydra/config.yaml"), key=_job_number)):
        run_dir = RunDir(hydra_files.parent.parent)
        started = run_dir.config.exists()
        try:
            cfg = RunDir(run_dir.path if started else hydra_files.parent).read_config()
        except (OSError, ValueError, yaml.YAMLError) as error:
            cfg = {"name": run_dir.path.name}
            complain(f"{run_dir.path}: the config of this run cannot be read ({first_line(error)}).")
        job = Planned(number, cfg, run_dir.path, "", Cost(0, 0), state="interrupted" if started else "not_run")
        job.look()
        sweep.jobs.append(job)
    sweep.write()
    _sweeps.append((sweep, None))


def _job_number(hydra_files: Path) -> tuple[int, str]:
    name = hydra_files.parent.parent.name
    number = name.partition("_")[0]
    return int(number) if number.isdigit() else sys.maxsize, name


def conclude(folder: Path) -> None:
    """The end of a command that trained the sweep in `folder`.

    Raises:
        SweepError: some of its runs failed.
    """
    if not _sweeps:
        _account(folder)
    _close()
    for sweep, _ in _sweeps:
        if failed := sweep.counts()["failed"]:
            raise SweepError(f"{failed} of {len(sweep.jobs)} runs failed; causes and logs: {sweep.folder / LEDGER}")
