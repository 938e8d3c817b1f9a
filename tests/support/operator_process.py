"""The operator as a real process, with an API client that fails on demand.

A fork server has the operator imported already, so that a start costs a fraction of a second. Faults are part of the
test's client, never of the product: ``KubeClient`` is a protocol, and this is another implementation around the real.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from kubernetes import client, config
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample
from pydantic import field_validator

from finetune_api import stages
from finetune_api.stages import Stage, StageInput
from finetune_api.storage import Storage
from finetune_operator import __main__ as program
from finetune_operator.finetunejob import stage_jobs
from finetune_operator.framework.client import PAGE, ApiError, Change, Page, Selection, StreamClient
from finetune_operator.framework.objects import Object, Resource
from finetune_operator.settings import Settings
from hack.cluster.layout import free_ports

PATIENCE = 400.0
"""Seconds to wait for what is sure to come: a machine may run at an eighth of its speed."""
ANSWER_SECONDS = 60.0
"""Of a request to the operator's probe or metrics."""
WRITES = frozenset({"create", "apply", "patch", "patch_status", "delete"})
CRASH_EXIT = 86
NEWER_VERSION = "9.9.9"
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload([__name__])


@dataclass(frozen=True)
class Fault:
    """One API call that goes wrong, once for each time it stands in the list."""

    verb: str
    kind: str
    status: int
    applied: bool = False
    """The server carries the call out, and only the answer is lost."""
    retry_after: float | None = None


@dataclass(frozen=True)
class Start:
    """How to start an operator process."""

    settings: Settings
    kubeconfig: Path
    log: Path
    faults: tuple[Fault, ...] = ()
    crash_after_writes: int = 0
    """Kill the process right after this many successful writes; 0: never."""
    newer: bool = False
    """Start a later version of the operator (``become_newer``)."""
    writes_log: Path | None = None
    """Gets a line for each successful write."""
    calls_log: Path | None = None
    """Gets a line for each call."""


@dataclass
class FaultyClient:
    """A StreamClient whose calls fail as asked; its streams do not."""

    inner: StreamClient
    faults: list[Fault]
    crash_after: int = 0
    writes_log: Path | None = None
    calls_log: Path | None = None
    writes: int = field(default=0, init=False)
    calls: Counter[tuple[str, str]] = field(default_factory=Counter, init=False)

    def get(self, resource: Resource, namespace: str, name: str) -> Object | None:
        return self._call("get", resource, namespace, name)  # type: ignore[no-any-return]

    def select(self, resource: Resource, namespace: str | None, labels: str = "", fields: str = "") -> list[Object]:
        return self._call("select", resource, namespace, labels, fields)  # type: ignore[no-any-return]

    def create(self, resource: Resource, body: Object) -> Object:
        return self._call("create", resource, body)  # type: ignore[no-any-return]

    def apply(self, resource: Resource, body: Object, field_manager: str) -> Object:
        return self._call("apply", resource, body, field_manager)  # type: ignore[no-any-return]

    def patch(self, resource: Resource, namespace: str, name: str, body: Object) -> Object:
        return self._call("patch", resource, namespace, name, body)  # type: ignore[no-any-return]

    def patch_status(self, resource: Resource, namespace: str, name: str, body: Object) -> Object:
        return self._call("patch_status", resource, namespace, name, body)  # type: ignore[no-any-return]

    def delete(self, resource: Resource, namespace: str, name: str, uid: str) -> None:
        self._call("delete", resource, namespace, name, uid)

    def pages(self, selection: Selection, limit: int = PAGE) -> Iterator[Page]:
        return self.inner.pages(selection, limit)

    def watch(self, selection: Selection, version: int, seconds: int) -> Iterator[Change]:
        return self.inner.watch(selection, version, seconds)

    def _call(self, verb: str, resource: Resource, *arguments: Any) -> Any:
        if self.calls_log is not None:
            _append(self.calls_log, f"{verb} {resource.kind}\n")
        fault = self._next_fault(verb, resource.kind)
        if fault is None or fault.applied:
            answer = getattr(self.inner, verb)(resource, *arguments)
        if fault is not None:
            reason = "Conflict" if fault.status == 409 else "Injected"
            raise ApiError(fault.status, reason, "injected by the test", fault.retry_after)
        if verb in WRITES:
            self._written(verb, resource)
        return answer

    def _next_fault(self, verb: str, kind: str) -> Fault | None:
        """Every second call of a sort fails, as long as there are faults of it: backoffs stay short."""
        self.calls[verb, kind] += 1
        fault = next((each for each in self.faults if (each.verb, each.kind) == (verb, kind)), None)
        if fault is None or self.calls[verb, kind] % 2 == 0:
            return None
        self.faults.remove(fault)
        return fault

    def _written(self, verb: str, resource: Resource) -> None:
        self.writes += 1
        if self.writes_log is not None:
            _append(self.writes_log, f"{verb} {resource.kind}\n")
        if self.crash_after and self.writes >= self.crash_after:
            os._exit(CRASH_EXIT)


