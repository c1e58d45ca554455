"""Fault H1: checkpoints that carry code, inflate or lie, with right checksums, are refused."""

import ast
import hashlib
import io
import json
import pickle
import resource
import tarfile
import zipfile
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import save as safetensors_bytes

import vae_lab
from tests.conftest import ROOT
from tests.test_checkpoint import MODEL, TRAINING
from vae_lab import checkpoint
from vae_lab.errors import CheckpointError


class Payload:
    """Creates a file when unpickled."""

    def __init__(self, marker: str):
        self.marker = marker

    def __reduce__(self):
        return (Path.touch, (Path(self.marker),))


@cache
def hostile_contents(marker: Path) -> dict[str, tuple[bytes, bytes]]:
    """(model.safetensors, training.pt) by kind of attack."""
    good_model = safetensors_bytes(MODEL)
    payload = Payload(str(marker))

    def saved(value, **options) -> bytes:
        buffer = io.BytesIO()
        torch.save(value, buffer, **options)
        return buffer.getvalue()

    scripted = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), scripted)
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            data = pickle.dumps(payload)
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 50_000_000)
    header = json.dumps({"a": {"dtype": "F32", "shape": [2**40, 2**20], "data_offsets": [0, 4]}}).encode()
    negative = json.dumps({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}).encode()
    good_training = saved(TRAINING)
    return {
        "optimizer": (good_model, saved(TRAINING | {"optimizer": payload})),
        "random state": (good_model, saved(TRAINING | {"rng": payload})),
        "bare pickle": (good_model, pickle.dumps(payload)),
        "legacy torch": (good_model, saved(payload, _use_new_zipfile_serialization=False)),
        "legacy tar": (good_model, tar.getvalue()),
        "TorchScript": (good_model, scripted.getvalue()),
        "pickle named safetensors": (pickle.dumps(payload), good_training),
        "zip bomb": (good_model, bomb.getvalue()),
        "huge shape": (len(header).to_bytes(8, "little") + header + b"\0" * 4, good_training),
        "negative shape": (len(negative).to_bytes(8, "little") + negative + b"\0" * 4, good_training),
        "sparse tensor": (good_model, saved(TRAINING | {"sparse": torch.sparse_coo_tensor([[0]], [1.0], (2,))})),
        "no dict": (good_model, saved([1, 2])),
    }


@pytest.mark.parametrize("kind", sorted(hostile_contents(Path("unused"))))
def test_h1_hostile_checkpoints_with_right_checksums_are_refused(tmp_path: Path, kind: str) -> None:

    marker = tmp_path / "marker"
    model, training = hostile_contents(marker)[kind]
    folder = tmp_path / "last"
    folder.mkdir()
    files = {}
    for name, data in ((checkpoint.MODEL, model), (checkpoint.TRAINING, training)):
        (folder / name).write_bytes(data)
        files[name] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    manifest = {"format": checkpoint.FORMAT, "step": 1, "fingerprint": "f", "files": files}
    (folder / checkpoint.MANIFEST).write_text(json.dumps(manifest))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError, match="unreadable or refused"):
        checkpoint.load(folder)
    assert not marker.exists()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


def test_h1_weights_only_is_never_switched_off() -> None:

    package = Path(vae_lab.__file__).parent
    for path in [*package.rglob("*.py"), ROOT / "run.py"]:
        for node in ast.walk(ast.parse(path.read_text())):
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if called == "torch.load":
                assert any(word.arg == "weights_only" and ast.unparse(word.value) == "True" for word in node.keywords), path
            assert called not in ("pickle.load", "pickle.loads", "eval", "exec", "instantiate", "hydra.utils.instantiate"), path


def spoilt(training: dict, manifest: dict) -> dict[str, tuple[dict, dict]]:
    """(training.pt, manifest.json) that are sound, and that no run wrote."""
    names = list(training["optimizer"])
    other = {name: {"exp_avg": torch.zeros(3, 3, 3)} for name in names}
    return {
        "no keys": ({}, manifest),
        "a step of text": (training | {"step": "11"}, manifest),
        "a negative epoch": (training | {"epoch": -5, "step": -55}, manifest),
        "no best": (training | {"best": {}}, manifest),
        "an optimiser of another model": (training | {"optimizer": {"weight": {"exp_avg": torch.zeros(2)}}}, manifest),
        "an optimiser of other shapes": (training | {"optimizer": other}, manifest),
        "an optimiser of texts": (training | {"optimizer": dict.fromkeys(names, "x")}, manifest),
        "no data": (training, {key: value for key, value in manifest.items() if key != "data"}),
        "no step": (training, {key: value for key, value in manifest.items() if key != "step"}),
        "a cohort of text": (training, manifest | {"cohort": "x"}),
    }


def test_h1_sound_checkpoints_that_no_run_wrote_are_refused(trained, compose, tmp_path: Path) -> None:
    from tests.test_trained import QUICK, copy_of
    from vae_lab.train import train

    original = trained(*QUICK) / "checkpoints" / "last"
    training = torch.load(original / checkpoint.TRAINING, weights_only=True)
    manifest = json.loads((original / checkpoint.MANIFEST).read_text())
    cfg = compose("tracking=none", "evaluation.figures=false", "device=cpu", *QUICK)
    for kind, (content, facts) in ({"sound": (training, manifest)} | spoilt(training | {"status": "running"}, manifest)).items():
        folder = copy_of(trained(*QUICK), tmp_path / kind.replace(" ", "_"))
        last = folder / "checkpoints" / "last"
        torch.save(content, last / checkpoint.TRAINING)
        data = (last / checkpoint.TRAINING).read_bytes()
        files = facts["files"] | {checkpoint.TRAINING: {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}}
        (last / checkpoint.MANIFEST).write_text(json.dumps(facts | {"files": files}))
        if kind == "sound":
            assert train(cfg, folder)["status"] == "completed"
            continue
        with pytest.raises(CheckpointError, match=r"not what a run wrote|unreadable or refused|optimiser state of another model"):
            train(cfg, folder)
