"""The vae-lab command. torch is imported only by the sub-commands that need it."""

import argparse
import sys

from vae_lab.compare import command as compare
from vae_lab.entry import one_message
from vae_lab.tasks import command as tasks
from vae_lab.text import survive_lost_output


def doctor(arguments: argparse.Namespace) -> int:
    """Check this machine."""
    from vae_lab.doctor import examine

    return examine()


def main() -> None:
    """Entry point of `vae-lab`."""
    survive_lost_output()
    parser = argparse.ArgumentParser(prog="vae-lab", description="Tools beside python run.py, which trains.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    command = commands.add_parser("doctor", help="check this machine: versions, device, determinism, and a short round of faults")
    command.set_defaults(run=doctor)
    compare.add_commands(commands)
    tasks.add_commands(commands)
    arguments = parser.parse_args()
    with one_message():
        sys.exit(arguments.run(arguments))
