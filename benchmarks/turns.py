"""Contenders in processes of their own that stay alive and train an epoch each in turn, so that noise meets all alike."""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()


class Worker:
    """A contender that trains `epochs` epochs whenever told to."""

    def __init__(self, name: str, overrides: list[str], epochs: int):
        command = [sys.executable, str(HERE), name, str(epochs), *overrides]
        environment = os.environ | {"PYTHONWARNINGS": "ignore"}
        self.name = name
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
        )
        self.seconds: list[float] = []
        self.loss, self.peak_mib = float("nan"), 0.0

    def turn(self) -> None:
        """Train, and keep seconds an epoch, the loss of the last epoch and the peak memory so far."""
        answer = self._ask()
        self.seconds.append(answer["seconds"])
        self.loss, self.peak_mib = answer["loss"], answer["peak_mib"]

    def warm_up(self) -> None:
        """Train without keeping the time."""
        self._ask()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()

    def _ask(self) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise SystemExit(f"{self.name} ended. To see why: {' '.join(map(str, self.process.args))} <<< go")


def take_turns(workers: list[Worker], turns: int) -> None:
    """Each worker's turn, `turns` times, after a warm-up; all end."""
    try:
        for worker in workers:
            worker.warm_up()
        for _ in range(turns):
            for worker in workers:
                worker.turn()
    finally:
        for worker in workers:
            worker.end()


def positive(text: str) -> int:
    """A number of turns from a command line."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: at least 1")
    return int(text)


def work(name: str, epochs: int, overrides: list[str]) -> None:
    """What a worker does: wait for a line, train `epochs` epochs, answer; until there are no more lines."""
    from contenders import CONTENDERS

    from vae_lab.config import to_plain
    from vae_lab.entry import compose_checked

    contender, more = CONTENDERS[name]
    cfg = to_plain(compose_checked([*overrides, *more, "device=cpu", "trainer.epochs=1000000"])[0])
    done, began = 0, 0.0

    def report(loss: float) -> bool:
        nonlocal done, began
        done += 1
        if done % epochs == 0:
            seconds = (time.perf_counter() - began) / epochs
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            print(json.dumps({"seconds": seconds, "loss": loss, "peak_mib": peak}), flush=True)
            going_on = sys.stdin.readline() != ""  # the end of the input is the end of the benchmark
            began = time.perf_counter()
            return going_on
        return True

    sys.stdin.readline()
    began = time.perf_counter()
    contender(cfg, report)


if __name__ == "__main__":
    work(sys.argv[1], int(sys.argv[2]), sys.argv[3:])
