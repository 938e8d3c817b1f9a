"""The local cluster's processes: recognised for certain, started once, restarted on change, stopped alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from hack.cluster.console import ClusterError
from hack.cluster.native import NativeCluster
from hack.cluster.processes import Daemon, Identity, Record, tail

pytestmark = pytest.mark.unit

SLEEPER = (sys.executable, "-c", "import time; print('started', flush=True); time.sleep(600)")


@pytest.fixture
def sleeper(tmp_path: Path) -> Iterator[Daemon]:
    log = tmp_path / "sleeper.log"
    daemon = Daemon("sleeper", SLEEPER, tmp_path, lambda: log.exists() and "started" in log.read_text())
    yield daemon
    daemon.stop(grace_seconds=1)


def identity_of(daemon: Daemon) -> Identity:
    record = daemon.record()
    assert record is not None
    return record.identity


@pytest.mark.slow
def test_a_running_part_is_left_alone_and_found_by_a_later_call(sleeper: Daemon) -> None:
    assert sleeper.start()
    sleeper.wait_ready()
    assert not replace(sleeper).start()
    assert os.getsid(identity_of(sleeper).pid) != os.getsid(0), "it must outlive the terminal that started it"


@pytest.mark.slow
@pytest.mark.parametrize("change", ["argument", "file"])
def test_a_changed_part_is_restarted(sleeper: Daemon, tmp_path: Path, change: str) -> None:
    config = tmp_path / "config"
    config.write_text("one")
    daemon = replace(sleeper, files=(config,))
    daemon.start()
    before = identity_of(daemon)
    if change == "file":
        config.write_text("two")
    else:
        daemon = replace(daemon, argv=(*SLEEPER, "--verbose"))
    assert daemon.start()
    assert not before.alive()
    assert identity_of(daemon) != before


@pytest.mark.slow
def test_a_killed_part_is_started_again(sleeper: Daemon) -> None:
    sleeper.start()
    pid = identity_of(sleeper).pid
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 60
    while sleeper.record() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert sleeper.record() is None, "a zombie is not alive"
    assert sleeper.start()
    assert identity_of(sleeper).pid != pid


@pytest.mark.slow
@pytest.mark.parametrize("difference", [{"start_ticks": 1}, {"boot_id": "another"}])
def test_a_foreign_process_with_the_same_pid_is_neither_ours_nor_stopped(
    sleeper: Daemon, difference: dict[str, int | str]
) -> None:
    unrelated = subprocess.Popen(SLEEPER, stdout=subprocess.DEVNULL)
    try:
        identity = Identity.of(unrelated.pid)
        assert identity is not None
        Record(replace(identity, **difference), "any", 0).write(sleeper.pid_file)  # type: ignore[arg-type]
        assert sleeper.record() is None
        sleeper.stop()
        assert unrelated.poll() is None
        assert not sleeper.pid_file.exists()
    finally:
        unrelated.kill()
        unrelated.wait()


@pytest.mark.parametrize("text", ["", '{"pid": 1', "{}", "17"])
def test_a_pid_file_cut_short_by_a_crash_counts_as_none(sleeper: Daemon, text: str) -> None:
    sleeper.pid_file.write_text(text)
    assert sleeper.record() is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "seconds", "expected"),
    [
        ("import sys; sys.exit('no such port 70000')", 60, "exited.*no such port 70000"),
        ("import time; print('thinking', flush=True); time.sleep(600)", 1, "(?s)not ready after 1 s.*thinking"),
    ],
)
def test_a_part_that_does_not_come_up_is_explained_by_its_log(
    tmp_path: Path, code: str, seconds: int, expected: str
) -> None:
    argv = (sys.executable, "-c", code)
    daemon = Daemon("part", argv, tmp_path, lambda: False, ready_seconds=seconds)
    daemon.start()
    try:
        deadline = time.monotonic() + 60
        while not daemon.log_file.read_text():  # an interpreter may take longer to start than the part has
            assert time.monotonic() < deadline
            time.sleep(0.01)
        with pytest.raises(ClusterError, match=f"(?s){expected}"):
            daemon.wait_ready()
    finally:
        daemon.stop(grace_seconds=1)


@pytest.mark.slow
def test_a_missing_program_says_how_to_get_it(tmp_path: Path) -> None:
    daemon = Daemon("part", (str(tmp_path / "kubelet"),), tmp_path, lambda: True)
    with pytest.raises(ClusterError, match=r"kubelet .*`make cluster-tools`"):
        daemon.start()


@pytest.mark.slow
def test_without_a_cluster_images_say_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="containerd, buildkitd; run `make cluster-up`"):
        NativeCluster(tmp_path).images()


@pytest.mark.slow
def test_a_part_that_ignores_the_polite_request_is_killed(tmp_path: Path) -> None:
    code = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"
    )
    log = tmp_path / "deaf.log"
    daemon = Daemon("deaf", (sys.executable, "-c", code), tmp_path, lambda: "deaf" in log.read_text())
    daemon.start()
    daemon.wait_ready()
    identity = identity_of(daemon)
    daemon.stop(grace_seconds=0.3)
    assert not identity.alive()


def test_tail_of_a_long_log_is_its_end(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("\n".join(f"line {number}" for number in range(10_000)))
    assert tail(log, lines=2) == "line 9998\nline 9999"
