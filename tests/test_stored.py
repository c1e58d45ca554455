"""Own images are decoded once, and stream from that file where they do not fit into memory."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from vae_lab.data import base, load, stored
from vae_lab.data.folder import Folder
from vae_lab.data.stored import StoredPixels
from vae_lab.errors import ConfigError, StorageError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Sixty grey images of 8x8 in three classes."""
    rng = np.random.default_rng(0)
    for index in range(60):
        path = tmp_path / "images" / "abc"[index % 3] / f"{index:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(path)
    return tmp_path / "images"


@pytest.fixture
def read(compose, root: Path, tmp_path: Path):
    """Splits of the folder, read anew, with the cache in tmp_path."""

    def call(*more: str) -> base.Splits:
        base._load.cache_clear()
        settings = (f"data.root={root}", "data.size=8", "data.val_size=9", f"data.cache={tmp_path / 'cache'}")
        return load(compose("data=folder", *settings, *more)["data"])

    return call


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were decoded, as they are."""
    files: list[Path] = []
    original = Folder._read_one
    monkeypatch.setattr(Folder, "_read_one", lambda self, path: (files.append(path), original(self, path))[1])
    return files


def same(one: base.Splits, other: base.Splits) -> bool:
    pairs = [(one.train, other.train), (one.val, other.val), (one.test, other.test)]
    return one.digest == other.digest and all(torch.equal(a.x[:], b.x[:]) and torch.equal(a.y, b.y) for a, b in pairs)


def stream_from(num_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let sets of more than `num_bytes` count as larger than memory."""
    monkeypatch.setattr(stored, "MEMORY_SHARE", num_bytes / psutil.virtual_memory().available)


def test_a_second_start_decodes_nothing_and_gives_the_same(read, decoded: list[Path]) -> None:
    first = read()
    assert len(decoded) == 60
    assert same(first, read())
    assert len(decoded) == 60
    without = read("data.cache=null")
    assert len(decoded) == 120
    assert torch.equal(without.train.x, first.train.x)


@pytest.mark.parametrize("change", ["content", "added", "removed", "renamed"])
def test_a_change_is_noticed(read, root: Path, decoded: list[Path], tmp_path: Path, change: str) -> None:
    before = read()
    victim = root / "a" / "00.png"
    if change == "content":
        Image.fromarray(np.zeros((8, 8), dtype=np.uint8)).save(victim)
    elif change == "added":
        Image.fromarray(np.zeros((8, 8), dtype=np.uint8)).save(root / "a" / "new.png")
    elif change == "removed":
        victim.unlink()
    else:
        victim.rename(root / "b" / "zz.png")
    after = read()
    assert after.digest != before.digest
    assert len(decoded) > 100
    assert len(list((tmp_path / "cache").glob("*.pixels"))) == 1, "the old file is gone"


def manifest_with(**changes) -> Callable[[Path, Path], None]:
    """The manifest with another value somewhere, as a flipped bit leaves it."""
    return lambda pixels, manifest: manifest.write_text(json.dumps(json.loads(manifest.read_text()) | changes)) and None


def flip(pixels: Path, manifest: Path) -> None:
    content = bytearray(pixels.read_bytes())
    content[1234] ^= 1
    pixels.write_bytes(content)


def instead(what: Callable[[Path], object], of: int) -> Callable[[Path, Path], None]:
    """Something else in the place of the pixels (0) or the manifest (1)."""

    def replace(*files: Path) -> None:
        files[of].rename(files[of].parent.parent / "aside")
        what(files[of])

    return replace


