"""One AdapterDeployment in a team's namespace: its operator, its servers, and what tests ask of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from finetune_api import meta
from finetune_api.base import Condition
from finetune_api.reasons import Reason
from finetune_api.serving_status import AdapterDeploymentStatus, CheckOutcome, ServingPhase, VerificationCheck
from finetune_api.stages import Outcome, Stage, StageInput, StageResult
from finetune_operator.framework.conditions import timestamp
from finetune_operator.framework.objects import (
    CONFIG_MAPS,
    DEPLOYMENTS,
    ENDPOINT_SLICES,
    EVENTS,
    JOBS,
    NETWORK_POLICIES,
    PODS,
    SERVICES,
    Object,
    Resource,
)
from finetune_operator.kinds import ADAPTERDEPLOYMENTS
from finetune_operator.resources.deployment import SERVER
from finetune_operator.resources.service import names_no_revision, serving_revision_of
from tests.controlplane.conftest import Team, wait
from tests.support.fake_node import Ending
from tests.support.fake_servers import FakeServers
from tests.support.operator_process import Running
from tests.support.played_pods import INACTIVE
from tests.support.promoted import self_checked
from tests.support.serving_specs import SETTINGS, pinned

CHILDREN = (DEPLOYMENTS, SERVICES, NETWORK_POLICIES, JOBS, CONFIG_MAPS)
NAME = "demo"
DRAIN_SECONDS = 2
RUNTIMES = {
    name: runtime.model_copy(update={"drain_seconds": DRAIN_SECONDS}) for name, runtime in SETTINGS.runtimes.items()
}
"""The runtimes of other tests, whose earlier revisions go sooner: nearly every test waits for that."""


def conditions(status: AdapterDeploymentStatus) -> dict[str, Condition]:
    """By their type."""
    return {each.type: each for each in status.conditions}


@dataclass
class Serving:
    """A namespace with an operator, a node that runs servers, and one AdapterDeployment called ``demo``."""

    team: Team
    servers: FakeServers
    asked: list[StageInput] = field(default_factory=list)
    """Inputs of the verifications that ran."""
    inactive: set[str] = field(default_factory=lambda: {INACTIVE})
    """Digests of artifacts whose server answers like the base model."""

    def start(self, **how: Any) -> Running:
        """Start an operator that knows the runtimes. Nobody waits for a turn, unless the test is about that."""
        given: dict[str, Any] = {"runtimes": RUNTIMES, "max_concurrent_rollouts": None} | how
        return self.team.start(**given)

    def create(self, spec: dict[str, Any], name: str = NAME) -> Object:
        metadata = {"name": name, "namespace": self.team.namespace}
        body = {"apiVersion": meta.API_VERSION, "kind": meta.ADAPTERDEPLOYMENT, "metadata": metadata, "spec": spec}
        return self.team.api.create(ADAPTERDEPLOYMENTS, body)

    def serve(self, digest: str) -> str:
        """Create the resource, wait until the artifact is served; the revision."""
        self.create(pinned(digest))
        return self.until(ServingPhase.READY).last_good_revision

    def change(self, **spec: Any) -> None:
        self.team.api.patch(ADAPTERDEPLOYMENTS, self.team.namespace, NAME, {"spec": spec})

    def update(self, digest: str) -> None:
        """Serve another artifact."""
        self.change(**pinned(digest))

    def get(self, resource: Resource, name: str) -> Object | None:
        return self.team.api.get(resource, self.team.namespace, name)

    def children(self, resource: Resource) -> dict[str, Object]:
        labels = f"{meta.LABEL_OWNER_KIND}={meta.ADAPTERDEPLOYMENT}"
        return {each["metadata"]["name"]: each for each in self.team.api.select(resource, self.team.namespace, labels)}

    def status(self) -> AdapterDeploymentStatus:
        found = self.get(ADAPTERDEPLOYMENTS, NAME)
        assert found is not None
        return AdapterDeploymentStatus.model_validate(found.get("status") or {})

    def until(self, what: str, seconds: float = 400) -> AdapterDeploymentStatus:
        """Wait for a phase, for this generation of the spec and with all of it done; the status."""

        def reached() -> AdapterDeploymentStatus | None:
            found = self.get(ADAPTERDEPLOYMENTS, NAME)
            assert found is not None
            status = AdapterDeploymentStatus.model_validate(found.get("status") or {})
            current = status.observed_generation == found["metadata"]["generation"]
            return status if current and status.phase == what else None

        return wait(reached, f"phase {what}", seconds, lambda: self.status().model_dump_json(exclude_defaults=True))

    def others(self, revision: str) -> list[str]:
        """Objects that belong to other revisions."""
        return [
            f"{resource.kind} {name}"
            for resource in CHILDREN
            for name, child in self.children(resource).items()
            if child["metadata"]["labels"][meta.LABEL_REVISION] != revision
        ]

    def until_only(self, revision: str) -> None:
        """Wait until no other revision has any object left."""
        wait(lambda: not self.others(revision), f"only {revision}", describe=lambda: str(self.others(revision)))

    def is_updated(self, old: str) -> bool:
        """Whether another revision serves, and nothing else is left."""
        new, status = self.traffic(), self.status()
        return new not in ("", old) and status.phase is ServingPhase.READY and not self.others(new)

    def traffic(self) -> str:
        """Revision that the public Service points to, alone or beside a canary."""
        service = self.get(SERVICES, NAME)
        return serving_revision_of(service) if service else ""

    def shared(self) -> bool:
        """Whether the public Service sends clients to the serving pods of all revisions."""
        service = self.get(SERVICES, NAME)
        return service is not None and names_no_revision(service)

    def reached(self) -> set[str]:
        """Revisions of the pods that the public Service sends clients to."""
        slices = self.team.api.select(ENDPOINT_SLICES, self.team.namespace, f"kubernetes.io/service-name={NAME}")
        endpoints = [each for found in slices for each in found["endpoints"] or [] if each["conditions"]["ready"]]
        pods = [self.get(PODS, each["targetRef"]["name"]) for each in endpoints]
        return {pod["metadata"]["labels"][meta.LABEL_REVISION] for pod in pods if pod}

    def wanted(self) -> dict[str, int]:
        """How many pods of each revision are asked for."""
        found = self.children(DEPLOYMENTS).values()
        return {each["metadata"]["labels"][meta.LABEL_REVISION]: each["spec"]["replicas"] for each in found}

    def crash(self, revision: str) -> None:
        """The servers of a revision crash for the third time, and stay down."""
        now = timestamp(datetime.now(UTC))
        server = {"name": SERVER, "image": "example/image", "imageID": "", "ready": False, "restartCount": 3}
        server |= {
            "state": {"waiting": {"reason": "CrashLoopBackOff"}},
            "lastState": {"terminated": {"exitCode": 1, "reason": "Error"}},
        }
        down = [
            {"type": "PodScheduled", "status": "True", "lastTransitionTime": now},
            {"type": "Ready", "status": "False", "lastTransitionTime": now},
        ]
        self._report(revision, {"conditions": down, "containerStatuses": [server]})

    def self_check(self, revision: str, *, passed: bool) -> None:
        """The pods of a revision, which had proved themselves, fail the self-check; or pass it again."""
        self._report(revision, self_checked(datetime.now(UTC), passed=passed))

    def _report(self, revision: str, status: Object) -> None:
        """What the kubelet says of the serving pods of a revision."""
        for name, pod in self.children(PODS).items():
            labels = pod["metadata"]["labels"]
            if labels.get(meta.LABEL_REVISION) == revision and labels.get(meta.LABEL_ROLE) == SERVER:
                self.team.api.patch_status(PODS, self.team.namespace, name, {"status": status})

    def events(self) -> list[tuple[str, str]]:
        return [(event["type"], event["reason"]) for event in self._events()]

    def warnings(self, reason: Reason) -> list[str]:
        """What was said of a problem."""
        found = [each for each in self._events() if (each["type"], each["reason"]) == ("Warning", reason)]
        return [each["message"] for each in found]

    def _events(self) -> list[Object]:
        """Oldest first."""
        selector = f"involvedObject.kind={meta.ADAPTERDEPLOYMENT},involvedObject.name={NAME}"
        found = self.team.api.select(EVENTS, self.team.namespace, fields=selector)
        return sorted(found, key=lambda event: int(event["metadata"]["resourceVersion"]))

    def verify(self, given: StageInput) -> Ending:
        """The verification pod."""
        self.asked.append(given)
        digest, asked = given.artifact_uri.rsplit("/", 1)[-1], given.params.verify
        proved = digest not in self.inactive or bool(asked and asked.removed)  # pods let go of any adapter
        result = StageResult(
            stage=Stage.VERIFY,
            outcome=Outcome.SUCCEEDED if proved else Outcome.FAILED,
            reason=Reason.VERIFIED if proved else Reason.ADAPTER_INACTIVE,
            message="All golden prompts agree."
            if proved
            else "8 of 8 golden prompts were answered like the base model.",
            scalars={"accuracy": "0.9400", "expectedAccuracy": "0.9500"},
            checks=self._of_running_pods(given),
        )
        code = meta.ExitCode.OK if proved else meta.ExitCode.FATAL
        return Ending(result, exit_code=code, reason="Completed" if proved else "Error")

    def _of_running_pods(self, given: StageInput) -> list[VerificationCheck]:
        """What running pods say of adapters that come."""
        asked = given.params.verify
        return [
            VerificationCheck(
                name=each.name, outcome=CheckOutcome.FAILED if each.digest in self.inactive else CheckOutcome.PASSED
            )
            for each in (asked.adapters if asked is not None and asked.pods else [])
        ]
