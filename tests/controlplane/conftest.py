"""A real API server with the controllers that the operator builds on, and namespaces as an admin prepares them."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytest
import yaml
from kubernetes import client, config

from finetune_api import meta
from finetune_api.job_status import FineTuneJobStatus
from finetune_api.reasons import Reason
from finetune_api.stages import Stage
from finetune_operator.framework.client import HttpKubeClient, StreamClient
from finetune_operator.framework.objects import EVENTS, JOBS, RESOURCE_QUOTAS, SERVICE_ACCOUNTS, Object, Resource
from finetune_operator.kinds import FINETUNEJOBS
from finetune_operator.rbac import FORMER_ROUTE_RULES, LEASE_RULE, RULES
from finetune_operator.settings import Images, PodShape, Profile, Settings
from hack.cluster.controlplane import ControlPlane
from hack.cluster.layout import REPOSITORY
from tests.support.crd_cases import valid_object
from tests.support.crd_patterns import KINDS
from tests.support.crd_server import CrdServer
from tests.support.fake_node import FakeNode
from tests.support.fake_servers import NODE, FakeServers
from tests.support.operator_process import Fault, Running, Start, start
from tests.support.played_pods import CORRUPT, GOOD

if TYPE_CHECKING:
    from tests.controlplane.serving import Serving

CONTROLLERS = (
    "job-controller",
    "garbage-collector-controller",
    "namespace-controller",
    "serviceaccount-controller",
    "resourcequota-controller",
    "deployment-controller",
    "replicaset-controller",
    "endpointslice-controller",
    "horizontal-pod-autoscaler-controller",
)
NAMESPACES = Resource("v1", "Namespace", "namespaces")
RBAC = "rbac.authorization.k8s.io/v1"
RIGHTS = (Resource(RBAC, "Role", "roles"), Resource(RBAC, "RoleBinding", "rolebindings"))
T = TypeVar("T")
PROFILE = "small"
QUOTA = "few"
RUNNER = "finetune-runner"
OPERATOR = "finetune-operator"
ADDED_LATER = "addedLater"
"""A field of ``newer_crds``."""


@pytest.fixture(scope="session")
def plane() -> Iterator[ControlPlane]:
    """API server, etcd, and the controllers whose objects the operator makes or relies on."""
    with ControlPlane.temporary(controllers=CONTROLLERS) as control_plane:
        control_plane.kubectl("apply", "--server-side", "-f", str(REPOSITORY / "crds"))  # as helm does
        node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}}
        control_plane.kubectl("create", "-f", "-", stdin=json.dumps(node))
        wait(lambda: "ftj" in control_plane.kubectl("api-resources", "--api-group", meta.GROUP), "the CRDs")
        # kubectl asks again, as tests do not, while the API server prepares to list a new kind, which takes seconds.
        control_plane.kubectl("get", "ftj,adep", "--all-namespaces")
        yield control_plane


@pytest.fixture(scope="session")
def crds(plane: ControlPlane) -> CrdServer:
    """Requests of the tests of the CRDs, in a namespace in which nothing but them acts."""
    return CrdServer(plane)


@pytest.fixture(scope="session")
def api(plane: ControlPlane) -> StreamClient:
    """The test's own client, as cluster administrator."""
    configuration = client.Configuration()
    config.load_kube_config(str(plane.kubeconfig), client_configuration=configuration)
    return HttpKubeClient(configuration, 8)


