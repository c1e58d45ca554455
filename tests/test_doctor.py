"""`vae-lab doctor` holds on a sound machine, and says what does not hold on another."""

import subprocess
import sys
from pathlib import Path

import pytest

from vae_lab import checkpoint, doctor


@pytest.mark.slow
def test_a_sound_machine(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys; sys.argv = ['vae-lab', 'doctor']; from vae_lab.cli import main; main()"]
    folder = tmp_path / "here"
    folder.mkdir()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert f"All {len(doctor.CHECKS)} checks hold." in done.stdout
    assert list(folder.iterdir()) == []


def test_what_does_not_hold_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "CHECKS", {"disk": doctor.disk, "disk full": doctor.disk_full, "flipped bits": doctor.bit_flips})
    assert doctor.examine() == 0
    monkeypatch.setattr(doctor, "MIN_FREE_BYTES", 2**60)
    monkeypatch.setattr(checkpoint.hashlib, "sha256", lambda data: type("Sum", (), {"hexdigest": lambda self: "0"})())
    assert doctor.examine() == 1
    said = capsys.readouterr().out
    assert "2 of 3 checks failed." in said
    assert "was not noticed" in said.replace("\n", " ")


def test_the_command_without_a_command() -> None:
    code = "import sys; sys.argv = ['vae-lab']; from vae_lab.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    asked = [sys.executable, "-c", code.replace("']", "', '--help']")]
    assert "doctor" in subprocess.run(asked, capture_output=True, text=True, check=True).stdout
