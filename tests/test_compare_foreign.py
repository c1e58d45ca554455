"""Names that others chose: nothing of them reaches a terminal, a spreadsheet, Markdown or a page as more than text."""

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.planted import config, plant, write_ledger
from vae_lab.compare import command, report
from vae_lab.compare.tables import _inline, inert
from vae_lab.run_dir import RunDir
from vae_lab.text import harmless, printable

TITLE = "\x1b]0;owned\x07"  # sets a terminal's title
CLEAR = "\x1b[2J\x9b2J\r\x08\x7f"  # wipes it; \x9b is the same in one byte
TURNED = "\u202egnp.exe"  # shown backwards
HOSTILE = f"{TITLE}{CLEAR}{TURNED}\ud800"


def raw(folder: Path, plain: dict[str, Any], nll: float, **results: Any) -> None:
    """A finished run whose JSON says what YAML refuses to carry."""
    plant(folder, plain, nll)
    content = json.loads(RunDir(folder).results.read_text()) | results
    RunDir(folder).results.write_text(json.dumps(content))


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A sweep of which every text is hostile: names, configs, results, ledger, metrics, folders."""
    root = tmp_path / "runs [/b]\x1b[31m"
    for seed in range(3):
        for number, variant in enumerate(("vae", HOSTILE.replace("\ud800", ""))):
            plain = config(seed=seed, model__variant=variant, name=f"{TITLE}{seed}", loss__name="bce")
            test = {"loss": 20.0, "nll": 20.0 + number, "kl": 5.0, "elbo": -25.0 - number - 0.1 * seed, f"x{HOSTILE}": 1.0}
            said = {"note": HOSTILE, "environment": {"torch": f"{HOSTILE}{seed}"}, "test": test}
            raw(root / f"{number}{seed}{TITLE.replace('/', '')}", plain, 20.0 + number + 0.1 * seed, **said)
            with RunDir(root / f"{number}{seed}{TITLE}").metrics.open("a") as file:
                file.write(json.dumps({"epoch": 13, f"val/{HOSTILE}": 1.0}) + "\n")
    plain = config(seed=9, name=TITLE)
    raw(root / "failed", plain, 20.0, status="failed", error=f"{HOSTILE} is not finite")
    (plant(root / f"torn{TITLE}", config(seed=8), 20.0) / "results.json").write_text('{"status": "' + HOSTILE.replace("\ud800", ""))
    write_ledger(root, [{"name": TITLE, "state": "not_run", "folder": f"9{TITLE}", "cause": CLEAR, "fingerprint": "0"}])
    return root


def wicked(text: str) -> list[str]:
    return sorted({letter for letter in text if not letter.isprintable() and letter not in "\n"})


def test_c7_no_escape_reaches_what_is_written(hostile: Path, tmp_path: Path) -> None:
    built = report.build([hostile])
    command.write(built, tmp_path / "out" / "page.html")
    for path in (tmp_path / "out").rglob("*"):
        if path.suffix in (".csv", ".md", ".html", ".svg"):
            assert wicked(path.read_text(encoding="utf-8")) == [], path
    assert all(name.isprintable() for path in (tmp_path / "out").rglob("*") for name in [path.name])


def test_c7_no_escape_reaches_the_terminal(hostile: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from vae_lab.cli import main; main()",
            "compare",
            str(hostile),
            "--out",
            str(tmp_path / "[/x]" / "p.html"),
        ],
        cwd=ROOT,
        capture_output=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert wicked(done.stdout.decode()) == []
    assert "[/x]" in done.stdout.decode()
    assert "\\x1b]0;owned" in done.stdout.decode()
    wrong = subprocess.run(
        [sys.executable, "-c", "from vae_lab.cli import main; main()", "compare", str(hostile), "--metric", "test/elb"],
        cwd=ROOT,
        capture_output=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert wrong.returncode == 2
    assert wicked(wrong.stderr.decode()) == []


@pytest.mark.parametrize(
    "text", ["=1+1", " =1", "\u00a0=1", "+1", "-1+1", "@SUM(1)", "\t=1", "\r=1", "\uff1d1", "\uff20x", "\x0b=1"]
)
def test_c7_no_cell_is_a_formula(text: str) -> None:
    assert str(inert(text)).startswith("'")
    assert str(inert(printable(text))).startswith(("'", "\\"))  # a blank that is shown as an escape is text


def test_c7_names_stay_text_in_csv(hostile: Path, tmp_path: Path) -> None:
    plant(hostile / "f", config(seed=0, model__variant="\uff1dHYPERLINK(1)", name=" =cmd|x"), 21.0)
    command.write(report.build([hostile]), tmp_path / "page.html")
    for name in ("runs.csv", "summary.csv"):
        for row in csv.reader(io.StringIO((tmp_path / name).read_text())):
            for cell in row:
                if cell.strip()[:1] in ("=", "+", "@", "-", "\uff1d"):
                    float(cell)


@pytest.mark.parametrize(
    "text", ["http://evil.example", "www.evil.example", "a@evil.example", "![x](y)", "~~x~~", "$x$", "<b>", "a|b", "@all"]
)
def test_c7_markdown_makes_nothing_of_a_name(text: str) -> None:
    shown = _inline(f"{text}\n# heading")
    assert "\n" not in shown
    assert f" {text}" not in f" {shown}"


def test_c7_what_is_harmless_stays_as_it_is() -> None:
    assert harmless({"a": ["größe · β=4", 1, None], "b": {"c": "日本"}}) == {"a": ["größe · β=4", 1, None], "b": {"c": "日本"}}
    assert printable("a\tb\nc") == r"a\tb\nc"
    assert printable("\x1b\x9b\u202e\ud800") == "\\x1b\\x9b\\u202e\\ud800"
