"""The far end of W&B's protocol on loopback, for tests of what its real client sends.

The service itself is a commercial product whose server cannot run here. This is as much of it as the client needs to
open a run, to go on with one, to send its history and to close it; it keeps what it was sent.
"""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final
from urllib.parse import unquote

OWNER: Final = "default-team"
"""The entity of whoever opens a run without naming one."""


@dataclass
class Run:
    """A run as the server knows it."""

    opened: list[dict[str, Any]] = field(default_factory=list)
    """The variables of each request that opened it or changed its config, without those that are null."""
    history: list[dict[str, Any]] = field(default_factory=list)
    exit_codes: list[int] = field(default_factory=list)
    preempting: int = 0
    files: set[str] = field(default_factory=set)
    """Names of what came by the file stream or was to be uploaded, the history apart."""

    @property
    def config(self) -> dict[str, Any]:
        """The newest config, without what the client adds about itself."""
        config = json.loads(self.opened[-1]["config"])
        return {name: entry["value"] for name, entry in config.items() if name != "_wandb"}

    def series(self, name: str) -> dict[int, float]:
        """A figure by its step."""
        return {row["_step"]: row[name] for row in self.history if name in row}


@dataclass
class WandbServer:
    """What was sent, and how the server behaves."""

    url: str = ""
    status: HTTPStatus = HTTPStatus.OK
    """Every answer has this status."""
    delay_seconds: float = 0.0
    """Time before each answer."""
    runs: dict[str, Run] = field(default_factory=dict)
    """By ``<entity>/<project>/<run id>``."""
    requests: list[str] = field(default_factory=list)
    """Path of each request, that of GraphQL with the name of the operation."""
    bodies: list[bytes] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)
    """Values of the header Authorization."""

    def answer(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The answer to a request."""
        if path == "/graphql":
            return {"data": self._graphql(body["operationName"], body["variables"])}
        if path.endswith("/file_stream"):
            run = self.runs[unquote(path.removeprefix("/files/").removesuffix("/file_stream"))]
            return self._file_stream(run, body)
        return {}

    def _graphql(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        run_id = variables.get("name") or variables.get("run") or variables.get("runId") or ""
        entity = variables.get("entity") or variables.get("entityName") or OWNER
        project = variables.get("project") or variables.get("projectName")
        key = f"{entity}/{project}/{run_id}"
        model = {"id": project, "name": project, "entity": {"id": entity, "name": entity}}
        match operation:
            case "RunResumeStatus":
                return {"model": model | {"bucket": self._resumed(key, run_id)}}
            case "UpsertBucket":
                run = self.runs.setdefault(key, Run())
                run.opened.append({name: value for name, value in variables.items() if value is not None})
                bucket = {"id": key, "name": run_id, "displayName": run_id, "config": "{}", "project": model}
                return {"upsertBucket": {"bucket": bucket, "inserted": len(run.opened) == 1}}
            case "CreateRunFiles":
                self.runs[key].files.update(variables["files"])
                files = [{"name": name, "uploadUrl": f"{self.url}/upload/{name}"} for name in variables["files"]]
                return {"createRunFiles": {"runID": key, "uploadHeaders": [], "files": files}}
        return {}

    def _resumed(self, key: str, run_id: str) -> dict[str, Any] | None:
        if key not in self.runs:
            return None
        run = self.runs[key]
        tail = run.history[-1:]
        return {
            "id": key,
            "name": run_id,
            "displayName": run_id,
            "summaryMetrics": json.dumps(tail[0] if tail else {}),
            "logLineCount": 0,
            "historyLineCount": len(run.history),
            "eventsLineCount": 0,
            "historyTail": json.dumps([json.dumps(row) for row in tail]),
            "eventsTail": "[]",
            "config": run.opened[-1]["config"],
            "tags": [],
            "wandbConfig": json.dumps({"t": 1}),
        }

    def _file_stream(self, run: Run, body: dict[str, Any]) -> dict[str, Any]:
        for name, part in (body.get("files") or {}).items():
            if name == "wandb-history.jsonl":
                run.history[part["offset"] :] = [json.loads(line) for line in part["content"]]
            else:
                run.files.add(name)
        run.preempting += bool(body.get("preempting"))
        if body.get("complete"):
            run.exit_codes.append(body["exitcode"])
        return {}


@contextmanager
def running() -> Iterator[WandbServer]:
    """Start a server; it ends with the block."""
    state = WandbServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            document = json.loads(body) if body.startswith(b"{") else {}
            state.requests.append(f"{self.path} {document.get('operationName', '')}".strip())
            state.bodies.append(body)
            state.keys.add(self.headers.get("Authorization") or "")
            time.sleep(state.delay_seconds)
            answer = state.answer(self.path, document) if state.status is HTTPStatus.OK else {"error": "refused"}
            content = json.dumps(answer).encode()
            self.send_response(state.status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_PUT(self) -> None:
            self.do_POST()

        def log_message(self, *_: object) -> None:
            """Nothing on the console."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
