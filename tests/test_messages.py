"""What goes wrong ends with one message and the right exit code; what is printed is data, to whoever still reads it."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path

import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from rich.console import Console

from tests.conftest import ROOT
from vae_lab import text
from vae_lab.console import as_text, say
from vae_lab.entry import prepare, with_folder
from vae_lab.errors import DataError, OutOfMemoryError, StorageError, memory_errors
from vae_lab.run_dir import RunDir

TINY = ("trainer.epochs=2", "hidden_dims=[8]", "tracking=none", "evaluation.figures=false", "device=cpu")
NASTY = "a[/b][red]c :smile: \x1b[31m\x07\x9b2J\n\u202e\udc80d"


def one_message(done: subprocess.CompletedProcess, code: int) -> str:
    """The message of a command that had to end with this code, checked to be all that it says there."""
    assert done.returncode == code, done.stdout[-2000:] + done.stderr[-2000:]
    assert "Traceback" not in done.stdout + done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    return errors[0]


def refused(capsys: pytest.CaptureFixture[str], *overrides: str) -> tuple[int, str]:
    """Exit code and message of a command line that is refused before Hydra starts."""
    with pytest.raises(SystemExit) as end:
        prepare(list(overrides))
    said = capsys.readouterr().err
    assert said.count("error: ") == 1
    return int(end.value.code or 0), said


# --- D1: no markup, no terminal commands in data


def test_d1_what_is_printed_is_data() -> None:
    shown = StringIO()
    say(Console(file=shown, force_terminal=True, width=200), NASTY, "bold")
    assert r"a[/b][red]c :smile: \x1b[31m\x07\x9b2J\n\u202e\udc80d" in shown.getvalue()
    assert as_text(NASTY).plain.isprintable()
    assert text.printable("Zürich \N{ZERO WIDTH JOINER} 数") == "Zürich \N{ZERO WIDTH JOINER} 数"


def test_d1_a_run_with_markup_in_its_name_and_folder(train_quiet, capsys: pytest.CaptureFixture[str]) -> None:
    from vae_lab.progress import ProgressBar, print_results

    results = train_quiet(*TINY, "name='a[/b]c'", folder="[/y]")
    shown = StringIO()
    print_results(Console(file=shown, width=200), results, str(results["dir"]), ["[/z].png"])
    assert "a[/b]c: vae on digits" in shown.getvalue()
    assert "[/y]" in shown.getvalue()
    assert "([/z].png)" in shown.getvalue()
    with ProgressBar(Console(file=StringIO(), force_terminal=True), 1, 1, 1) as bar:
        bar.shown = -1.0
        bar.on_step(1, lambda: {"train/[/nll]": 1.0})
        bar.line("[/x]")


@pytest.mark.parametrize("terminal", [True, False])
def test_d1_a_sweep_with_markup_in_its_names(tmp_path: Path, compose, terminal: bool) -> None:
    from tests.planted import config, plant
    from vae_lab.planning import Cost, Planned
    from vae_lab.pool import Process
    from vae_lab.sweep_display import SweepDisplay, print_closing

    jobs = []
    for seed in (0, 1):
        plain = config(seed=seed, name=f"a[/b]{seed}\x1b[2J", data__root=f"[/{seed}]")
        folder = plant(tmp_path / f"{seed}_[red]", plain, skipped={"figures/[/x]": "ValueError: [/y]"})
        jobs.append(Planned(seed, plain, folder, "", Cost(0.0, 0.0), state="completed"))
    jobs[0].state, jobs[0].cause = "failed", "[/cause]\x1b[2J"
    shown = StringIO()
    console = Console(file=shown, force_terminal=terminal, width=250)
    print_closing(console, jobs)

    worker = Process()
    worker.cohort = jobs[:1]
    with SweepDisplay(console, jobs, jobs) as display:
        display.shown = -1e9
        display.show([worker])
    worker.close()
    for part in ("[/0]", "0_[red]", r"[/cause]\x1b[2J", "left out of 2 of 2 runs: figures/[/x]: ValueError: [/y]"):
        assert part in shown.getvalue()
    assert r"a[/b]0\x1b[2J: starting" in shown.getvalue()


def test_d1_the_doctor_shows_what_it_saw(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from vae_lab import doctor

    monkeypatch.setattr(doctor, "CHECKS", {"fine": lambda folder: "[/seen]", "broken": lambda folder: 1 / 0})
    assert doctor.examine() == 1
    said = capsys.readouterr().out
    assert "[/seen]" in said
    assert "FAIL" in said


def test_d1_an_error_commands_no_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = refused(capsys, f"hydra.run.dir={tmp_path}/x", "mod\u202eel=1", "name='\x1b[2J'")
    assert code == 2
    assert said.strip().isprintable()


# --- D2: no room


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """A disk of so many KiB, of its own file system."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    mounted: list[Path] = []

    def make(kib: int) -> Path:
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(folder)], check=False).returncode:
            pytest.skip("mounting is not allowed here")
        mounted.append(folder)
        return folder

    yield make
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path, leave: int) -> Path:
    """A file that takes all room of a file system but so many bytes."""
    blocks = shutil.disk_usage(folder).free // 4096 - leave // 4096
    (folder / "filler").write_bytes(b"x" * 4096 * blocks)
    return folder / "filler"


