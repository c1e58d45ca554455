"""A cohort that was killed between two of its checkpoints goes on from the step that all its runs have, to the same bits."""

import shutil
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from safetensors.torch import load_file

from vae_lab import checkpoint
from vae_lab.interrupt import interrupts
from vae_lab.train import Recorder, train_cohort

SMALL = (
    *("hidden_dims=[8]", "data.limit=96", "trainer.batch_size=32", "trainer.epochs=6", "tracking=none", "evaluation.figures=false"),
    *("trainer.checkpoint_every=2", "trainer.checkpoint_seconds=0", "device=cpu"),
)


@pytest.fixture
def train(compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Train three runs as one cohort in tmp_path/NAME, up to a step."""

    def call(name: str, steps: int | None = None) -> list[Path]:
        cfgs = [compose(*SMALL, f"seed={seed}") for seed in range(3)]
        folders = [tmp_path / name / str(seed) for seed in range(3)]
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        with monkeypatch.context() as patch:
            if steps is not None:
                seen = []
                patch.setattr(Recorder, "should_stop", lambda self: len(seen) >= steps)
                original = Recorder.on_step
                patch.setattr(Recorder, "on_step", lambda self, runs, means: (seen.append(1), original(self, runs, means)))
                patch.setattr("vae_lab.train.finish", lambda job: {})
            train_cohort(cfgs, folders, Console(file=StringIO()))
        interrupts.requested = None
        return folders

    return call


def weights(folders: list[Path]) -> list[bytes]:
    return [(folder / "checkpoints" / "last" / checkpoint.MODEL).read_bytes() for folder in folders]


@pytest.mark.parametrize("behind", ["its previous one", "none"])
def test_runs_of_a_killed_cohort_meet_at_a_common_step(train, behind: str) -> None:
    whole = weights(train("whole"))
    folders = train("killed", steps=12 if behind == "its previous one" else 6)
    steps = [[manifest["step"] for manifest in checkpoint.manifests(folder / "checkpoints")] for folder in folders]
    last = folders[1] / "checkpoints" / "last"
    shutil.rmtree(last)  # as if the kill had come before this run's checkpoint
    if behind == "none":
        shutil.rmtree(folders[1] / "checkpoints")
    else:
        (folders[1] / "checkpoints" / "previous").rename(last)
        assert steps[1][1] < steps[1][0]
    assert weights(train("killed")) == whole
    assert [load_file(folder / "checkpoints" / "best" / checkpoint.MODEL).keys() for folder in folders]
    rows = [(folder / "metrics.jsonl").read_text().count("\n") for folder in folders]
    assert rows == [6, 6, 6]
