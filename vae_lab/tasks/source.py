"""The images a command works on: `--data`."""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vae_lab import rng
from vae_lab.arrays import image_reader
from vae_lab.config import to_plain
from vae_lab.data import Images, load
from vae_lab.data.base import Binarize, bernoulli_pixels
from vae_lab.data.files import SUFFIXES, class_labels, first_of, read_image
from vae_lab.entry import compose_checked
from vae_lab.errors import ConfigError, DataError, did_you_mean
from vae_lab.reading import data_here
from vae_lab.registry import names
from vae_lab.trained import TrainedRun

SHOWN = 5
SPLITS = ("train", "val", "test")
CLASSES = re.compile(r"\d+(-\d+)?(,\d+(-\d+)?)*")
NAMED = re.compile(rf"(?P<name>\w*)(:(?P<split>\w+)(:(?P<classes>{CLASSES.pattern}))?)?")


@dataclass(frozen=True)
class Source:
    """Images as a `TrainedRun` takes them, their class labels where there are any, and what they are called."""

    x: Tensor
    y: Tensor | None
    title: str

    def __len__(self) -> int:
        return len(self.x)

    def first(self, n: int | None) -> "Source":
        return self if n is None else replace(self, x=self.x[:n], y=None if self.y is None else self.y[:n])


def read(run: TrainedRun, spec: str | None = None, fit: bool = False) -> Source:
    """The images that `spec` names, prepared as the run's own: black and white where those are.

    Args:
        run: decides the shape, and what is meant where no data set is named.
        spec: `NAME:SPLIT:CLASSES` (mnist, mnist:test, digits:val:0-4, :train: an empty name is the run's own data), classes of
            the run's own test images (7, or 0-4,9), an image file, a folder of images, or an `.npy`. None: the run's own test
            images.
        fit: crop, scale and convert image files to what the model takes; else another size or colour is an error.

    Raises:
        DataError: nothing lies there, or no such images.
        ConfigError: no such data set or split.
    """
    spec = spec or ":test"
    if CLASSES.fullmatch(spec):
        spec = f":test:{spec}"
    path, named = Path(spec).expanduser(), NAMED.fullmatch(spec)
    if named and (not named["name"] or named["name"] in names("data")):
        return known(run, named["name"] or run.config["data"]["name"], named["split"] or "test", class_list(named["classes"]))
    if path.is_dir():
        source = _folder(run, path, fit)
    elif path.suffix.lower() == ".npy":
        source = Source(_array(run, path), None, path.name)
    elif path.suffix.lower() in SUFFIXES or path.is_file():
        source = Source(_stack(run, [path], path.parent, fit), None, path.name)
    elif named and "/" not in spec:
        choices = names("data")
        hint = did_you_mean(named["name"], choices)
        raise ConfigError(f"{spec}: neither a data set ({', '.join(choices)}) nor a file or folder.{hint}")
    else:
        raise DataError(f"{spec}: no such file or folder ({path.absolute()}).")
    return replace(source, x=_binarize(run, source.x))


def class_list(text: str | None) -> list[int] | None:
    """'0-2,7' -> [0, 1, 2, 7]."""
    if text is None:
        return None
    ends = [part.partition("-") for part in text.split(",")]
    return sorted({number for first, _, last in ends for number in range(int(first), int(last or first) + 1)})


def known(run: TrainedRun, name: str, split: str, classes: list[int] | None = None, first: int | None = None) -> Source:
    """A split of a data set, or its `first` images; of the run's own, exactly as it was trained, but for classes that are named."""
    if split not in SPLITS:
        raise ConfigError(f"{name}:{split}: choose {', '.join(SPLITS)}.{did_you_mean(split, SPLITS)}")
    parts = load(data_config(run, name, classes))
    images: Images | None = getattr(parts, split)
    if images is None:
        raise ConfigError(f"{name}:val: this data set has no validation images (data.val_size=0).")
    if tuple(images.x.shape[1:]) != run.image_shape:
        raise DataError(f"{name}: images of {_by(images.x.shape[1:])}, but {run.name} was trained on {_by(run.image_shape)}.")
    chosen = "" if classes is None else f", {'class' if len(classes) == 1 else 'classes'} {', '.join(map(str, classes))}"
    return Source(images.x[:first], None if images.y is None else images.y[:first], f"{name} {split}{chosen}")


def data_config(run: TrainedRun, name: str, classes: list[int] | None = None) -> dict[str, Any]:
    """The `data` group of a data set: the run's own, or the YAML's with the run's way to binarise.

    A run may come from another machine: where its `data.root` is not there, this machine's takes its place.
    """
    own = run.config["data"]
    cfg = dict(own)
    if name != own["name"] or {"root", "cache", "download"} & own.keys():
        here = to_plain(compose_checked([f"data={name}"])[0])["data"]
        cfg = here | {"binarize": own["binarize"]} if name != own["name"] else data_here(own, here)
        if "root" in cfg and not Path(cfg["root"]).expanduser().is_dir():
            cfg["root"] = here["root"]
    return cfg if classes is None else cfg | {"classes": classes}


def own_train(run: TrainedRun, first: int | None = None) -> Source:
    """The images that the run was trained on, or the `first` of them: no more are read."""
    return known(run, run.config["data"]["name"], "train", first=first)


def _folder(run: TrainedRun, folder: Path, fit: bool) -> Source:
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and not path.name.startswith("."))
    if not paths:
        raise DataError(f"{folder}: no {', '.join(SUFFIXES)} files below it.")
    x = _stack(run, paths, folder, fit)
    return Source(x, class_labels([str(path.relative_to(folder)) for path in paths]), folder.name or str(folder))


def _stack(run: TrainedRun, paths: list[Path], root: Path, fit: bool) -> Tensor:
    found = [read_image(path, run.image_shape, resize=fit, convert=fit) for path in paths]
    bad = [f"{path.relative_to(root)} ({why})" for path, why in zip(paths, found, strict=True) if isinstance(why, str)]
    if bad:
        raise DataError(
            f"{root if len(paths) > 1 else paths[0]}: {len(bad)} of {len(paths)} files cannot be used: "
            f"{first_of(bad, SHOWN)}. {run.name} takes {_by(run.image_shape)}; --fit crops, scales and converts."
        )
    return torch.from_numpy(np.stack([pixels for pixels in found if not isinstance(pixels, str)]))


def _array(run: TrainedRun, path: Path) -> Tensor:
    try:
        array = np.load(path, allow_pickle=False)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file.") from error
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: not a readable .npy file ({str(error).splitlines()[0]}).") from error
    if not isinstance(array, np.ndarray):
        raise DataError(f"{path}: an archive of several arrays; pass one array.")
    try:
        whole = slice(0, len(array)) if array.ndim else slice(0, 0)
        checked = image_reader(array, run.image_shape)(whole)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    return checked if array.dtype != np.uint8 else checked.mul(255).round().to(torch.uint8)


def _binarize(run: TrainedRun, x: Tensor) -> Tensor:
    """Black and white, where the run's own test images are."""
    kind = Binarize(run.config["data"]["binarize"])
    if kind is Binarize.none:
        return x
    grey = x if x.dtype == torch.uint8 else x.mul(255).round().to(torch.uint8)
    if kind is Binarize.threshold:
        return (grey >= 128).to(torch.uint8) * 255
    return bernoulli_pixels(grey, rng.generator(run.config["data"]["split_seed"], "binarize-static", 2))


def _by(shape: Any) -> str:
    return "x".join(map(str, shape))
