"""What training costs by cohort, latent, hidden, batch and data set size: python benchmarks/curves.py [--draw].

Every point is a process of its own, so that its peak memory is its own. Writes curves.json and curves.png beside this file.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from vae_lab.pool import KEPT_MEMORY

HERE = Path(__file__).resolve()
MNIST = ["data=mnist", "data.val_size=0", "size=medium"]
COHORTS = {
    "digits, 64-2": ["data.val_size=0", "size=tiny"],
    "digits, 256-10": ["data.val_size=0", "hidden_dims=[256]", "latent_dim=10"],
    "MNIST, 400-20": [*MNIST, "data.limit=12800"],
    "digits, 64-2, compiled": ["data.val_size=0", "size=tiny", "trainer.compile=true"],
    "MNIST, 400-20, compiled": [*MNIST, "data.limit=12800", "trainer.compile=true"],
    "digits, conv": ["data.val_size=0", "network=conv", "hidden_dims=[64]", "latent_dim=10"],
}
SWEPT = {
    "latent size": ("latent_dim={}", [2, 8, 32, 128, 512]),
    "hidden size": ("hidden_dims=[{}]", [16, 64, 256, 1024, 4096]),
    "batch size": ("trainer.batch_size={}", [16, 64, 256, 1024, 4096]),
    "data set size": ("data.limit={}", [1000, 4000, 16000, 60000]),
}
SECONDS = 1.5  # of steps that a point is measured for, at least


def measure(overrides: list[str], num_runs: int, threads: int) -> dict[str, float]:
    """Microseconds an image and run, and MiB a run beyond program and images; in this process."""
    import torch

    from vae_lab.config import TrainerConfig, to_plain, typed
    from vae_lab.data import load
    from vae_lab.engine import fit
    from vae_lab.entry import compose_checked
    from vae_lab.job import make_run

    torch.set_num_threads(threads)
    cfg = to_plain(compose_checked([*overrides, "device=cpu", "trainer.epochs=1000000"])[0])
    splits = load(cfg["data"])
    runs = [make_run(cfg | {"seed": seed}, splits) for seed in range(num_runs)]
    whole_epochs = any(override.startswith("data.limit") for override in overrides) and num_runs == 1

    class Observer:
        """Keeps the time of every step, or of every epoch where what an epoch begins with is part of the question."""

        def __init__(self) -> None:
            self.times = [time.perf_counter()]

        def on_step(self, runs: object, means: object) -> None:
            if not whole_epochs:
                self.times.append(time.perf_counter())

        def on_epoch(self, run: object, metrics: object) -> None:
            if whole_epochs:
                self.times.append(time.perf_counter())

        def on_state(self, run: object) -> None:
            pass

        def should_stop(self) -> bool:
            return len(self.times) > 6 and self.times[-1] - self.times[3] > SECONDS

    observer, before = Observer(), peak_mib()
    fit(runs, splits, typed(TrainerConfig, cfg["trainer"], "trainer"), torch.device("cpu"), observer)
    durations = [after - start for start, after in zip(observer.times[2:], observer.times[3:], strict=False)]
    images = len(splits.train) if whole_epochs else cfg["trainer"]["batch_size"]
    microseconds = statistics.median(durations) / images / num_runs * 1e6
    return {"us": microseconds, "mib": (peak_mib() - before) / num_runs}


def peak_mib() -> float:
    """The most memory that this process ever had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def point(overrides: list[str], num_runs: int, threads: int) -> dict[str, float]:
    """`measure` in a process of its own."""
    command = [sys.executable, str(HERE), "--point", json.dumps([overrides, num_runs, threads])]
    environment = (KEPT_MEMORY if num_runs > 1 else {}) | os.environ  # as the workers of a sweep have it
    answer = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout.splitlines()[-1]
    print(f"{num_runs} {' '.join(overrides)}: {answer}", flush=True)
    return json.loads(answer)


def draw(found: dict[str, Any], file: Path) -> None:
    """Time above, memory below."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 5, figsize=(17, 6.2), sharex="col", constrained_layout=True)
    for row, (key, label) in enumerate({"us": "microseconds an image and run", "mib": "MiB a run"}.items()):
        for name, points in found["cohort size"].items():
            axes[row, 0].plot([int(x) for x in points], [value[key] for value in points.values()], "o-", ms=4, label=name)
        for column, name in enumerate(SWEPT, start=1):
            points = found[name]
            axes[row, column].plot([int(x) for x in points], [value[key] for value in points.values()], "o-", ms=4, color="black")
        axes[row, 0].set_ylabel(label)
    for axis in axes.flat:
        axis.set_xscale("log", base=2)
        low, high = axis.dataLim.y0, axis.dataLim.y1
        if 0 < 8 * low < high:
            axis.set_yscale("log", base=2)
        else:
            axis.set_ylim(0, 1.1 * high)
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.grid(True, which="major", lw=0.4)
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper left", ncols=len(COHORTS), frameon=False)
    axes[1, 0].set_xlabel("runs in a cohort, one thread")
    for column, name in enumerate(SWEPT, start=1):
        axes[1, column].set_xlabel(f"{name}, 784-400-20 otherwise")
    figure.savefig(file, dpi=110)


def main() -> None:
    """Measure what is asked for, and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draw", action="store_true", help="draw curves.json again, measuring nothing")
    parser.add_argument("--point", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.point:
        print(json.dumps(measure(*json.loads(arguments.point))))
        return
    file = HERE.with_name("curves.json")
    if not arguments.draw:
        found: dict[str, Any] = {"cohort size": {name: {} for name in COHORTS}}
        for size in (2**power for power in range(9)):
            for name, overrides in COHORTS.items():  # in turn, so that a noisy minute meets all alike
                found["cohort size"][name][size] = point(overrides, size, 1)
        for name, (override, values) in SWEPT.items():
            found[name] = {value: point([*MNIST, override.format(value)], 1, 2) for value in values}
        file.write_text(json.dumps(found, indent=1) + "\n")
    draw(json.loads(file.read_text()), HERE.with_name("curves.png"))


if __name__ == "__main__":
    main()
