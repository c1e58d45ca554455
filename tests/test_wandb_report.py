"""The W&B report of a comparison: W&B's own client and real runs, against a server on loopback."""

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.test_wandb_faults import Server, never_answer, slow_drip
from tests.wandb_server import ENTITY, KEY, Run, WandbServer, serving
from vae_lab.compare import wandb_runs
from vae_lab.compare.wandb_report import Request, publish, specification
from vae_lab.config import to_plain
from vae_lab.entry import compose_checked
from vae_lab.errors import ConfigError, ServiceError
from vae_lab.run_dir import RunDir
from vae_lab.train import train

pytestmark = pytest.mark.filterwarnings("ignore::pydantic.PydanticDeprecatedSince20")  # of wandb_workspaces
TINY = ("trainer.epochs=2", "hidden_dims=[8]", "latent_dim=2", "device=cpu", "evaluation.manifold_steps=3")
RUNS = {
    "ae_s0": ("model=autoencoder", "seed=0"),
    "vae_s0": ("model=vae", "seed=0"),
    "vae_s1": ("model=vae", "seed=1"),
    "unseen": ("model=vae", "seed=2", "tracking=none"),
}
SUMMARY = "| model | test nll |\n|---|---|\n| vae | 1.0 |"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs logged offline; one was not logged."""
    folder = tmp_path_factory.mktemp("trained")
    for name, overrides in RUNS.items():
        cfg = to_plain(compose_checked([*TINY, f"name={name}", *overrides])[0])
        train(cfg, folder / name, Console(file=StringIO()))
    return folder


@pytest.fixture
def runs(trained: Path, tmp_path: Path) -> Path:
    """A copy of them, which W&B may mark."""
    return Path(shutil.copytree(trained, tmp_path / "runs", symlinks=True))


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    """A server that W&B's client takes for its own, with a key for it and no other settings of W&B in reach."""
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with serving() as state:
        monkeypatch.setenv("WANDB_BASE_URL", state.url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        yield state
    assert not state.unknown


def request_for(folder: Path, *names: str, **changes: Any) -> Request:
    paths = [folder / name for name in names or RUNS]
    swept = ("model.variant", "seed", "optimizer.lr")
    request = Request({"bce on digits": paths}, ("model", "latent_dim"), swept, "test/nll", SUMMARY, f"{ENTITY}/shown")
    return replace(request, **changes)


def anonymous(value: Any) -> Any:
    """A report without the ids that W&B's library draws, and without the number of the project."""
    if isinstance(value, dict):
        hidden = {"id", "__id__", "createdAt", "updatedAt"}
        return {key: anonymous(item) for key, item in value.items() if key not in hidden}
    return [anonymous(item) for item in value] if isinstance(value, list) else value


def grids(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return [block["metadata"] for block in spec["blocks"] if block["type"] == "panel-grid"]


def panels(grid: dict[str, Any]) -> list[dict[str, Any]]:
    return grid["panelBankSectionConfig"]["panels"]


def test_a_specification_needs_no_network(runs: Path, server: WandbServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
    monkeypatch.setattr(subprocess, "Popen", refuse)  # W&B's client asks through a process of its own
    monkeypatch.delenv("WANDB_API_KEY")
    plain = specification(request_for(runs))
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert server.requests == 0
    for grid in grids(plain["spec"]):
        assert [runset["project"] for runset in grid["runSets"]] == [{"entityName": ENTITY, "name": "shown"}]


def test_what_the_report_shows(runs: Path) -> None:
    spec = specification(request_for(runs))["spec"]
    curves, comparison, pictures = grids(spec)
    assert [block["content"] for block in spec["blocks"] if block["type"] == "markdown-block"] == [SUMMARY]
    assert "runs/unseen" in json.dumps([block for block in spec["blocks"] if block["type"] == "list"])

    ids = {(runs / name / "wandb" / "run-id").read_text() for name in RUNS if name != "unseen"}
    for grid in (curves, comparison, pictures):
        (condition,) = grid["runSets"][0]["filters"]["filters"]
        assert condition["key"] == {"section": "run", "name": "name"}
        assert (condition["op"], set(condition["value"])) == ("IN", ids)
    grouping = [(key["section"], key["name"]) for key in curves["runSets"][0]["grouping"]]
    assert grouping == [("config", "model_name.value"), ("config", "latent_dim.value")]
    assert comparison["runSets"][0]["grouping"] == []

    drawn = {panel["config"]["metrics"][0]: panel["config"]["xAxis"] for panel in panels(curves)}
    assert drawn == dict.fromkeys(["train/loss", "val/loss", "train/nll", "val/nll", "train/kl", "val/kl"], "epoch")
    scatter, parallel, comparer = panels(comparison)
    assert (scatter["viewType"], scatter["config"]["xAxis"], scatter["config"]["yAxis"]) == (
        "Scatter Plot",
        "summary:test/kl",
        "summary:test/nll",
    )
    axes = [column["accessor"] for column in parallel["config"]["columns"]]
    assert axes == ["config:model_name.value", "config:seed.value", "config:optimizer.value.lr", "summary:test/nll"]
    assert comparer["viewType"] == "Run Comparer"
    shown = [panel["config"]["mediaKeys"][0] for panel in panels(pictures)]
    assert shown[0] == "figures/reconstructions"
    assert set(shown) == {f"figures/{path.stem}" for path in (runs / "vae_s0" / "figures").glob("*.png")}


def test_panels_never_span_two_sections(runs: Path) -> None:
    sections = {"sigmoid": [runs / "ae_s0"], "normal": [runs / "vae_s0", runs / "vae_s1"], "nothing": [runs / "unseen"]}
    spec = specification(request_for(runs, sections=sections))["spec"]
    headings = [block["children"][0]["text"] for block in spec["blocks"] if block["type"] == "heading" and block["level"] == 1]
    assert headings == ["Summary", "sigmoid", "normal"]
    shown = [set(grid["runSets"][0]["filters"]["filters"][0]["value"]) for grid in grids(spec)]
    ids = {name: (runs / name / "wandb" / "run-id").read_text() for name in ("ae_s0", "vae_s0", "vae_s1")}
    assert shown == [{ids["ae_s0"]}] * 3 + [{ids["vae_s0"], ids["vae_s1"]}] * 3


def test_damaged_files_of_one_run_do_not_stop_the_report(runs: Path) -> None:
    (runs / "ae_s0" / "results.json").write_text("{")
    (runs / "ae_s0" / "config.yaml").write_text("a: [")
    curves, comparison, _ = grids(specification(request_for(runs))["spec"])
    assert len(curves["runSets"][0]["filters"]["filters"][0]["value"]) == 3
    assert "config:optimizer.value.lr" in comparison["runSets"][0]["runFeed"]["columnOrder"]


def test_beta_stands_beside_beta_eff(runs: Path) -> None:
    for grid in grids(specification(request_for(runs, by=("beta",), swept=("objective.beta",)))["spec"]):
        assert grid["runSets"][0]["runFeed"]["columnOrder"] == ["summary:test/nll", "config:beta.value", "summary:beta_eff"]


def test_panels_do_not_overlap(runs: Path) -> None:
    for grid in grids(specification(request_for(runs))["spec"]):
        cells: set[tuple[int, int]] = set()
        for layout in (panel["layout"] for panel in panels(grid)):
            covered = {(layout["x"] + i, layout["y"] + j) for i in range(layout["w"]) for j in range(layout["h"])}
            assert not cells & covered
            assert layout["x"] + layout["w"] <= 24
            cells |= covered


def test_without_kl_there_is_no_rate(runs: Path) -> None:
    spec = specification(request_for(runs, "ae_s0", by=(), swept=("seed",)))["spec"]
    curves, comparison, _ = grids(spec)
    assert curves["runSets"][0]["grouping"] == []
    assert "Scatter Plot" not in [panel["viewType"] for panel in panels(comparison)]
    assert not [panel for panel in panels(curves) if "kl" in panel["config"]["metrics"][0]]


@pytest.mark.parametrize("project", ["vae", "lab/", "/vae", "lab/vae/3", "la b/vae", "", "https://wandb.ai/lab/vae"])
def test_a_malformed_project(runs: Path, project: str) -> None:
    with pytest.raises(ConfigError, match="ENTITY/PROJECT"):
        request_for(runs, project=project)


def test_an_unknown_key_is_found_before_anything_is_sent(runs: Path, server: WandbServer) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'latent_dim'"):
        publish(request_for(runs, by=("latent_dims",)))
    with pytest.raises(ConfigError, match=r"Unknown key 'test/elbow'.*'test/elbo'"):
        publish(request_for(runs, metric="test/elbow"))
    assert server.requests == 0


def test_runs_that_were_not_logged(runs: Path, server: WandbServer) -> None:
    with pytest.raises(ConfigError, match="None of the 1 runs was logged to W&B"):
        publish(request_for(runs, "unseen"))
    assert server.requests == 0


def test_no_key(runs: Path, server: WandbServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY")
    with pytest.raises(ConfigError, match=r"no API key here\. Run `wandb login`"):
        publish(request_for(runs))
    assert server.requests == 0


@pytest.mark.parametrize("key", ["f" * 40, "tooshort"])
def test_a_wrong_key(runs: Path, server: WandbServer, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("WANDB_API_KEY", key)
    with pytest.raises(ConfigError, match="wandb login --relogin") as caught:
        publish(request_for(runs))
    assert key not in str(caught.value)
    assert not server.runs


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["closed port", "hangs", "drips"])
def test_the_server_is_away(runs: Path, server: WandbServer, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(wandb_runs, "LOOK_S", 3.0)
    away = Server({"hangs": never_answer, "drips": slow_drip, "closed port": never_answer}[kind])
    address = away.url.removeprefix("http://")
    monkeypatch.setenv("WANDB_BASE_URL", f"http://user:{KEY}@{address}")
    if kind == "closed port":
        away.listener.close()
    services = wandb_services()
    began = time.perf_counter()
    with pytest.raises(ServiceError, match=f"{address} did not answer within 3 s") as caught:
        publish(request_for(runs))
    assert time.perf_counter() - began < 3 + 2
    assert KEY not in str(caught.value)
    deadline = time.perf_counter() + 5
    while left := wandb_services() - services:
        assert time.perf_counter() < deadline, left
        time.sleep(0.1)
    away.listener.close()


def wandb_services() -> set[str]:
    """Processes of W&B's service that run now."""
    listing = subprocess.run(["ps", "-eo", "pid=,stat=,args="], capture_output=True, text=True, check=True).stdout.splitlines()
    rows = [line.split(None, 2) for line in listing]
    return {pid for pid, state, command in rows if "wandb-core" in command and not state.startswith("Z")}


def test_a_report_is_published_and_read_back(runs: Path, server: WandbServer, capfd: pytest.CaptureFixture) -> None:
    import wandb_workspaces.reports.v2 as wr

    said: list[str] = []
    request = request_for(runs, title="AE and VAE: test/nll?")
    published = publish(request, said.append)
    assert (published.uploaded, published.untracked) == (3, [runs / "unseen"])
    assert said == [f"uploading runs 1 to 3 of 3 that {ENTITY}/shown lacks", "saving the report of 3 runs"]
    assert published.url.startswith(f"{server.url}/{ENTITY}/shown/reports/AE-and-VAE:-test-nll--")
    assert capfd.readouterr() == ("", "")

    for name in ("ae_s0", "vae_s0", "vae_s1"):
        run = server.runs[ENTITY, "shown", (runs / name / "wandb" / "run-id").read_text()]
        check_arrived(run, runs / name)
    assert len(server.runs) == 3  # and none in the project that they were logged to

    report = wr.Report.from_url(published.url)
    assert [type(block).__name__ for block in report.blocks] == (
        ["H1", "MarkdownBlock", "P", "UnorderedList", "H1", "H2", "P", "PanelGrid", "H2", "P", "PanelGrid", "H2", "PanelGrid"]
    )
    assert (report.entity, report.project, report.title) == (ENTITY, "shown", "AE and VAE: test nll")
    assert report.blocks[1].text == SUMMARY
    grid = report.blocks[7]
    assert grid.runsets[0].groupby == ["config.model_name.value", "config.latent_dim.value"]
    assert (grid.runsets[0].entity, grid.runsets[0].project) == (ENTITY, "shown")
    assert [(panel.x.name, panel.y[0].name) for panel in grid.panels][:2] == [("epoch", "train/loss"), ("epoch", "val/loss")]
    names = [type(panel).__name__ for panel in report.blocks[10].panels]
    assert names == ["ScatterPlot", "ParallelCoordinatesPlot", "RunComparer"]

    (saved,) = server.reports.values()
    spec = json.loads(saved["spec"])
    assert [grid["runSets"][0]["project"]["id"] for grid in grids(spec)] == [server.project(ENTITY, "shown")["internalId"]] * 3
    assert anonymous(spec) == anonymous(specification(request)["spec"])


def check_arrived(run: Run, folder: Path) -> None:
    """All that a run directory holds is on the server, once: epochs, results, flat config, pictures."""
    run_dir = RunDir(folder)
    results, rows = run_dir.read_results(), [row for row in run.rows if "train/loss" in row]
    assert results is not None
    assert [(row["epoch"], row["train/nll"]) for row in rows] == [
        (row["epoch"], row["train/nll"]) for row in run_dir.read_metrics()
    ]
    assert run.summary["test/nll"] == results["test"]["nll"]
    assert run.summary["status"] == "completed"
    keys = {"model_name": "model", "loss_name": "loss", "latent_dim": "latent_dim", "beta": "beta", "seed": "seed"}
    assert {key: run.config[key] for key in keys} == {key: results[name] for key, name in keys.items()}
    drawn = {path.stem: path.read_bytes() for path in run_dir.figures.glob("*.png")}
    shown = {key.removeprefix("figures/"): value["path"] for key, value in run.summary.items() if key.startswith("figures/")}
    assert {stem: run.files[path] for stem, path in shown.items()} == drawn
    assert run.exit_code == 0


@pytest.mark.slow
def test_runs_are_uploaded_once_to_each_project(runs: Path, server: WandbServer) -> None:
    request = request_for(runs, "vae_s0", "vae_s1")
    assert publish(request).uploaded == 2
    assert publish(request).uploaded == 0
    assert publish(request_for(runs, "vae_s0", "vae_s1", "ae_s0")).uploaded == 1
    assert publish(replace(request, project=f"{ENTITY}/elsewhere")).uploaded == 2
    assert publish(request).uploaded == 0
    assert {key[1]: len([run for run in server.runs.values() if run.project == key[1]]) for key in server.runs} == {
        "shown": 3,
        "elsewhere": 2,
    }
    assert [len(run.rows) for run in server.runs.values()] == [3] * 5  # two epochs and the pictures
    assert len(server.reports) == 5


@pytest.mark.slow
def test_a_copied_run_directory_is_one_run(runs: Path, server: WandbServer) -> None:
    shutil.copytree(runs / "vae_s0", runs / "copy", symlinks=True)
    request = request_for(runs, "vae_s0", "copy")
    assert publish(request).uploaded == 1
    (run,) = server.runs.values()
    check_arrived(run, runs / "vae_s0")
    assert publish(request_for(runs, "copy", "vae_s0")).uploaded == 0  # although the copy bears no mark of W&B
    check_arrived(run, runs / "vae_s0")


@pytest.mark.slow
def test_a_run_that_lost_its_connection_is_told(runs: Path, server: WandbServer) -> None:
    request = request_for(runs, "vae_s0")
    publish(request)
    (run,) = server.runs.values()
    del run.summary["epochs"]  # the last that a run logs
    (segment,) = (runs / "vae_s0" / "wandb").glob("offline-run-*")
    segment.rename(segment.with_name(segment.name.removeprefix("offline-")))
    said: list[str] = []
    assert publish(request, said.append).uploaded == 0
    assert said[0].startswith(f"vae_s0 is not complete in {ENTITY}/shown")


@pytest.mark.slow
def test_a_refused_upload_can_be_repeated(runs: Path, server: WandbServer) -> None:
    request = request_for(runs, "vae_s0")
    publish(request)
    with pytest.raises(ConfigError, match=r"entity nobody not found.*This key's entities: lab"):
        publish(replace(request, project="nobody/shown"))
    assert publish(request).uploaded == 0  # what is known of the first project was kept
    assert [len(run.rows) for run in server.runs.values()] == [3]
    assert len(server.reports) == 2


@pytest.mark.slow
def test_an_upload_that_takes_too_long(runs: Path, server: WandbServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wandb_runs, "UPLOAD_S", 3.0)
    monkeypatch.setattr(wandb_runs, "UPLOAD_PER_RUN_S", 0.0)
    server.slow_streams_s = 5.0
    with pytest.raises(ServiceError, match="did not answer within 3 s"):
        publish(request_for(runs, "vae_s0"))
    assert not server.reports
    server.slow_streams_s = 0.0
    monkeypatch.setattr(wandb_runs, "UPLOAD_S", 60.0)
    assert publish(request_for(runs, "vae_s0")).uploaded == 1
    assert [len(run.rows) for run in server.runs.values()] == [3]


@pytest.mark.slow
def test_a_resumed_run_sends_what_is_new(server: WandbServer, tmp_path: Path, command: Callable) -> None:
    folder = tmp_path / "resumed"
    assert command(*TINY, f"hydra.run.dir={folder}", WANDB_MODE="offline").returncode == 0
    request = request_for(tmp_path, "resumed")
    assert publish(request).uploaded == 1
    done = command(f"resume={folder}", "trainer.epochs=3", "resume_allow=[trainer.epochs]", WANDB_MODE="offline")
    assert done.returncode == 0, done.stderr
    assert publish(request).uploaded == 1
    (run,) = server.runs.values()
    check_arrived(run, folder)
    assert [row["epoch"] for row in run.rows if "train/loss" in row] == [1, 2, 3]


@pytest.mark.slow
def test_an_online_run_arrives_and_is_not_sent_again(server: WandbServer, tmp_path: Path, command: Callable) -> None:
    folder = tmp_path / "online"
    where = (f"hydra.run.dir={folder}", f"tracking.entity={ENTITY}", "tracking.project=shown")
    done = command(*TINY, *where, WANDB_MODE="online")
    assert done.returncode == 0, done.stderr
    assert "W&B: " not in done.stdout
    (run,) = server.runs.values()
    check_arrived(run, folder)
    request = request_for(tmp_path, "online")
    assert publish(request).uploaded == 0
    assert publish(replace(request, project=f"{ENTITY}/elsewhere")).uploaded == 1
    for run in server.runs.values():
        check_arrived(run, folder)
    for path in folder.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes()
