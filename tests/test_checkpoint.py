"""Faults B: storage fails at any moment, checkpoints are damaged; nothing is lost."""

import errno
import io
import math
import os
import random
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.processes import finish, said
from tests.test_kill import QUIET, TINY, signal_at_step
from vae_lab import checkpoint
from vae_lab.doctor import hashes
from vae_lab.errors import CheckpointError, StorageError
from vae_lab.run_dir import RunDir

MODEL = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(())}
TRAINING = {"step": 1, "optimizer": {"a": {"exp_avg": torch.full((2, 3), 0.5)}}, "sums": {"loss": 0.25}}


def save(folder: Path, step: int) -> None:
    model = {name: tensor + step for name, tensor in MODEL.items()}
    checkpoint.save(folder, "last", model, TRAINING | {"step": step}, {"step": step, "fingerprint": "f"})


def io_calls(monkeypatch: pytest.MonkeyPatch, fail_at: int | None, failure: Callable[[], None]) -> list[str]:
    """Count each open, write, fsync, mkdir, rename, unlink and rmdir; at the given one, `failure` happens instead."""
    calls: list[str] = []

    def counted(name: str, function):
        def call(*args, **kwargs):
            calls.append(name)
            if fail_at is not None and len(calls) == fail_at:
                failure()
            return function(*args, **kwargs)

        return call

    for name in ("fsync", "mkdir", "rename", "unlink", "rmdir", "open"):
        monkeypatch.setattr(os, name, counted(name, getattr(os, name)))
    plain_open = io.open

    class File:
        def __init__(self, file):
            self.file = file

        def __getattr__(self, name):
            return getattr(self.file, name)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.file.close()

        def write(self, data):
            return counted("write", self.file.write)(data)

    def opened(path, mode="r", *args, **kwargs):
        if "w" not in mode:
            return plain_open(path, mode, *args, **kwargs)
        return File(counted("open", plain_open)(path, mode, *args, **kwargs))

    monkeypatch.setattr(io, "open", opened)
    return calls


def number_of_calls(tmp_path: Path) -> int:
    with pytest.MonkeyPatch.context() as patch:
        save(tmp_path / "count", 1)
        save(tmp_path / "count", 2)
        calls = io_calls(patch, None, lambda: None)
        save(tmp_path / "count", 3)
    assert {"open", "write", "fsync", "mkdir", "rename", "unlink", "rmdir"} <= set(calls)
    return len(calls)


def test_b1_a_crash_at_every_io_call_of_a_save(tmp_path: Path) -> None:
    total = number_of_calls(tmp_path)
    assert total > 20
    for position in range(1, total + 1):
        folder = tmp_path / f"crash-{position}"
        save(folder, 1)
        save(folder, 2)
        pid = os.fork()
        if not pid:
            io_calls(pytest.MonkeyPatch(), position, lambda: os._exit(137))
            save(folder, 3)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 137
        found, problems = checkpoint.load_newest(folder)
        assert not problems
        assert found.manifest["step"] in (2, 3)
        assert torch.equal(found.model["a"], MODEL["a"] + found.manifest["step"])
        save(folder, 4)
        assert checkpoint.load_newest(folder)[0].manifest["step"] == 4
        assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_b1_every_file_is_synced_before_the_rename(tmp_path: Path) -> None:
    """Per file an open, a write, an fsync; then the folder's fsync, the rename, the parent's fsync."""
    with pytest.MonkeyPatch.context() as patch:
        save(tmp_path, 1)
        calls = io_calls(patch, None, lambda: None)
        save(tmp_path, 2)
    kept = [call for call in calls if call in ("write", "fsync", "rename")]
    assert kept == [*["write", "fsync"] * 3, "fsync", "rename", "rename", "fsync"]


