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


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "docs/architecture.md", "docs/compare.md", "docs/reliability.md"])
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
