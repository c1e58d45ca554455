"""Questions to the W&B server, each in a process of its own.

W&B's client has time limits of its own, but a server that sends a byte now and then outlasts them, and so does a client at its
end. A process can be ended. It has no terminal either, so that nothing asks for a key and waits.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vae_lab.errors import ConfigError, ServiceError

ROOT = Path(__file__).resolve().parent.parent.parent
HTTP_S = 10  # of one request, unless WANDB_HTTP_TIMEOUT says otherwise
NO_KEY = "W&B has no API key here. Run `wandb login`, or set WANDB_API_KEY."


@dataclass(frozen=True)
class Ended:
    """A process that ended by itself: its exit code and all it wrote."""

    code: int
    output: str


def run_bounded(command: Sequence[str], seconds: float, stdin: str = "", silent: bool = False) -> Ended | None:
    """Run a command that talks to W&B; None if it was still at it after `seconds` and was ended.

    What W&B's client leaves in its working folder goes with a temporary folder. Output goes to files: the client's own service
    outlives it for a moment and would hold pipes open.
    """
    with tempfile.TemporaryDirectory(prefix="vae_lab_wandb_", ignore_cleanup_errors=True) as folder:
        path = Path(folder)
        environment = {key: value for key, value in os.environ.items() if key != "WANDB_MODE"} | {"WANDB_DIR": folder}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        environment.setdefault("WANDB_HTTP_TIMEOUT", str(HTTP_S))
        if silent:
            environment["WANDB_SILENT"] = "true"
        (path / "stdin").write_text(stdin, encoding="utf-8")
        with (path / "stdin").open("rb") as source, (path / "output").open("wb") as sink:
            process = subprocess.Popen(command, stdin=source, stdout=sink, stderr=sink, cwd=folder, env=environment)
            try:
                code = process.wait(seconds)
            except subprocess.TimeoutExpired:
                return None
            finally:
                if process.poll() is None:
                    process.kill()
                    process.wait()
        return Ended(code, (path / "output").read_text(encoding="utf-8", errors="replace"))


def ask(question: str, seconds: float, **arguments: Any) -> dict[str, Any]:
    """The answer of one of `ANSWERS`, given in another process.

    Raises:
        ConfigError: no key, a wrong key, or no such entity.
        ServiceError: the server did not answer in time, or refused.
    """
    stdin = json.dumps({"question": question, "arguments": arguments})
    ended = run_bounded([sys.executable, "-m", "vae_lab.compare.wandb_client"], seconds, stdin, silent=True)
    if ended is None:
        raise no_answer(seconds)
    try:
        answer = json.loads(ended.output.strip().splitlines()[-1])
    except (IndexError, ValueError):
        raise ServiceError(f"W&B's client ended with code {ended.code}: {last_line(ended.output)}") from None
    if "error" in answer:
        raise (ConfigError if answer["user"] else ServiceError)(answer["error"])
    return answer


def no_answer(seconds: float) -> ServiceError:
    """The server is away, or slower than the limit."""
    return ServiceError(
        f"The W&B server{_address()} did not answer within {seconds:.0f} s. The runs' files are not affected; try again when it "
        "can be reached, or write the report's specification with --wandb-dry-run FILE."
    )


def last_line(output: str) -> str:
    """The line of W&B's output that says what went wrong, without secrets."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"(wandb: )?(ERROR|Error:?) ", line) and "detailed error logs" not in line]
    line = (errors or lines or ["no output"])[-1]
    return _without_secrets(re.sub(r"^(wandb: )?((ERROR|Error:?) )?", "", line))


def _address() -> str:
    url = os.environ.get("WANDB_BASE_URL")
    return f" at {_without_secrets(url)}" if url else ""


def _without_secrets(text: str) -> str:
    """Without the API key, and without user and password in an address."""
    key = os.environ.get("WANDB_API_KEY")
    text = text.replace(key, "***") if key else text
    return re.sub(r"//[^/@\s]+@", "//***@", text)


# The other process


def _look(project: str, run_ids: list[str]) -> dict[str, Any]:
    """Which entities the key may use, and of the runs that the project has, the epochs in their results."""
    import wandb

    api = wandb.Api()
    viewer = api.viewer
    entities = list(dict.fromkeys(name for name in (viewer.entity, *viewer.teams) if name))
    try:
        runs = api.runs(project, filters={"name": {"$in": run_ids}}, per_page=200, lazy=False)
        found = {run.id: run.summary.get("epochs") for run in runs}
    except ValueError:  # no such project yet
        found = {}
    return {"entities": entities, "epochs": found}


def _save(**request: Any) -> dict[str, Any]:
    """Save the report."""
    from vae_lab.compare.wandb_report import Request, build

    report = build(Request.from_json(request), online=True)
    report.save()
    return {"url": report.url}


ANSWERS: dict[str, Callable[..., dict[str, Any]]] = {"look": _look, "save": _save}


def _explained(error: Exception) -> dict[str, Any]:
    """The message for the user, and whether the user's settings are at fault."""
    import wandb
    from wandb.sdk.lib.service.service_connection import WandbApiFailedError

    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, WandbApiFailedError):
        cause = cause.__cause__ or cause.__context__
    status = cause.response.http_status if isinstance(cause, WandbApiFailedError) and cause.response else None
    text = _without_secrets(" ".join(str(error).split()))[:300].rstrip(".")
    if isinstance(error, wandb.errors.UsageError) and "key" in str(error):
        return {"user": True, "error": NO_KEY}
    if status in (401, 403):
        return {"user": True, "error": f"The W&B server{_address()} refused: {text}. For another key: wandb login --relogin"}
    if cause is None and isinstance(error, wandb.errors.AuthenticationError):
        return {"user": True, "error": f"{text} Run `wandb login --relogin`, or set WANDB_API_KEY."}
    if cause is not None and not status:
        return {"user": False, "error": str(no_answer(float(os.environ["WANDB_HTTP_TIMEOUT"])))}
    return {"user": status == 404, "error": f"The W&B server{_address()} refused: {text} ({type(error).__name__})"}


def main() -> None:
    """Answer the question on standard input with a line of JSON on standard output."""
    asked = json.load(sys.stdin)
    try:
        answer = ANSWERS[asked["question"]](**asked["arguments"])
    except Exception as error:
        answer = _explained(error)
    sys.stdout.write("\n" + json.dumps(answer) + "\n")
    sys.stdout.flush()
    os._exit(0)  # W&B's client would wait for a server that has gone


if __name__ == "__main__":
    main()
