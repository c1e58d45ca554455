"""The model card, and what would be uploaded: read by the Hub's own client, and sent by it to a server on this machine."""

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import yaml

import vae_lab
from tests.conftest import ROOT
from tests.test_tasks_wrong import files
from tests.test_trained import QUICK, copy_of
from vae_lab.errors import ConfigError
from vae_lab.run_dir import RunDir
from vae_lab.tasks.card import card
from vae_lab.tasks.push import contents, upload

huggingface_hub = pytest.importorskip("huggingface_hub")
DRAWN = (*QUICK, "evaluation.figures=true")


@pytest.fixture
def folder(trained, tmp_path: Path) -> Path:
    return copy_of(trained(*DRAWN), tmp_path / "run")


def test_the_card_says_what_the_run_is(call, folder: Path) -> None:
    assert call("card", folder, "--license", "mit") == 0
    found = huggingface_hub.ModelCard.load(folder / "README.md")
    results = RunDir(folder).read_results()
    assert found.data.license == "mit"
    assert {"vae", "autoencoder"} <= set(found.data.tags)
    reported = {result.metric_type: result.metric_value for result in found.data.eval_results}
    assert reported["elbo"] == results["test"]["elbo"]
    assert {result.dataset_name for result in found.data.eval_results} == {"digits"}
    for key in ("trainer.epochs", "latent_dim", "objective.beta"):
        assert f"`{key}`" in found.text
    shown = [line.split("](")[1].rstrip(")") for line in found.text.splitlines() if line.startswith("![")]
    assert len(shown) == 4
    assert all((folder / path).is_file() for path in shown)


def test_an_unfinished_run_has_no_card(folder: Path) -> None:
    results = RunDir(folder).read_results()
    (folder / "results.json").write_text(json.dumps(results | {"test": {}}))
    with pytest.raises(ConfigError, match="let the run end first"):
        card(RunDir(folder))


def test_what_is_uploaded_is_a_run_that_loads(folder: Path, tmp_path: Path) -> None:
    sent = contents(RunDir(folder), "user/name")
    for name, data in sent.items():
        path = tmp_path / "fetched" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    x = np.random.default_rng(0).integers(0, 256, (3, 8, 8), dtype=np.uint8)
    here, there = (vae_lab.load(path, device="cpu") for path in (folder, tmp_path / "fetched"))
    np.testing.assert_array_equal(here.reconstruct(x), there.reconstruct(x))
    assert 'snapshot_download("user/name")' in sent["README.md"].decode()


def test_no_path_and_no_secret_of_this_machine_is_uploaded(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = folder / "config.yaml"
    cfg = yaml.safe_load(config.read_text())
    cfg["data"]["root"] = "/home/somebody/pictures"
    config.write_text(yaml.safe_dump(cfg))
    for name, data in contents(RunDir(folder), "user/name").items():
        assert b"/home/somebody" not in data, name
        assert str(tmp_path).encode() not in data, name
    monkeypatch.setenv("SOME_API_KEY", cfg["data"]["name"] + "-secret-1234")
    results = json.loads((folder / "results.json").read_text())
    (folder / "results.json").write_text(json.dumps(results | {"note": "digits-secret-1234"}))
    with pytest.raises(ConfigError, match="secret"):
        contents(RunDir(folder), "user/name")


def test_a_dry_run_lists_and_sends_nothing(call, folder: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    before = files(folder)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # not even asked for
    assert call("push", folder, "user/name", "--dry-run") == 0
    said = capsys.readouterr().out
    for name in ("README.md", "config.yaml", "checkpoints/best/model.safetensors", "figures/samples.png", "nothing was uploaded"):
        assert name in said
    assert files(folder) == before
    assert call("push", folder, "user/name") == 2
    assert "pip install -e '.[hub]'" in capsys.readouterr().err


class Hub(BaseHTTPRequestHandler):
    """As much of the Hub's interface as an upload uses; the server keeps what arrived in `seen` and `files`."""

    def log_message(self, *arguments: object) -> None:
        pass

    def _answer(self, content: dict, status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        whole = b""
        while size := int(self.rfile.readline(), 16):
            whole += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return whole

    def do_GET(self) -> None:
        self.server.seen.append(("GET", self.path))
        self._answer({"id": "user/name", "sha": "0" * 40, "siblings": []})

    def do_POST(self) -> None:
        body = self._body()
        path = self.path.partition("?")[0]
        self.server.seen.append(("POST", path))
        if self.headers.get("Authorization") != "Bearer hf_good":
            return self._answer({"error": "Invalid token"}, 401)
        host = f"http://127.0.0.1:{self.server.server_port}"
        if path == "/api/repos/create":
            self.server.created = json.loads(body)
            return self._answer({"url": f"{host}/user/name", "id": "user/name"})
        if "/preupload/" in path:
            asked = json.loads(body)["files"]
            return self._answer({"files": [{**file, "uploadMode": "regular", "shouldIgnore": False} for file in asked]})
        if "/commit/" in path:
            for line in body.decode().splitlines():
                item = json.loads(line)
                if item["key"] == "file":
                    self.server.files[item["value"]["path"]] = base64.b64decode(item["value"]["content"])
            return self._answer(
                {"commitUrl": f"{host}/user/name/commit/1", "commitOid": "1" * 40, "hookOutput": "", "success": True}
            )
        return self._answer({"valid": True})


@pytest.fixture
def hub() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.seen, server.files, server.created = [], {}, None
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def push(folder: Path, port: int, home: Path, *options: str, token: str = "hf_good") -> subprocess.CompletedProcess:
    """`vae-lab push` as a user runs it, with the real client, against a server on this machine."""
    code = "import sys; sys.argv[0] = 'vae-lab'; from vae_lab.cli import main; main()"
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "HF_ENDPOINT": f"http://127.0.0.1:{port}",
        "HF_TOKEN": token,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    command = [sys.executable, "-c", code, "push", str(folder), "user/name", *options]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_the_real_client_uploads_to_a_server(folder: Path, hub: ThreadingHTTPServer, tmp_path: Path) -> None:
    before = files(folder)
    done = push(folder, hub.server_port, tmp_path / "home", "--private")
    assert done.returncode == 0, done.stderr
    assert (hub.created["organization"], hub.created["name"]) == ("user", "name")
    assert hub.created.get("private") is True or hub.created.get("visibility") == "private"
    assert hub.files == contents(RunDir(folder), "user/name")
    assert f"http://127.0.0.1:{hub.server_port}/user/name" in done.stdout
    assert files(folder) == before


def test_a_refused_token_is_one_message(folder: Path, hub: ThreadingHTTPServer, tmp_path: Path) -> None:
    done = push(folder, hub.server_port, tmp_path / "home", token="hf_bad")
    assert done.returncode == 9
    assert done.stderr.startswith("error: The upload to user/name failed")
    assert done.stderr.count("\n") == 1
    assert "hf auth login" in done.stderr
    assert "hf_bad" not in done.stderr + done.stdout
    assert hub.files == {}


def test_no_server_is_one_message(folder: Path, tmp_path: Path) -> None:
    done = push(folder, 9, tmp_path / "home")
    assert done.returncode == 9
    assert done.stderr.startswith("error: The upload to user/name failed")
    assert done.stderr.count("\n") == 1


def test_upload_needs_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ConfigError, match=r"pip install -e '\.\[hub\]'"):
        upload({}, "user/name", private=False)