DAMAGES: dict[str, Callable[[Path, Path], object]] = {
    "zeros": lambda pixels, _: pixels.write_bytes(bytes(60 * 64)),
    "one bit": flip,
    "truncated": lambda pixels, _: os.truncate(pixels, 100),
    "empty": lambda pixels, _: os.truncate(pixels, 0),
    "grown": lambda pixels, _: os.truncate(pixels, 61 * 64),
    "missing": lambda pixels, _: pixels.unlink(),
    "a link": instead(lambda path: path.symlink_to(path.parent.parent / "aside"), 0),
    "a pipe": instead(os.mkfifo, 0),
    "a folder": instead(Path.mkdir, 0),
    "manifest a link": instead(lambda path: path.symlink_to(path.parent.parent / "aside"), 1),
    "manifest a pipe": instead(os.mkfifo, 1),
    "nonsense": lambda _, manifest: manifest.write_text('{"file": 3}'),
    "no JSON": lambda _, manifest: manifest.write_bytes(b"\xff\x00{"),
    "deep JSON": lambda _, manifest: manifest.write_text("[" * 200_000),
    "a list": lambda _, manifest: manifest.write_text("[1, 2]"),
    "another shape": manifest_with(shape=[60, 1, 4, 16]),
    "negative shape": manifest_with(shape=[-60, -1, 8, 8]),
    "huge shape": manifest_with(shape=[2**62, 1, 8, 8]),
    "other labels": manifest_with(facts={"kept": [*range(1, 60), 0], "bad": []}),
    "another digest": manifest_with(digest="0" * 64),
    "a file elsewhere": manifest_with(file="../../images/a/00.png"),
    "before there was a sum": lambda _, manifest: (
        manifest_with()(_, manifest)
        or manifest.write_text(
            json.dumps({key: value for key, value in json.loads(manifest.read_text()).items() if key != "sha256"})
        )
    ),
}


