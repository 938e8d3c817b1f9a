"""A plain HTTP client for Text Generation Inference, which hides nothing of what is on the wire."""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.client import HTTPResponse
from typing import Any


@dataclass(frozen=True, slots=True)
class Reply:
    """A response that was read to its end."""

    status: int
    headers: dict[str, str]
    text: str

    @property
    def json(self) -> Any:
        """The body, parsed."""
        return json.loads(self.text)


@dataclass(frozen=True, slots=True)
class TgiServer:
    """A server under test, reached as an ordinary client would."""

    url: str
    model_id: str
    adapter: str
    api_key: str | None

    def open(self, path: str, body: Any = None, *, content_type: str = "application/json") -> HTTPResponse:
        """POST a body (GET without one). The caller reads the response."""
        data = body.encode() if isinstance(body, str) else None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data)
        if data is not None:
            request.add_header("content-type", content_type)
        if self.api_key is not None:
            request.add_header("authorization", f"Bearer {self.api_key}")
        response: HTTPResponse = urllib.request.urlopen(request, timeout=120)
        return response

    def call(self, path: str, body: Any = None, *, content_type: str = "application/json") -> Reply:
        """Request and read everything, an error status too."""
        try:
            with self.open(path, body, content_type=content_type) as response:
                return Reply(response.status, _lower(response.headers.items()), response.read().decode())
        except urllib.error.HTTPError as error:
            with error:
                return Reply(error.code, _lower(error.headers.items()), error.read().decode())

    def generate(self, inputs: str, **parameters: Any) -> str:
        """A greedy answer's text."""
        reply = self.call("/generate", {"inputs": inputs, "parameters": {"max_new_tokens": 8, **parameters}})
        assert reply.status == 200, reply.text
        return str(reply.json["generated_text"])

    def events(self, path: str, body: Any) -> list[Any]:
        """Every event of a stream; "[DONE]" stays text."""
        reply = self.call(path, body)
        assert (reply.status, reply.headers["content-type"].split(";")[0]) == (200, "text/event-stream")
        return [parse_event(line) for line in reply.text.splitlines() if line.startswith("data:")]

    def metric(self, series: str) -> float:
        """The value of a series in ``/metrics``; 0 while nothing was recorded in it."""
        values = dict(
            line.rsplit(" ", 1) for line in self.call("/metrics").text.splitlines() if line[:1] not in ("", "#")
        )
        return float(values.get(series, 0))

    def refuses(self) -> bool:
        """Whether the port is closed. While it closes, a connection that nobody has taken yet is reset."""
        try:
            self.call("/health")
        except ConnectionResetError:
            return False
        except urllib.error.URLError as error:
            return isinstance(error.reason, ConnectionRefusedError)
        return False

    @contextmanager
    def occupied(self) -> Iterator[None]:
        """Fill every place with a long stream that nobody reads on."""
        with ExitStack() as stack:
            for _ in range(self.call("/info").json["max_concurrent_requests"]):
                stream = stack.enter_context(self.open("/generate_stream", long_answer(1000)))
                assert "token" in parse_event(stream.readline())
            yield


def long_answer(tokens: int) -> dict[str, Any]:
    """Body of a greedy request for so many tokens."""
    return {"inputs": "the quick brown", "parameters": {"max_new_tokens": tokens}}


def parse_event(line: str | bytes) -> Any:
    """The data of one line of a stream: "" between events, "[DONE]", or parsed JSON."""
    data = (line.decode() if isinstance(line, bytes) else line).removeprefix("data:").strip()
    return data if data in ("", "[DONE]") else json.loads(data)


def eventually(condition: Callable[[], bool], *, timeout_s: float = 120.0) -> bool:
    """Whether the condition comes true in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _lower(headers: list[tuple[str, str]]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers}
