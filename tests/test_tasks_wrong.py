"""`vae-lab COMMAND` on wrong input: one message, the right exit code, nothing written."""

import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.test_trained import QUICK, copy_of
from vae_lab.errors import StorageError
from vae_lab.interrupt import interrupts
from vae_lab.tasks.files import text, write_all

Call = Callable[..., int]


@pytest.fixture
def folder(trained, tmp_path: Path) -> Path:
    return copy_of(trained(*QUICK), tmp_path / "run")


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


TAKING_DATA = ("encode", "reconstruct", "interpolate", "traverse", "anomaly", "impute")


def wrong_inputs(folder: Path) -> dict[str, int]:
    """`--data` and the exit code it ends with."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    good = generator.integers(0, 256, (8, 8), dtype=np.uint8)
    Image.fromarray(good).save(folder / "good.png")
    data = (folder / "good.png").read_bytes()
    (folder / "truncated.png").write_bytes(data[: len(data) // 2])
    (folder / "text.png").write_text("no picture")
    (folder / "empty.png").write_bytes(b"")
    Image.fromarray(np.zeros((9, 8), np.uint8)).save(folder / "size.png")
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / "colour.png")
    (folder / "nothing").mkdir()
    (folder / "mixed").mkdir()
    shutil.copy(folder / "good.png", folder / "mixed" / "a.png")
    shutil.copy(folder / "truncated.png", folder / "mixed" / "b.png")
    np.save(folder / "size.npy", np.zeros((3, 9, 9), np.uint8))
    np.save(folder / "single.npy", good)
    np.save(folder / "scalar.npy", np.float32(1))
    np.save(folder / "none.npy", np.zeros((0, 8, 8), np.uint8))
    np.save(folder / "range.npy", np.full((3, 8, 8), 17.0))
    np.save(folder / "nan.npy", np.full((3, 8, 8), np.nan))
    np.save(folder / "type.npy", np.zeros((3, 8, 8), np.int64))
    np.save(folder / "pickled.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    (folder / "damaged.npy").write_bytes((folder / "range.npy").read_bytes()[:150])
    (folder / "text.npy").write_text("no array")
    np.savez(folder / "archive", a=good)
    (folder / "archive.npz").rename(folder / "archive.npy")
    bad = {path.name: 3 for path in folder.iterdir() if path.name != "good.png"}
    return bad | {
        "missing.png": 3, "missing.npy": 3, "missing/folder": 3,
        "digist": 2, "digits:tset": 2, "digits:test:11": 2, ":test:12-14": 2, "11": 2,
    }  # fmt: skip


@pytest.mark.parametrize("command", TAKING_DATA)
def test_wrong_data_is_one_message_and_nothing_written(
    call: Call, folder: Path, tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = tmp_path / "inputs"
    wrong = wrong_inputs(inputs)
    before = files(tmp_path)
    options = {"traverse": ["--index", 0], "interpolate": ["--indices", 0, 0]}.get(command, [])
    for name, code in wrong.items():
        data = inputs / name if code == 3 else name
        assert call(command, folder, "--data", data, *options) == code, name
        said = capsys.readouterr()
        assert said.out == "", name
        assert said.err.startswith("error: "), said.err
        assert said.err.count("\n") == 1, said.err
        assert name.split(":")[0] in said.err or "classes" in said.err, said.err
        assert files(tmp_path) == before, name
    assert not (folder / "tasks").exists()


ALL = [
    (name,) for name in (*TAKING_DATA, "sample", "card")
] + [("export", "--format", "safetensors"), ("export", "--format", "torchscript"), ("push", "user/name", "--dry-run")]  # fmt: skip


@pytest.mark.parametrize("command", ALL, ids=" ".join)
def test_wrong_runs_are_one_message(
    call: Call, folder: Path, tmp_path: Path, command: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    def ask(path: Path) -> tuple[int, str]:
        before = files(tmp_path)
        code = call(command[0], path, *command[1:])
        said = capsys.readouterr().err
        assert files(tmp_path) == before
        assert said.startswith("error: "), said
        assert said.count("\n") == 1, said
        return code, said

    assert ask(tmp_path / "nothing")[0] == 2
    weights = folder / "checkpoints" / "best" / "model.safetensors"
    sound = weights.read_bytes()
    weights.write_bytes(sound[:-7])
    code, said = ask(folder)
    assert code == 5
    assert "truncated" in said
    weights.unlink()
    assert ask(folder)[0] == 5
    shutil.rmtree(folder / "checkpoints" / "best")
    code, said = ask(folder)
    assert code == 5
    assert "no such checkpoint" in said


@pytest.mark.parametrize("content", ["{", "[1]", "", '{"test": 3}', '{"test": {"elbo": 1}}', "\x00"])
def test_damaged_results_end_with_3(call: Call, folder: Path, tmp_path: Path, content: str, capsys) -> None:
    (folder / "results.json").write_text(content)
    before = files(tmp_path)
    for command in (("card",), ("push", "user/name", "--dry-run"), ("traverse",)):
        if not (command == ("traverse",) and "elbo" in content):  # which asks for no more than is there
            assert call(command[0], folder, *command[1:]) == 3, command
            assert "results.json: damaged" in capsys.readouterr().err
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ("encode", "--out", "codes.txt"), ("encode", "--plot", "plane"), ("encode", "--out", "run"), ("sample", "--n", "0"),
        ("sample", "--n", "many"), ("sample", "--temperature", "-1"), ("sample", "--temperature", "nan"),
        ("sample", "--source", "mixture", "--components", "5000"), ("sample", "--out", "a.gif"), ("reconstruct", "--n", "-3"),
        ("interpolate", "--frames", "1"), ("interpolate", "--indices", "0", "5000"), ("interpolate", "--classes", "1", "11"),
        ("interpolate", "--indices", "0"), ("traverse", "--latents", "4"), ("traverse", "--index", "5000"),
        ("traverse", "--span", "1", "1"), ("anomaly", "--inliers", "1"), ("anomaly", "--outliers", "0-9"),
        ("anomaly", "--data", "1", "--outliers", "0"), ("impute", "--mask", "nowhere"), ("impute", "--share", "1"),
        ("export", "--format", "pickle"), ("export",), ("push", "nobody"), ("push", "a/b/c"), ("guess",),
    ],
    ids=" ".join,
)  # fmt: skip
def test_wrong_arguments_end_with_2(call: Call, folder: Path, tmp_path: Path, arguments: tuple[str, ...], capsys) -> None:
    before = files(tmp_path)
    assert call(arguments[0], folder, *arguments[1:]) == 2
    assert "error: " in capsys.readouterr().err
    assert files(tmp_path) == before


@pytest.mark.parametrize("content", ["size", "float", "text", "all seen"])
def test_wrong_masks_end_with_3(call: Call, folder: Path, tmp_path: Path, content: str) -> None:
    path = tmp_path / "mask.npy"
    arrays = {"size": np.ones((4, 4), bool), "float": np.ones((8, 8)), "all seen": np.zeros((8, 8), bool)}
    if content == "text":
        path.write_text("no mask")
    else:
        np.save(path, arrays[content])
    assert call("impute", folder, "--mask", path) == 3
    assert not (folder / "tasks").exists()


def test_where_nothing_can_be_written(call: Call, folder: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "file").write_text("")
    before = files(tmp_path)
    for command, out in (("encode", "file/codes.npz"), ("sample", "file/s.png"), ("impute", "file/deep/i.png")):
        assert call(command, folder, "--out", out) == 6
        assert "Cannot write" in capsys.readouterr().err
    assert call("export", folder, "--format", "safetensors", "--out", "file/deep") == 6
    assert files(tmp_path) == before


def test_a_full_disk_leaves_nothing_new_and_the_old_files(call: Call, folder: Path, tmp_path: Path, capsys) -> None:
    """Files may not grow beyond 4 kB: the .npy is refused after the picture was written beside its place."""
    (folder / "tasks").mkdir()
    (folder / "tasks" / "samples.npy").write_bytes(b"old")
    before = files(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        assert call("sample", folder, "--n", 100) == 6
        assert call("encode", folder, "--out", "new/folder/codes.csv") == 6
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "Cannot write" in capsys.readouterr().err
    assert files(tmp_path) == before
    assert not (tmp_path / "new").exists()


def test_all_files_or_none(tmp_path: Path) -> None:
    def fails(file) -> None:
        file.write(b"half")
        raise OSError(28, os.strerror(28))

    (tmp_path / "a").write_text("old")
    with pytest.raises(StorageError, match="No space left"):
        write_all({tmp_path / "a": text("new"), tmp_path / "deep" / "b": fails})
    assert files(tmp_path) == {"a": b"old"}
    assert not (tmp_path / "deep").exists()


def test_an_interrupt_stops_between_batches(call: Call, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    import signal

    monkeypatch.setattr(interrupts, "requested", signal.SIGINT)
    assert call("encode", folder) == 130
    assert "interrupted" in capsys.readouterr().err
    assert not (folder / "tasks").exists()