def test_b2_no_space_at_every_io_call_of_a_save(tmp_path: Path) -> None:
    def full() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    total, refused = number_of_calls(tmp_path), 0
    for position in range(1, total + 1):
        folder = tmp_path / f"full-{position}"
        save(folder, 1)
        save(folder, 2)
        with pytest.MonkeyPatch.context() as patch:
            io_calls(patch, position, full)
            try:
                save(folder, 3)
            except StorageError as error:
                assert re.search(r"Cannot write the checkpoint .*No space left.*free in", str(error))  # noqa: PT017
                refused += 1
        found, problems = checkpoint.load_newest(folder)
        assert not problems
        assert found.manifest["step"] in (2, 3)
        assert not (folder / ".last.tmp").exists()
    assert refused >= total - 1  # making a folder that exists may fail without harm


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_b2_a_small_disk_that_fills_up(compose, tmp_path: Path) -> None:
    """A real file system of 1 MiB: the run ends with code 6 and its last whole checkpoint, and goes on when there is room."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        cfg = compose(*QUIET, *TINY, "hidden_dims=[128]", "trainer.epochs=6")
        assert finish(cfg, tmp_path / "whole") == 0
        folder = disk / "run"
        filler = disk / "filler"

        def fill() -> None:
            from vae_lab.train import Recorder

            original = Recorder.on_epoch

            def on_epoch(self, run, metrics) -> None:
                original(self, run, metrics)
                if run.epoch == 3:
                    filler.write_bytes(b"0" * max(0, os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize - 50_000))

            Recorder.on_epoch = on_epoch  # type: ignore[method-assign]

        assert finish(cfg, folder, before=fill) == 6
        message = (disk / "run.error").read_text()
        assert "No space left" in message
        assert "GiB free in" in message
        assert checkpoint.load_newest(folder / "checkpoints")[0].manifest["epoch"] == 2
        filler.unlink()
        subprocess.run(["mount", "-o", "remount,size=8m", str(disk)], check=True)
        assert finish(cfg, folder) == 0
        assert hashes(folder) == hashes(tmp_path / "whole")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.fixture
def interrupted(compose, tmp_path: Path) -> tuple[dict, Path]:
    """A run stopped at step 8 of 12 with checkpoints of steps 8 (last) and 6 (previous)."""
    cfg = compose(*QUIET, *TINY)
    assert finish(cfg, tmp_path / "run", before=lambda: signal_at_step(8, 15)) == 143
    folder = tmp_path / "run"
    steps = [checkpoint.load(folder / "checkpoints" / name).manifest["step"] for name in ("last", "previous")]
    assert steps == [8, 6]
    return cfg, folder


def test_b3_truncated_anywhere_falls_back_and_says_so(interrupted: tuple[dict, Path], tmp_path: Path) -> None:
    cfg, folder = interrupted
    assert finish(cfg, tmp_path / "whole") == 0
    expected = hashes(tmp_path / "whole")
    dice = random.Random(0)
    for file in (checkpoint.MODEL, checkpoint.TRAINING, checkpoint.MANIFEST):
        size = (folder / "checkpoints" / "last" / file).stat().st_size
        for offset in {0, 1, size // 2, size - 1, *(dice.randrange(size) for _ in range(16))}:
            copy = tmp_path / "copy"
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(folder / "checkpoints", copy)
            os.truncate(copy / "last" / file, offset)
            found, problems = checkpoint.load_newest(copy)
            assert found.manifest["step"] == 6
            assert "last" in problems[0]
    os.truncate(folder / "checkpoints" / "last" / checkpoint.TRAINING, 1000)
    assert finish(cfg, folder) == 0
    assert hashes(folder) == expected
    log = RunDir(folder).read_results()
    assert log is not None
    assert log["resumed"][-1]["step"] == 6


def test_b4_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    save(tmp_path, 1)
    dice = random.Random(0)
    for _ in range(100):
        file = dice.choice([checkpoint.MODEL, checkpoint.TRAINING])
        path = tmp_path / "last" / file
        original = path.read_bytes()
        data = bytearray(original)
        data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match=f"{file}: checksum differs"):
            checkpoint.load(tmp_path / "last")
        path.write_bytes(original)
    checkpoint.load(tmp_path / "last")


def test_b5_all_damaged_is_code_5_and_no_silent_restart(interrupted: tuple[dict, Path]) -> None:
    cfg, folder = interrupted
    before = RunDir(folder).metrics.read_text()
    for name in ("last", "previous"):
        (folder / "checkpoints" / name / checkpoint.MODEL).write_bytes(b"nonsense")
    assert finish(cfg, folder) == 5
    for name in ("last", "previous"):
        assert f"{name}/{checkpoint.MODEL}: 8 bytes" in said(folder)
    assert RunDir(folder).metrics.read_text() == before


@pytest.mark.parametrize("place", ["file/below", "proc"])
def test_b6_an_impossible_folder_is_code_6(command, tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    folder = "/proc/vae_lab" if place == "proc" else place
    done = command("tracking=none", f"hydra.run.dir={folder}")
    assert done.returncode == 6, done.stderr
    assert done.stderr.startswith("error: Cannot write")
    assert folder in done.stderr


def test_b6_a_run_directory_that_vanishes(compose, tmp_path: Path) -> None:
    def vanish() -> None:
        from vae_lab.train import Recorder

        original = Recorder.on_epoch

        def on_epoch(self, run, metrics) -> None:
            if run.epoch == 2:
                shutil.rmtree(tmp_path / "run")
            original(self, run, metrics)

        Recorder.on_epoch = on_epoch  # type: ignore[method-assign]

    assert finish(compose(*QUIET, *TINY), tmp_path / "run", before=vanish) == 6
    assert "metrics.jsonl" in said(tmp_path / "run")


def test_b6_an_input_output_error_on_read_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)

    def broken(self: Path) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(self))

    monkeypatch.setattr(Path, "read_bytes", broken)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: Input/output error"):
        checkpoint.load(tmp_path / "last")


def test_b6_links_to_elsewhere_are_not_followed(tmp_path: Path) -> None:
    save(tmp_path / "elsewhere", 1)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last").symlink_to(tmp_path / "elsewhere" / "last")
    with pytest.raises(CheckpointError, match="symbolic link"):
        checkpoint.load_newest(tmp_path / "checkpoints")


def test_b6_the_newest_is_chosen_by_step_not_by_clock(tmp_path: Path) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    for path in (tmp_path / "last").iterdir():
        os.utime(path, (0, 0))
    os.rename(tmp_path / "last", tmp_path / "swap")
    os.rename(tmp_path / "previous", tmp_path / "last")
    os.rename(tmp_path / "swap", tmp_path / "previous")
    assert checkpoint.load_newest(tmp_path)[0].manifest["step"] == 2


def test_b8_a_damaged_newest_never_costs_the_last_sound_one(tmp_path: Path) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    (tmp_path / "last" / checkpoint.MODEL).write_bytes(b"")
    assert checkpoint.load_newest(tmp_path)[0].manifest["step"] == 1
    pid = os.fork()
    if not pid:
        checkpoint._sync = lambda folder: os._exit(137)  # type: ignore[assignment]
        save(tmp_path, 3)
    os.waitpid(pid, 0)
    assert checkpoint.load_newest(tmp_path)[0].manifest["step"] == 1
    save(tmp_path, 3)
    assert checkpoint.load(tmp_path / "previous").manifest["step"] == 1
    assert checkpoint.load(tmp_path / "last").manifest["step"] == 3


def test_b8_best_survives(interrupted: tuple[dict, Path]) -> None:
    cfg, folder = interrupted
    shutil.rmtree(folder / "checkpoints" / "best")
    assert finish(cfg, folder) == 0
    results = RunDir(folder).read_results()
    assert results is not None
    assert checkpoint.load(folder / "checkpoints" / "best").manifest["epoch"] == results["best_epoch"]


@pytest.mark.parametrize("change", ["missing", "extra", "shape"])
def test_b9_a_checkpoint_of_another_model(interrupted: tuple[dict, Path], change: str) -> None:
    cfg, folder = interrupted
    found = checkpoint.load(folder / "checkpoints" / "last")
    model = dict(found.model)
    key = "model.encoder.1.weight"
    if change == "missing":
        del model[key]
    elif change == "extra":
        model["stranger"] = torch.zeros(1)
    else:
        model[key] = torch.zeros(3, 3)
    facts = {name: value for name, value in found.manifest.items() if name not in ("files", "format")}
    checkpoint.save(folder / "checkpoints", "last", model, found.training, facts | {"step": 99})
    assert finish(cfg, folder) == 5
    assert {"missing": f"missing {key}", "extra": "extra stranger", "shape": f"{key} is (3, 3)"}[change] in said(folder)


def changed(folder: Path, change: Callable[[dict, dict], None]) -> None:
    """Write `last` anew, whole, with another content."""
    found = checkpoint.load(folder / "checkpoints" / "last")
    model, training = dict(found.model), dict(found.training)
    change(model, training)
    facts = {name: value for name, value in found.manifest.items() if name not in ("files", "format")}
    checkpoint.save(folder / "checkpoints", "last", model, training, facts | {"step": 99})


KEY = "model.encoder.1.weight"


def moment(training: dict) -> torch.Tensor:
    return training["optimizer"][KEY]["exp_avg_sq"]


UNSOUND: dict[str, tuple[Callable[[dict, dict], object], str]] = {
    "half": (lambda model, _: model.update({KEY: model[KEY].half()}), rf"{KEY} is torch.float16, not torch.float32"),
    "integers": (lambda model, _: model.update({KEY: model[KEY].int()}), rf"{KEY} is torch.int32, not torch.float32"),
    "nan": (lambda model, _: model[KEY].view(-1)[:3].fill_(math.nan), rf"1 of \d+ tensors hold NaN .*: {KEY} \(3 of [\d,]+\)"),
    "inf": (lambda model, _: model[KEY].view(-1)[0].fill_(-math.inf), rf"{KEY} \(1 of [\d,]+\)"),
    "all": (lambda model, _: [x.fill_(math.nan) for x in model.values() if x.is_floating_point()], r"\d+ of \d+ tensors hold NaN"),
    "best": (lambda _, rest: rest["best"]["state"][KEY].fill_(math.nan), rf"best state: 1 of \d+ tensors .*{KEY}"),
    "best half": (lambda _, rest: rest["best"]["state"].update({KEY: rest["best"]["state"][KEY].half()}), "best state belongs"),
    "moment": (lambda _, rest: moment(rest).view(-1)[:2].fill_(math.nan), rf"optimiser state {KEY}.exp_avg_sq \(2 of [\d,]+\)"),
    "moment half": (lambda _, rest: rest["optimizer"][KEY].update(exp_avg=torch.zeros(3, dtype=torch.half)), "torch.float16 "),
    "moment integers": (lambda _, rest: rest["optimizer"][KEY].update(exp_avg=torch.zeros(3, dtype=torch.int)), "torch.int32 "),
    "moment lost": (lambda _, rest: rest["optimizer"][KEY].pop("exp_avg"), "not the same for every tensor"),
    "no optimizer": (lambda _, rest: rest.pop("optimizer"), "not what a run wrote"),
    "no tensor": (lambda _, rest: rest["optimizer"][KEY].update(exp_avg=[1.0]), "not what a run wrote"),
    "strange name": (lambda _, rest: rest["optimizer"].update(x={"exp_avg": torch.zeros(3)}), "not what a run wrote"),
    "no best": (lambda _, rest: rest.update(best=None), "not what a run wrote"),
    "a word for a step": (lambda _, rest: rest.update(step="7"), "not what a run wrote"),
}


@pytest.mark.parametrize("kind", UNSOUND)
def test_b10_numbers_that_no_run_goes_on_from_are_refused(interrupted: tuple[dict, Path], kind: str) -> None:
    cfg, folder = interrupted
    change, message = UNSOUND[kind]
    changed(folder, change)
    assert finish(cfg, folder) == 5
    assert re.search(message, said(folder)), said(folder)


def test_b10_a_square_that_overflowed_is_a_state_to_go_on_from(interrupted: tuple[dict, Path]) -> None:
    cfg, folder = interrupted
    changed(folder, lambda _, rest: (moment(rest).view(-1)[0].fill_(math.inf), rest.update(step=8)))
    assert finish(cfg, folder) == 0