def test_d2_no_room_for_hydras_files(command, small_disk, tmp_path: Path) -> None:
    disk = small_disk(64)
    filler = fill(disk, 8192)
    said = one_message(command(*TINY, f"hydra.run.dir={disk}/run"), 6)
    assert "free in" in said
    assert str(disk) in said
    filler.unlink()
    (disk / "other").mkdir()
    (disk / "other" / ".hydra").write_text("a file, not a folder")
    assert f"{disk}/other/.hydra" in one_message(command(*TINY, f"hydra.run.dir={disk}/other"), 6)


def test_d2_a_run_log_that_cannot_be_opened(command, tmp_path: Path) -> None:
    (tmp_path / "run" / "run.log").mkdir(parents=True)
    assert "run/run.log: a folder, where a run has a file" in one_message(command(*TINY, f"hydra.run.dir={tmp_path}/run"), 2)


def test_d2_no_room_for_a_sweeps_files(command, small_disk) -> None:
    disk = small_disk(64)
    filler = fill(disk, 4096)
    assert "free in" in one_message(command("-m", *TINY, "seed=0,1", f"hydra.sweep.dir={disk}/s"), 6)
    filler.unlink()
    (disk / "t" / "sweep.json").mkdir(parents=True)
    said = one_message(command("-m", *TINY, "seed=0,1", f"hydra.sweep.dir={disk}/t"), 6)
    assert f"Cannot write {disk}/t/sweep.json" in said


