"""Run directories, sweep folders and data folders that somebody else made: nothing in them chooses code, or places outside."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT
from tests.test_trained import QUICK, copy_of
from vae_lab.config import fingerprint
from vae_lab.doctor import hashes
from vae_lab.entry import prepare
from vae_lab.errors import ConfigError, DataError
from vae_lab.run_dir import RunDir

TINY = ("trainer.epochs=2", "hidden_dims=[8]", "tracking=none", "evaluation.figures=false", "device=cpu")
DOUBLED = "a0: &a0 [x]\n" + "\n".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 25))  # 2**24 values of 48 aliases
LOCAL = "hydra.launcher.submitit={timeout_min:1,local_setup:['touch pwned']}"


@pytest.fixture(autouse=True)
def no_waiting() -> Iterator[None]:
    """A test that hangs on a pipe fails after two minutes."""
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it hangs"))
    signal.alarm(120)
    yield
    signal.alarm(0)


@pytest.fixture
def run_dir(trained: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished run, copied to be spoilt, below the working directory."""
    monkeypatch.chdir(tmp_path)
    return copy_of(trained(*QUICK), tmp_path / "foreign")


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a command that must end with code 2 says."""
    with pytest.raises(SystemExit) as end:
        prepare(list(arguments))
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    return said


def say_overrides(folder: Path, *lines: str) -> None:
    (folder / ".hydra").mkdir(exist_ok=True)
    (folder / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(list(lines)))


def change(folder: Path, **keys: object) -> None:
    cfg = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump(cfg | keys, sort_keys=False))


def test_c1_a_resume_takes_no_launcher_from_the_run_directory(command, run_dir: Path, tmp_path: Path) -> None:
    (run_dir / "results.json").unlink()
    say_overrides(run_dir, "hydra.mode=MULTIRUN", "hydra.launcher.cluster=local", LOCAL, *TINY)
    (run_dir / ".hydra" / "hydra.yaml").write_text("hydra: {mode: MULTIRUN}")
    done = command("resume=foreign")
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.rglob("pwned"))
    assert not (tmp_path / "outputs").exists()
    assert "hydra" not in (run_dir / ".hydra" / "overrides.yaml").read_text()


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("model=beta_vae", "objective.beta=8", "loss=mse", "latent_dim=5", "seed=3", "optimizer=sgd", "optimizer.lr=1e-4"),
        ("model=autoencoder", "network=conv", "network.channels=[4,8]", "data.binarize=dynamic", "data.classes=[0,1]"),
        ("experiment=tune_digits", "size=tiny", "scheduler=cosine", "trainer.patience=3", "trainer.clip_grad_norm=1"),
        ("name='a \\'b\\' c:\\\\d, [e] {f}'", "evaluation.manifold_range=[-1.5,2,-1e-3,4]", "tracking.tags=[x,'y z']"),
    ],
)
def test_c1_the_stored_config_alone_gives_the_same_run(compose, overrides: tuple[str, ...], tmp_path: Path) -> None:
    from vae_lab.resume import read_resume

    stored = compose(*overrides)
    RunDir(tmp_path).write_config(stored)
    lines, folder = read_resume([f"resume={tmp_path}"], [], sweep=False)
    again = compose(*lines)
    assert folder == tmp_path
    assert again == stored
    assert fingerprint(again) == fingerprint(stored)


def test_c1_a_config_from_before_a_key_was_there_still_resumes(compose, tmp_path: Path) -> None:
    from vae_lab.resume import read_resume

    stored = compose("seed=4")
    del stored["data"]["classes"]
    RunDir(tmp_path).write_config(stored)
    assert compose(*read_resume([f"resume={tmp_path}"], [], sweep=False)[0]) == compose("seed=4")


def test_c1_a_group_without_yaml_of_its_name_is_rebuilt_whole(compose, tmp_path: Path) -> None:
    from vae_lab.resume import read_resume

    stored = compose("optimizer=sgd")
    stored["network"] = {"name": "of_a_plugin", "width": 3}
    RunDir(tmp_path).write_config(stored)
    assert compose(*read_resume([f"resume={tmp_path}"], [], sweep=False)[0]) == stored


@pytest.mark.slow
def test_c1_later_overrides_count_and_bits_stay(command, tmp_path: Path) -> None:
    small = (*TINY, "trainer.epochs=3", "model=beta_vae", "optimizer=sgd", "optimizer.lr=1e-4", "latent_dim=3")
    stop = (
        "import signal, sys; sys.path.insert(0, {root!r}); from tests.test_kill import signal_at_step; "
        "signal_at_step(20, signal.SIGTERM); sys.argv = ['run.py', *{arguments!r}]; import runpy; "
        "runpy.run_path({root!r} + '/run.py', run_name='__main__')"
    )
    assert command(*small, "hydra.run.dir=whole").returncode == 0
    code = stop.format(root=str(ROOT), arguments=[*small, "hydra.run.dir=one"])
    stopped = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert stopped.returncode == 143, stopped.stderr
    shutil.rmtree(tmp_path / "one" / ".hydra")
    assert command("resume=one").returncode == 0
    assert hashes(tmp_path / "one") == hashes(tmp_path / "whole")
    done = command("resume=one", "trainer.epochs=4", "optimizer.lr=1e-5", "resume_allow=[trainer.epochs,lr]")
    assert done.returncode == 0, done.stderr
    results = RunDir(tmp_path / "one").read_results()
    assert results is not None
    assert results["resumed"][-1]["config"] == {"optimizer.lr": [1e-4, 1e-5], "trainer.epochs": [3, 4]}


def test_c1_a_group_on_a_resume_is_refused_with_its_keys(run_dir: Path, capsys) -> None:
    assert "optimizer.name: adam there, sgd here" in refused(capsys, "resume=foreign", "optimizer=sgd")
    assert "model.variant: vae there, beta_vae here" in refused(capsys, "resume=foreign", "model=beta_vae")
    assert "size=...: sets many keys" in refused(capsys, "resume=foreign", "size=large")
    assert "A sweep goes on by its own command" in refused(capsys, "-m", "resume=foreign", "seed=0,1")
    assert "A sweep goes on by its own command" in refused(capsys, "resume=foreign", "hydra.mode=MULTIRUN")


@pytest.mark.parametrize(
    ("text", "word"),
    [
        (DOUBLED, "aliases"),
        ("a: &a [*a]", "stands inside"),
        ("a: " + "[" * 900 + "]" * 900, "levels"),
        ("seed: 2026-99-99", "readable"),
        ("- 1", "not a run's config"),
        ("name: !!python/object/apply:os.system [touch pwned]", "python/object"),
    ],
)  # fmt: skip
def test_c1_bombs_in_a_stored_config(run_dir: Path, capsys, text: str, word: str) -> None:
    (run_dir / "config.yaml").write_text(text)
    assert word in refused(capsys, "resume=foreign")


def test_c1_paths_that_a_run_directory_names_are_not_written_to(compose, run_dir: Path, tmp_path: Path) -> None:
    from vae_lab.resume import read_resume

    (tmp_path / "there").mkdir()
    stored = compose("data=folder", f"data.root={tmp_path / 'there'}", f"data.cache={tmp_path / 'evil'}")
    RunDir(run_dir).write_config(stored)
    data = compose(*read_resume(["resume=foreign"], [], sweep=False)[0])["data"]
    assert (data["root"], data["cache"]) == (str(tmp_path / "there"), "outputs/cache")
    RunDir(run_dir).write_config(compose("data=mnist", f"data.root={tmp_path / 'there'}", "data.download=true"))
    data = compose(*read_resume(["resume=foreign"], [], sweep=False)[0])["data"]
    assert (data["root"], data["download"]) == (str(tmp_path / "there"), False)


LINKS = ("config.yaml", "metrics.jsonl", "results.json", "run.log", ".lock", "README.md")
LINKS += (".hydra", "figures", "checkpoints", "wandb")
BEST = "checkpoints/best"


@pytest.mark.parametrize("name", LINKS)
@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_c6_links_and_pipes_in_a_run_directory(run_dir: Path, capsys, tmp_path: Path, name: str, kind: str) -> None:
    place, outside = run_dir / name, tmp_path / "outside"
    if place.is_dir():
        shutil.move(place, outside)
    else:
        outside.write_bytes(place.read_bytes() if place.exists() else b"")
        place.unlink(missing_ok=True)
    if kind == "link":
        place.symlink_to(outside)
    else:
        os.mkfifo(place)
    before = outside.stat()
    for arguments in (["resume=foreign"], ["hydra.run.dir=foreign", *QUICK]):
        said = refused(capsys, *arguments)
        assert str(place.relative_to(tmp_path)) in said
        assert ("symbolic link" if kind == "link" else "pipe") in said or "no run lies there" in said
    assert (outside.stat().st_mtime_ns, outside.stat().st_size) == (before.st_mtime_ns, before.st_size)


@pytest.mark.parametrize(
    "name", ["config.yaml", "results.json", "metrics.jsonl", f"{BEST}/manifest.json", f"{BEST}/model.safetensors"]
)
def test_c6_a_pipe_is_never_waited_for(run_dir: Path, call, name: str, capsys) -> None:
    (run_dir / name).unlink()
    os.mkfifo(run_dir / name)
    codes = {"config.yaml": 2, "results.json": 3, "metrics.jsonl": 3}
    assert call("push", run_dir, "user/name", "--dry-run") == codes.get(name, 5)
    assert name.rpartition("/")[2] in capsys.readouterr().err
    assert call("compare", run_dir.parent) in (0, 2)
    assert call("sample", run_dir) == {"config.yaml": 2, "results.json": 0, "metrics.jsonl": 0}.get(name, 5)


def test_c6_links_at_places_that_the_command_names(run_dir: Path, capsys, tmp_path: Path) -> None:
    for name, override in (("meta", "hydra.output_subdir=meta"), ("x.log", "hydra.job.name=x")):
        (run_dir / name).symlink_to(tmp_path / "outside")
        assert f"foreign/{name}: a symbolic link" in refused(capsys, "hydra.run.dir=foreign", *QUICK, override)


def test_c6_pipes_and_links_among_images(tmp_path: Path, compose) -> None:
    from PIL import Image

    from vae_lab.data.base import load

    images, other = tmp_path / "images", tmp_path / "other"
    for folder in (images, other):
        folder.mkdir()
        for index in range(4):
            Image.new("L", (8, 8), index * 50).save(folder / f"{index}.png")
    (images / "x.png").symlink_to(other / "1.png")
    (images / "y.png").symlink_to(images / "1.png")
    cfg = compose("data=folder", f"data.root={images}", "data.size=8", "data.channels=1", "data.cache=null")["data"]
    assert len(load(cfg).train) > 0
    os.mkfifo(images / "pipe.png")
    with pytest.raises(DataError, match=r"1 of 7 files cannot be used: pipe.png \(not a regular file\)"):
        load(cfg | {"limit": 5})


def test_c6_links_out_of_a_data_folder_are_said(tmp_path: Path) -> None:
    from vae_lab.data.folder import links_out

    (tmp_path / "in").mkdir()
    (tmp_path / "out.png").touch()
    (tmp_path / "in" / "a.png").touch()
    (tmp_path / "in" / "b.png").symlink_to(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "c.png").symlink_to(tmp_path / "out.png")
    assert links_out(tmp_path / "in", ["a.png", "b.png", "c.png"]) == [f"c.png (to {tmp_path / 'out.png'})"]


@pytest.mark.parametrize("name", ["optuna.db", "multirun.yaml", "sweep.json", ".submitit", "0_vae", "0_vae/run.log", "best.json"])
def test_c6_links_in_a_sweeps_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    place = tmp_path / "sweep" / name
    place.parent.mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    place.symlink_to(tmp_path / "outside")
    said = refused(capsys, "-m", "seed=0,1", "hydra.sweep.dir=sweep")
    assert f"sweep/{name}: a symbolic link" in said
    assert list((tmp_path / "outside").iterdir()) == []


def test_c6_optuna_db_is_not_opened_through_a_link(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    from vae_lab.tune import Direction, SearchOptions, _open

    space = {"latent_dim": {"low": 2, "high": 4}}
    options = SearchOptions(metric="val/elbo", direction=Direction.maximize, num_trials=1, batch_size=1, seed=0, search_space=space)
    (tmp_path / "optuna.db").symlink_to(tmp_path / "outside.db")
    with pytest.raises(ConfigError, match="symbolic link"):
        _open(tmp_path, options)
    assert not (tmp_path / "outside.db").exists()


def test_c1_trials_of_a_foreign_search_are_no_overrides(tmp_path: Path) -> None:
    optuna = pytest.importorskip("optuna")
    from vae_lab.tune import Direction, SearchOptions, _open, tune

    space = {"latent_dim": {"low": 2, "high": 4}}
    options = SearchOptions(metric="val/elbo", direction=Direction.maximize, num_trials=1, batch_size=1, seed=0, search_space=space)
    study = _open(tmp_path, options)
    study.ask({"hydra.sweep.dir": optuna.distributions.CategoricalDistribution(["/srv"])})
    launched: list = []
    with pytest.raises(ConfigError, match="of another search"):
        tune(lambda jobs, first: launched.append(jobs) or [], tmp_path, [], options)
    assert launched == []


def test_c1_submitit_reads_no_pickle_that_was_there_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit")
    monkeypatch.chdir(tmp_path)
    from vae_lab.cluster import ClusterWorker

    (tmp_path / "sweep" / ".submitit").mkdir(parents=True)
    worker = ClusterWorker(tmp_path / "sweep", "local", {})
    assert worker.folder.parent == tmp_path / "sweep" / ".submitit"
    assert list(worker.folder.iterdir()) == []
    lines = prepare(["-m", "seed=0,1", "hydra.sweep.dir=sweep", "hydra/launcher=submitit_local"])
    assert any(line.startswith("hydra.launcher.submitit_folder=") and ".submitit/jobs-" in line for line in lines)


def test_c1_workers_import_nothing_from_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vae_lab.pool import Process

    monkeypatch.chdir(tmp_path)
    for name in ("json", "yaml", "queue"):
        (tmp_path / f"{name}.py").write_text("import pathlib\npathlib.Path('pwned').touch()\n")
    worker = Process()
    assert worker.process.stdin is not None
    worker.process.stdin.close()
    assert worker.process.wait(60) == 0, worker.last_words()
    worker.close()
    assert not (tmp_path / "pwned").exists()


def test_c6_push_takes_known_files_and_says_what_it_leaves(run_dir: Path, call, capsys, tmp_path: Path) -> None:
    secret = tmp_path / "id_rsa"
    secret.write_text("PRIVATE")
    best = run_dir / "checkpoints" / "best"
    (best / "notes.txt").write_text("extra")
    (best / "key.safetensors").symlink_to(secret)
    (run_dir / "figures").mkdir(exist_ok=True)
    (run_dir / "figures" / "samples.png").symlink_to(secret)
    assert call("push", run_dir, "user/name", "--dry-run") == 0
    said = capsys.readouterr().out
    listed = [line.split("bytes  ")[1] for line in said.splitlines() if "bytes  " in line]
    assert sorted(listed) == sorted(
        ["README.md", "config.yaml", "results.json", "metrics.jsonl"]
        + [f"checkpoints/best/{name}" for name in ("manifest.json", "model.safetensors", "training.pt")]
    )
    for name in ("checkpoints/best/notes.txt", "checkpoints/best/key.safetensors", "figures/samples.png"):
        assert f"left out: {name}" in said
    (run_dir / "metrics.jsonl").unlink()
    (run_dir / "metrics.jsonl").symlink_to(secret)
    assert call("push", run_dir, "user/name", "--dry-run") == 3
    assert "metrics.jsonl: missing, a link" in capsys.readouterr().err


def test_c6_commands_write_nothing_through_links(run_dir: Path, call, capsys, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    shutil.rmtree(run_dir / "tasks", ignore_errors=True)
    (run_dir / "tasks").symlink_to(tmp_path / "outside")
    assert call("sample", run_dir, "--n", 4) == 2
    assert "tasks: a symbolic link" in capsys.readouterr().err
    assert list((tmp_path / "outside").iterdir()) == []


def test_values_in_the_grammar_of_overrides() -> None:
    from vae_lab.entry import parse
    from vae_lab.rebuild import literal

    for value in (None, True, 3, -2.5, 1e-7, "a", "null", "", "1e3", "c:\\d\\", "it's \\'", 'x"y', "[a,b]", [1, ["x"], []], {}):
        assert parse([f"x={literal(value)}"])[0].value() == value
    assert json.dumps(literal({"a": [1]})) == '"{a:[1]}"'
