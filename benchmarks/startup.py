"""Where a short run's time goes besides training: python benchmarks/startup.py [--turns 5]."""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RUNS = {
    "python run.py": [],
    "python run.py tracking=none": ["tracking=none"],
    "python run.py tracking=none evaluation.figures=false": ["tracking=none", "evaluation.figures=false"],
}
HELP = {
    "python run.py --help": [sys.executable, str(ROOT / "run.py"), "--help"],
    "vae-lab --help": [str(Path(sys.executable).with_name("vae-lab")), "--help"],
}


def phases(overrides: list[str]) -> tuple[float, float, float]:
    """Seconds from the command to its first step, from there to the last step, and from there to its end."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-u", str(ROOT / "run.py"), "trainer.log_every=1", *overrides]
        began = time.perf_counter()
        process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True)
        steps = []
        assert process.stdout is not None
        for line in process.stdout:
            if " step " in line and "so far" in line:
                steps.append(time.perf_counter() - began)
        if process.wait() != 0:
            raise SystemExit(f"failed: {command}")
        return steps[0], steps[-1] - steps[0], time.perf_counter() - began - steps[-1]


def whole(command: list[str]) -> float:
    """Seconds of a command that only prints."""
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=5)
    turns = parser.parse_args().turns
    measured: dict[str, list[tuple[float, float, float]]] = {name: [] for name in RUNS}
    for _ in range(turns):
        for name, overrides in RUNS.items():
            measured[name].append(phases(overrides))
    print("| command | to the first step, s | training, a line for every step | from the last step to the end |")
    print("|---|---|---|---|")
    for name, rows in measured.items():
        print(f"| `{name}` | " + " | ".join(f"{statistics.median(column):.2f}" for column in zip(*rows, strict=True)) + " |")
    for name, command in HELP.items():
        print(f"| `{name}` | {statistics.median(whole(command) for _ in range(turns)):.2f} in all | | |")


if __name__ == "__main__":
    main()
