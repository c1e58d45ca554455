"""Data sets that torchvision reads and downloads."""

import hashlib
import shutil
from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import numpy as np
import torch
from filelock import FileLock

from vae_lab.data.base import DataConfig, Dataset, Images
from vae_lab.errors import DataError
from vae_lab.registry import register

MNIST_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


class TorchvisionDataset(Dataset):
    """A local copy under `root` is used as it is; else it is downloaded there."""

    source: ClassVar[str]  # the torchvision class
    folder: ClassVar[str]  # where that class keeps its files, below root
    files: ClassVar[tuple[str, ...]]
    md5: ClassVar[dict[str, str]] = {}  # published sums of the files as they lie on disk

    @dataclass(frozen=True)
    class Config(DataConfig):
        root: str
        download: bool

    config: Config

    def read(self) -> tuple[Images, Images]:
        root = Path(self.config.root).expanduser()
        folder = root / self.folder
        missing = [name for name in self.files if not (folder / name).is_file()]
        if missing and not self.config.download:
            raise DataError(self._message(folder, f"missing {', '.join(missing)} (data.download=false)"))
        if missing:
            self._download(self._class(), root, folder, missing)
        self._verify(folder)
        try:
            return self._split(root, True), self._split(root, False)
        except DataError:
            raise
        except Exception as error:
            raise DataError(self._message(folder, f"damaged files ({type(error).__name__}: {error})")) from error

    def _class(self) -> Any:
        """The torchvision class; its package takes seconds to import, so it is asked only where it is needed."""
        try:
            import torchvision.datasets
        except Exception as error:
            raise DataError(
                f"data={self.config.name} needs torchvision, which cannot be imported ({error}). Reinstall the matching pair: "
                "pip install --force-reinstall torch torchvision"
            ) from error
        return getattr(torchvision.datasets, self.source)

    @abstractmethod
    def _split(self, root: Path, train: bool) -> Images:
        """The training or the test images of files that lie there; whatever it raises means damaged files."""

    def _download(self, cls: Any, root: Path, folder: Path, missing: list[str]) -> None:
        """Into a folder beside the final one, then renamed: whoever looks sees all files or none."""
        existing = next(parent for parent in (root, *root.absolute().parents) if parent.exists())
        try:
            root.mkdir(parents=True, exist_ok=True)
            with FileLock(root / f".{self.config.name}.lock"), TemporaryDirectory(dir=root, prefix=".download-") as temporary:
                if all((folder / name).is_file() for name in self.files):
                    return  # another process was faster
                for train in (True, False):
                    cls(temporary, train=train, download=True)
                if folder.exists():
                    shutil.rmtree(folder)
                folder.parent.mkdir(parents=True, exist_ok=True)
                (Path(temporary) / self.folder).rename(folder)
        except Exception as error:
            (root / f".{self.config.name}.lock").unlink(missing_ok=True)
            for created in (root, *root.absolute().parents):
                if created.absolute() == existing.absolute() or not created.exists() or any(created.iterdir()):
                    break
                created.rmdir()
            reason = str(error).strip().splitlines()[-1:] or [""]
            text = f"missing {', '.join(missing)}, and the download failed ({type(error).__name__}: {reason[0]})"
            raise DataError(self._message(folder, text)) from error

    def _verify(self, folder: Path) -> None:
        for name, expected in self.md5.items():
            found = hashlib.md5((folder / name).read_bytes(), usedforsecurity=False).hexdigest()
            if found != expected:
                raise DataError(self._message(folder, f"{name} is damaged: md5 {found}, expected {expected}"))

    def _message(self, folder: Path, problem: str) -> str:
        return (
            f"data={self.config.name}: {problem}. Looked in {folder.resolve()} for {', '.join(self.files)}. Remove what is "
            f"damaged there and rerun with a network, or say where a copy lies: export VAE_LAB_DATA=DIR (the folder that holds "
            f'{self.folder}) or data.root=DIR. To download by hand: python -c "import torchvision; '
            f"torchvision.datasets.{self.source}('{self.config.root}', download=True)\""
        )


class IdxDataset(TorchvisionDataset):
    """Files in MNIST's own format are read here: a header of four bytes, the sizes of the axes, then all values."""

    files = MNIST_FILES

    def _split(self, root: Path, train: bool) -> Images:
        pixels, labels = (_read_idx(root / self.folder / name) for name in self.files[0 if train else 2 :][:2])
        if len(pixels) != len(labels) or pixels.shape[1:] != self.image_shape[1:] or labels.ndim != 1:
            raise ValueError(f"images {list(pixels.shape)} and labels {list(labels.shape)} do not match")
        return Images(torch.from_numpy(pixels).view(-1, *self.image_shape), torch.from_numpy(labels).long())


def _read_idx(path: Path) -> np.ndarray:
    """An array of unsigned bytes. Format: http://yann.lecun.com/exdb/mnist"""
    data = path.read_bytes()
    if data[:3] != b"\0\0\x08":
        raise ValueError(f"{path.name} does not begin as an IDX file of bytes does")
    start = 4 + 4 * data[3]
    shape = np.frombuffer(data[4:start], dtype=">u4").astype(int)
    return np.frombuffer(data, dtype=np.uint8, offset=start).reshape(shape).copy()


@register("data", "mnist")
class MNIST(IdxDataset):
    """70,000 handwritten digits, 28x28.

    References:
        LeCun et al. 1998. https://doi.org/10.1109/5.726791
    """

    title, source, folder = "MNIST", "MNIST", "MNIST/raw"
    image_shape = (1, 28, 28)
    md5: ClassVar[dict[str, str]] = {
        "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
        "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
        "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
        "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    }


@register("data", "fashion_mnist")
class FashionMNIST(IdxDataset):
    """70,000 articles of clothing, 28x28.

    References:
        Xiao, Rasul & Vollgraf 2017. https://arxiv.org/abs/1708.07747
    """

    title, source, folder = "Fashion-MNIST", "FashionMNIST", "FashionMNIST/raw"
    image_shape = (1, 28, 28)
    md5: ClassVar[dict[str, str]] = {
        "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
        "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
        "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
    }


@register("data", "kmnist")
class KMNIST(IdxDataset):
    """70,000 cursive Japanese characters, 28x28. A local copy is believed by its structure: only its archives have known sums.

    References:
        Clanuwat et al. 2018. https://arxiv.org/abs/1812.01718
    """

    title, source, folder = "KMNIST", "KMNIST", "KMNIST/raw"
    image_shape = (1, 28, 28)


@register("data", "cifar10")
class CIFAR10(TorchvisionDataset):
    """60,000 colour photographs of ten classes, 32x32. torchvision checks the files' sums itself.

    References:
        Krizhevsky 2009. https://www.cs.toronto.edu/~kriz/cifar.html
    """

    title, source, folder = "CIFAR-10", "CIFAR10", "cifar-10-batches-py"
    files = (*(f"data_batch_{index}" for index in range(1, 6)), "test_batch", "batches.meta")
    image_shape = (3, 32, 32)

    def _split(self, root: Path, train: bool) -> Images:
        raw = self._class()(str(root), train=train, download=False)
        x = torch.from_numpy(raw.data).permute(0, 3, 1, 2).contiguous()
        return Images(x, torch.tensor(raw.targets))
