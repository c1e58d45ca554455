"""Documents speak of what is there."""

import re
from pathlib import Path

import pytest

from tests.conftest import ROOT

TESTS = "\n".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))


def test_every_test_named_in_reliability_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "reliability.md").read_text()))
    assert len(named) > 60
    assert not [name for name in named if f"def {name}(" not in TESTS]


PAGES = ("README.md", "CONTRIBUTING.md", *(f"docs/{name}.md" for name in ("architecture", "compare", "reliability", "tasks")))


@pytest.mark.parametrize("page", PAGES)
def test_links_and_paths_lead_somewhere(page: str) -> None:
    path = ROOT / page
    text = path.read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert target.startswith("http") or (path.parent / target).exists(), target
    for named in re.findall(r"`((?:vae_lab|conf|tests|benchmarks|docs)/[\w/.]+)`", text):
        assert "mine" in named or (ROOT / named).exists(), named


def test_experiments_in_the_readme_exist() -> None:
    for name in re.findall(r"experiment=(\w+)", (ROOT / "README.md").read_text()):
        assert name == "NAME" or Path(ROOT / "conf" / "experiment" / f"{name}.yaml").exists()


def test_commands_in_the_documents_exist() -> None:
    """Every `vae-lab COMMAND --option` that a page shows is one that the command takes."""
    import argparse

    from vae_lab.tasks.command import add_commands

    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers()
    add_commands(commands)
    shown = []
    for page in ("README.md", "docs/tasks.md"):
        shown += re.findall(r"^vae-lab (\w+) RUN_DIR(.*?)(?:  #.*)?$", (ROOT / page).read_text(), re.MULTILINE)
    assert {name for name, _ in shown} == set(commands.choices)
    for name, options in shown:
        commands.choices[name].parse_args(["RUN_DIR", *options.split()])  # ends the test where one is wrong