def _append(file: Path, line: str) -> None:
    with file.open("a") as log:
        log.write(line)


@dataclass
class Running:
    """An operator process."""

    process: BaseProcess
    health: str
    metrics: str

    def healthz(self) -> bytes:
        """What the probe answers; raises OSError while it does not."""
        with urllib.request.urlopen(self.health, timeout=ANSWER_SECONDS) as answer:
            return bytes(answer.read())

    def metric(self, name: str, **labels: str) -> float:
        """One value of the operator's own metrics; 0 if there is none. Raises OSError while it does not answer."""
        return sum(each.value for each in self._samples(name) if labels.items() <= each.labels.items())

    def requests(self) -> Counter[str]:
        """All requests to the API server so far, those of streams and of the Lease too, by verb and resource."""
        counted = Counter[str]()
        for each in self._samples("finetune_operator_api_requests_total"):
            counted[f"{each.labels['verb']} {each.labels['resource']}"] += int(each.value)
        return counted

    def _samples(self, name: str) -> list[Sample]:
        with urllib.request.urlopen(self.metrics, timeout=ANSWER_SECONDS) as answer:
            families = text_string_to_metric_families(answer.read().decode())
        return [each for family in families for each in family.samples if each.name == name]

    def wait_ready(self, seconds: float = PATIENCE) -> None:
        """Until the probe answers, which is after the first LIST."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.process.is_alive():
            with contextlib.suppress(OSError):
                self.healthz()
                return
            time.sleep(0.05)
        raise AssertionError(f"the operator did not become ready (exit code {self.process.exitcode})")

    def wait_idle(self, seconds: float = PATIENCE) -> None:
        """Until no resource waits for a turn or has one: an event is written after the status that it is about, and a
        write is logged after it can be seen."""
        deadline = time.monotonic() + seconds
        while self.metric("finetune_operator_unreconciled_seconds") > 0:
            assert time.monotonic() < deadline, f"the operator still works after {seconds:.0f} s"
            time.sleep(0.1)

    def stop(self, seconds: float = 20) -> None:
        """As Kubernetes does: TERM, then KILL."""
        self.process.terminate()
        self.process.join(seconds)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def start(how: Start) -> Running:
    """Start a process; it need not be ready yet."""
    ports = program.Ports(*(f"127.0.0.1:{port}" for port in free_ports(2)))
    process = _CONTEXT.Process(target=_main, args=(how, ports))
    process.start()
    return Running(process, f"http://{ports.health}/healthz", f"http://{ports.metrics}/metrics")


@contextlib.contextmanager
def running(how: Start) -> Iterator[Running]:
    """A process that is ready, and stopped at the end."""
    operator = start(how)
    try:
        operator.wait_ready()
        yield operator
    finally:
        operator.stop()


class NewerStorage(Storage):
    """A part of specs and inputs with one more field."""

    added_later: str = "by the newer version"


class NewerStageInput(StageInput):
    """The contract of a later version: one more field at two levels, which those who know it read and others do not."""

    added_later: str = "by the newer version"
    storage: NewerStorage = NewerStorage()

    @field_validator("storage", mode="before")
    @classmethod
    def _of_the_spec(cls, given: Storage) -> NewerStorage:
        return NewerStorage.model_validate(given.model_dump())


def become_newer() -> None:
    """Make this process a later version: another number, a larger StageInput, another recipe of preparing data."""
    recipe = stages.RECIPE_VERSIONS[Stage.PREPARE] + 1
    vars(stages)["RECIPE_VERSIONS"] = {**stages.RECIPE_VERSIONS, Stage.PREPARE: recipe}
    vars(stage_jobs).update({"__version__": NEWER_VERSION, "StageInput": NewerStageInput})


def _main(how: Start, ports: program.Ports) -> None:
    output = how.log.open("a", buffering=1)
    os.dup2(output.fileno(), 1)
    os.dup2(output.fileno(), 2)
    sys.stdout = sys.stderr = output
    os.environ["KUBECONFIG"] = str(how.kubeconfig)
    if how.newer:
        become_newer()
    configuration = client.Configuration()
    config.load_kube_config(str(how.kubeconfig), client_configuration=configuration)
    elector = program.elector_of(configuration, how.settings)
    inner = program.client_of(configuration, how.settings, elector)
    wrapped = FaultyClient(inner, list(how.faults), how.crash_after_writes, how.writes_log, how.calls_log)
    program.configure_logging("json")
    if program.run(wrapped, how.settings, elector, ports):
        sys.exit(1)
