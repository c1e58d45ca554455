"""An epoch of the engine beside those of other loops, in turns: python benchmarks/epoch.py [--turns 5] [--only 'plain loop' ...].

pythae and Lightning take part where they are installed: pip install -r benchmarks/requirements.txt
"""

import argparse
import math
import statistics
import sys
from dataclasses import dataclass

import torch
from contenders import CONTENDERS, installed
from turns import Worker, positive, take_turns

TOLERANCE = 0.3  # nats by which a training loss may differ from the mean of all after equally many epochs


@dataclass(frozen=True)
class Setting:
    """What is trained, how many images an epoch has, and how many epochs a turn."""

    overrides: list[str]
    num_images: int
    epochs: int
    without: tuple[str, ...] = ()


SETTINGS = {
    "784-400-20, MNIST": Setting(["data=mnist", "data.val_size=0", "size=medium"], 60_000, 1),
    "64-64-2, digits": Setting(["data.val_size=0", "size=tiny"], 1437, 20, ("floor, oneDNN",)),
    "conv 32-64-400-20, MNIST": Setting(
        ["data=mnist", "data.val_size=0", "size=medium", "network=conv"], 60_000, 1, ("floor, oneDNN", "engine, bf16, compiled")
    ),
}


def table(name: str, setting: Setting, turns: int, names: list[str]) -> bool:
    """Print one setting's table; false if a loss is far from the others'."""
    workers = [Worker(each, setting.overrides, setting.epochs) for each in names if each not in setting.without]
    take_turns(workers, turns)
    seconds = {worker.name: statistics.median(worker.seconds) for worker in workers}
    print(f"\n**{name}**\n")
    print("| loop | s an epoch | images/s | engine / it | it / floor | peak memory, MiB | loss, epoch "
          f"{setting.epochs * (turns + 1)} |\n|---|---|---|---|---|---|---|")  # fmt: skip
    for worker in workers:
        own = seconds[worker.name]
        loss = "" if math.isnan(worker.loss) else f"{worker.loss:.2f}"
        print(
            f"| {worker.name} | {own:.4f} | {setting.num_images / own:,.0f} | {seconds['engine'] / own:.2f} "
            f"| {own / seconds['floor']:.2f} | {worker.peak_mib:,.0f} | {loss} |"
        )
    losses = {worker.name: worker.loss for worker in workers if not math.isnan(worker.loss)}
    mean = statistics.fmean(losses.values())
    differing = [each for each, loss in losses.items() if abs(loss - mean) > TOLERANCE]
    verdict = f"{', '.join(differing)} differ" if differing else "the same"
    print(f"\nLosses: {verdict}, to {TOLERANCE} nat of their mean {mean:.2f}.", flush=True)
    return not differing


def main() -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=positive, default=5)
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, help="besides engine and floor")
    parser.add_argument("--setting", choices=SETTINGS, help="one of the settings instead of all")
    arguments = parser.parse_args()
    chosen = {"engine", "floor", *arguments.only} if arguments.only else set(CONTENDERS)
    names = [name for name in CONTENDERS if name in chosen and installed(name)]
    if absent := chosen - set(names):
        print(f"Without {', '.join(sorted(absent))}: pip install -r benchmarks/requirements.txt", file=sys.stderr)
    settings = [arguments.setting] if arguments.setting else list(SETTINGS)
    same = [table(name, SETTINGS[name], arguments.turns, names) for name in settings]
    print(f"\ntorch {torch.__version__}, {torch.get_num_threads()} threads, medians of {arguments.turns} turns")
    return 0 if all(same) else 1


if __name__ == "__main__":
    sys.exit(main())
