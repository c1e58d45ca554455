"""Data: splits, limits, binarisation, and what is said when files are missing or damaged."""

import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from vae_lab.data import load
from vae_lab.data.base import bernoulli_pixels
from vae_lab.errors import ConfigError, DataError


def test_digits_have_three_disjoint_splits(compose) -> None:
    splits = load(compose()["data"])
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [1300, 200, 297]
    rows = torch.cat([part.x for part in (splits.train, splits.val, splits.test)]).flatten(1)
    from sklearn.datasets import load_digits

    original = torch.from_numpy(load_digits().data).mul(255 / 16).round().to(torch.uint8)
    assert sorted(map(tuple, rows.tolist())) == sorted(map(tuple, original.tolist()))
    assert splits.train.x.max() == 255
    assert splits.train.y.shape == (1300,)


def test_the_split_does_not_depend_on_the_run_seed(compose) -> None:
    assert load(compose("seed=1")["data"]).digest == load(compose("seed=2")["data"]).digest
    assert load(compose("data.split_seed=1")["data"]).digest != load(compose()["data"]).digest


def test_limit_and_no_validation(compose) -> None:
    splits = load(compose("data.limit=10", "data.val_size=0")["data"])
    assert len(splits.train) == len(splits.test) == 10
    assert splits.val is None


def test_classes_left_out_move_no_image_to_another_split(compose) -> None:
    every, some = load(compose()["data"]), load(compose("data.classes=[1,2,9]")["data"])
    for part in ("train", "val", "test"):
        whole, kept = getattr(every, part), getattr(some, part)
        assert sorted(kept.y.unique().tolist()) == [1, 2, 9]
        chosen = (whole.y == 1) | (whole.y == 2) | (whole.y == 9)
        assert torch.equal(kept.x, whole.x[chosen])
    assert some.digest != every.digest
    assert len(load(compose("data.classes=[3]", "data.limit=7")["data"]).train) == 7  # the limit counts what is kept


def test_classes_decide_the_fingerprint(compose) -> None:
    from vae_lab.config import fingerprint

    assert fingerprint(compose("data.classes=[1]")) != fingerprint(compose())


