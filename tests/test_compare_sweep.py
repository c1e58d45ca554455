"""Two commands, as a user types them: a real sweep, and its comparison."""

import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.slow


def test_a_sweep_and_its_comparison(tmp_path: Path) -> None:
    options = ("hidden_dims=[16]", "trainer.epochs=3", "data.limit=200", "trainer.batch_size=50", "tracking=none")
    sweep = ("model=autoencoder,vae,beta_vae", "latent_dim=2,3,4", "seed=range(0,4)", f"hydra.sweep.dir={tmp_path / 'sweep'}")
    train = [sys.executable, str(ROOT / "run.py"), "-m", *sweep, *options]
    assert subprocess.run(train, cwd=tmp_path, capture_output=True, timeout=280, check=False).returncode == 0
    vae_lab = Path(sys.executable).with_name("vae-lab")
    command = [str(vae_lab)] if vae_lab.exists() else [sys.executable, "-c", "from vae_lab.cli import main; main()"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, "compare", "sweep"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "sweep"
    rows = list(csv.DictReader((folder / "runs.csv").open()))
    assert len(rows) == 36
    assert all(row["counts"] == "True" and float(row["time/train_s"]) > 0 for row in rows)
    summary = list(csv.DictReader((folder / "summary.csv").open()))
    assert [sum(row["metric"] == name for row in summary) for name in ("test/elbo", "test/nll")] == [6, 9]
    assert {row["seeds"] for row in summary} == {"4"}
    page = (folder / "report.html").read_text()
    assert page.count('src="data:image/webp') == 3 * 9 + 3  # a latent plane only where latent_dim is 2
    names = {path.stem for path in (folder / "figures").glob("*.svg")}
    assert {"outcome", "gains", "rate_distortion", "against_latent_dim", "against_beta", "cost", "latents", "curves"} == names
    shutil.rmtree(folder / "12_vae_z2_s0")
    again = subprocess.run(
        [*command, "compare", "sweep"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert again.returncode == 0, again.stderr
    assert "n = 3 of 4 seeds; without seed 0" in (folder / "summary.md").read_text()
