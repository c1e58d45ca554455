"""Own images are decoded once, and stream from that file where they do not fit into memory."""

import os
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


@pytest.mark.parametrize("damage", ["truncated", "missing", "no manifest", "nonsense"])
def test_a_damaged_cache_is_made_anew(read, tmp_path: Path, decoded: list[Path], damage: str) -> None:
    first = read()
    (pixels,), (manifest,) = (tmp_path / "cache").glob("*.pixels"), (tmp_path / "cache").glob("*.json")
    {
        "truncated": lambda: os.truncate(pixels, 100),
        "missing": pixels.unlink,
        "no manifest": manifest.unlink,
        "nonsense": lambda: manifest.write_text('{"file": 3}'),
    }[damage]()
    assert same(first, read())
    assert len(decoded) == 120


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
