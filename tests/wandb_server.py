"""A W&B server for tests: the protocol that the real client speaks, on loopback, keeping all it receives in plain structures.

It answers the GraphQL operations of `wandb.init`, `wandb sync`, `wandb.Api` and `wandb_workspaces.reports`, takes uploads and
the stream of a run's history, and keeps reports. An operation that it does not know is an error, and is listed in `unknown`.
"""

import base64
import gzip
import json
import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "0123456789abcdef0123456789abcdef01234567"
ENTITY = "lab"


@dataclass
class Run:
    """What the server knows of a run."""

    entity: str
    project: str
    run_id: str
    name: str = ""
    group: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    history: dict[int, dict[str, Any]] = field(default_factory=dict)  # by line
    summary: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    exit_code: int | None = None

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The history in order."""
        return [row for _, row in sorted(self.history.items())]


class GraphQLError(Exception):
    """An answer with `errors`; `status` is the HTTP code."""

    def __init__(self, message: str, status: int = 200):
        super().__init__(message)
        self.status = status


class WandbServer:
    """The state, and one method per GraphQL operation."""

    def __init__(self, entities: tuple[str, ...] = (ENTITY,)):
        self.entities = entities
        self.runs: dict[tuple[str, str, str], Run] = {}  # by entity, project, id
        self.projects: dict[tuple[str, str], int] = {}  # its internal id
        self.reports: dict[str, dict[str, Any]] = {}  # by view id
        self.operations: list[str] = []
        self.unknown: list[str] = []
        self.requests = 0
        self.slow_streams_s = 0.0
        self.url = ""
        self.lock = threading.RLock()

    def project(self, entity: str, name: str) -> dict[str, Any] | None:
        number = self.projects.get((entity, name))
        if number is None:
            return None
        key = _encode(f"Project:{number}")
        return {"id": key, "internalId": key, "name": name, "entityName": entity, "entity": {"id": entity, "name": entity}}

    def create(self, entity: str, name: str) -> None:
        if entity not in self.entities:
            raise GraphQLError(f"entity {entity} not found during upsertBucket", 404)
        self.projects.setdefault((entity, name), len(self.projects) + 1)

    def answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        """The `data` of an operation's answer."""
        match = re.search(r"(?:query|mutation)\s+(\w+)", query)
        name = match.group(1) if match else query
        self.operations.append(name)
        operation = getattr(self, f"op_{name}", None)
        if operation is None:
            self.unknown.append(name)
            raise GraphQLError(f"unknown operation {name}", 400)
        return operation(**variables)

    # Accounts

    def op_Viewer(self, **_: Any) -> dict[str, Any]:
        teams = {"edges": [{"node": {"name": entity}} for entity in self.entities]}
        names = {"id": "user", "name": "User", "username": "user", "email": "user@example.org", "entity": self.entities[0]}
        return {"viewer": names | {"flags": "{}", "teams": teams, "admin": False, "deletedAt": None, "apiKeys": {"edges": []}}}

    op_GetViewer = op_GetDefaultEntity = op_Viewer

    def op_ServerFeaturesQuery(self, **_: Any) -> dict[str, Any]:
        return {"serverInfo": {"features": []}}

    # Runs

    def op_UpsertBucket(self, **values: Any) -> dict[str, Any]:
        entity, project, run_id = values.get("entity") or self.entities[0], values["project"], values["name"]
        self.create(entity, project)
        key = (entity, project, run_id)
        inserted = key not in self.runs
        run = self.runs.setdefault(key, Run(*key))
        run.name = values.get("displayName") or run.name
        run.group = values.get("groupName") or run.group
        run.config |= {key: item["value"] for key, item in json.loads(values.get("config") or "{}").items() if key != "_wandb"}
        return {"upsertBucket": {"bucket": self.node(run), "inserted": inserted}}

    def node(self, run: Run) -> dict[str, Any]:
        config = {key: {"value": value} for key, value in run.config.items()}
        return {
            "id": _encode(f"Run:{run.run_id}"),
            "projectId": self.projects[run.entity, run.project],
            "name": run.run_id,
            "displayName": run.name,
            "description": "",
            "state": "running" if run.exit_code is None else "finished" if run.exit_code == 0 else "failed",
            "config": json.dumps(config),
            "summaryMetrics": json.dumps(run.summary),
            "systemMetrics": "{}",
            "historyLineCount": len(run.history),
            "logLineCount": 0,
            "eventsLineCount": 0,
            "historyTail": json.dumps([json.dumps(row) for row in run.rows[-1:]]),
            "eventsTail": "[]",
            "wandbConfig": "{}",
            "group": run.group,
            "tags": [],
            "notes": None,
            "sweepName": None,
            "jobType": None,
            "commit": None,
            "readOnly": False,
            "createdAt": "2026-01-01T00:00:00Z",
            "heartbeatAt": "2026-01-01T00:00:00Z",
            "user": {"name": "User", "username": "user"},
            "project": self.project(run.entity, run.project),
        }

    def op_RunResumeStatus(self, project: str, name: str, entity: str | None = None) -> dict[str, Any]:
        run = self.runs.get((entity or self.entities[0], project, name))
        model = self.project(entity or self.entities[0], project)
        return {"model": model and model | {"bucket": run and self.node(run)}}

    def op_CreateRunFiles(self, entity: str, project: str, run: str, files: list[str]) -> dict[str, Any]:
        places = [{"name": name, "uploadUrl": f"{self.url}/storage/{entity}/{project}/{run}/{name}"} for name in files]
        return {"createRunFiles": {"runID": _encode(f"Run:{run}"), "uploadHeaders": [], "files": places}}

    def op_Runs(self, entity: str, project: str, filters: str = "{}", **_: Any) -> dict[str, Any]:
        found = self.project(entity, project)
        if found is None:
            return {"project": None}
        wanted = (json.loads(filters or "{}").get("name") or {}).get("$in")
        runs = [run for key, run in self.runs.items() if key[:2] == (entity, project) and (wanted is None or key[2] in wanted)]
        edges = [{"node": self.node(run), "cursor": run.run_id} for run in runs]
        page = {"endCursor": None, "hasNextPage": False}
        return {"project": found | {"runCount": len(runs), "readOnly": False, "runs": {"edges": edges, "pageInfo": page}}}

    def stream(self, entity: str, project: str, run_id: str, body: dict[str, Any]) -> dict[str, Any]:
        """A POST to file_stream: chunks of history and summary, and the exit code."""
        run = self.runs[entity, project, run_id]
        files = body.get("files") or {}
        history = files.get("wandb-history.jsonl", {"offset": 0, "content": []})
        for number, line in enumerate(history["content"], history["offset"]):
            run.history[number] = json.loads(line)
        for line in files.get("wandb-summary.json", {"content": []})["content"]:
            run.summary = json.loads(line)
        if body.get("complete"):
            run.exit_code = body.get("exitcode", 0)
        return {"exitcode": None, "limits": {}}

    # Projects and reports

    def op_GetProjects(self, entity: str, **_: Any) -> dict[str, Any]:
        more = {"__typename": "Project", "createdAt": "2026-01-01T00:00:00Z", "isBenchmark": False}
        more |= {"user": self.op_Viewer()["viewer"]}
        edges = [{"node": self.project(*key) | more} for key in self.projects if key[0] == entity]
        return {"models": {"edges": edges, "pageInfo": {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}}}

    def op_ProjectInternalId(self, entityName: str, projectName: str) -> dict[str, Any]:
        return {"project": self.project(entityName, projectName)}

    def op_upsertView(self, **values: Any) -> dict[str, Any]:
        key = values.get("id") or _encode(f"View:{len(self.reports) + 1}")
        inserted = key not in self.reports
        self.reports[key] = {
            "id": key,
            "type": values["type"],
            "name": values["name"],
            "displayName": values["displayName"],
            "description": values.get("description") or "",
            "project": self.project(values["entityName"], values["projectName"]),
            "spec": values["spec"],
            "createdAt": "2026-01-01T00:00:00Z",
            "updatedAt": "2026-01-01T00:00:00Z",
        }
        return {"upsertView": {"view": self.reports[key], "inserted": inserted}}

    def op_SpecificReport(self, reportId: str) -> dict[str, Any]:
        return {"view": self.reports.get(reportId)}


