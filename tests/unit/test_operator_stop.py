"""How soon the process ends that Kopf runs, once all that is ours has ended."""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from finetune_operator import __main__ as program
from finetune_operator.controller import Controller
from finetune_operator.framework.lease import Elector
from hack.cluster.layout import free_port
from tests.support.serving_specs import SETTINGS

pytestmark = [pytest.mark.unit, pytest.mark.slow]

KOPF_SECONDS = 5
"""For which Kopf waits for an answer that does not come."""


@pytest.fixture
def interrupt() -> Iterator[None]:
    """What happens at Ctrl-C: a loop that handled it leaves Python's own handler there when it is closed."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


class Ours:
    """A controller and an elector that have nothing to do, and lose the Lease when they are told to."""

    def __init__(self, told: threading.Event) -> None:
        self.told, self.released = told, False
        self.lost_at = 0.0

    def start(self, _lead: Callable[[], None] | None = None, lost: Callable[[], None] | None = None) -> None:
        def lose() -> None:
            self.told.wait()
            self.lost_at = time.monotonic()
            if lost:
                lost()

        if lost:
            threading.Thread(target=lose).start()

    def lead(self) -> None:
        pass

    def stop(self, *, release: bool | None = None) -> bool:
        self.released = bool(release)
        return True


@pytest.mark.usefixtures("interrupt")
def test_told_to_stop_while_kopf_asks_what_the_cluster_offers_it_ends_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The API server takes the connection, and says nothing."""
    silent, asked = socket.create_server(("127.0.0.1", 0)), threading.Event()
    config = f"""
apiVersion: v1
kind: Config
clusters: [{{name: only, cluster: {{server: "http://127.0.0.1:{silent.getsockname()[1]}"}}}}]
users: [{{name: only, user: {{}}}}]
contexts: [{{name: only, context: {{cluster: only, user: only}}}}]
current-context: only
"""
    (tmp_path / "config").write_text(config)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    ours: Any = Ours(asked)

    def accept() -> None:
        ours.connection = silent.accept()[0]
        asked.set()

    threading.Thread(target=accept, daemon=True).start()
    health = f"127.0.0.1:{free_port()}"
    lost = asyncio.run(program._operate(cast(Controller, ours), SETTINGS, cast(Elector, ours), health))
    taken = time.monotonic() - ours.lost_at
    assert (lost, ours.released) == (True, True), "all of ours has ended first"
    assert taken < KOPF_SECONDS
    ours.connection.close()
    silent.close()