@pytest.fixture(scope="session")
def operator_kubeconfig(plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Credentials of a user who may do nothing but what ``rbac.RULES`` allow in the namespaces of the tests."""
    path = tmp_path_factory.mktemp("operator") / "kubeconfig"
    plane.authority.kubeconfig(path, plane.url, OPERATOR, f"/CN={OPERATOR}")
    return path


def operator_rights(namespace: str) -> list[Object]:
    """Role and binding of the operator, from the table that the chart's are generated from; as ``RIGHTS``."""
    group = RBAC.partition("/")[0]
    metadata = {"name": OPERATOR, "namespace": namespace}
    rules = [
        {"apiGroups": [rule.api_group], "resources": [rule.name], "verbs": list(rule.verbs)}
        for rule in (*RULES, *FORMER_ROUTE_RULES.values(), LEASE_RULE)
    ]
    return [
        {"apiVersion": RBAC, "kind": "Role", "metadata": metadata, "rules": rules},
        {
            "apiVersion": RBAC,
            "kind": "RoleBinding",
            "metadata": metadata,
            "roleRef": {"apiGroup": group, "kind": "Role", "name": OPERATOR},
            "subjects": [{"apiGroup": group, "kind": "User", "name": OPERATOR}],
        },
    ]


@dataclass
class Team:
    """A namespace with an operator that watches only it, and a node that runs its pods."""

    api: StreamClient
    plane: ControlPlane
    operator_kubeconfig: Path
    namespace: str
    directory: Path
    node: FakeNode
    operators: list[Running] = field(default_factory=list)

    def settings(self, **changes: Any) -> Settings:
        """The operator's settings in this namespace."""
        fast = Profile(cpu=PodShape(requests={"cpu": "100m"}), deadline_seconds=600)
        base: dict[str, Any] = {
            "images": Images(
                data="example/data",
                prepare="example/prepare",
                jobs="example/jobs",
                quantize="example/quantize",
                proxy="example/proxy",
            ),
            "profiles": {PROFILE: fast},
            "namespaces": [self.namespace],
            "workers": 4,
            "progress_seconds": 1,
            "policy_seconds": 1,
        }
        return Settings(**(base | changes))

    @property
    def writes_log(self) -> Path:
        """One line for each successful write of an operator."""
        return self.directory / "writes.log"

    @property
    def calls_log(self) -> Path:
        """One line for each API call of an operator, the streams of Kopf apart."""
        return self.directory / "calls.log"

    def calls(self) -> list[str]:
        """The calls of all operators so far."""
        return self.calls_log.read_text().splitlines() if self.calls_log.exists() else []

    def writes(self) -> list[str]:
        """Successful writes of all operators so far."""
        return self.writes_log.read_text().splitlines() if self.writes_log.exists() else []

    def start(
        self,
        *,
        faults: tuple[Fault, ...] = (),
        crash_after_writes: int = 0,
        newer: bool = False,
        writes_log: Path | None = None,
        **changes: Any,
    ) -> Running:
        """Start an operator process; it need not be ready yet. ``writes_log``: a file of its own for its writes."""
        how = Start(
            settings=self.settings(**changes),
            kubeconfig=self.operator_kubeconfig,
            log=self.directory / "operator.log",
            faults=faults,
            crash_after_writes=crash_after_writes,
            newer=newer,
            writes_log=writes_log or self.writes_log,
            calls_log=self.calls_log,
        )
        operator = start(how)
        self.operators.append(operator)
        return operator

    def stop(self) -> None:
        """Stop every operator that runs."""
        while self.operators:
            self.operators.pop().stop()

    def create(self, name: str, labels: dict[str, str] | None = None, **spec: Any) -> Object:
        """Create a FineTuneJob."""
        return self.api.create(FINETUNEJOBS, self.job(name, labels, **spec))

    def job(self, name: str, labels: dict[str, str] | None = None, **spec: Any) -> Object:
        """A FineTuneJob that asks for little."""
        base = {
            "profile": PROFILE,
            "model": {"uri": "s3://models/base"},
            "dataset": {"sources": [{"uri": "s3://data/rows.csv"}], "columns": {"input": "text", "label": "label"}},
            "output": {"uri": "s3://artifacts/team", "name": name},
        }
        metadata = {"name": name, "namespace": self.namespace, "labels": labels or {}}
        return {"apiVersion": meta.API_VERSION, "kind": meta.FINETUNEJOB, "metadata": metadata, "spec": base | spec}

    def change(self, name: str, **spec: Any) -> Object:
        """Change fields of a FineTuneJob's spec."""
        return self.api.patch(FINETUNEJOBS, self.namespace, name, {"spec": spec})

    def limit(self, hard: dict[str, str]) -> None:
        """Set the namespace's quota and wait until it is enforced."""
        metadata = {"name": QUOTA, "namespace": self.namespace}
        body = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": metadata, "spec": {"hard": hard}}
        self.api.apply(RESOURCE_QUOTAS, body, "test")
        wait(lambda: (self._quota().get("status") or {}).get("hard") == hard, "the quota to be enforced")

    def unlimit(self) -> None:
        """Delete the quota."""
        self.api.delete(RESOURCE_QUOTAS, self.namespace, QUOTA, self._quota()["metadata"]["uid"])

    def _quota(self) -> Object:
        found = self.api.get(RESOURCE_QUOTAS, self.namespace, QUOTA)
        assert found is not None
        return found

    def delete(self, name: str) -> None:
        """Delete a FineTuneJob and wait until it and its Jobs are gone."""
        found = self.api.get(FINETUNEJOBS, self.namespace, name)
        assert found is not None
        self.api.delete(FINETUNEJOBS, self.namespace, name, found["metadata"]["uid"])
        wait(lambda: not self.jobs(name) and self.api.get(FINETUNEJOBS, self.namespace, name) is None, "deletion")

    def status(self, name: str) -> FineTuneJobStatus:
        """The status of a FineTuneJob as it is now."""
        found = self.api.get(FINETUNEJOBS, self.namespace, name)
        assert found is not None
        return FineTuneJobStatus.model_validate(found.get("status") or {})

    def jobs(self, name: str, stage: str = "") -> list[Object]:
        """The Jobs of a FineTuneJob, of one stage or all."""
        labels = f"{meta.LABEL_OWNER_NAME}={name}" + (f",{meta.LABEL_STAGE}={stage}" if stage else "")
        return self.api.select(JOBS, self.namespace, labels)

    def events(self, name: str) -> list[tuple[str, str]]:
        """Type and reason of the events of a FineTuneJob, oldest first."""
        selector = f"involvedObject.kind={meta.FINETUNEJOB},involvedObject.name={name}"
        found = self.api.select(EVENTS, self.namespace, fields=selector)
        found.sort(key=lambda event: int(event["metadata"]["resourceVersion"]))
        return [(event["type"], event["reason"]) for event in found]

    def until(self, name: str, what: str, seconds: float = 400) -> FineTuneJobStatus:
        """Wait for a phase or for a reason of Ready; returns the status."""

        def reached() -> FineTuneJobStatus | None:
            status = self.status(name)
            return status if what in (status.phase, ready(status)) else None

        return wait(reached, f"{name} to be {what}", seconds, lambda: str(self.status(name)))


@contextmanager
def prepared_team(plane: ControlPlane, api: StreamClient, operator_kubeconfig: Path, directory: Path) -> Iterator[Team]:
    """A namespace with the runner's ServiceAccount and a node; operators are started by the test."""
    name = f"team-{uuid.uuid4().hex[:8]}"
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "namespace": ""}}
    uid = api.create(NAMESPACES, namespace)["metadata"]["uid"]
    api.create(SERVICE_ACCOUNTS, account(name))
    # A loopback address of its own, or the pods of other tests would show the progress that those of this one have.
    address = ".".join(["127", *(str(1 + byte % 254) for byte in uuid.uuid4().bytes[:3])])
    with FakeNode(api, name, address=address) as node:
        context = Team(api, plane, operator_kubeconfig, name, directory, node)
        for resource, right in zip(RIGHTS, operator_rights(name), strict=True):
            api.create(resource, right)
        try:
            yield context
        finally:
            context.stop()
    api.delete(NAMESPACES, "", name, uid)


