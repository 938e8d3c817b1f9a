"""The S3 server of the tests starts although another program took one of its ports."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from hack.cluster.layout import free_ports
from tests.support import seaweedfs
from tests.support.seaweedfs import SeaweedFS

pytestmark = [pytest.mark.unit, pytest.mark.slow]
VOLUME = 2
"""Place of the volume server's port. The server takes seconds to give up here; at the S3 port 40."""


def test_a_taken_port_costs_a_second_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        first = free_ports(8)
        first[VOLUME] = other.getsockname()[1]
        offers = iter([first])
        monkeypatch.setattr(seaweedfs, "free_ports", lambda count: next(offers, None) or free_ports(count))
        with SeaweedFS.running(tmp_path) as server:
            server.client().put_object(Bucket="data", Key="a", Body=b"1")
    assert (tmp_path / "weed-2.log").exists()
