"""OCI registries for tests: the real one of the distribution project, and a small one in memory, which can fail."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx2

from finetune_api.push import OciTarget
from finetune_jobs.store.registry import Registry
from hack.cluster import toolchain
from hack.cluster.layout import free_port

USER, PASSWORD = "pusher", "pusher-password"
_HASHED = "$2y$04$dX1PP3E18z09/MQaQ3CpqeN3Mjgrssmb3XkxCQTr.jzYsMY/EzF7S"
"""PASSWORD as ``htpasswd -nbB`` writes it: the registry reads bcrypt only."""


def is_built() -> bool:
    """Whether the real registry is in the cache: ``make registry``."""
    return toolchain.TOOLS["registry"].built()


@contextmanager
def distribution(directory: Path) -> Iterator[str]:
    """A real registry on loopback with one user; its URL."""
    (directory / "users").write_text(f"{USER}:{_HASHED}\n")
    address = f"127.0.0.1:{free_port()}"
    config = {
        "version": 0.1,
        "log": {"level": "warn"},
        "storage": {"filesystem": {"rootdirectory": str(directory / "blobs")}},
        "http": {"addr": address, "secret": "of the tests"},
        "auth": {"htpasswd": {"realm": "tests", "path": str(directory / "users")}},
    }
    (directory / "config.yml").write_text(json.dumps(config))
    command = [str(toolchain.program("registry")), "serve", str(directory / "config.yml")]
    environment = {"OTEL_TRACES_EXPORTER": "none", "PATH": os.environ["PATH"]}
    with (directory / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    try:
        _wait_for(f"http://{address}/v2/", process)
        yield f"http://{address}"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def _wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until and process.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=5)
        except urllib.error.HTTPError as error:
            if error.code == 401:
                return
        except OSError:
            time.sleep(0.05)
    raise RuntimeError("the registry did not start: see its log")


def pull(registry: str, path: str) -> bytes:
    """What any client of the distribution spec gets, below the repository; raises HTTPError."""
    login = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    headers = {"Authorization": f"Basic {login}", "Accept": "application/vnd.oci.image.manifest.v1+json"}
    request = urllib.request.Request(f"{registry}/v2/{path}", headers=headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        content: bytes = answer.read()
        return content


Fault = Callable[[httpx2.Request], httpx2.Response | None]
"""What a registry answers instead; None: as it should."""


@dataclass
class MemoryRegistry:
    """One repository, with what was asked of it. It takes anybody, or asks for a token or the login itself."""

    auth: str = ""
    """``basic`` or ``bearer``."""
    fault: Fault = lambda _: None
    blobs: dict[str, bytes] = field(default_factory=dict)
    tags: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    """Method and path of each request."""
    tokens: int = 0
    """How many were given; only the last is good."""

    def client(self) -> httpx2.Client:
        """A client that reaches nothing else."""
        return httpx2.Client(transport=httpx2.MockTransport(self.answer))

    def connect(self, target: OciTarget) -> Registry:
        """In place of Registry.connect."""
        login = (USER, PASSWORD) if target.secret_ref else None
        return Registry(target, self.client(), login)

    @property
    def sent(self) -> list[str]:
        """The requests that change something."""
        return [each for each in self.asked if not each.startswith(("GET", "HEAD"))]

    def answer(self, request: httpx2.Request) -> httpx2.Response:
        """As the distribution spec has it."""
        request.read()
        path = request.url.path
        if path == "/token":
            return self._token(request)
        self.asked.append(f"{request.method} {path}")
        if (failed := self.fault(request)) is not None:
            return failed
        if self.auth and not self._may(request.headers.get("Authorization", "")):
            asked = {"basic": 'Basic realm="t"', "bearer": f'Bearer realm="{_root(request)}/token",service="s"'}
            return says(401, "UNAUTHORIZED", {"WWW-Authenticate": asked[self.auth]})
        kind, _, name = path.partition("/v2/acme/support/")[2].partition("/")
        return self._manifest(request, name) if kind == "manifests" else self._blob(request, name)

    def _token(self, request: httpx2.Request) -> httpx2.Response:
        query = parse_qs(urlsplit(str(request.url)).query)
        if not _is_login(request.headers.get("Authorization", "")):
            return says(401, "UNAUTHORIZED")
        assert query["scope"] == ["repository:acme/support:pull,push"]
        self.tokens += 1
        return httpx2.Response(200, json={"token": f"t{self.tokens}"})

    def _may(self, given: str) -> bool:
        return _is_login(given) if self.auth == "basic" else given == f"Bearer t{self.tokens}"

    def _manifest(self, request: httpx2.Request, tag: str) -> httpx2.Response:
        if request.method == "PUT":
            named = json.loads(request.content)
            wanted = [named["config"], *named["layers"]]
            if any(each["digest"] not in self.blobs for each in wanted):
                return says(400, "MANIFEST_BLOB_UNKNOWN")
            self.tags[tag] = request.content
            return httpx2.Response(201)
        found = self.tags.get(tag)
        return says(404, "MANIFEST_UNKNOWN") if found is None else httpx2.Response(200, content=found)

    def _blob(self, request: httpx2.Request, name: str) -> httpx2.Response:
        if request.method == "POST":
            return httpx2.Response(202, headers={"Location": "/v2/acme/support/blobs/uploads/1?state=a%3D"})
        if request.method == "PUT":
            query = parse_qs(request.url.query.decode())
            digest = f"sha256:{hashlib.sha256(request.content).hexdigest()}"
            if query["digest"] != [digest] or query["state"] != ["a="]:
                return says(400, "DIGEST_INVALID")
            self.blobs[digest] = request.content
            return httpx2.Response(201)
        found = self.blobs.get(name)
        return says(404, "BLOB_UNKNOWN") if found is None else httpx2.Response(200, content=found)


def says(status: int, code: str = "", headers: dict[str, str] | None = None) -> httpx2.Response:
    """An error of a registry; its message may quote anything."""
    body: dict[str, Any] = {"errors": [{"code": code, "message": f"not for {PASSWORD}"}]} if code else {}
    return httpx2.Response(status, json=body, headers=headers)


def _root(request: httpx2.Request) -> str:
    return f"{request.url.scheme}://{request.url.netloc.decode()}"


def _is_login(given: str) -> bool:
    with suppress(ValueError):
        return base64.b64decode(given.removeprefix("Basic ")) == f"{USER}:{PASSWORD}".encode()
    return False
