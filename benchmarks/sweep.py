"""One sweep as cohorts, as compiled cohorts and by the basic launcher, in turns: python benchmarks/sweep.py [--turns 3]."""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from vae_lab import checkpoint
from vae_lab.run_dir import RunDir

ROOT = Path(__file__).resolve().parent.parent
SWEEPS = {
    "64 runs of 64-64-2 on digits, 200 epochs": [
        *("model=vae", "size=tiny", "trainer.epochs=200", "seed=range(0,16)", "objective.beta=0.5,1,2,4"),
    ],
    "16 runs of 784-400-20 on MNIST, 2 epochs": [
        *("data=mnist", "size=medium", "trainer.epochs=2", "seed=range(0,8)", "objective.beta=1,2"),
    ],
}
LAUNCHERS = {"cohort": ["cohort"], "cohort, compiled": ["cohort", "trainer.compile=true"], "basic": ["basic"]}


def sweep(launcher: str, overrides: list[str]) -> tuple[float, float, float]:
    """Seconds of the whole command, seconds of training on all cores, and the mean test loss."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "sweep"
        command = [sys.executable, str(ROOT / "run.py"), "-m", f"hydra/launcher={launcher}", f"hydra.sweep.dir={folder}"]
        began = time.perf_counter()
        subprocess.run([*command, *overrides], check=True, stdout=subprocess.DEVNULL, cwd=temporary)
        seconds = time.perf_counter() - began
        training, losses = 0.0, []
        for path in folder.glob("*/results.json"):
            results = RunDir(path.parent).read_results()
            assert results is not None
            stacked = len(checkpoint.load(path.parent / "checkpoints" / "last").manifest["cohort"])
            cores = results["environment"]["threads"]
            training += results["time"]["train_s"] / stacked * cores
            losses.append(results["test"]["loss"])
    return seconds, training, statistics.mean(losses)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--only", type=int, help="number of one sweep, from 0")
    arguments = parser.parse_args()
    print("| sweep | launcher | whole command, s | runs a minute | training, core seconds | mean test loss |")
    print("|---|---|---|---|---|---|")
    for number, (name, overrides) in enumerate(SWEEPS.items()):
        if arguments.only not in (None, number):
            continue
        rows: dict[str, list[tuple[float, float, float]]] = {launcher: [] for launcher in LAUNCHERS}
        for _ in range(arguments.turns):
            for launcher, results in rows.items():
                name_of_launcher, *more = LAUNCHERS[launcher]
                results.append(sweep(name_of_launcher, [*overrides, *more]))
        medians = {}
        for launcher, results in rows.items():
            whole, training, loss = (statistics.median(column) for column in zip(*results, strict=True))
            medians[launcher] = (whole, training)
            runs = int(name.split()[0])
            print(f"| {name} | {launcher} | {whole:.1f} | {60 * runs / whole:.0f} | {training:.1f} | {loss:.4f} |")
        for launcher in ("cohort", "cohort, compiled"):
            ratios = [basic / cohort for basic, cohort in zip(medians["basic"], medians[launcher], strict=True)]
            print(f"| | basic / {launcher} | **{ratios[0]:.1f}** | | **{ratios[1]:.1f}** | |", flush=True)


if __name__ == "__main__":
    main()
