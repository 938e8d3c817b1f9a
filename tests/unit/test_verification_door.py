"""The port by which the verifier sees the network open."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest

from finetune_api.endpoint_stages import DOOR_SECONDS
from finetune_api.stages import StageResult
from finetune_jobs import verify
from finetune_jobs.base.errors import StageError
from finetune_jobs.verification.door import Door
from tests.support.publishing import ANSWERS
from tests.support.seaweedfs import SeaweedFS
from tests.unit.test_jobs_verify import run_verify, server

pytestmark = [pytest.mark.unit, pytest.mark.slow, pytest.mark.usefixtures("own_client")]


class Port:
    """A port of this machine that nobody else can get; closed until it listens."""

    def __init__(self) -> None:
        self.socket = socket.socket()
        self.socket.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"

    def open(self) -> None:
        self.socket.listen()


@pytest.fixture
def port() -> Port:
    return Port()


def test_a_door_that_opens_is_seen(port: Port) -> None:
    door = Door(port.url)
    assert door.is_closed()
    port.open()
    assert door.opens(60) is not None


def test_a_door_that_stays_closed_is_not_waited_for_for_ever(port: Port) -> None:
    door = Door(port.url)
    assert (door.is_closed(), door.opens(0.1)) == (True, None)


def test_a_door_that_was_open_before_shows_nothing(port: Port) -> None:
    port.open()
    assert not Door(port.url).is_closed()


@pytest.mark.parametrize("opens", [True, False])
def test_the_verification_says_that_all_has_passed_and_waits_for_the_door(
    s3: SeaweedFS, published: StageResult, tmp_path: Path, port: Port, monkeypatch: pytest.MonkeyPatch, *, opens: bool
) -> None:
    """The operator opens it when it is told; where it does not, the verification has passed all the same."""
    proved = tmp_path / "proved"
    monkeypatch.setattr(verify, "_PROVED", proved)
    monkeypatch.setattr(verify, "_OPENING_SECONDS", 60.0 if opens else 0.1)
    over = threading.Event()

    def operator() -> None:
        while not over.wait(0.01):
            if proved.exists() and opens:
                return port.open()
        return None

    thread = threading.Thread(target=operator)
    thread.start()
    try:
        with server(f"/models/{published.output_digest}/model", ANSWERS) as (endpoint, _):
            result = run_verify(s3, published, tmp_path, endpoint, door=port.url)
    finally:
        over.set()
        thread.join()
    assert proved.exists()
    assert (DOOR_SECONDS in result.scalars) == opens
    assert result.scalars["accuracy"]


def test_nobody_is_told_of_a_verification_that_fails(
    s3: SeaweedFS, published: StageResult, tmp_path: Path, port: Port, monkeypatch: pytest.MonkeyPatch
) -> None:
    proved = tmp_path / "proved"
    monkeypatch.setattr(verify, "_PROVED", proved)
    with (
        server("/models/another/model", ANSWERS) as (endpoint, _),
        pytest.raises(StageError, match="digest"),
    ):
        run_verify(s3, published, tmp_path, endpoint, door=port.url)
    assert not proved.exists()