@pytest.fixture
def team(plane: ControlPlane, api: StreamClient, operator_kubeconfig: Path, tmp_path: Path) -> Iterator[Team]:
    """A team for one test."""
    with prepared_team(plane, api, operator_kubeconfig, tmp_path) as prepared:
        yield prepared


@contextmanager
def prepared_serving(team: Team) -> Iterator[Serving]:
    """Servers for a team. Nothing is deployed yet, no operator runs."""
    from tests.controlplane.serving import Serving

    pods = client.CoreV1Api(config.new_client_from_config(str(team.plane.kubeconfig)))
    with FakeServers(team.api, pods, team.namespace) as servers:
        servers.fates[CORRUPT] = Reason.ARTIFACT_CORRUPT
        context = Serving(team, servers)
        team.node.scripts[Stage.VERIFY] = context.verify
        yield context


@pytest.fixture
def serving(team: Team) -> Iterator[Serving]:
    """Nothing is deployed yet, no operator runs."""
    with prepared_serving(team) as prepared:
        yield prepared


@pytest.fixture(scope="module")
def endpoint(
    plane: ControlPlane, api: StreamClient, operator_kubeconfig: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Serving]:
    """An endpoint that serves and the operator that runs, for all tests of a module: each updates what it finds to an
    artifact that no other one serves, and leaves an operator that runs."""
    directory = tmp_path_factory.mktemp("endpoint")
    with prepared_team(plane, api, operator_kubeconfig, directory) as team, prepared_serving(team) as prepared:
        prepared.start()
        prepared.serve(GOOD)
        yield prepared


