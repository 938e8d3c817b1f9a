"""kubectl as a function: the program that users run, so that what works here works for them."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from hack.cluster.console import ClusterError, run

T = TypeVar("T")
Object = dict[str, Any]

UNREACHED = re.compile(r"Unable to connect|TLS handshake timeout|connection (refused|reset)|unexpected EOF|i/o timeout")
"""What kubectl says where no answer came."""
READ_TRIES, READ_PAUSE = 5, 2.0
"""How often something is read, and the seconds between."""
FORWARD_PATTERN = re.compile(r"Forwarding from 127\.0\.0\.1:(\d+)")


@dataclass(frozen=True)
class Kubectl:
    """One cluster and one of its namespaces."""

    program: Path
    kubeconfig: Path
    namespace: str = "default"

    def within(self, namespace: str) -> Kubectl:
        """The same cluster, another namespace."""
        return Kubectl(self.program, self.kubeconfig, namespace)

    def argv(self, *arguments: str) -> list[str]:
        """The command line."""
        return [str(self.program), "--kubeconfig", str(self.kubeconfig), "--namespace", self.namespace, *arguments]

    def __call__(self, *arguments: str, stdin: str | None = None, timeout: float = 120) -> str:
        """Run kubectl and return its output; raises ClusterError with kubectl's own message."""
        return run(self.argv(*arguments), stdin=stdin, timeout=timeout)

    def apply(self, *objects: Object | Path) -> None:
        """Create or update objects, given as JSON or YAML files. Raises ClusterError if one is rejected."""
        for each in objects:
            if isinstance(each, Path):
                self("apply", "-f", str(each))
            else:
                self("apply", "-f", "-", stdin=json.dumps(each))

    def get(self, kind: str, name: str) -> Object:
        """One object as JSON; raises ClusterError if it does not exist."""
        found: Object = json.loads(self._read(kind, name, "-o", "json"))
        return found

    def items(self, kind: str, selector: str = "") -> list[Object]:
        """The objects of a kind, filtered by labels."""
        chosen = ["-l", selector] if selector else []
        items: list[Object] = json.loads(self._read(kind, *chosen, "-o", "json"))["items"]
        return items

    def exists(self, kind: str, name: str) -> bool:
        """Whether the object exists."""
        return bool(self._read(kind, name, "--ignore-not-found", "-o", "name").strip())

    def _read(self, *arguments: str) -> str:
        """What ``kubectl get`` prints. It is asked again where no answer came: an API server on a machine whose cores
        are busy breaks connections, and half an hour of a demo would be lost."""
        for _ in range(READ_TRIES - 1):
            try:
                return self("get", *arguments)
            except ClusterError as error:
                if not UNREACHED.search(str(error)):
                    raise
            time.sleep(READ_PAUSE)
        return self("get", *arguments)

    @contextmanager
    def port_forward(self, target: str, port: int, timeout: float = 30) -> Iterator[int]:
        """Forward a local port to a port of a pod or Service, e.g. ``service/transactions``."""
        command = self.argv("port-forward", "--address", "127.0.0.1", target, f":{port}")
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                line = process.stdout.readline()  # blocks until the tunnel is up or kubectl has ended
                found = FORWARD_PATTERN.search(line)
                if not found:
                    process.wait(timeout)
                    assert process.stderr is not None
                    raise ClusterError(f"port-forward to {target}:{port} failed: {process.stderr.read().strip()}")
                yield int(found.group(1))
            finally:
                process.terminate()


def wait_for(what: str, probe: Callable[[], T | None], timeout: float, interval: float = 1.0) -> T:
    """Call ``probe`` until it returns something; raises ClusterError after ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        found = probe()
        if found:
            return found
        if time.monotonic() > deadline:
            raise ClusterError(f"{what}: timed out after {timeout:.0f} s")
        time.sleep(interval)