def _encode(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


class Handler(BaseHTTPRequestHandler):
    """HTTP around a `WandbServer`, the attribute `state` of a subclass."""

    state: WandbServer
    protocol_version = "HTTP/1.1"

    def body(self) -> bytes:
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(data) if self.headers.get("Content-Encoding") == "gzip" else data

    def reply(self, value: dict[str, Any], status: int = 200) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def authorized(self) -> bool:
        scheme, _, secret = self.headers.get("Authorization", "").partition(" ")
        return scheme == "Basic" and base64.b64decode(secret).decode().partition(":")[2] == KEY

    def do_POST(self) -> None:
        body = self.body()
        time.sleep(self.state.slow_streams_s if self.path.endswith("/file_stream") else 0)
        with self.state.lock:
            self.state.requests += 1
            if not self.authorized():
                return self.reply({"errors": [{"message": "user is not logged in"}]}, 401)
            if self.path == "/graphql":
                request = json.loads(body)
                try:
                    return self.reply({"data": self.state.answer(request["query"], request.get("variables") or {})})
                except GraphQLError as error:
                    return self.reply({"errors": [{"message": str(error)}], "data": None}, error.status)
            _, _, entity, project, run_id, _ = self.path.split("/")  # /files/ENTITY/PROJECT/RUN/file_stream
            return self.reply(self.state.stream(entity, project, run_id, json.loads(body)))

    def do_PUT(self) -> None:
        data = self.body()
        with self.state.lock:
            self.state.requests += 1
            _, _, entity, project, run_id, name = self.path.split("/", 5)
            self.state.runs[entity, project, run_id].files[name] = data
            return self.reply({})

    def do_GET(self) -> None:
        with self.state.lock:
            self.state.requests += 1
        self.reply({}, 404)

    def log_message(self, *_: Any) -> None:
        """Be silent."""


class HttpServer(ThreadingHTTPServer):
    """Threads that end with the process; a client that hangs up is no error."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


@contextmanager
def serving(state: WandbServer | None = None) -> Iterator[WandbServer]:
    """A server on a free port of loopback, in threads of this process."""
    state = state or WandbServer()
    http = HttpServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"state": state}))
    state.url = f"http://127.0.0.1:{http.server_port}"
    thread = threading.Thread(target=http.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield state
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
