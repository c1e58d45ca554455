"""`vae-lab COMMAND RUN_DIR`: what each writes."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vae_lab
from tests.test_trained import LINEAR_AE, QUICK, copy_of
from vae_lab.data import load as load_data

Call = Callable[..., int]
PLANE = ("trainer.epochs=2", "hidden_dims=[32]", "latent_dim=2")


@pytest.fixture
def folder(trained, tmp_path: Path) -> Path:
    return copy_of(trained(*QUICK), tmp_path / "run")


def test_encode_writes_codes(call: Call, folder: Path, compose, tmp_path: Path) -> None:
    assert call("encode", folder, "--plot") == 0
    test = load_data(compose()["data"]).test
    expected = vae_lab.load(folder).encode(test.x)
    with np.load(folder / "tasks" / "codes.npz") as found:
        np.testing.assert_array_equal(found["mu"], expected.mu.numpy())
        np.testing.assert_array_equal(found["variance"], expected.variance.numpy())
        np.testing.assert_array_equal(found["label"], test.y.numpy())
    assert Image.open(folder / "tasks" / "codes.png").width > 500
    assert call("encode", folder, "--data", "digits:val:0-4", "--out", "deep/codes.csv", "--plot", "tsne") == 0
    rows = list(csv.reader((tmp_path / "deep" / "codes.csv").open()))
    assert rows[0] == ["index", "label", *(f"mu_{i}" for i in range(4)), *(f"variance_{i}" for i in range(4))]
    val = load_data(compose()["data"]).val
    few = val.select(val.y < 5)
    np.testing.assert_array_equal([int(row[1]) for row in rows[1:]], few.y.numpy())
    np.testing.assert_allclose(np.array([row[2:6] for row in rows[1:]], np.float32), vae_lab.load(folder).encode(few.x).mu.numpy())


def test_encode_plots_the_plane_of_two_latents(call: Call, trained, tmp_path: Path) -> None:
    assert call("encode", copy_of(trained(*PLANE), tmp_path / "plane"), "--plot") == 0
    assert (tmp_path / "plane" / "tasks" / "codes.png").exists()


def test_images_come_from_files_folders_and_arrays(call: Call, folder: Path, compose, tmp_path: Path) -> None:
    test = load_data(compose()["data"]).test
    pictures = tmp_path / "pictures"
    for index in range(6):
        place = pictures / f"class{index % 2}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(test.x[index, 0].numpy()).save(place / f"{index}.png")
    wide = Image.fromarray(test.x[0, 0].numpy().astype(np.uint16) * 257)
    wide.save(tmp_path / "sixteen.png")
    Image.fromarray(test.x[0, 0].numpy()).convert("RGB").resize((16, 24), Image.Resampling.NEAREST).save(tmp_path / "large.png")
    np.save(tmp_path / "bytes.npy", test.x.numpy())
    np.save(tmp_path / "floats.npy", (test.x.double() / 255).numpy()[:, 0])
    expected = vae_lab.load(folder).encode(test.x).mu.numpy()
    order = [0, 2, 4, 1, 3, 5]
    for data, rows in (("pictures", order), ("sixteen.png", [0]), ("bytes.npy", slice(None)), ("floats.npy", slice(None))):
        assert call("encode", folder, "--data", data, "--out", "codes.npz") == 0
        with np.load(tmp_path / "codes.npz") as found:
            np.testing.assert_allclose(found["mu"], expected[rows], rtol=1e-5, atol=1e-6)
            if data == "pictures":
                assert found["label"].tolist() == [0, 0, 0, 1, 1, 1]
    assert call("encode", folder, "--data", "large.png", "--fit", "--out", "codes.npz") == 0


def test_binarised_runs_see_binarised_images(call: Call, trained, tmp_path: Path, compose) -> None:
    run = copy_of(trained(*QUICK, "data.binarize=threshold"), tmp_path / "binary")
    test = load_data(compose()["data"]).test
    np.save(tmp_path / "grey.npy", test.x.numpy())
    assert call("encode", run, "--data", "grey.npy", "--out", "codes.npz") == 0
    with np.load(tmp_path / "codes.npz") as found:
        own = load_data(compose("data.binarize=threshold")["data"]).test.x
        np.testing.assert_allclose(found["mu"], vae_lab.load(run).encode(own).mu.numpy(), rtol=1e-5, atol=1e-6)


def test_sample_writes_a_grid_and_the_images(call: Call, folder: Path, trained, tmp_path: Path) -> None:
    assert call("sample", folder, "--n", 10, "--seed", 3, "--temperature", 0.7) == 0
    expected = vae_lab.load(folder).sample(10, 3, 0.7).numpy()
    np.testing.assert_array_equal(np.load(folder / "tasks" / "samples.npy"), expected)
    assert call("sample", folder, "--source", "mixture", "--components", 3, "--out", "m.png") == 0
    plain = copy_of(trained(*LINEAR_AE), tmp_path / "plain")
    assert call("sample", plain, "--n", 5) == 0
    assert np.load(plain / "tasks" / "samples.npy").shape == (5, 1, 8, 8)
    assert call("sample", plain, "--source", "prior") == 2


def test_reconstruct_writes_a_picture_or_all_of_them(call: Call, folder: Path, compose, tmp_path: Path) -> None:
    assert call("reconstruct", folder, "--data", ":val", "--n", 4) == 0
    assert call("reconstruct", folder, "--out", "all.npy") == 0
    expected = vae_lab.load(folder).reconstruct(load_data(compose()["data"]).test.x)
    np.testing.assert_array_equal(np.load(tmp_path / "all.npy"), expected.numpy())


def frames_of(path: Path) -> list[tuple[np.ndarray, int]]:
    with Image.open(path) as image:
        found = []
        for number in range(image.n_frames):
            image.seek(number)
            found.append((np.asarray(image.convert("L")).copy(), image.info["duration"]))
        assert image.info["loop"] == 0
        return found


def test_interpolate_goes_there_and_back(call: Call, trained, compose, tmp_path: Path) -> None:
    """On a run that tells digits apart: equal frames become one."""
    folder = copy_of(trained("trainer.epochs=10", "trainer.batch_size=32", "hidden_dims=[64]", "latent_dim=4"), tmp_path / "run")
    test = load_data(compose()["data"]).test
    assert call("interpolate", folder, "--indices", 3, 8, "--frames", 12, "--kind", "spherical", "--out", "way.png") == 0
    frames = frames_of(tmp_path / "way.gif")
    assert len(frames) == 22
    for there, back in zip(frames[1:11], frames[:11:-1], strict=True):
        np.testing.assert_array_equal(there[0], back[0])
    run = vae_lab.load(folder)
    factor = frames[0][0].shape[0] // 8
    for number, index in ((0, 3), (11, 8)):
        expected = run.reconstruct(test.x[index : index + 1])[0, 0].clamp(0, 1).mul(255).numpy()
        small = frames[number][0][::factor, ::factor].astype(float)
        assert np.abs(small - expected).max() <= 255 / 31 / 2 + 2  # shown in 32 greys
        assert frames[number][1] > frames[5][1]
    for index in (0, 1):
        Image.fromarray(test.x[index, 0].numpy()).save(tmp_path / f"{index}.png")
    assert call("interpolate", folder, "--images", "0.png", "1.png", "--classes", 1, 7, "--classes", 0, 4, "--indices", 0, 1) == 0
    assert call("interpolate", folder) == 0


def test_traverse(call: Call, folder: Path, trained, tmp_path: Path) -> None:
    assert call("traverse", folder, "--top", 3, "--frames", 5) == 0
    assert len(frames_of(folder / "tasks" / "traversal.gif")) == 8
    assert call("traverse", folder, "--latents", 1, 0, "--index", 4, "--span", -1, 1, "--steps", 3) == 0
    assert call("traverse", copy_of(trained(*LINEAR_AE), tmp_path / "plain")) == 0


def test_anomaly_tells_outliers(call: Call, trained, compose, tmp_path: Path) -> None:
    run = copy_of(trained(*QUICK, "data.classes=[1,2,3]", "trainer.batch_size=32"), tmp_path / "some")
    assert call("anomaly", run, "--outliers", "0,6") == 0
    rows = list(csv.DictReader((run / "tasks" / "anomaly.csv").open()))
    test = load_data(compose()["data"]).test
    assert len(rows) == sum(int((test.y == label).sum()) for label in (0, 1, 2, 3, 6))
    assert {row["label"] for row in rows if row["outlier"] == "1"} == {"0", "6"}
    outlier = np.array([row["outlier"] == "1" for row in rows])
    found = json.loads((run / "tasks" / "anomaly.json").read_text())["detection"]
    from sklearn.metrics import roc_auc_score

    for name in ("negative_elbo", "reconstruction_error", "latent_distance"):
        score = np.array([float(row[name]) for row in rows])
        assert found[name]["auroc"] == pytest.approx(roc_auc_score(outlier, score), abs=1e-6)
    assert call("anomaly", run, "--inliers", "1-3", "--outliers", "digits:val:9", "--out", "nine.csv") == 0
    assert call("anomaly", run, "--data", ":train", "--out", "train.csv") == 0
    header = (tmp_path / "train.csv").read_text().splitlines()[0]
    assert header == "index,label,negative_elbo,reconstruction_error,latent_distance"


def test_impute_fills_and_measures(call: Call, folder: Path, compose, tmp_path: Path) -> None:
    assert call("impute", folder, "--n", 12, "--mask", "lower", "--steps", 5) == 0
    numbers = json.loads((folder / "tasks" / "imputation.json").read_text())
    x = load_data(compose()["data"]).test.x[:12].double() / 255
    mean = load_data(compose()["data"]).train.x.double().mean(0) / 255
    expected = (mean - x)[:, :, 4:].square().sum() / 12
    assert numbers["squared_error_per_image"]["mean-filling"] == pytest.approx(float(expected), rel=1e-5)
    assert numbers["missing_pixels_per_image"] == 32
    filled = np.load(folder / "tasks" / "imputation.npy")
    np.testing.assert_allclose(filled[:, :, :4], x[:, :, :4].numpy(), atol=1e-6)
    error = np.square(filled - x.numpy()).sum() / 12
    assert numbers["squared_error_per_image"]["mean of 8 chains"] == pytest.approx(error, rel=1e-4)
    hole = np.zeros((8, 8), bool)
    hole[2:4] = True
    np.save(tmp_path / "hole.npy", hole)
    Image.fromarray(np.where(hole, 0, 255).astype(np.uint8)).save(tmp_path / "hole.png")
    said = []
    for mask in ("hole.npy", "hole.png"):
        assert call("impute", folder, "--n", 5, "--mask", mask, "--method", "chains", "--out", "i.png") == 0
        said.append(json.loads((tmp_path / "i.json").read_text())["squared_error_per_image"])
    assert said[0] == said[1]


def test_pictures_are_not_blank(call: Call, folder: Path) -> None:
    commands = {"samples": "sample", "reconstructions": "reconstruct", "interpolation": "interpolate", "traversal": "traverse"}
    commands |= {"anomaly": "anomaly", "imputation": "impute"}
    for name, command in commands.items():
        assert call(command, folder) == 0
        with Image.open(folder / "tasks" / f"{name}.png") as image:
            assert len(np.unique(np.asarray(image.convert("L")))) > 50, name


def test_commands_on_colour_images_without_classes(call: Call, trained, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for index in range(30):
        Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(pictures / f"{index:02d}.png")
    overrides = ("data=folder", f"data.root={pictures}", "data.size=8", "data.channels=3", "trainer.batch_size=8", *QUICK)
    run = copy_of(trained(*overrides), tmp_path / "colour")
    for command in (
        ("encode", "--plot"), ("sample",), ("sample", "--source", "mixture", "--components", "2"), ("reconstruct",),
        ("interpolate",), ("interpolate", "--images", "pictures/00.png", "pictures/01.png"), ("traverse",), ("anomaly",),
        ("anomaly", "--inliers", ":train", "--outliers", "pictures"), ("impute", "--mask", "centre"), ("card",),
    ):  # fmt: skip
        assert call(command[0], run, *command[1:]) == 0, command
    with Image.open(run / "tasks" / "reconstructions.png") as image:
        red, green, _ = np.moveaxis(np.asarray(image.convert("RGB")).astype(int), -1, 0)
        assert np.abs(red - green).max() > 50


def test_a_run_from_another_machine_finds_its_data_here(folder: Path, mnist_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vae_lab.tasks.source import data_config

    run = vae_lab.load(folder)
    run.config["data"] = {"name": "mnist", "root": "/not/there", "val_size": 7, "binarize": "none", "classes": None}
    monkeypatch.setenv("VAE_LAB_DATA", str(mnist_root))
    assert data_config(run, "mnist") == run.config["data"] | {"root": str(mnist_root)}


def test_torch_is_told_nothing_random(call: Call, folder: Path) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    for command in ("sample", "impute", "anomaly"):
        assert call(command, folder) == 0
    assert torch.equal(torch.get_rng_state(), before)
