"""Long-running parts of the cluster: started detached, found again by a later call, restarted only when needed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .console import ClusterError, say

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
GRACE_SECONDS = 5  # the API server would wait for its clients' watches, which never end
LOG_LIMIT = 16 * 1024 * 1024


@dataclass(frozen=True)
class Identity:
    """Identifies a process permanently: its pid alone may be reused."""

    pid: int
    start_ticks: int
    boot_id: str

    @classmethod
    def of(cls, pid: int) -> Identity | None:
        """The running process with this pid; None if there is none.

        A zombie counts as dead, unless some of its threads are still ending: they hold its sockets.
        """
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
            threads = len(os.listdir(f"/proc/{pid}/task"))
        except (FileNotFoundError, ProcessLookupError):
            return None
        fields = stat.rpartition(")")[2].split()  # the name before it may contain spaces and parentheses
        if fields[0] in "ZX" and threads <= 1:
            return None
        return cls(pid, int(fields[19]), BOOT_ID.read_text().strip())

    @classmethod
    def mine(cls) -> Identity:
        """The current process."""
        identity = cls.of(os.getpid())
        assert identity is not None, "a running process has an entry in /proc"
        return identity

    def alive(self) -> bool:
        return Identity.of(self.pid) == self


@dataclass(frozen=True)
class Record:
    """Content of the pid file: the process, a fingerprint of its configuration, and its start time (epoch seconds)."""

    identity: Identity
    fingerprint: str
    since: float

    def write(self, path: Path) -> None:
        draft = path.with_suffix(".draft")
        draft.write_text(json.dumps({**vars(self.identity), "fingerprint": self.fingerprint, "since": self.since}))
        draft.replace(path)

    @classmethod
    def read(cls, path: Path) -> Record | None:
        """None without a pid file, or with a truncated one."""
        try:
            data = json.loads(path.read_text())
            return cls(Identity(data["pid"], data["start_ticks"], data["boot_id"]), data["fingerprint"], data["since"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None


@dataclass(frozen=True)
class Daemon:
    """One long-running part. A change of ``argv`` or of one of the configuration ``files`` means a restart."""

    name: str
    argv: tuple[str, ...]
    directory: Path
    ready: Callable[[], bool]
    files: tuple[Path, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    ready_seconds: float = 180

    @property
    def pid_file(self) -> Path:
        return self.directory / f"{self.name}.pid"

    @property
    def log_file(self) -> Path:
        return self.directory / f"{self.name}.log"

    def fingerprint(self) -> str:
        digest = hashlib.sha256(json.dumps([self.argv, dict(self.env)]).encode())
        for path in self.files:
            digest.update(path.read_bytes())
        return digest.hexdigest()

    def record(self) -> Record | None:
        """The record of the process, if it is alive."""
        record = Record.read(self.pid_file)
        return record if record and record.identity.alive() else None

    def start(self) -> bool:
        """Run it with the current arguments and files; False if it already runs with them."""
        record, fingerprint = self.record(), self.fingerprint()
        if record and record.fingerprint == fingerprint:
            return False
        if record:
            self.stop()
        self.directory.mkdir(parents=True, exist_ok=True)
        if self.log_file.exists() and self.log_file.stat().st_size > LOG_LIMIT:
            self.log_file.replace(self.log_file.with_suffix(".log.1"))
        with self.log_file.open("ab") as log:
            # In its own session, so that it outlives the terminal or `make` that started it.
            try:
                process = subprocess.Popen(
                    self.argv,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env={**os.environ, **self.env},
                    start_new_session=True,
                )
            except FileNotFoundError as error:
                raise ClusterError(f"{self.argv[0]} is not built: run `make cluster-tools`") from error
        identity = Identity.of(process.pid)
        if identity is None:
            raise self._failure("exited immediately")
        Record(identity, fingerprint, time.time()).write(self.pid_file)
        # Later calls use the pid file; this object must not warn about a child that it never waits for.
        process.returncode = 0
        return True

    def wait_ready(self) -> None:
        """Wait until it is ready.

        Raises:
            ClusterError: it exited, or was not ready within ``ready_seconds``; includes the end of its log.
        """
        begin = time.monotonic()
        deadline, reminder = begin + self.ready_seconds, begin + 10
        while not self.ready():
            now = time.monotonic()
            if self.record() is None:
                raise self._failure("exited")
            if now > deadline:
                raise self._failure(f"not ready after {self.ready_seconds:.0f} s")
            if now > reminder:
                say(f"    waiting for {self.name} ({now - begin:.0f} s)")
                reminder = now + 10
            time.sleep(0.1)

    def stop(self, grace_seconds: float = GRACE_SECONDS) -> None:
        """Stop it, forcibly after ``grace_seconds``; a process that is not ours is left alone."""
        record = self.record()
        if record:
            terminate(record.identity, grace_seconds)
        self.pid_file.unlink(missing_ok=True)

    def _failure(self, what: str) -> ClusterError:
        return ClusterError(f"{self.name}: {what}; the end of {self.log_file}:\n{tail(self.log_file)}")


def write_if_changed(path: Path, text: str) -> None:
    """Write a configuration file if its content changes: kube-proxy exits when its file is touched."""
    if not path.exists() or path.read_text() != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(path.name + ".draft")
        draft.touch(mode=0o600)
        draft.write_text(text)
        draft.replace(path)


def start_in_order(daemons: Iterable[Daemon]) -> bool:
    """Start each once those before it are ready; returns whether any was started."""
    started = False
    for daemon in daemons:
        started |= daemon.start()
        daemon.wait_ready()
    return started


def stop_all(daemons: Iterable[Daemon], grace_seconds: float = GRACE_SECONDS) -> None:
    """Stop them in reverse start order."""
    for daemon in reversed(tuple(daemons)):
        daemon.stop(grace_seconds)


def terminate(identity: Identity, grace_seconds: float) -> None:
    """Send SIGTERM, then SIGKILL; returns when the process is gone."""
    deadline = time.monotonic() + grace_seconds
    send = signal.SIGTERM
    while identity.alive():
        try:
            os.kill(identity.pid, send)
        except ProcessLookupError:
            break
        while identity.alive() and time.monotonic() < deadline:
            _reap(identity.pid)
            time.sleep(0.05)
        send, deadline = signal.SIGKILL, time.monotonic() + 5
    _reap(identity.pid)


def _reap(pid: int) -> None:
    """Collect the exit status if the process is a child of this interpreter (test fixtures)."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def tail(path: Path, lines: int = 15) -> str:
    """The last lines of a log."""
    try:
        with path.open("rb") as log:
            log.seek(max(0, path.stat().st_size - 16384))
            return "\n".join(log.read().decode(errors="replace").splitlines()[-lines:])
    except FileNotFoundError:
        return "(no log)"
