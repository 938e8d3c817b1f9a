"""Reading with kubectl: a connection that breaks is made again, and what kubectl refuses is not asked twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from hack.cluster.console import ClusterError
from hack.platform import kubectl
from hack.platform.kubectl import READ_TRIES, Kubectl

pytestmark = [pytest.mark.unit, pytest.mark.slow]

BROKEN = (
    'Get "https://127.0.0.1:6443/api": net/http: TLS handshake timeout - error from a previous attempt: unexpected EOF'
)
ABSENT = 'Error from server (NotFound): finetunejobs.finetune.dev "a" not found'


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubectl, "READ_PAUSE", 0.0)


def failing(folder: Path, times: int, message: str) -> Kubectl:
    """A program in kubectl's place that fails so often, and notes each time that it is asked."""
    program = folder / "kubectl"
    asked = folder / "asked"
    program.write_text(
        f"#!/bin/sh\necho >> {asked}\n"
        f"if [ $(wc -l < {asked}) -le {times} ]; then echo '{message}' >&2; exit 1; fi\necho '{{\"items\": []}}'\n"
    )
    program.chmod(0o755)
    return Kubectl(program, folder / "kubeconfig")


def asked(folder: Path) -> int:
    return len((folder / "asked").read_text().splitlines())


def test_a_connection_that_breaks_is_made_again(tmp_path: Path) -> None:
    assert failing(tmp_path, READ_TRIES - 1, BROKEN).items("ftj") == []
    assert asked(tmp_path) == READ_TRIES


def test_one_that_always_breaks_is_told(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="TLS handshake timeout"):
        failing(tmp_path, READ_TRIES, BROKEN).get("ftj", "a")
    assert asked(tmp_path) == READ_TRIES


def test_what_is_refused_is_not_asked_again(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="NotFound"):
        failing(tmp_path, 1, ABSENT).get("ftj", "a")
    assert asked(tmp_path) == 1
