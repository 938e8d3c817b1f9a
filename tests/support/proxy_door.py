"""The proxy with real HAProxy before a server that streams when it is told to."""

from __future__ import annotations

import contextlib
import http.client
import shutil
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Final

import pytest

from finetune_api.meta import ExitCode
from finetune_proxy.__main__ import Certificate, Options, run
from finetune_proxy.config import Proxied
from hack.cluster.layout import free_ports
from hack.cluster.packages import SYSTEM_PATH

FIRST: Final = "first-key-0123456789abcdef"
SECOND: Final = "second-key-0123456789abcdef"
READ: Final = ("/health", "/v1/models")
WRITE: Final = ("/v1/chat/completions", "/v1/completions")
PATIENCE: Final = 60.0
"""Seconds until a test that waits for something gives up."""
HOST: Final = "demo.team.svc"
"""The name by which clients reach the server."""


@dataclass
class StandIn:
    """A server whose streams go on when they are told to."""

    port: int
    go_on: threading.Event = field(default_factory=threading.Event)
    heard: list[str] = field(default_factory=list)
    """All that reached it, a request each."""


@dataclass
class Door:
    """A running proxy."""

    port: int
    inner: int
    secret: Path
    folder: Path
    engine: StandIn
    drain: threading.Event
    certificate: Path
    """Where the Secret with the certificate is mounted."""
    trust: ssl.SSLContext | None = None
    """How its clients check the server; None: they do not connect by TLS."""

    def ask(self, path: str = "/v1/models", key: str = FIRST, method: str = "GET", *, inner: bool = False) -> int:
        """The status of an answer."""
        return self.answer(path, key, method, inner=inner)[0]

    def answer(
        self, path: str = "/v1/models", key: str = FIRST, method: str = "GET", *, inner: bool = False
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        """Status, headers and body."""
        connection = self.connection(self.inner if inner else self.port)
        connection.request(method, path, headers={"Authorization": f"Bearer {key}"} if key else {})
        response = connection.getresponse()
        body = response.read()
        connection.close()
        return response.status, response.headers, body

    def connection(self, port: int) -> http.client.HTTPConnection:
        """A connection to one of its ports, by TLS to that of clients if it speaks that."""
        plain = socket.create_connection(("127.0.0.1", port), PATIENCE)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        is_tls = self.trust is not None and port == self.port
        connection.sock = self.trust.wrap_socket(plain, server_hostname=HOST) if self.trust and is_tls else plain
        return connection

    def begin(self, key: str = FIRST) -> http.client.HTTPResponse:
        """A stream of which the first part has come."""
        self.engine.go_on.clear()
        connection = self.connection(self.port)
        connection.request("POST", WRITE[0], body=b"{}", headers={"Authorization": f"Bearer {key}"})
        response = connection.getresponse()
        assert response.read1(100) == b"data: first\n\n"
        return response

    def end(self, response: http.client.HTTPResponse) -> bytes:
        """The rest of a stream."""
        self.engine.go_on.set()
        return response.read()


@contextlib.contextmanager
def stand_in() -> Iterator[StandIn]:
    """A server that runs."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    engine = StandIn(server.server_address[1])
    server.stand_in = engine  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield engine
    engine.go_on.set()
    server.shutdown()
    server.server_close()


class Handler(BaseHTTPRequestHandler):
    """Answers everything."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._hear()
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def do_POST(self) -> None:
        engine = self._hear()
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.write(b"d\r\ndata: first\n\n\r\n")
        engine.go_on.wait(PATIENCE)
        self.wfile.write(b"c\r\ndata: last\n\n\r\n0\r\n\r\n")

    def _hear(self) -> StandIn:
        engine: StandIn = self.server.stand_in  # type: ignore[attr-defined]
        engine.heard.append(f"{self.command} {self.path} {dict(self.headers)}")
        return engine

    def log_message(self, *_: object) -> None:
        """Nothing."""


def mount(folder: Path, entries: dict[str, str]) -> None:
    """Write entries as the kubelet does: another folder, and then the link to it."""
    folder.mkdir(exist_ok=True)
    version = folder / f"..{time.monotonic_ns()}"
    version.mkdir()
    for name, value in entries.items():
        (version / name).write_text(value)
    link = folder / "..new"
    link.symlink_to(version.name)
    link.rename(folder / "..data")
    for each in folder.iterdir():
        if not each.name.startswith("..") and each.name not in entries:
            each.unlink()
    for name in entries:
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(f"..data/{name}")


def exchange(port: int, request: str) -> bytes:
    """All that is answered to these bytes, until the connection ends or nothing more comes. The first of it may take
    its time."""
    answer = b""
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as connection, contextlib.suppress(TimeoutError):
        connection.sendall(request.encode())
        while piece := connection.recv(4096):
            answer += piece
            connection.settimeout(1)
    return answer


def until(true: Callable[[], bool]) -> None:
    """Wait for something."""
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.05)


@contextlib.contextmanager
def started(
    tmp_path: Path,
    engine: StandIn,
    shown: dict[str, str] | None = None,
    trust: ssl.SSLContext | None = None,
    *,
    keys: bool = True,
    paths: tuple[tuple[str, ...], tuple[str, ...]] = (READ, WRITE),
    self_check: int = 0,
) -> Iterator[Door]:
    """The proxy, with real HAProxy, before a stand-in. ``shown``: entries of the Secret with its certificate;
    ``trust``: how clients check that; ``keys``: whether they need one; ``paths``: which they may GET, and POST to;
    ``self_check``: port of the one in the pod, 0 for none."""
    program = shutil.which("haproxy", path=SYSTEM_PATH)
    if program is None:
        pytest.fail("haproxy is missing: `python3 -m hack.environments proxy` installs it")
    port, inner = free_ports(2)
    folder, secret, mounted = (tmp_path / name for name in ("files", "secret", "certificate"))
    folder.mkdir()
    mount(secret, {"a": FIRST})
    ipv6, has_tls = socket.has_dualstack_ipv6(), shown is not None
    told = Proxied(port, inner, engine.port, *paths, 15, ipv6, asks_for_keys=keys, speaks_tls=has_tls)
    certificate = None
    if shown is not None:
        mount(mounted, shown)
        certificate = Certificate(mounted, "servers", HOST)
    given = secret if keys else None
    options = Options(given, "clients", folder, told, tmp_path / "message", program, certificate, self_check)
    stop, drain, ended = threading.Event(), threading.Event(), []
    thread = threading.Thread(target=lambda: ended.append(run(options, stop, drain)))
    thread.start()
    door = Door(port, inner, secret, folder, engine, drain, mounted, trust)
    try:
        until(lambda: _is_ready(door) or not thread.is_alive())
        yield door
    finally:
        stop.set()
        thread.join(PATIENCE)
    assert ended == [ExitCode.OK]


def _is_ready(door: Door) -> bool:
    try:
        return door.ask("/ready", inner=True) == 200
    except OSError:
        return False