def test_d2_no_room_for_pictures(train_quiet, tmp_path: Path) -> None:
    """The run goes on, from its last checkpoint to its end, when there is room."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (18_000, before[1]))
    try:
        with pytest.raises(StorageError, match=r"Cannot write .*/figures/\w+.png: File too large .* free in"):
            train_quiet(*TINY, "hidden_dims=[2]", "evaluation.figures=true", folder="full")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    results = RunDir(tmp_path / "full").read_results()
    assert results is not None
    assert results["status"] == "failed"
    again = train_quiet(*TINY, "hidden_dims=[2]", "evaluation.figures=true", folder="full")
    assert again["status"] == "completed"
    assert "skipped" not in again
    assert len(list((tmp_path / "full" / "figures").iterdir())) == 5


# --- D3: nobody reads


def shell(line: str, folder: Path) -> int:
    """Exit code of the first command of a pipe in bash, run in a folder."""
    script = f"{line}\nexit ${{PIPESTATUS[0]}}"
    return subprocess.run(["bash", "-c", script], cwd=folder, stderr=subprocess.DEVNULL, timeout=200, check=False).returncode


@pytest.mark.parametrize("end", ["| head -1", "> /dev/full 2> /dev/full", ">&- 2>&- <&-", "2>&1 | true"])
def test_d3_lost_output_costs_its_lines(tmp_path: Path, end: str) -> None:
    words = " ".join(f"'{word}'" for word in (*TINY, f"hydra.run.dir={tmp_path}/run"))
    assert shell(f"{sys.executable} {ROOT}/run.py {words} {end}", tmp_path) == 0
    run_dir = RunDir(tmp_path / "run")
    results = run_dir.read_results()
    assert results is not None
    assert results["status"] == "completed"
    assert len(run_dir.read_metrics()) == 2
    assert {path.name for path in run_dir.path.iterdir()} >= {"config.yaml", "run.log", ".hydra", "checkpoints"}
    assert run_dir.config.read_text().startswith("name: "), "a closed descriptor's number was given to a file"


def test_d3_a_sweep_nobody_watches(tmp_path: Path) -> None:
    words = " ".join(f"'{word}'" for word in ("-m", *TINY, "seed=0,1", f"hydra.sweep.dir={tmp_path}/s"))
    assert shell(f"{sys.executable} {ROOT}/run.py {words} 2>&- | true", tmp_path) == 0
    assert json.loads((tmp_path / "s" / "sweep.json").read_text())["completed"] == 2


def test_d3_a_command_nobody_watches(trained, tmp_path: Path) -> None:
    folder = trained(*TINY)
    code = "import sys; from vae_lab.cli import main; main()"
    for number, end in enumerate(("> /dev/full 2>&1", ">&- 2>&-")):
        out = tmp_path / f"{number}.png"
        line = f'{sys.executable} -c "{code}" sample {folder} --n 4 --out {out} {end}'
        assert shell(line, tmp_path) == 0
        assert out.stat().st_size > 100


# --- D4: damaged files, wrong groups, memory, long and odd names

DEEP = "[" * 200_000
TORN = {
    "torn": lambda whole: whole[: len(whole) // 2],
    "empty": lambda whole: "",
    "deep": lambda whole: DEEP,
    "a list": lambda whole: "[1, 2]",
    "half of its keys": lambda whole: '{"status": "completed", "test": {}}',
    "NUL bytes": lambda whole: "\0" * 100,
}


@pytest.fixture
def finished(trained, tmp_path: Path) -> Path:
    """A finished run of its own."""
    return Path(shutil.copytree(trained(*TINY), tmp_path / "finished"))


@pytest.mark.parametrize("damage", TORN)
def test_d4_damaged_results_are_written_again(finished: Path, capsys: pytest.CaptureFixture[str], damage: str, compose) -> None:
    from vae_lab.resume import reserve

    results = finished / "results.json"
    whole = results.read_text()
    results.write_text(TORN[damage](whole))
    _, held, found = reserve(finished, compose(*TINY), explicit=True)
    assert found is None
    assert held is not None
    held.release()
    assert f"{results} is damaged (" in capsys.readouterr().err


def test_d4_damaged_results_through_the_front_door(command, trained, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(trained(*TINY), tmp_path / "run"))
    before = json.loads((folder / "results.json").read_text())
    (folder / "results.json").write_text(DEEP)
    done = command(*TINY, f"hydra.run.dir={folder}")
    assert done.returncode == 0, done.stderr
    assert "results.json is damaged (nested too deeply)" in done.stderr
    assert json.loads((folder / "results.json").read_text())["test"] == before["test"]


@pytest.mark.parametrize("row", [DEEP, "[1]", "3", '{"epoch": "two"}', '{"epoch": 2, "seconds": null}', "\0\0", "{}"])
def test_d4_damaged_rows_end_the_metrics(finished: Path, row: str) -> None:
    run_dir = RunDir(finished)
    first = run_dir.metrics.read_text().splitlines()[0]
    run_dir.metrics.write_text(f"{first}\n{row}\n{first}\n")
    assert [found["epoch"] for found in run_dir.read_metrics()] == [1]
    assert run_dir.lost_epochs(2) == f"{run_dir.metrics} is damaged: it holds 1 of 2 epochs."


def test_d4_a_finished_run_without_metrics_says_so(finished: Path, monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    (finished / "metrics.jsonl").unlink()
    with pytest.raises(SystemExit) as end:
        prepare([*TINY, f"hydra.run.dir={finished}"])
    assert not end.value.code
    said = capsys.readouterr().out
    assert "metrics.jsonl is gone: the numbers of its 2 epochs are lost" in said
    assert "Nothing to do: this run is finished." in said


def test_d4_going_on_without_metrics_says_so(train_quiet, tmp_path: Path) -> None:
    train_quiet(*TINY)
    (tmp_path / "run" / "metrics.jsonl").unlink()
    (tmp_path / "run" / "results.json").unlink()
    results = train_quiet(*TINY, "evaluation.figures=true")
    assert results["status"] == "completed"
    assert list(results["skipped"]) == ["figures/curves"]


CONFIGS = {
    "deep": "data: " + "[" * 20_000 + "]" * 20_000,
    "deep in blocks": "data:\n" + "- " * 20_000 + "x",
    "empty": "",
    "torn": "data: {name: [",
    "a list": "- 1\n",
    "bytes": "\x80\x81",
}


@pytest.mark.parametrize("damage", CONFIGS)
def test_d4_a_damaged_config_is_one_message(finished: Path, capsys: pytest.CaptureFixture[str], call, damage: str) -> None:
    (finished / "config.yaml").write_text(CONFIGS[damage], encoding="latin-1")
    code, said = refused(capsys, *TINY, f"hydra.run.dir={finished}")
    assert code == 2
    assert f"{finished}/config.yaml" in said
    for words in (("card",), ("sample", "--n", "1"), ("encode",)):
        assert call(words[0], finished, *words[1:]) == 2
        assert f"{finished}/config.yaml" in capsys.readouterr().err


@pytest.mark.slow
def test_d4_a_sweep_over_damaged_folders(command, tmp_path: Path) -> None:
    """A sweep trains again what it cannot read, and its own torn ledger is replaced."""
    words = ("-m", *TINY, "seed=0,1,2", "hydra.sweep.dir=s")
    assert command(*words).returncode == 0
    runs = sorted((tmp_path / "s").glob("*_vae_*"))
    numbers = [json.loads((run / "results.json").read_text())["test"]["loss"] for run in runs]
    (tmp_path / "s" / "sweep.json").write_text(DEEP)
    (runs[0] / "results.json").write_text(DEEP)
    (runs[1] / "metrics.jsonl").unlink()
    (runs[2] / "config.yaml").write_text(CONFIGS["deep"])
    done = command(*words)
    assert done.returncode == 0, done.stderr
    assert "metrics.jsonl is gone" in done.stdout
    assert json.loads((tmp_path / "s" / "sweep.json").read_text())["completed"] == 3
    again = [json.loads((run / "results.json").read_text())["test"]["loss"] for run in runs]
    assert again == pytest.approx(numbers, rel=1e-5)


@pytest.mark.parametrize("keep", [0, 50, 5_000, None])
def test_d4_a_torn_database_is_one_message(tmp_path: Path, keep: int | None) -> None:
    from vae_lab.tune import DATABASE, SearchOptions, tune

    sweeper = {"metric": "val/elbo", "direction": "maximize", "num_trials": 2, "batch_size": 1, "seed": 0}
    options = SearchOptions.of(sweeper | {"search_space": {"optimizer.lr": {"low": 1e-4, "high": 1e-2}}})
    path = tmp_path / DATABASE

    def no_results(jobs, first):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(no_results, tmp_path, ["seed=0"], options)
    whole = path.read_bytes()
    path.write_bytes(whole[:4096] + b"\xff" * 8192 + whole[12288:] if keep is None else whole[:keep])
    if keep == 0:  # an empty file is a new database
        with pytest.raises(KeyboardInterrupt):
            tune(no_results, tmp_path, ["seed=0"], options)
    else:
        with pytest.raises(DataError, match=rf"{path}: damaged \(.*Move it away"):
            tune(no_results, tmp_path, ["seed=0"], options)
    path.unlink()
    path.mkdir()
    with pytest.raises(StorageError, match=f"Cannot write {path}"):
        tune(no_results, tmp_path, ["seed=0"], options)


GROUPS = ("data", "network", "size", "loss", "objective", "model", "optimizer", "scheduler", "trainer", "evaluation", "tracking")


@pytest.mark.parametrize("group", [*GROUPS, "experiment", "hydra/launcher", "hydra/sweeper"])
@pytest.mark.parametrize("sweep", [False, True])
def test_d4_a_group_that_is_no_name(tmp_path: Path, monkeypatch, capsys, group: str, sweep: bool) -> None:
    monkeypatch.chdir(tmp_path)
    for value in ("null", "3", "1.5", "true", "[nope]", "''"):
        code, said = refused(capsys, *(("-m",) if sweep else ()), f"{group}={value}")
        assert code == 2
        assert f"error: Unknown {group} '" in said
        assert "Choose from: " in said
    assert list(tmp_path.iterdir()) == []


def test_d4_a_swept_group_that_is_no_name(command, tmp_path: Path) -> None:
    said = one_message(command("-m", *TINY, "model=vae,null", "hydra.sweep.dir=s"), 2)
    assert "model=null" in said


@pytest.mark.parametrize(
    "lack",
    [
        lambda: bytearray(2**60),
        lambda: torch.empty(2**58),
        lambda: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")),
    ],
    ids=["python", "torch on the CPU", "torch on a GPU"],
)
def test_d4_no_memory_is_code_10(lack: Callable[[], object]) -> None:
    with pytest.raises(OutOfMemoryError, match=r"Not enough memory \(.*Lower trainer.batch_size") as error, memory_errors():
        lack()
    assert error.value.exit_code == 10
    with pytest.raises(RuntimeError, match="another"), memory_errors():
        raise RuntimeError("another")


def test_d4_memory_that_cannot_be_had(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, said = refused(capsys, "hidden_dims=[1000000,1000000]")
    assert code == 10
    assert "hidden_dims" in said
    assert list(tmp_path.iterdir()) == []


def test_d4_no_memory_in_training(train_quiet, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from vae_lab import train

    monkeypatch.setattr(train, "fit", lambda *arguments: torch.empty(2**58))
    with pytest.raises(OutOfMemoryError):
        train_quiet(*TINY)
    results = RunDir(tmp_path / "run").read_results()
    assert results is not None
    assert results["status"] == "failed"
    assert "hydra.launcher.max_cohort" in results["error"]


def test_d4_names_that_are_too_long(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch, call) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("x" * 300, "/".join(["x" * 99] * 45), "ü" * 200):
        assert refused(capsys, *TINY, f"hydra.run.dir='{tmp_path}/{name}'")[0] == 6
        assert refused(capsys, "-m", *TINY, "seed=0,1", f"hydra.sweep.dir='{tmp_path}/{name}'")[0] == 6
        assert refused(capsys, f"--config-dir={name}")[0] == 2
        assert refused(capsys, "data=folder", f"data.root='{name}'")[0] in (2, 3, 6)
        for words in (("sample",), ("card",), ("encode", "--data", "x")):
            assert call(words[0], name, *words[1:]) in (2, 6)
            assert capsys.readouterr().err.count("error: ") == 1
    assert list(tmp_path.iterdir()) == []


ODD = (
    *("a\\b", "a\\", "\\\\a", "a'b", 'a"b', "$x", "${x}", "\\${x}", "{a}", "[a]", "a,b", "a=b", "a b", " a"),
    *("a ", "~a", "ä数", "a;b", "a\\'b", "#a", "a:b", "null", "1", "true", "a\tb", "%s", "(a)", "*"),
    *("a\nb", "???", "${now:%Y}", "a\\\\'", "'", "-m", "!x"),
)


@pytest.mark.parametrize("name", ODD)
def test_d4_one_spelling_of_a_folder(tmp_path: Path, name: str) -> None:
    """The folder that is locked is the one that Hydra writes to, for every name that a file system allows."""
    for key in ("hydra.run.dir", "hydra.sweep.dir"):
        (*_, line) = with_folder([f"++{key}=other", "seed=1"], key, tmp_path / name)
        override = OverridesParser.create().parse_override(line)
        assert OmegaConf.create({"folder": override.value()}).folder == str(tmp_path / name)


def test_d4_odd_folders_through_the_front_door(command, tmp_path: Path) -> None:
    said = [("hydra.run.dir=a\\b", "a\\b"), ("++hydra.run.dir='~x {$y} = \"z\"'", '~x {$y} = "z"')]
    for override, name in said:
        done = command(*TINY, override)
        assert done.returncode == 0, done.stderr
        assert {path.name for path in (tmp_path / name).iterdir()} >= {".lock", ".hydra", "results.json", "run.log"}
    assert {path.name for path in tmp_path.iterdir()} <= {name for _, name in said} | {"home"}


def test_d4_a_lost_worker_note_costs_nothing(tmp_path: Path) -> None:
    from vae_lab.worker import Note

    with Note(tmp_path / "gone" / "note", 1, 1, 1) as note:
        note.phase("training", 1)


def test_files_of_the_working_directory_are_no_modules(command, tmp_path: Path) -> None:
    """Neither a run nor a worker of a sweep imports what happens to lie where it was started."""
    for name in ("yaml", "filelock", "safetensors", "secrets"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported from the working directory')")
    (tmp_path / "attr").mkdir()
    done = command("-m", *TINY, "seed=0,1", "hydra.sweep.dir=s")
    assert done.returncode == 0, done.stdout