@pytest.mark.parametrize("streams", [False, True], ids=["resident", "streaming"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cache_is_made_anew_and_says_so(
    read, tmp_path: Path, decoded: list[Path], damage: str, streams: bool, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """Zeros of the same size were trained on, silently, under the digest of the true pixels."""
    if streams:
        stream_from(1000, monkeypatch)
    first = read()
    assert not capsys.readouterr().err.strip()
    (pixels,), (manifest,) = (tmp_path / "cache").glob("*.pixels"), (tmp_path / "cache").glob("*.json")
    true = [first.train.x[:].clone(), first.test.x[:].clone()]
    DAMAGES[damage](pixels, manifest)
    again = read()
    assert [torch.equal(part, x) for part, x in zip((again.train.x[:], again.test.x[:]), true, strict=True)] == [True, True]
    assert again.digest == first.digest
    assert torch.equal(again.train.y, first.train.y)
    assert len(decoded) == 120
    (said,) = capsys.readouterr().err.split("\n\n")[0].strip().splitlines()
    assert "are decoded again" in said
    assert (pixels.name in said) or (manifest.name in said)
    read()
    assert len(decoded) == 120, "the new one is sound"
    assert not capsys.readouterr().err.strip()


def test_without_a_manifest_nothing_was_there(read, tmp_path: Path, decoded: list[Path], capsys) -> None:
    first = read()
    next((tmp_path / "cache").glob("*.json")).unlink()
    assert same(first, read())
    assert len(decoded) == 120
    assert not capsys.readouterr().err.strip()


def test_a_damaged_cache_of_images_that_are_gone_is_one_message(read, root: Path, tmp_path: Path, command) -> None:
    read()
    (pixels,) = (tmp_path / "cache").glob("*.pixels")
    pixels.write_bytes(bytes(60 * 64))
    settings = (f"data.root={root}", "data.size=8", "data.val_size=9", f"data.cache={tmp_path / 'cache'}", "tracking=none")
    for path in sorted(root.rglob("*.png"))[:3]:
        path.write_bytes(b"")
    done = command("data=folder", *settings)
    assert done.returncode == 3
    assert "3 of 60 files cannot be used" in done.stderr
    shutil.rmtree(root)
    done = command("data=folder", *settings)
    assert done.returncode == 3
    assert done.stderr.count("\n") == 1
    assert "no such folder" in done.stderr


def test_a_manifest_that_is_a_folder_is_one_message(read, tmp_path: Path) -> None:
    read()
    (manifest,) = (tmp_path / "cache").glob("*.json")
    manifest.unlink()
    manifest.mkdir()
    with pytest.raises(StorageError, match="Is a directory"):
        read()


def test_a_cache_that_may_not_be_read_is_made_anew(
    read, tmp_path: Path, decoded: list[Path], monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    first = read()
    (pixels,) = (tmp_path / "cache").glob("*.pixels")
    pixels.chmod(0)
    original = os.open

    def denied(path, *rest) -> int:  # root, as whom tests may run, is denied nothing
        if Path(path) == pixels:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return original(path, *rest)

    monkeypatch.setattr(os, "open", denied)
    assert same(first, read())
    assert len(decoded) == 120
    assert "Permission denied" in capsys.readouterr().err


def test_another_picture_of_the_same_size_and_time_is_noticed(read, root: Path) -> None:
    """Files from one archive have one time, and bitmaps one size: two that change places look alike."""
    one, other = root / "a" / "x.bmp", root / "b" / "x.bmp"
    for path, value in ((one, 10), (other, 200)):
        Image.fromarray(np.full((8, 8), value, dtype=np.uint8)).save(path)
        os.utime(path, ns=(10**18, 10**18))
    before = read()
    one.rename(root / "aside")
    other.rename(one)
    (root / "aside").rename(other)
    assert read().digest != before.digest
    before, status = read(), one.stat()
    Image.fromarray(np.full((8, 8), 99, dtype=np.uint8)).save(one)
    os.utime(one, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert one.stat().st_size == status.st_size
    assert read().digest != before.digest


@pytest.mark.parametrize("name", ["[x]*?", "n" * 255, "ä" * 120])
def test_folders_of_any_name_have_a_cache(compose, root: Path, tmp_path: Path, name: str) -> None:
    (renamed := root.with_name(name)).parent.mkdir(exist_ok=True)
    root.rename(renamed)
    for index in range(2):
        base._load.cache_clear()
        Image.fromarray(np.full((8, 8), index, dtype=np.uint8)).save(renamed / "a" / "00.png")
        cfg = compose("data=folder", f"data.cache={tmp_path / 'cache'}", "data.size=8", "data.val_size=9")["data"]
        assert len(load(cfg | {"root": str(renamed)}).train) > 0
    assert len(list((tmp_path / "cache").glob("*.pixels"))) == 1, "the old file is gone"


def test_what_fails_leaves_no_cache(read, root: Path, tmp_path: Path) -> None:
    (root / "a" / "00.png").write_bytes(b"no image")
    with pytest.raises(base.DataError, match=r"1 of 60 files cannot be used: a/00.png"):
        read()
    assert not list((tmp_path / "cache").glob("*.pixels"))
    assert not list((tmp_path / "cache").glob("*.json"))
    assert len(read("data.on_bad=skip").train) > 0


def test_a_cache_that_cannot_be_written_is_named(read, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="Cannot write"):
        read(f"data.cache={tmp_path / 'file' / 'cache'}")


def test_a_set_larger_than_memory_streams(read, monkeypatch: pytest.MonkeyPatch) -> None:
    resident = read()
    stream_from(1000, monkeypatch)  # 42 training images of 64 bytes, 9 to validate and 9 to test
    streamed = read()
    assert isinstance(streamed.train.x, StoredPixels)
    assert not isinstance(resident.train.x, StoredPixels)
    assert same(resident, streamed)
    assert len(read("data.classes=[0,2]").train) < len(streamed.train)
    assert isinstance(read("data.binarize=dynamic").train.x, StoredPixels)
    assert isinstance(read("data.limit=5").train.x, torch.Tensor)
    with pytest.raises(ConfigError, match=r"binarize=static.* does not fit into memory"):
        read("data.binarize=static")


@pytest.mark.parametrize("more", [(), ("data.binarize=dynamic",), ("network=conv",)])
def test_training_from_the_file_is_bit_identical(
    train_quiet, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...]
) -> None:
    settings = ("data=folder", f"data.root={root}", "data.size=8", "data.val_size=9", f"data.cache={tmp_path / 'cache'}")
    small = ("hidden_dims=[8]", "trainer.epochs=3", "trainer.batch_size=16", "evaluation.figures=true", *more)
    resident = train_quiet(*settings, *small, folder="resident")
    base._load.cache_clear()
    stream_from(1000, monkeypatch)
    streamed = train_quiet(*settings, *small, folder="streamed")
    assert resident["test"] == streamed["test"]
    weights = [(tmp_path / name / "checkpoints" / "last" / "model.safetensors").read_bytes() for name in ("resident", "streamed")]
    assert weights[0] == weights[1]
