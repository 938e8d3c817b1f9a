"""What is wrong with a revision, its runtime or the store, under each strategy: clients keep what was proved, or get it
back, and the status says what, why and what next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from finetune_api import meta
from finetune_api.job_status import Phase
from finetune_api.reasons import Reason, remedy
from finetune_api.serving_status import AdapterDeploymentStatus, RevisionState, RevisionStatus, ServingPhase
from finetune_api.stages import Stage, StageInput
from finetune_operator.framework.objects import PODS
from finetune_operator.settings import Engine, PodShape, Runtime
from tests.controlplane.conftest import wait
from tests.controlplane.serving import DRAIN_SECONDS, RUNTIMES, Serving, conditions
from tests.controlplane.test_adapterdeployment_canary import in_step
from tests.controlplane.test_adapterdeployment_route import by_steps
from tests.support.fake_node import Ending
from tests.support.played_pods import MISSING_IMAGE
from tests.support.sentences import assert_says
from tests.support.serving_specs import pinned

pytestmark = pytest.mark.controlplane

KIND = meta.ADAPTERDEPLOYMENT
REPLICAS = 2
ADA, BLACKWELL = "ada", "blackwell"
AT_REST = {"Ready": "True", "Reconciling": "False", "Stalled": "False"}
STRATEGIES: Mapping[str, dict[str, Any]] = {
    "BlueGreen": {"type": "BlueGreen"},
    "Canary": by_steps((33, "1h"), (50, "1h")),
    "InPlace": {"type": "InPlace", "notice": "1s"},
}
AT_ONCE = by_steps((33, "0s"), (50, "0s"))["canary"]
FAULTS: Mapping[Reason, tuple[str, ...]] = {
    Reason.DEADLINE_EXCEEDED: ("Not available after", "'server'", "within 1800 s", "startupTimeoutSeconds"),
    Reason.IMAGE_PULL_FAILED: ("Not available after 300 s", f"cannot pull image {MISSING_IMAGE}"),
}
"""Why pods of a revision never start, and what is said of it."""
STORE_DOWN = "e" * 64
"""An artifact that serves, until its store is down for new pods."""
REPLACED = "9" * 64
"""One whose pod is replaced by a pod that cannot start."""


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("fault", FAULTS)
def test_pods_that_never_start_get_no_clients_and_are_not_tried_again(
    endpoint: Serving, fault: Reason, strategy: str
) -> None:
    """A canary has clients already when its second pod does not start."""
    old, digest = endpoint.traffic(), f"{list(FAULTS).index(fault)}{list(STRATEGIES).index(strategy)}".zfill(64)
    if strategy != "Canary":
        endpoint.servers.fates[digest] = fault
    endpoint.change(**pinned(digest, strategy=STRATEGIES[strategy], replicas=REPLICAS))
    if strategy == "Canary":
        wait(lambda: in_step(endpoint, 1), "its first step", describe=lambda: str(endpoint.status()))
        wait(lambda: len(endpoint.reached()) == 2, "clients of both")
        endpoint.servers.fates[digest] = fault
        endpoint.change(strategy={"canary": AT_ONCE})
    tried = _ended(endpoint, digest)
    given_back = fault is Reason.IMAGE_PULL_FAILED and strategy != "InPlace"
    assert (tried.state, tried.reason) == (RevisionState.WAITING if given_back else RevisionState.FAILED, fault)
    goes_on = {"BlueGreen": "keeps serving", "Canary": "gets all traffic again", "InPlace": "comes back"}[strategy]
    what_next = ("it is tried again at",) if given_back else (f"Revision {old} {goes_on}",)
    wait(lambda: endpoint.warnings(fault), "the event")
    said = (f"Revision {tried.revision}", *FAULTS[fault], *what_next, remedy(fault, KIND))
    assert_says(endpoint.warnings(fault)[-1], *said)
    stalled = conditions(_serves(endpoint, old))["Stalled"]
    assert (stalled.status, stalled.reason) == ("True", fault)
    assert_says(stalled.message, tried.revision, *FAULTS[fault], remedy(fault, KIND))
    wait(lambda: endpoint.wanted() == {old: REPLICAS}, "its pods to go")

    endpoint.team.stop()
    operator = endpoint.start()
    operator.wait_ready()
    operator.wait_idle()
    assert (endpoint.status().candidate, endpoint.wanted()) == (tried, {old: REPLICAS}), "it is not tried again"

    del endpoint.servers.fates[digest]
    endpoint.change(rerun=digest[-8:], strategy={"canary": AT_ONCE})
    wait(lambda: endpoint.traffic() == tried.revision, "another try", describe=lambda: str(endpoint.status()))
    endpoint.until(ServingPhase.READY)


def test_what_serves_goes_on_while_the_store_gives_other_pods_nothing(endpoint: Serving) -> None:
    """It is scaled up, and later one of its pods is replaced. Another revision is kept, to which nothing goes back."""
    before = endpoint.traffic()
    endpoint.change(**pinned(STORE_DOWN, replicas=1, strategy=STRATEGIES["BlueGreen"]) | {"keepLastGood": "10m"})
    wait(lambda: endpoint.traffic() != before, "the promotion", describe=lambda: str(endpoint.status()))
    rest = endpoint.until(ServingPhase.READY)
    revision, asked = rest.last_good_revision, len(endpoint.asked)

    def is_told() -> bool:
        """Clients get answers all along."""
        assert (endpoint.traffic(), endpoint.reached()) == (revision, {revision})
        found = conditions(endpoint.status())
        assert found["Ready"].status == "True"
        return found["Reconciling"].reason == Reason.S3_UNREACHABLE

    for replaced in (False, True):
        endpoint.servers.fates[STORE_DOWN] = Reason.S3_UNREACHABLE
        if replaced:
            name, pod = next(each for each in endpoint.children(PODS).items() if revision in each[0])
            endpoint.team.api.delete(PODS, endpoint.team.namespace, name, pod["metadata"]["uid"])
        else:
            endpoint.change(replicas=REPLICAS)
        wait(is_told, "the cause", describe=lambda: str(endpoint.status()))
        status = endpoint.status()
        assert (status.phase, status.ready_replicas, status.candidate) == (ServingPhase.DEGRADED, 1, None)
        said = ("1 of 2 pods are ready", "The store does not answer", remedy(Reason.S3_UNREACHABLE, KIND))
        assert_says(conditions(status)["Reconciling"].message, *said)
        del endpoint.servers.fates[STORE_DOWN]
        status = endpoint.until(ServingPhase.READY)
        assert {name: each.status for name, each in conditions(status).items()} == AT_REST
        assert (status.ready_replicas, endpoint.reached()) == (REPLICAS, {revision})
        assert (set(endpoint.wanted()), len(endpoint.asked)) == ({before, revision}, asked)
        assert (status.last_good_revision, status.revisions) == (revision, rest.revisions)


def test_the_last_pod_that_is_replaced_and_cannot_start_leaves_clients_to_the_kept_ones(endpoint: Serving) -> None:
    """What serves is given back rather than failed: the cause is outside of it."""
    before = endpoint.traffic()
    endpoint.change(**pinned(REPLACED, replicas=1, strategy=STRATEGIES["BlueGreen"]) | {"keepLastGood": "10m"})
    wait(lambda: endpoint.traffic() != before, "the promotion", describe=lambda: str(endpoint.status()))
    revision = endpoint.until(ServingPhase.READY).last_good_revision
    endpoint.servers.fates[REPLACED] = Reason.IMAGE_PULL_FAILED
    name, pod = next(each for each in endpoint.children(PODS).items() if revision in each[0])
    endpoint.team.api.delete(PODS, endpoint.team.namespace, name, pod["metadata"]["uid"])
    wait(lambda: endpoint.traffic() == before, "the way back", describe=lambda: str(endpoint.status()))
    wait(lambda: endpoint.reached() == {before}, "its endpoints")
    wait(lambda: endpoint.status().candidate is not None, "the status", describe=lambda: str(endpoint.status()))
    tried = endpoint.until(ServingPhase.DEGRADED).candidate
    assert tried is not None
    assert (tried.revision, tried.state, tried.reason) == (revision, RevisionState.WAITING, Reason.IMAGE_PULL_FAILED)
    said = (f"Revision {revision} was rolled back", "None of its pods has answered for 60 s", MISSING_IMAGE, before)
    wait(lambda: endpoint.warnings(Reason.ROLLED_BACK), "the event")
    assert_says(endpoint.warnings(Reason.ROLLED_BACK)[-1], *said)
    wait(lambda: set(endpoint.wanted()) == {before}, "its pods to go")
    del endpoint.servers.fates[REPLACED]
    endpoint.change(rerun="image-back")
    wait(lambda: endpoint.traffic() == revision, "another try", describe=lambda: str(endpoint.status()))
    endpoint.until(ServingPhase.READY)


@pytest.fixture(scope="module")
def followed(endpoint: Serving) -> Serving:
    """Two FineTuneJobs have published, one of them what no runtime with Text Generation Inference can read in INT8."""
    team = endpoint.team
    team.stop()
    endpoint.start(runtimes=RUNTIMES | {ADA: _on("NVIDIA-L4"), BLACKWELL: _on("NVIDIA-B200")})

    def publish(given: StageInput) -> Ending:
        ending = team.node.store.run(given)
        assert ending.result is not None
        scalars = ending.result.scalars | {"architecture": given.run.name}
        return replace(ending, result=ending.result.model_copy(update={"scalars": scalars}))

    team.node.scripts[Stage.PUBLISH] = publish
    for epochs, architecture in enumerate(("llama", "qwen3"), 2):
        team.create(architecture, training={"epochs": epochs})
    for architecture in ("llama", "qwen3"):
        team.until(architecture, Phase.SUCCEEDED)
    return endpoint


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_a_runtime_cannot_read_starts_no_pod(followed: Serving, strategy: str) -> None:
    """Its own change, or its source's, is at fault."""
    fits = {"source": {"artifact": None, "fineTuneJob": {"name": "llama"}}, "runtime": ADA}
    followed.change(**fits, strategy=STRATEGIES[strategy] | {"canary": AT_ONCE}, replicas=REPLICAS, keepLastGood="0s")
    old = followed.until(ServingPhase.READY).last_good_revision
    followed.until_only(old)
    for change, says in (
        ({"runtime": BLACKWELL}, (f"Runtime {BLACKWELL!r} cannot serve it", "no INT8 kernel for Blackwell")),
        ({"source": {"fineTuneJob": {"name": "qwen3"}}}, (f"Runtime {ADA!r} cannot serve it", "no qwen3", "INT8")),
    ):
        told = len(followed.warnings(Reason.RUNTIME_UNSUITABLE))
        followed.change(**change)
        status = followed.until(ServingPhase.DEGRADED)
        found = conditions(status)
        assert (status.candidate, followed.others(old)) == (None, []), "no pod is started"
        assert {name: each.status for name, each in found.items()} == AT_REST | {"Stalled": "True"}, "no gap either"
        assert found["Stalled"].reason == Reason.RUNTIME_UNSUITABLE
        assert_says(found["Stalled"].message, *says, remedy(Reason.RUNTIME_UNSUITABLE, KIND))
        assert (followed.traffic(), followed.reached(), followed.wanted()) == (old, {old}, {old: REPLICAS})
        wait(lambda: len(followed.warnings(Reason.RUNTIME_UNSUITABLE)) > told, "the event")  # noqa: B023
        assert_says(followed.warnings(Reason.RUNTIME_UNSUITABLE)[-1], *says, remedy(Reason.RUNTIME_UNSUITABLE, KIND))
        followed.change(**fits)
        status = followed.until(ServingPhase.READY)
        assert (status.last_good_revision, status.ready_replicas) == (old, REPLICAS)


