"""The command line: what is wrong is said in one message, with the right exit code, before anything is written."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from vae_lab.config import fingerprint
from vae_lab.entry import prepare

WRONG = [
    ("latnt_dim=2", r"Unknown key 'latnt_dim'. Did you mean 'latent_dim'\?"),
    ("modle=vae", r"Unknown key 'modle'. Did you mean 'model'\?"),
    ("trainer.epoch=3", r"Unknown key 'trainer.epoch'. Did you mean 'trainer.epochs'\?"),
    ("beta=3", r"Unknown key 'beta'. Did you mean 'objective.beta'\?"),
    ("model=vea", r"Unknown model 'vea'. Choose from: autoencoder, beta_vae, vae. Did you mean 'vae'\?"),
    ("data=minst", r"Unknown data 'minst'.*Did you mean .*'mnist'"),
    ("experiment=foo", r"Unknown experiment 'foo'. Choose from: blog_vae"),
    ("latent_dim=-1", r"latent_dim=-1: must be a finite number >= 1"),
    ("latent_dim=0", r"latent_dim=0: must be"),
    ("latent_dim=1e1", r"latent_dim=1e1.*Integer"),
    ("latent_dim=abc", r"latent_dim=abc.*could not be converted to Integer"),
    ("hidden_dims=[0]", r"hidden_dims=0: must be"),
    ("hidden_dims=3", r"hidden_dims=3"),
    ("seed=-1", r"seed=-1: must be"),
    ("optimizer.lr=nan", r"optimizer.lr=nan: must be a finite number > 0"),
    ("optimizer.lr=0", r"optimizer.lr=0.0: must be"),
    ("optimizer.lr=-1", r"optimizer.lr=-1.0: must be"),
    ("optimizer.betas=[0.9]", r"optimizer.betas=\[0.9\]: must have 2 elements"),
    ("objective.beta=inf", r"objective.beta=inf: must be"),
    ("objective.beta=nan", r"objective.beta=nan: must be"),
    ("objective.beta=-1", r"objective.beta=-1.0: must be"),
    ("trainer.batch_size=0", r"trainer.batch_size=0: must be"),
    ("trainer.epochs=0", r"trainer.epochs=0: must be"),
    ("trainer.epochs=1.5", r"trainer.epochs: .*Integer"),
    ("trainer.batch_size=5000", r"exceeds the 1300 training images"),
    ("trainer.precision=fp16", r"trainer.precision: .*fp32, tf32, bf16"),
    ("data.binarize=maybe", r"data.binarize: .*none, threshold, static, dynamic"),
    ("data.val_size=1500", r"data.val_size=1500: digits has only 1500"),
    ("device=gpu", r"device=gpu: .*auto, cpu, cuda, mps"),
    ("tracking.mode=maybe", r"tracking.mode: .*online, offline, disabled"),
    ("network.activation=swish", r"network.activation: .*relu"),
    ("network=conv network.channels=[8,8,8,8]", r"use at most 3"),
    ("evaluation.manifold_range=[1,2]", r"must have 4 elements"),
    ("model=autoencoder objective=elbo", r"needs a LatentVariableModel.*use objective=reconstruction"),
    ("trainer.patience=2 data.val_size=0", r"trainer.patience needs validation images"),
    ("model.latent_dim=7", r"model.latent_dim=7 differs from latent_dim=2. Set latent_dim alone"),
    ("network.hidden_dims=[7]", r"differs from hidden_dims"),
    ("+model.beta=3", r"Unknown key 'model.beta'"),
    ("+foo=1", r"Unknown key 'foo'"),
    ("~model", r"model is missing. Choose model=NAME from: autoencoder, vae"),
    ("~optimizer.lr", r"optimizer.lr: is missing"),
    ("latent_dim=1,2", r"lists several values: add -m"),
    ("foo", r"Cannot read the command line.*'foo'"),
    ("hydra/launcher=chort", r"Unknown hydra/launcher .*Did you mean 'cohort'"),
    ("--config-dir=/nope", r"--config-dir /nope: no such folder"),
    ("-m latnt_dim=1,2", r"Unknown key 'latnt_dim'"),
    ("-m model=vea,vae", r"Unknown model 'vea'"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG, ids=[arguments for arguments, _ in WRONG])
def test_wrong_commands(
    arguments: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        prepare(arguments.split())
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert re.match(rf"error: .*{message}", said), said
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_missing_data_is_exit_code_3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import torchvision.datasets

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", ["http://127.0.0.1:9/"])
    with pytest.raises(SystemExit) as end:
        prepare(["data=mnist", "data.root=some/where"])
    assert end.value.code == 3
    assert "some/where/MNIST/raw" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", ["latnt_dim=2", "objective.beta=nan"])
def test_wrong_commands_through_the_front_door(command, arguments: str, tmp_path: Path) -> None:
    done = command(arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_traceback_on_request(command) -> None:
    assert "Traceback" in command("latnt_dim=2", HYDRA_FULL_ERROR="1").stderr


def test_help_names_groups_keys_and_examples_without_torch(command) -> None:
    said = command("--help").stdout
    for part in ("model: autoencoder, beta_vae, vae", "experiment:", "python run.py -m", "latent_dim: 2", "resume="):
        assert part in said
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import vae_lab.entry; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_fingerprint_ignores_what_changes_no_number(compose) -> None:
    plain = fingerprint(compose())
    same = ("name=other", "device=cpu", "tracking=none", "evaluation.figures=false")
    assert all(fingerprint(compose(override)) == plain for override in same)
    different = ("seed=1", "latent_dim=3", "objective.beta=2", "optimizer.lr=2e-3", "data.limit=5", "trainer.epochs=2")
    assert len({fingerprint(compose(override)) for override in different} | {plain}) == len(different) + 1


def test_data_root_is_not_part_of_the_fingerprint(compose) -> None:
    one, other = (fingerprint(compose("data=mnist", f"data.root={root}", "data.download=false")) for root in ("a", "b"))
    assert one == other


def test_a_plain_sweep_passes_the_checks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["-m", "model=autoencoder,vae", "seed=range(0,4)"]
    assert prepare(command)[:-1] == ["-m", "hydra/sweeper=product", *command[1:]]
    assert prepare([*command, "hydra/launcher=basic"])[:-1] == [*command, "hydra/launcher=basic"], "no other sweeper"


def test_a_sweep_under_the_basic_launcher(command, tmp_path: Path) -> None:
    done = command("-m", "seed=0,1", "hydra/launcher=basic", "trainer.epochs=1", "tracking=none", "evaluation.figures=false")
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "outputs" / "sweeps").iterdir()
    assert {path.name for path in folder.iterdir()} == {"multirun.yaml", "sweep.json", "0_vae_z2_s0", "1_vae_z2_s1"}
