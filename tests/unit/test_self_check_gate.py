"""The gate of a self-check follows the server, whatever else the self-check does meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx2
import pytest

from finetune_api.endpoint_stages import SelfCheckLimits, WantedAdapters
from finetune_jobs.self_check import Gate, Options, self_check
from tests.support.tgi_client import eventually

pytestmark = [pytest.mark.unit, pytest.mark.slow]


class Server(BaseHTTPRequestHandler):
    """Is healthy."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing to say."""


@contextmanager
def serving(port: int = 0) -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", port), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


class SlowLoader:
    """Downloads an adapter for as long as a test likes."""

    def __init__(self) -> None:
        self.begun, self.may_end = threading.Event(), threading.Event()

    def begin(self, *_: object) -> None:
        """None is wanted yet."""

    def settle(self, *_: object) -> None:
        self.begun.set()
        self.may_end.wait(60)

    def watches(self) -> list[object]:
        return []


def test_a_server_that_ends_during_a_download_is_ready_no_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next one has neither proved itself nor got its adapters."""
    loader, gate = SlowLoader(), Gate(0)
    monkeypatch.setattr("finetune_jobs.self_check._loader", lambda *_: loader)
    files = {"limits": SelfCheckLimits(), "wanted": WantedAdapters()}
    for name, content in files.items():
        (tmp_path / name).write_text(content.model_dump_json(by_alias=True))

    def status() -> int:
        return httpx2.get(f"http://127.0.0.1:{gate.port}/ready", timeout=30).status_code

    with serving() as port:
        endpoint = f"http://127.0.0.1:{port}"
        options = Options(None, "", "vllm", endpoint, tmp_path / "limits", "-", 0, wanted=tmp_path / "wanted")
        checking = threading.Thread(target=self_check, args=(options, gate), daemon=True)
        checking.start()
        assert eventually(loader.begun.is_set)
        assert status() == 200
    assert eventually(lambda: status() == 503, timeout_s=20)
    with serving(port):
        assert status() == 503
        loader.may_end.set()
        checking.join(30)
    assert not checking.is_alive(), "the next self-check proves the next server"
    gate.close()