def _on(card: str) -> Runtime:
    """A runtime on nodes with a GPU."""
    pod = PodShape(limits={"nvidia.com/gpu": "1"}, node_selector={"nvidia.com/gpu.product": card})
    return Runtime(engine=Engine.TGI, image="images/tgi:3.3.7", drain_seconds=DRAIN_SECONDS, pod=pod)


def _ended(endpoint: Serving, digest: str) -> RevisionStatus:
    """The candidate with an artifact once its try is over."""

    def ended() -> RevisionStatus | None:
        found = endpoint.status().candidate
        over = found and found.state in (RevisionState.FAILED, RevisionState.WAITING)
        return found if found and over and found.artifact_digest == digest else None

    return wait(ended, "the end of its try", describe=lambda: str(endpoint.status()))


def _serves(endpoint: Serving, revision: str) -> AdapterDeploymentStatus:
    """The status once all pods of a revision answer clients, and no others do."""
    wait(lambda: endpoint.reached() == {revision}, "its endpoints", describe=lambda: str(endpoint.status()))
    wait(lambda: endpoint.status().ready_replicas == REPLICAS, "all of its pods")
    wait(lambda: conditions(endpoint.status())["Ready"].status == "True", "answers")
    wait(lambda: not endpoint.shared(), "no share for others")
    assert endpoint.traffic() == revision
    return endpoint.until(ServingPhase.DEGRADED)
