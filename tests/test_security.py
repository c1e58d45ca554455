"""Faults H2 to H5 and F: hostile configs, names and files are refused; odd surroundings are survived."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT
from vae_lab.config import fingerprint, to_plain
from vae_lab.entry import compose_checked, prepare, slug
from vae_lab.errors import ConfigError
from vae_lab.run_dir import RunDir

AUDIT = """
import sys
sys.path.insert(0, {root!r})
import vae_lab.entry, torch, vae_lab.train, sklearn.datasets  # imports start programs and read files of their own
from vae_lab import registry
for group in registry.PACKAGES:
    registry.names(group)
import vae_lab.tracking.weights_and_biases, wandb
seen = []
WATCHED = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect", "os.remove", "os.rename", "os.mkdir")
def hook(event, arguments):
    writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
    own = event == "open" and arguments[0] in (1, 2)  # stdout and stderr by their numbers
    if event in WATCHED or (writes and not own):
        seen.append((event, str(arguments)[:200]))
sys.addaudithook(hook)
try:
    vae_lab.entry.prepare({arguments!r})
    code = 0
except SystemExit as end:
    code = end.code
print("CODE", code, "SEEN", seen)
"""
TARGETS = [
    "os.system", "posix.system", "logging.os.system", "torch.nn.modules.module.os.system", "torch.load", "torch.hub.load",
    "builtins.open", "builtins.eval", "pathlib.Path.unlink", "os._exit", "functools.partial", "hydra.utils.get_method",
]  # fmt: skip
HOSTILE = [
    *[f"+model._target_={target}" for target in TARGETS],
    "+_target_=os.system",
    "+model.nested._target_=os.system",
    "+model.list=[{_target_:os.system}]",
    "+model._partial_=true",
    "+model._args_=[x]",
    "+hydra.job_logging.handlers.evil={'()':os.system}",
    "hydra.job_logging.root.handlers=[evil]",
    "+hydra.callbacks.evil._target_=os.system",
    "hydra.launcher._target_=os.system",
    "hydra/launcher._target_=os.system",
    "hydra.sweeper._target_=os.system",
    "+hydra.job.env_set.PATH=x",
    "hydra/job_logging=disabled",
    "hydra.launcher.submitit={x:{_target_:hydra_plugins.vae_lab_cohort.Path.write_text}}",
    "hydra.launcher.submitit=[{_target_:hydra_plugins.vae_lab_cohort.Path.unlink}]",
    "hydra.launcher.submitit='${oc.create:{x:{_target_:hydra_plugins.vae_lab_cohort.Path.unlink}}}'",
    "hydra.launcher.submitit=${hydra.sweeper}",
    "hydra.launcher={_target_:hydra_plugins.vae_lab_cohort.Path.unlink}",
    "hydra.sweeper={_target_:hydra_plugins.vae_lab_cohort.CohortLauncher}",
    "+hydra.launcher.x._args_=[a]",
    "hydra/launcher@hydra.sweeper=cohort",
    "optimizer@hydra.job.env_set=adam",
    "hydra={job:{env_set:{LD_PRELOAD:x.so}}}",
    "hydra.searchpath=[pkg://antigravity]",
    "+hydra.searchpath=[pkg://antigravity]",
    "hydra.searchpath=['file:///nowhere']",
    "--config-path=/",
    "--config-name=other",
    "--experimental-rerun=job.pickle",
]


@pytest.mark.parametrize("override", HOSTILE)
def test_h3_paths_to_code_are_refused(override: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        prepare([override])
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_h3_nothing_runs_connects_or_writes_while_refusing(tmp_path: Path) -> None:
    for override in (
        "+model._target_=os.system",
        "+hydra.job_logging.handlers.evil={'()':os.system}",
        "hydra.launcher._target_=os.system",
    ):
        code = AUDIT.format(root=str(ROOT), arguments=[override])
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert "CODE 2 SEEN []" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# @package _global_\nmodel: {_target_: os.system}", r"model\._target_"),
        ("# @package _global_\nhydra: {job_logging: {handlers: {x: {'()': os.system}}}}", r"hydra\.job_logging"),
        ("# @package _global_\nhydra: {job_logging: {handlers: {x: {class: os.system}}}}", r"hydra\.job_logging"),
        ("# @package _global_\nhydra: {callbacks: {x: {_target_: os.system}}}", r"hydra\.callbacks"),
        ("# @package _global_\nhydra: {launcher: {_target_: os.system}}", r"hydra\.launcher"),
        ("# @package _global_\nhydra: {launcher: {submitit: {x: {_target_: os.system}}}}", r"submitit\.x\._target_"),
        ("# @package _global_\nhydra: {launcher: {cluster: local, submitit: {local_setup: [touch marker]}}}", "local_setup"),
        ("# @package _global_\nhydra: {launcher: {submitit: {slurm_comment: 'x\\n\\ntouch marker'}}}", "slurm_comment"),
        ("# @package _global_\nhydra: {job: {env_set: {LD_PRELOAD: x.so}}}", "LD_PRELOAD"),
        ("# @package _global_\nhydra: {job_logging: {handlers: {file: {stream: 'ext://os.system'}}}}", "ext://os"),
        ("# @package _global_\nhydra: {job_logging: {handlers: {file: {filename: /srv/x.log}}}}", "inside the run's folder"),
        ("# @package _global_\nhydra: {run: {dir: /srv/x}}", "working directory"),
        ("# @package _global_\nname: !!python/object/apply:os.system [touch marker]", "python/object"),
        ("# @package _global_\nname: ${oc.env:WANDB_API_KEY}", "WANDB_API_KEY"),
        ("# @package _global_\ntracking: {api_key: x}", "api_key"),
        ("a: &a [x]\n" + "\n".join(f"b{i}: [{', '.join(['*a'] * 9)}]" for i in range(9)), "aliases"),
        ("name: " + "x" * 1_100_000, "bytes of YAML"),
        ("name: [", "YAML"),
    ],
)
def test_h5_hostile_yaml(text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_API_KEY", "canary-canary-canary")
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / "evil.yaml").write_text(text)
    began = time.perf_counter()
    with pytest.raises(SystemExit) as end:
        prepare(["--config-dir", "conf", "experiment=evil"])
    assert time.perf_counter() - began < 20
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert re.search(message, said), said
    assert "canary-canary" not in said
    assert {path.name for path in tmp_path.iterdir()} == {"conf"}


@pytest.mark.parametrize("text", ["a: &a [*a]", "a: " + "[" * 900 + "]" * 900, "name: !!python/name:os.system"])
def test_c5_searched_folders_are_checked_as_config_dir_is(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / "evil.yaml").write_text(text)
    with pytest.raises(SystemExit) as end:
        prepare([f"hydra.searchpath=['file://{tmp_path}/conf']"])
    assert end.value.code == 2
    assert "evil.yaml: refused" in capsys.readouterr().err


def test_c5_a_searched_folder_is_searched_beside_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two"):
        (tmp_path / name / "conf" / "experiment").mkdir(parents=True)
        (tmp_path / name / "conf" / "experiment" / f"{name}.yaml").write_text("# @package _global_\nlatent_dim: 7\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VAE_LAB_PLUGINS", str(tmp_path / "one"))
    searched = f"hydra.searchpath=['file://{tmp_path}/two/conf']"
    for name in ("one", "two"):
        line = prepare([f"experiment={name}", searched, "--cfg=job"])[-1]
        assert compose_checked([f"experiment={name}", line])[0].latent_dim == 7


def test_h2_a_hostile_config_in_a_run_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "run"
    (folder / ".hydra").mkdir(parents=True)
    for recorded, stored in (
        ("['+model._target_=os.system']", "{}"),
        ("[]", "model: !!python/object/apply:os.system [touch marker]"),
        ("!!python/object/apply:os.system [touch marker]", "{}"),
    ):
        (folder / ".hydra" / "overrides.yaml").write_text(recorded)
        (folder / "config.yaml").write_text(stored)
        with pytest.raises(SystemExit) as end:
            prepare([f"resume={folder}"])
        assert end.value.code == 2
        assert not list(tmp_path.rglob("marker"))


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a b", "CON", "ü" * 200, "x" * 300, "a\nb", "..", "a/../../b", "<script>"])
def test_h4_names_stay_inside(name: str) -> None:
    made = slug(name)
    assert "/" not in made
    assert made not in ("", ".", "..")
    assert len(made.encode()) <= 140
    assert re.fullmatch(r"[\w.=,+-]+", made)


def test_h4_names_that_slug_to_the_same_stay_apart() -> None:
    assert slug("a/b") != slug("a b")
    assert slug("plain_z2_s0") == "plain_z2_s0"


def test_h4_a_wild_name_runs_inside_the_output_root(command, tmp_path: Path) -> None:
    done = command("name='../../out of/here'", "trainer.epochs=1", "tracking=none", "evaluation.figures=false")
    assert done.returncode == 0, done.stderr
    (run_dir,) = (tmp_path / "outputs" / "runs").iterdir()
    assert RunDir(run_dir).results.exists()
    assert {path.name for path in tmp_path.iterdir()} == {"outputs"}


WAYS_OUT = [
    "-m hydra.sweep.subdir=../x",
    "-m hydra.sweep.subdir=/srv/x",
    "-m hydra.sweep.subdir=${name}/x name=../../target",
    "-m hydra.sweep.subdir=${name}/x name=ok,../../target hydra/launcher=basic",
    "-m hydra.sweep.dir=runs/${name} name=../target",
    "hydra.run.dir=link",
    "hydra.run.dir=runs/${name} name=../target",
    "hydra.run.dir=${name} name=/srv/x",
    "hydra.output_subdir=/srv/x",
    "hydra.output_subdir=../target",
    "hydra.output_subdir=.",
    "hydra.output_subdir=${name} name=../../target",
    "hydra.job.name=../../target/x",
    "hydra.job.name=${name} name=../../target/x",
]


@pytest.mark.parametrize("arguments", WAYS_OUT)
def test_h4_no_way_out(arguments: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "target").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with pytest.raises(SystemExit) as end:
        prepare(arguments.split())
    assert end.value.code == 2
    assert list((tmp_path / "target").iterdir()) == []
    assert {path.name for path in tmp_path.iterdir()} == {"target", "link"}


def test_c3_each_job_of_a_sweep_is_checked(command, tmp_path: Path) -> None:
    said = command("-m", "hydra.sweep.dir=a/b", "hydra.sweep.subdir='${name}/x'", "name=ok,../../wild")
    assert said.returncode == 2
    assert "hydra.sweep.subdir=../../wild/x: must stay inside" in said.stderr
    assert {path.name for path in tmp_path.rglob("*")} == {"a", "b", "multirun.yaml"}


def test_c3_a_run_may_go_where_the_user_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRATCH", str(tmp_path / "scratch"))
    monkeypatch.chdir(tmp_path)
    for folder in (str(tmp_path / "x"), "../y", "${oc.env:SCRATCH}/z", "runs/${model.variant}_${slug:${name}}"):
        compose_checked([f"hydra.run.dir='{folder}'", "name='../../a b'"])


def test_g3_a_secret_on_the_command_line_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "canary-canary-canary")
    for override in ("name=canary-canary-canary", "name='${oc.env:MY_TOKEN}'", "tracking.project=x-canary-canary-canary"):
        with pytest.raises(ConfigError, match=r"secret|from the environment") as error:
            compose_checked([override])
        assert "canary" not in str(error.value)
    with pytest.raises(ConfigError):
        compose_checked(["+tracking.api_key=abc"])


@pytest.mark.parametrize(
    "override",
    [
        "name='${oc.env :MY_TOKEN}'",
        "name='${oc.env: MY_TOKEN}'",
        "name='${oc.decode:${oc.env:MY_TOKEN}}'",
        "name='${slug:${oc.env:MY_${loss.word}}}' +loss.word=TOKEN",
        "tracking.tags='[\"${oc.env :MY_TOKEN}\"]'",
        "name='${oc.env:UNSET,${oc.env :MY_TOKEN}}'",
        "hydra.run.dir='${oc.env :MY_TOKEN}'",
        "tracking.tags=[a,canary-canary-canary]",
        "+tracking.canary-canary-canary=1",
        "name=https://me:pass@host/x",
        "tracking.project='postgres://u:pw@h/db'",
        "+tracking.apiKey=abc",
        "+model.password=x",
        "+data.auth_token=x",
    ],
)
def test_c4_no_spelling_gets_a_secret_into_a_config(override: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "canary-canary-canary")
    with pytest.raises(ConfigError, match=r"secret|environment|password") as error:
        compose_checked(override.replace(" +", "\n+").split("\n"))
    assert "canary" not in str(error.value)


def test_c4_secrets_in_a_job_of_a_sweep_are_written_nowhere(command, tmp_path: Path) -> None:
    for launcher in ("cohort", "basic"):
        said = command("-m", "name=a,canary-canary-canary", f"hydra/launcher={launcher}", MY_TOKEN="canary-canary-canary")
        assert said.returncode == 2
        assert "canary" not in said.stdout + said.stderr
        assert not any(b"canary" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_c4_innocent_names_and_values_pass(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from vae_lab.secrecy import check_values, names_a_secret

    innocent = "num_tokens key_dim author monkey keyboard passes tokenizer pad_token authority bypass"
    for name in innocent.split():
        check_values([(f"model.{name}", "text")])
    check_values([("model.api_key", None), ("model.token", ""), ("model.tokens", 5)])
    for variable in ("KEYBOARD", "AUTHOR", "TOKENIZERS_PARALLELISM", "MONKEY", "HOME"):
        assert not names_a_secret(variable)
    for variable in ("WANDB_API_KEY", "HF_TOKEN", "PGPASSWORD", "mySecret", "AWS_SECRET_ACCESS_KEY", "OPENAI_APIKEY", "GH_PAT"):
        assert names_a_secret(variable)
    (tmp_path / "images").mkdir()
    common = {"TOKEN": "cpu", "AUTH_MODEL": "autoencoder", "SOME_KEY": str(tmp_path / "images"), "KEY_SEED": "12345678"}
    for name, value in common.items():
        monkeypatch.setenv(name, value)
    compose_checked(["device=cpu", "model=autoencoder", "data=folder", f"data.root={tmp_path / 'images'}", "seed=12345678"])


def test_f_hydras_own_copy_of_the_config_gives_the_same_run(command, tmp_path: Path) -> None:
    done = command("trainer.epochs=1", "tracking=none", "evaluation.figures=false", "model=beta_vae", "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    from omegaconf import OmegaConf

    copy = to_plain(OmegaConf.load(tmp_path / "run" / ".hydra" / "config.yaml"))  # type: ignore[arg-type]
    results = RunDir(tmp_path / "run").read_results()
    assert results is not None
    assert fingerprint(copy) == results["fingerprint"] == fingerprint(RunDir(tmp_path / "run").read_config())


@pytest.mark.slow
@pytest.mark.parametrize("surroundings", ["spaces and ümlauts", "no HOME", "LANG=C", "umask 077"])
def test_f_odd_surroundings(surroundings: str, tmp_path: Path) -> None:
    folder = tmp_path / "some where ü" if "ü" in surroundings else tmp_path
    folder.mkdir(exist_ok=True)
    environment = dict(os.environ)
    if surroundings == "no HOME":
        del environment["HOME"]
    if surroundings == "LANG=C":
        environment |= {"LANG": "C", "LC_ALL": "C"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "run.py"), "trainer.epochs=1"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        umask=0o077 if surroundings == "umask 077" else -1,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    (run_dir,) = (folder / "outputs" / "runs").iterdir()
    assert RunDir(run_dir).results.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="a read-only mount needs root")
def test_f_a_read_only_working_directory(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(disk)], check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        done = subprocess.run([sys.executable, str(ROOT / "run.py")], cwd=disk, capture_output=True, text=True, check=False)
        assert done.returncode == 6
        assert re.match(r"error: Cannot write outputs/runs/\S+: Read-only file system \(.* free in .*\)\.\n$", done.stderr), (
            done.stderr
        )
    finally:
        subprocess.run(["umount", str(disk)], check=True)
