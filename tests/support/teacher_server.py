"""A real HTTP server on loopback that speaks OpenAI's chat API as a test wants it: well, slowly, rudely, or not at all.

with TeacherServer.running(lambda prompt, nth: says(f"answer to {prompt}")) as server:
    AsyncOpenAI(base_url=server.url, api_key="any")
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Reply:
    """One response."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    delay: float = 0.0
    """Seconds before the first byte."""
    drip: float = 0.0
    """Seconds between two bytes of the body."""
    hang_up: bool = False
    """Close the connection in the middle of the body."""


Behaviour = Callable[[str, int], Reply]
"""The reply to a prompt that is asked for the nth time (from 1)."""


@dataclass(frozen=True)
class Received:
    """One request."""

    at: float
    """``time.monotonic`` when it came."""
    prompt: str
    body: dict[str, Any]
    headers: dict[str, str]


class TeacherServer:
    """A running server and what it was asked."""

    def __init__(self, behaviour: Behaviour, *, key: str = "") -> None:
        self.received: list[Received] = []
        self.peak = 0
        """Most requests at a time."""
        self._behaviour, self._key = behaviour, key
        self._lock = threading.Lock()
        self._nth: Counter[str] = Counter()
        self._active = 0
        self._closing = threading.Event()
        self._http = _Server(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}/v1"

    @classmethod
    @contextmanager
    def running(cls, behaviour: Behaviour, *, key: str = "") -> Iterator[TeacherServer]:
        """A server that asks for the API key ``key``, if it is one."""
        server = cls(behaviour, key=key)
        thread = threading.Thread(target=server._http.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server._closing.set()
            server._http.shutdown()
            server._http.server_close()

    @property
    def prompts(self) -> list[str]:
        """The prompts in the order in which they came."""
        return [each.prompt for each in self.received]

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        teacher = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                with suppress(ConnectionError):  # a client that has given up
                    teacher._serve(self, content)

            def do_GET(self) -> None:
                teacher._send(self, Reply(body=b"{}"))

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as the base class names it
                pass

        return Handler

    def _serve(self, request: BaseHTTPRequestHandler, content: bytes) -> None:
        body = json.loads(content)
        prompt = body["messages"][-1]["content"]
        with self._lock:
            self._active += 1
            self.peak = max(self.peak, self._active)
            self._nth[prompt] += 1
            nth = self._nth[prompt]
            self.received.append(Received(time.monotonic(), prompt, body, dict(request.headers)))
        try:
            self._send(request, self._reply(request, prompt, nth))
        finally:
            with self._lock:
                self._active -= 1

    def _reply(self, request: BaseHTTPRequestHandler, prompt: str, nth: int) -> Reply:
        if request.path != "/v1/chat/completions":
            return fails(404)
        given = request.headers.get("Authorization", "")
        if self._key and given != f"Bearer {self._key}":
            # OpenAI's own words for it quote the key.
            return fails(401, code="invalid_api_key", message=f"Incorrect API key provided: {given}")
        return self._behaviour(prompt, nth)

    def _send(self, request: BaseHTTPRequestHandler, reply: Reply) -> None:
        if self._closing.wait(reply.delay):
            return
        request.send_response(reply.status)
        for name, value in ({"Content-Type": "application/json"} | dict(reply.headers)).items():
            request.send_header(name, value)
        request.send_header("Content-Length", str(len(reply.body)))
        request.end_headers()
        if reply.hang_up:
            request.wfile.write(reply.body[: len(reply.body) // 2])
            request.close_connection = True
        elif reply.drip:
            for byte in reply.body:
                request.wfile.write(bytes([byte]))
                if self._closing.wait(reply.drip):
                    return
        else:
            request.wfile.write(reply.body)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256


def says(
    text: str | None, *, finish: str = "stop", usage: Any = (10, 5), refusal: str | None = None, **reply: Any
) -> Reply:
    """An answer as OpenAI's API gives it; ``usage``: tokens of prompt and answer, None to leave it out."""
    body: dict[str, Any] = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 0,
        "model": "teacher",
        "choices": [
            {
                "index": 0,
                "finish_reason": finish,
                "message": {"role": "assistant", "content": text, "refusal": refusal},
            }
        ],
    }
    if isinstance(usage, tuple):
        body["usage"] = {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)}
    elif usage is not None:
        body["usage"] = usage
    return Reply(body=json.dumps(body).encode(), **reply)


def fails(status: int, *, code: str | None = None, message: str = "no", **more: Any) -> Reply:
    """An error as OpenAI's API gives it; ``kind`` is its ``type``, ``param`` the parameter that it is about."""
    error = {"message": message, "type": more.pop("kind", None), "param": more.pop("param", None), "code": code}
    return Reply(status, json.dumps({"error": error}).encode(), **more)