@contextmanager
def newer_crds(plane: ControlPlane) -> Iterator[None]:
    """CRDs of a later version: every object of the specs has one more field, with a default."""
    manifests = {path: path.read_text() for path in (REPOSITORY / "crds").glob("*.yaml")}
    crds = [yaml.load(text, yaml.CSafeLoader) for text in manifests.values()]
    for crd in crds:
        [version] = crd["spec"]["versions"]
        _grow(version["schema"]["openAPIV3Schema"]["properties"]["spec"])
    try:
        plane.kubectl("apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": crds}))
        yield
    finally:
        for text in manifests.values():
            plane.kubectl("apply", "-f", "-", stdin=text)
        for kind in KINDS:
            wait(lambda kind=kind: not _is_newer(plane, kind), "the CRDs to be as they were")  # type: ignore[misc]


def _is_newer(plane: ControlPlane, kind: str) -> bool:
    """Whether the API server fills in the later version's field."""
    stored = CrdServer(plane).create(valid_object(kind))
    assert isinstance(stored, dict), stored
    return ADDED_LATER in stored["spec"]


def _grow(schema: dict[str, Any]) -> None:
    for each in [*schema.get("properties", {}).values(), *([schema["items"]] if "items" in schema else [])]:
        _grow(each)
    if "properties" in schema:
        schema["properties"][ADDED_LATER] = {"type": "boolean", "default": True}


def account(namespace: str, name: str = RUNNER) -> Object:
    """A ServiceAccount."""
    return {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": namespace}}


def ready(status: FineTuneJobStatus) -> Reason | None:
    """Reason of the Ready condition."""
    return next((Reason(each.reason) for each in status.conditions if each.type == "Ready"), None)


def condition(status: FineTuneJobStatus, kind: str) -> str:
    """Status of a condition."""
    return next((each.status for each in status.conditions if each.type == kind), "absent")


def wait(
    reached: Callable[[], T | None], what: str, seconds: float = 400, describe: Callable[[], str] = lambda: ""
) -> T:
    """Ask until the answer is true; fails after ``seconds`` with what ``describe`` says."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if answer := reached():
            return answer
        time.sleep(0.1)
    raise AssertionError(f"waited {seconds:.0f} s for {what}. {describe()}")
