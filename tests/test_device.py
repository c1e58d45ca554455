"""Nothing is left behind on the CPU, and a device is asked for values rarely, in every registered combination.

On torch's meta device, which any machine has; `-m gpu` trains the same for real.
"""

import itertools
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console

import vae_lab
from tests.meta import META, Questions, questions  # noqa: F401 (a fixture)
from vae_lab import registry
from vae_lab.train import train_cohort

SMALL = (
    *("hidden_dims=[8]", "data.limit=200", "data.val_size=50", "trainer.batch_size=32", "trainer.epochs=2"),
    *("tracking=none", "trainer.checkpoint_seconds=0"),
)
EPOCHS, PER_EPOCH = 2, 3  # training means, validation means, whether all is finite
PRODUCT = [
    pytest.param(choice, marks=pytest.mark.slow, id=" ".join(choice))
    for choice in itertools.product(
        [f"model={name}" for name in registry.names("model")],
        [f"loss={name}" for name in registry.names("loss")],
        [f"network={name}" for name in registry.names("network")],
    )
]
CHOICES = [
    *((f"model={name}", "network=conv") for name in registry.names("model")),
    *((f"loss={name}",) for name in registry.names("loss")),
    *((f"optimizer={name}",) for name in registry.names("optimizer")),
    *((f"scheduler={name}",) for name in registry.names("scheduler")),
    *((f"data.binarize={name}",) for name in ("threshold", "static", "dynamic")),
    *(("model=vae", f"objective={name}") for name in registry.names("objective")),
    ("trainer.clip_grad_norm=1",),
    ("trainer.patience=1",),
    ("data.val_size=0",),
]
COMBINATIONS = [*PRODUCT, *(pytest.param(choice, id=" ".join(choice)) for choice in CHOICES)]
TASKS = (
    *(("encode", "--plot"), ("sample", "--n", 9), ("sample", "--temperature", 0.5), ("reconstruct",), ("interpolate",)),
    *(("traverse",), ("anomaly", "--outliers", 0), ("impute", "--n", 4, "--chains", 2, "--steps", 2, "--method", "both")),
    *(("export", "--format", "state_dict"), ("card",)),
)


def whole(compose: Callable[..., dict], folder: Path, runs: int, *overrides: str) -> list[Path]:
    """Train, evaluate and draw runs together; what ends one of them is raised."""
    cfgs = [compose(*SMALL, *overrides, f"seed={seed}") for seed in range(runs)]
    folders = [folder / str(number) for number in range(runs)]
    for outcome in train_cohort(cfgs, folders, Console(file=StringIO())):
        if isinstance(outcome, BaseException):
            raise outcome
    return folders


@pytest.mark.parametrize("runs", [pytest.param(1, marks=pytest.mark.slow), 3])
@pytest.mark.parametrize("overrides", COMBINATIONS)
def test_nothing_is_left_behind(
    overrides: tuple[str, ...],
    runs: int,
    compose,
    tmp_path: Path,
    questions: Questions,  # noqa: F811
) -> None:
    """Training, validation, hand-over, evaluation, figures; and a restored run goes on."""
    folders = whole(compose, tmp_path, runs, "evaluation.figures=false", *overrides)
    loop = sum(number for line, number in questions.items() if line.startswith(("engine", "health", "feed", "cohort")))
    assert 0 < loop <= EPOCHS * PER_EPOCH, questions
    drawn = f"evaluation.figures={runs == 1}"
    whole(compose, tmp_path, runs, drawn, *overrides, "trainer.epochs=3", "resume_allow=[trainer.epochs]")
    assert all((folder / "figures" / "curves.png").is_file() == (runs == 1) for folder in folders)


@pytest.mark.parametrize("model", ["autoencoder", "vae"])
def test_tasks_on_a_device(model: str, compose, tmp_path: Path, call, questions: Questions) -> None:  # noqa: F811
    (folder,) = whole(compose, tmp_path, 1, f"model={model}")
    run = vae_lab.load(folder)
    assert run.device == META
    assert all(tensor.device == META for tensor in run.system.state_dict().values())
    for task in TASKS:
        refused = model == "autoencoder" and task[0] in ("impute",)
        assert call(task[0], folder, *task[1:]) in ((0, 2) if refused else (0,)), task


@pytest.mark.gpu
@pytest.mark.parametrize("runs", [1, 3])
@pytest.mark.parametrize("overrides", COMBINATIONS)
def test_a_gpu_trains_what_a_cpu_trains(overrides: tuple[str, ...], runs: int, compose, tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA here")
    on_gpu = whole(compose, tmp_path / "gpu", runs, "device=cuda", *overrides)
    on_cpu = whole(compose, tmp_path / "cpu", runs, "device=cpu", "evaluation.figures=false", *overrides)
    for gpu, cpu in zip(on_gpu, on_cpu, strict=True):
        pair = [vae_lab.load(folder, device="cpu") for folder in (gpu, cpu)]
        assert all(torch.isfinite(tensor).all() for run in pair for tensor in run.system.state().values())
