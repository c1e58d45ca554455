"""How far runs of a cohort are from the same runs alone: python benchmarks/cohort_equality.py [--epochs 30] [--network mlp].

The first table is of one step: the largest relative distance (of the whole tensor, in the Euclidean norm) of any term and of any
gradient, cohort against alone, and each against the same step in double precision. The second is of whole trainings on digits.
Minutes on one thread (OMP_NUM_THREADS=1); `--compiled` adds steps that are compiled, which needs a C++ compiler.
"""

import argparse
import platform
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import torch
from turns import positive

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tests.cohorts import NETWORKS, configs, distance, first_step, first_steps_alone, trained

EPOCHS = (1, 10, 30, 100)


def one_step_rows(networks: list[str], compiled: bool, runs: int) -> Iterator[str]:
    """Lines of the first table."""
    for network, precision in product(networks, ("fp32", "bf16")):
        cfgs = configs([*NETWORKS[network], f"trainer.precision={precision}", f"trainer.compile={compiled}"], range(runs))
        together, alone, exact = first_step(cfgs), first_steps_alone(cfgs), first_step(cfgs, torch.float64)
        parts = [
            f"{distance(a[which], b[which]):.1e}"
            for which in (0, 1)
            for a, b in ((together, alone), (together, exact), (alone, exact))
        ]
        yield f"| {network} | {precision} | {' | '.join(parts)} |"


def training_rows(networks: list[str], epochs: int, runs: int) -> Iterator[str]:
    """Lines of the second table."""
    marks = [mark for mark in EPOCHS if mark < epochs] + [epochs]
    for network, precision, optimizer in product(networks, ("fp32", "bf16"), ("adam", "rmsprop")):
        chosen = [f"trainer.precision={precision}", f"optimizer={optimizer}", f"trainer.epochs={epochs}"]
        cfgs = configs([*NETWORKS[network], *chosen], range(runs))
        together, alone = trained(cfgs), [trained([cfg])[0] for cfg in cfgs]
        by_epoch = [_largest(together, alone, mark) for mark in marks]
        test = [max(abs(a[1][key] - b[1][key]) for a, b in zip(together, alone, strict=True)) for key in ("elbo", "nll")]
        cells = [f"{value:.0e}" if value else "0" for value in (*by_epoch, *test)]
        yield f"| {network} | {precision} | {optimizer} | {' | '.join(cells)} |"


def _largest(together: list[Any], alone: list[Any], epoch: int) -> float:
    """The largest relative difference of any train term of an epoch."""
    pairs = [(a[0][epoch - 1], b[0][epoch - 1]) for a, b in zip(together, alone, strict=True)]
    return max(abs(a[key] - b[key]) / abs(b[key]) for a, b in pairs for key in b if key.startswith("train/"))


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=positive, default=3)
    parser.add_argument("--epochs", type=positive, default=30)
    parser.add_argument("--compiled", action="store_true", help="also the first step, compiled")
    parser.add_argument("--network", choices=NETWORKS, help="one of the networks instead of all")
    arguments = parser.parse_args()
    networks = [arguments.network] if arguments.network else list(NETWORKS)
    columns = [f"{what}, {pair}" for what in ("terms", "gradients") for pair in ("cohort-alone", "cohort-exact", "alone-exact")]
    for compiled in (False, True)[: 1 + arguments.compiled]:
        print(f"\n**First step{', compiled' if compiled else ''}**\n\n| network | precision | {' | '.join(columns)} |")
        print("|---" * (2 + len(columns)) + "|")
        for line in one_step_rows(networks, compiled, arguments.runs):
            print(line, flush=True)
    marks = [f"epoch {mark}" for mark in EPOCHS if mark < arguments.epochs] + [f"epoch {arguments.epochs}", "test ELBO", "test nll"]
    print(f"\n**Trainings**\n\n| network | precision | optimiser | {' | '.join(marks)} |")
    print("|---" * (3 + len(marks)) + "|")
    for line in training_rows(networks, arguments.epochs, arguments.runs):
        print(line, flush=True)
    print(f"\ntorch {torch.__version__}, {torch.get_num_threads()} threads, {platform.processor() or platform.machine()}, "
          f"{torch.backends.cpu.get_cpu_capability()}; cohorts of {arguments.runs}; test in nats")  # fmt: skip


if __name__ == "__main__":
    main()
