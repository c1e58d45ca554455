"""Fails where the engine has become slower beside the careful plain loop: python benchmarks/guard.py [--record].

Run by hand, on a machine with nothing else to do; `--record` keeps today's ratios in guard.json.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

from epoch import SETTINGS
from turns import Worker, positive, take_turns

RECORDED = Path(__file__).resolve().with_name("guard.json")
ALLOWED = 1.25  # times the recorded ratio


def ratio(name: str, turns: int) -> float:
    """The engine's time over the plain loop's: the median over the turns, each turn's two epochs being neighbours."""
    setting = SETTINGS[name]
    engine, plain = (Worker(loop, setting.overrides, setting.epochs) for loop in ("engine", "plain loop"))
    take_turns([engine, plain], turns)
    return statistics.median(ours / theirs for ours, theirs in zip(engine.seconds, plain.seconds, strict=True))


def main() -> int:
    """Compare each setting's ratio with the recorded one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=positive, default=9)
    parser.add_argument("--record", action="store_true", help="keep the ratios instead of comparing them")
    arguments = parser.parse_args()
    if not arguments.record and not RECORDED.exists():
        raise SystemExit(f"{RECORDED.name} does not exist yet: python benchmarks/guard.py --record")
    measured = {name: round(ratio(name, arguments.turns), 3) for name in SETTINGS}
    if arguments.record:
        RECORDED.write_text(json.dumps(measured, indent=2) + "\n")
    recorded = json.loads(RECORDED.read_text())
    slower = False
    for name, value in measured.items():
        known = recorded.get(name)
        if known is None:
            print(f"{name}: {value:.2f} of the plain loop's time; nothing recorded, see --record")
            continue
        bad = value > ALLOWED * known
        slower |= bad
        print(f"{name}: {value:.2f} of the plain loop's time, {known:.2f} recorded{': SLOWER' if bad else ''}")
    return int(slower)


if __name__ == "__main__":
    sys.exit(main())
