"""Faults G: whatever W&B and its server do, a run ends with code 0, in bounded time, with the same weights and metrics."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.offline_wandb import read_offline_run
from vae_lab.doctor import hashes
from vae_lab.run_dir import RunDir

pytestmark = pytest.mark.slow
TINY = ("trainer.epochs=3", "hidden_dims=[16]", "device=cpu", "evaluation.figures=false")
LIMITS = ("tracking.init_timeout=3", "tracking.finish_timeout=3")
CANARY = "0123456789abcdefcanary0123456789abcdef99"


class Server:
    """A socket on loopback that treats every connection in one way."""

    def __init__(self, treat: Callable[[socket.socket], None]):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.treat, self.connections = treat, 0
        threading.Thread(target=self._serve, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.listener.getsockname()[1]}"

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self.treat, args=(connection,), daemon=True).start()


def never_answer(connection: socket.socket) -> None:
    time.sleep(300)


def always_500(connection: socket.socket) -> None:
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
    connection.close()


def refuse_key(connection: socket.socket) -> None:
    connection.recv(65536)
    body = b'{"errors": [{"message": "user is not logged in"}]}'
    connection.sendall(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (len(body), body))
    connection.close()


def slow_drip(connection: socket.socket) -> None:
    connection.recv(65536)
    with contextlib.suppress(OSError):
        for byte in b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + b" " * 1000:
            connection.sendall(bytes([byte]))
            time.sleep(0.5)


@pytest.fixture
def servers() -> Iterator[dict[str, str]]:
    """Addresses by kind of trouble."""
    running = {
        "hangs": Server(never_answer),
        "answers 500": Server(always_500),
        "refuses the key": Server(refuse_key),
        "drips": Server(slow_drip),
    }
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        addresses = {name: server.url for name, server in running.items()}
        addresses |= {"closed port": f"http://127.0.0.1:{closed.getsockname()[1]}", "no such host": "http://wandb.invalid"}
        yield addresses
    for server in running.values():
        server.listener.close()


def run(folder: Path, *overrides: str, code: str = "", **environment: str) -> tuple[subprocess.CompletedProcess, float]:
    home = folder.parent / f"{folder.name}-home"
    home.mkdir(exist_ok=True)
    command = [sys.executable, str(ROOT / "run.py")]
    if code:
        runs = f"runpy.run_path({str(ROOT / 'run.py')!r}, run_name='__main__')"
        command = [sys.executable, "-c", f"import sys, runpy; sys.path.insert(0, {str(ROOT)!r}); {code}; {runs}"]
    began = time.perf_counter()
    done = subprocess.run(
        [*command, *TINY, f"hydra.run.dir={folder}", *overrides],
        cwd=folder.parent,
        env={key: value for key, value in os.environ.items() if not key.startswith("WANDB")} | {"HOME": str(home)} | environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    return done, time.perf_counter() - began


@pytest.fixture(scope="module")
def without(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], float]:
    """Hashes and seconds of the run without W&B."""
    folder = tmp_path_factory.mktemp("without") / "run"
    done, seconds = run(folder, "tracking=none")
    assert done.returncode == 0, done.stderr
    return hashes(folder), seconds


@pytest.mark.parametrize("kind", ["hangs", "answers 500", "refuses the key", "drips", "closed port", "no such host"])
def test_g1_servers_in_trouble(without: tuple, servers: dict[str, str], tmp_path: Path, kind: str) -> None:
    expected, seconds = without
    folder = tmp_path / "run"
    done, took = run(folder, *LIMITS, "tracking.mode=online", WANDB_BASE_URL=servers[kind], WANDB_API_KEY=CANARY)
    assert done.returncode == 0, done.stderr
    assert took < seconds + 3 + 3 + 10
    assert hashes(folder) == expected
    assert done.stdout.count("W&B: ") == 1
    assert "wandb sync" in done.stdout
    assert not leaks(folder, CANARY)
    offline = read_offline_run(folder / "wandb")
    assert [row["epoch"] for row in offline.history if "train/loss" in row] == [1, 2, 3]


def leaks(folder: Path, secret: str) -> list[str]:
    return [str(path) for path in folder.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]


def test_g2_the_service_is_killed(without: tuple, tmp_path: Path) -> None:
    expected, seconds = without
    code = (
        "import os, signal, threading, time, subprocess\n"
        "def kill():\n"
        "    for _ in range(400):\n"
        "        time.sleep(0.01)\n"
        "        for line in subprocess.run(['ps', '-o', 'pid=,args=', '--ppid', str(os.getpid())], capture_output=True, text=True)"
        ".stdout.splitlines():\n"
        "            if 'wandb-core' in line:\n"
        "                os.kill(int(line.split()[0]), signal.SIGKILL)\n"
        "                open('killed', 'w').close()\n"
        "                return\n"
        "threading.Thread(target=kill, daemon=True).start()\n"
    )
    script = tmp_path / "killer.py"
    script.write_text(code)
    folder = tmp_path / "run"
    done, took = run(folder, *LIMITS, code=f"exec(open({str(script)!r}).read())")
    assert (tmp_path / "killed").exists()
    assert done.returncode == 0, done.stderr
    assert took < seconds + 20
    assert hashes(folder) == expected


def test_g2_wandb_is_not_installed(without: tuple, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    done, _ = run(folder, code="sys.modules['wandb'] = None")
    assert done.returncode == 0, done.stderr
    assert hashes(folder) == without[0]
    assert "W&B: " in done.stdout


def test_g2_the_wandb_folder_cannot_be_written(without: tuple, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "wandb").write_text("a file, not a folder")
    done, _ = run(folder)
    assert done.returncode == 0, done.stderr
    assert hashes(folder) == without[0]
    assert "W&B: " in done.stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_g2_the_wandb_folder_is_full(without: tuple, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    (folder / "wandb").mkdir(parents=True)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", str(folder / "wandb")], check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        done, took = run(folder, *LIMITS)
        assert done.returncode == 0, done.stderr
        assert took < without[1] + 3 + 3 + 10
        assert hashes(folder) == without[0]
    finally:
        subprocess.run(["umount", "-l", str(folder / "wandb")], check=True)


@pytest.mark.parametrize("place", ["environment", "netrc", "url"])
def test_g3_a_key_is_written_nowhere(servers: dict[str, str], tmp_path: Path, place: str) -> None:
    folder = tmp_path / "run"
    (tmp_path / "run-home").mkdir()
    address = servers["refuses the key"]
    environment = {"WANDB_BASE_URL": address}
    if place == "environment":
        environment["WANDB_API_KEY"] = CANARY
    elif place == "netrc":
        (tmp_path / "run-home" / ".netrc").write_text(f"machine 127.0.0.1\n  login user\n  password {CANARY}\n")
    else:
        environment["WANDB_BASE_URL"] = address.replace("http://", f"http://user:{CANARY}@")
    done, _ = run(folder, *LIMITS, "tracking.mode=online", **environment)
    assert done.returncode == 0, done.stderr
    assert not leaks(folder, CANARY)
    assert CANARY not in done.stdout + done.stderr


def test_g4_a_resumed_run_keeps_its_wandb_id(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    code = (
        "import signal, time; import vae_lab.train as t; from tests.test_kill import signal_at_step; "
        "signal_at_step(15, signal.SIGKILL); old = t.fit; t.fit = lambda *a: (time.sleep(3), old(*a))"  # W&B starts meanwhile
    )
    done, _ = run(folder, "trainer.checkpoint_every=1", "trainer.checkpoint_seconds=0", code=code)
    assert done.returncode == -signal.SIGKILL
    first = (folder / "wandb" / "run-id").read_text()
    done, _ = run(folder, "trainer.checkpoint_every=1", "trainer.checkpoint_seconds=0")
    assert done.returncode == 0, done.stderr
    assert "going on at step 11" in done.stdout
    assert (folder / "wandb" / "run-id").read_text() == first
    assert [row["epoch"] for row in RunDir(folder).read_metrics()] == [1, 2, 3]
    segments = sorted((folder / "wandb").glob("offline-run-*"))
    assert all(segment.name.endswith(first) for segment in segments)
