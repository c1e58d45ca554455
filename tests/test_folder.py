"""Faults E2 to E6: a folder of one's own images, with what is wrong named before training."""

import resource
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vae_lab.data import load
from vae_lab.errors import DataError


def write(path: Path, array: np.ndarray, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twenty grey images of 16x16 in two classes."""
    rng = np.random.default_rng(0)
    for index in range(20):
        write(tmp_path / "images" / "ab"[index % 2] / f"{index:02}.png", rng.integers(0, 256, (16, 16), dtype=np.uint8))
    return tmp_path / "images"


@pytest.fixture
def read(compose, folder: Path):
    return lambda *more: load(compose("data=folder", f"data.root={folder}", "data.size=16", *more)["data"])


def test_classes_splits_and_pixels(read, folder: Path) -> None:
    splits = read("data.val_size=4")
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [13, 4, 3]
    found = np.concatenate([part.x.numpy()[:, 0] for part in (splits.train, splits.val, splits.test)])
    labels = np.concatenate([part.y.numpy() for part in (splits.train, splits.val, splits.test)])
    written = {np.asarray(Image.open(path)).tobytes(): "ab".index(path.parent.name) for path in folder.rglob("*.png")}
    assert {pixels.tobytes(): label for pixels, label in zip(found, labels, strict=True)} == written


def test_without_sub_folders_there_are_no_labels(compose, tmp_path: Path) -> None:
    for index in range(4):
        write(tmp_path / f"{index}.png", np.full((8, 8), index, dtype=np.uint8))
    assert load(compose("data=folder", f"data.root={tmp_path}", "data.size=8")["data"]).train.y is None


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "webp"])
def test_formats_and_colour(compose, tmp_path: Path, suffix: str) -> None:
    for index in range(4):
        write(tmp_path / f"{index}.{suffix}", np.full((8, 8, 3), (index * 60, 128, 200), dtype=np.uint8))
    splits = load(compose("data=folder", f"data.root={tmp_path}", "data.size=8", "data.channels=3")["data"])
    assert splits.train.x.shape == (3, 3, 8, 8)
    assert abs(int(splits.test.x[0, 1, 4, 4]) - 128) < 6


def test_e3_sixteen_bits_are_not_clipped(compose, tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    for index in range(3):
        write(tmp_path / f"{index}.png", ramp)
    splits = load(compose("data=folder", f"data.root={tmp_path}", "data.size=16")["data"])
    assert np.abs(splits.train.x[0, 0].numpy().ravel().astype(int) - np.arange(256)).max() <= 1


def test_e2_bad_files_are_named(read, folder: Path) -> None:
    good = (folder / "a" / "00.png").read_bytes()
    (folder / "a" / "text.png").write_text("no image")
    (folder / "a" / "empty.png").write_bytes(b"")
    (folder / "a" / "cut.png").write_bytes(good[: len(good) // 2])
    with pytest.raises(DataError) as error:
        read()
    for part in ("3 of 23 files", "a/text.png (not one of PNG", "a/empty.png", "a/cut.png (damaged", "data.on_bad=skip"):
        assert part in str(error.value)
    assert len(read("data.on_bad=skip").train) == 17


def test_e2_many_bad_files_are_counted(read, folder: Path) -> None:
    for index in range(30):
        (folder / f"bad{index}.png").write_text("x")
    with pytest.raises(DataError, match=r"30 of 50 files .* and 20 more"):
        read()


@pytest.mark.parametrize("content", ["nothing", "text files", "absent"])
def test_e2_no_images(compose, tmp_path: Path, content: str) -> None:
    root = tmp_path / "images"
    if content != "absent":
        root.mkdir()
    if content == "text files":
        (root / "readme.txt").write_text("hello")
    with pytest.raises(DataError, match=r"no \.png|no such folder"):
        load(compose("data=folder", f"data.root={root}")["data"])


@pytest.mark.parametrize("shape", [(16, 20), (1, 1), (2, 2000), (32, 32)])
def test_e4_other_sizes_are_named_with_the_models_shape(read, folder: Path, shape: tuple[int, int]) -> None:
    write(folder / "a" / "odd.png", np.zeros(shape, dtype=np.uint8))
    with pytest.raises(DataError, match=rf"a/odd.png \({shape[1]}x{shape[0]} pixels, not 16x16\).*The model takes 1x16x16"):
        read()
    assert len(read("data.resize=true").train) == 18


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "CMYK"])
def test_e3_mixed_modes_are_refused(read, folder: Path, mode: str) -> None:
    name = "odd.jpg" if mode == "CMYK" else "odd.png"
    Image.new(mode, (16, 16)).save(folder / "a" / name)
    with pytest.raises(DataError, match=rf"a/{name} \(mode {mode}, not grey\)"):
        read()
    assert len(read("data.convert=true").train) == 18


def test_e5_more_batch_than_images(read, compose, folder: Path) -> None:
    from vae_lab.errors import ConfigError
    from vae_lab.job import make_run

    cfg = compose("data=folder", f"data.root={folder}", "data.size=16")
    with pytest.raises(ConfigError, match="exceeds the 17 training images"):
        make_run(cfg, read())


def bomb(path: Path, side: int) -> None:
    """A PNG of side x side white pixels: kilobytes on disk, a gigabyte in memory."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(9)
    row = b"\0" + b"\xff" * side
    data = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b""))


def test_e6_bombs_are_refused_by_their_header(read, folder: Path) -> None:
    bomb(folder / "a" / "bomb.png", 30_000)
    (folder / "a" / "space.png").write_bytes(b"SIMPLE  =                    T" + b" " * 3000)  # FITS
    Image.new("L", (16, 16)).save(folder / "a" / "moving.png", format="GIF")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError) as error:
        read("data.resize=true")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000
    for part in (
        "a/bomb.png (too many pixels: Image size (900000000",
        "a/space.png (not one of PNG",
        "a/moving.png (not one of PNG",
    ):
        assert part in str(error.value)


def test_a_run_on_own_images(train_quiet, folder: Path) -> None:
    overrides = ("data=folder", f"data.root={folder}", "data.size=16", "trainer.batch_size=8", "trainer.epochs=2")
    results = train_quiet(*overrides, "network=conv", "evaluation.figures=true")
    assert results["status"] == "completed"