@pytest.mark.parametrize(
    ("classes", "said"),
    [("[1,11]", r"no images of \[11\]"), ("[]", "at least one"), ("[-1]", "must be a finite number >= 0"), ("zero", "classes")],
)
def test_classes_that_are_not_there(compose, classes: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load(compose(f"data.classes={classes}")["data"])


def test_classes_of_images_without_labels(compose, tmp_path: Path) -> None:
    from PIL import Image

    for index in range(4):
        Image.new("L", (8, 8), index).save(tmp_path / f"{index}.png")
    with pytest.raises(ConfigError, match="no class labels"):
        load(compose("data=folder", f"data.root={tmp_path}", "data.size=8", "data.classes=[0]")["data"])


def test_validation_larger_than_the_data_is_refused(compose) -> None:
    with pytest.raises(ConfigError, match=r"data\.val_size=5000: digits has only 1500"):
        load(compose("data.val_size=5000")["data"])


@pytest.mark.parametrize("kind", ["threshold", "static"])
def test_binarised_images_are_black_and_white(compose, kind: str) -> None:
    splits = load(compose(f"data.binarize={kind}")["data"])
    grey = load(compose()["data"])
    for part, original in ((splits.train, grey.train), (splits.test, grey.test)):
        assert set(part.x.unique().tolist()) == {0, 255}
        if kind == "threshold":
            assert torch.equal(part.x == 255, original.x >= 128)
        else:
            assert part.x.float().mean().item() == pytest.approx(original.x.float().mean().item(), rel=0.02)
    assert torch.equal(load(compose(f"data.binarize={kind}", "data.limit=1500")["data"]).test.x, splits.test.x)


def test_dynamic_binarisation_fixes_only_validation_and_test(compose) -> None:
    splits = load(compose("data.binarize=dynamic")["data"])
    assert splits.dynamic
    assert len(splits.train.x.unique()) > 2
    assert set(splits.val.x.unique().tolist()) == set(splits.test.x.unique().tolist()) == {0, 255}


def test_bernoulli_pixels_have_the_right_probability() -> None:
    x = torch.tensor([0, 1, 64, 128, 254, 255], dtype=torch.uint8).expand(200_000, 1, 1, 6)
    white = bernoulli_pixels(x, torch.Generator().manual_seed(0)) == 255
    expected = torch.tensor([0, 1, 64, 128, 254, 255]) / 255
    torch.testing.assert_close(white.float().mean((0, 1, 2)), expected, atol=0.005, rtol=0)
    assert not white[..., 0].any()
    assert white[..., 5].all()


def idx_bytes(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def kmnist(tmp_path: Path) -> Path:
    """A small data set in MNIST's own file format, where torchvision looks for the one set without published sums."""
    raw = tmp_path / "data" / "KMNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for prefix, count in (("train", 40), ("t10k", 20)):
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(idx_bytes(rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)))
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(idx_bytes(rng.integers(0, 10, count, dtype=np.uint8)))
    return tmp_path / "data"


def test_idx_files_are_read_as_they_are(compose, kmnist: Path) -> None:
    splits = load(compose("data=kmnist", f"data.root={kmnist}", "data.val_size=8")["data"])
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [32, 8, 20]
    written = (kmnist / "KMNIST" / "raw" / "t10k-images-idx3-ubyte").read_bytes()[16:]
    assert splits.test.x.numpy().tobytes() == written


@pytest.mark.parametrize(("name", "folder"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")])
def test_other_images_under_a_published_name_are_refused(compose, kmnist: Path, name: str, folder: str) -> None:
    """Fashion-MNIST was believed by its shape alone."""
    shutil.move(kmnist / "KMNIST", kmnist / folder)
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte is damaged: md5 \w+, expected"):
        load(compose(f"data={name}", f"data.root={kmnist}", "data.val_size=8")["data"])


def test_cifar_files_are_read(compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real CIFAR-10 layout; the published sums are those of other pictures, so the check is told to expect ours."""
    import pickle

    import torchvision.datasets

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in [f"data_batch_{index}" for index in range(1, 6)] + ["test_batch"]:
        pixels = rng.integers(0, 256, (6, 3072), dtype=np.uint8)
        (folder / name).write_bytes(pickle.dumps({"data": pixels, "labels": list(range(6))}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "meta", torchvision.datasets.CIFAR10.meta | {"md5": None})
    splits = load(compose("data=cifar10", f"data.root={tmp_path}", "data.val_size=5")["data"])
    assert splits.train.x.shape == (25, 3, 32, 32)
    assert splits.test.x.numpy().tobytes() == pixels.tobytes()


def test_missing_files_without_network(compose, tmp_path: Path) -> None:
    cfg = compose("data=mnist", f"data.root={tmp_path}", "data.download=false")["data"]
    with pytest.raises(DataError) as error:
        load(cfg)
    for part in ("train-images-idx3-ubyte", str(tmp_path / "MNIST" / "raw"), "VAE_LAB_DATA", "download=True"):
        assert part in str(error.value)


def test_a_failed_download_leaves_one_message(compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision.datasets

    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", ["http://127.0.0.1:9/"])
    with pytest.raises(DataError, match="download failed"):
        load(compose("data=mnist", f"data.root={tmp_path}")["data"])


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty"])
def test_damaged_files_are_found(compose, mnist_root: Path, tmp_path: Path, damage: str) -> None:
    raw = tmp_path / "MNIST" / "raw"
    shutil.copytree(mnist_root / "MNIST" / "raw", raw)
    path = raw / "t10k-images-idx3-ubyte"
    path.chmod(0o644)
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[1000] ^= 1
    path.write_bytes({"truncated": content[:5000], "flipped": content, "empty": b""}[damage])
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte is damaged: md5 \w+, expected 2646ac647"):
        load(compose("data=mnist", f"data.root={tmp_path}")["data"])


def test_damaged_files_without_published_sums_are_found_by_their_structure(compose, kmnist: Path) -> None:
    path = kmnist / "KMNIST" / "raw" / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match="damaged files"):
        load(compose("data=kmnist", f"data.root={kmnist}", "data.val_size=0")["data"])


def test_mnist_is_the_published_one(compose, mnist_root: Path) -> None:
    splits = load(compose("data=mnist", f"data.root={mnist_root}")["data"])
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [55_000, 5_000, 10_000]
    assert splits.test.y[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]


def test_i_concurrent_downloads_leave_one_copy(compose, kmnist: Path, tmp_path: Path) -> None:
    """Four processes find nothing and fetch at once; each ends with whole files, and nothing else is left."""
    import os

    import torchvision.datasets

    target = tmp_path / "downloaded"
    cfg = compose("data=kmnist", f"data.root={target}", "data.val_size=0")["data"]
    fetched = tmp_path / "fetched"
    fetched.mkdir()
    original = torchvision.datasets.KMNIST.__init__

    def fetch(self, root, train=True, download=False, **options) -> None:
        if download:
            (fetched / f"{os.getpid()}-{train}").touch()
            shutil.copytree(kmnist / "KMNIST", Path(root) / "KMNIST", dirs_exist_ok=True)
        original(self, root, train=train, download=False, **options)

    torchvision.datasets.KMNIST.__init__ = fetch
    try:
        pids = []
        for _ in range(4):
            pid = os.fork()
            if not pid:
                os._exit(0 if len(load(cfg).train) == 40 else 1)
            pids.append(pid)
        assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0] * 4
    finally:
        torchvision.datasets.KMNIST.__init__ = original
    assert len({path.name.split("-")[0] for path in fetched.iterdir()}) == 1
    assert {path.name for path in target.iterdir()} == {"KMNIST", ".kmnist.lock"}
