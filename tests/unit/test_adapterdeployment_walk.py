"""AdapterDeployment from any state to the end: crashes, changed minds, tampering, and what must hold all the time.

The oracle of a fault: the end is the one that a run without the fault reaches.
"""

import copy
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from finetune_api import meta
from finetune_api.adapterdeployment import RevisionState, ServingPhase
from finetune_operator.adapterdeployment.verification import ANSWER_SECONDS
from finetune_operator.framework.objects import (
    CONFIG_MAPS,
    CONTROLLER_REVISIONS,
    DEPLOYMENTS,
    JOBS,
    NETWORK_POLICIES,
    SERVICES,
    Object,
    Resource,
)
from finetune_operator.resources.deployment import FETCH_SECONDS, start_seconds
from tests.support.fast import share
from tests.support.serving import (
    BETTER,
    CORRUPT,
    CRASHING,
    FATES,
    GOOD,
    INACTIVE,
    SETTINGS,
    Quota,
    ServingCluster,
    following,
    pinned,
    published,
)

pytestmark = pytest.mark.unit

ARTIFACTS = (GOOD, BETTER, INACTIVE, CORRUPT, CRASHING)


class Safety:
    """What holds after every single write of the operator."""

    def __init__(self) -> None:
        self.proved: set[str] = set()

    def __call__(self, cluster: ServingCluster) -> None:
        for job in cluster.objects.get(JOBS, {}).values():
            ended = (job.get("status") or {}).get("conditions") or []
            if any(each["type"] == "Complete" for each in ended):
                self.proved.add(job["metadata"]["labels"][meta.LABEL_REVISION])
        served = cluster.traffic()
        if served:
            assert served in self.proved, "traffic points to a revision that was not proved"
            assert served in cluster.revisions(DEPLOYMENTS), "traffic points to pods that are gone"
        for policy in cluster.objects.get(NETWORK_POLICIES, {}).values():
            revision = policy["metadata"]["labels"][meta.LABEL_REVISION]
            if len(policy["spec"]["ingress"][0]["from"]) > 1:
                assert revision in self.proved, "an unproved revision is open to clients"


ROOM = 1000
"""Nodes for everything."""
FREE = Quota(SERVICES, 100)
"""No refusal."""
START = start_seconds(SETTINGS.runtimes["tgi"])
VERIFY = 2 * (600 + ANSWER_SECONDS * 50) + FETCH_SECONDS
"""How long a verification may take to get a node."""


def start() -> ServingCluster:
    """An endpoint that waits for its turn too."""
    return ServingCluster(watch=Safety(), settings=SETTINGS.model_copy(update={"max_concurrent_rollouts": 1}))


specs = st.builds(
    lambda digest, runtime, replicas, rerun, keep: pinned(
        digest, runtime=runtime, replicas=replicas, rerun=rerun, keepLastGood=keep
    ),
    st.sampled_from(ARTIFACTS),
    st.sampled_from(["tgi", "tgi-cpu", "unknown"]),
    st.integers(0, 2),
    st.sampled_from(["", "again"]),
    st.sampled_from(["0s", "5m"]),
)
steps = st.one_of(
    st.tuples(st.just("spec"), specs),
    st.tuples(st.just("follow"), st.sampled_from(ARTIFACTS)),
    st.tuples(st.just("reconcile"), st.none()),
    st.tuples(st.just("crash"), st.integers(0, 8)),
    st.tuples(st.just("controllers"), st.none()),
    st.tuples(st.just("wait"), st.integers(1, 400)),
    st.tuples(st.just("settle"), st.none()),
    st.tuples(st.just("room"), st.integers(0, 3)),
    st.tuples(st.just("quota"), st.builds(Quota, st.sampled_from([DEPLOYMENTS, SERVICES, JOBS]), st.integers(0, 2))),
)


def walk(cluster: ServingCluster, path: list[tuple[str, Any]]) -> None:
    for step, value in path:
        match step:
            case "spec":
                cluster.spec, cluster.source = copy.deepcopy(value), None
            case "follow":
                cluster.spec, cluster.source = following(), published(value)
            case "reconcile":
                cluster.reconcile()
            case "crash":
                cluster.reconcile(crash_after=value)
            case "controllers":
                cluster.run_controllers()
            case "wait":
                cluster.now += timedelta(seconds=value)
            case "settle" if cluster.room == ROOM:  # else it may try again for ever
                cluster.settle()
            case "room":
                cluster.room = value
            case "quota":
                cluster.refuse = value


def facts(cluster: ServingCluster) -> dict[str, Any]:
    """What can be compared between clusters of other ages: names and contents, without uids and times.

    The proof of what serves is left out: it may have been asked for by an earlier spec of the same revision. So are the
    records of revisions without pods: they are the path's history.
    """
    here = cluster.revisions(DEPLOYMENTS)
    return {
        f"{resource.kind} {name}": _content(child)
        for resource, kind in cluster.objects.items()
        for name, child in kind.items()
        if not name.startswith("demo-verify-")
        and (resource != CONTROLLER_REVISIONS or child["metadata"]["labels"][meta.LABEL_REVISION] in here)
    }


def _content(child: Object) -> Any:
    return {key: value for key, value in child.items() if key in ("spec", "data")}


FOLLOWED = [("reconcile", None), ("follow", GOOD), ("settle", None)]
QUEUED = [*FOLLOWED, ("follow", BETTER), ("reconcile", None), ("room", 0)]
QUEUED_TO_CRASH = [
    *FOLLOWED,
    ("reconcile", None),
    ("spec", pinned(CRASHING)),
    ("follow", CRASHING),
    ("controllers", None),
    ("crash", 3),
    ("room", 0),
    ("crash", 6),
]
"""A candidate that has just been put in line when the path ends."""


@settings(max_examples=share(150), deadline=None)
@example(QUEUED)
@example(QUEUED_TO_CRASH)
@given(st.lists(steps, max_size=25))
def test_every_path_ends_where_the_straight_one_does(path: list[tuple[str, Any]]) -> None:
    cluster = start()
    walk(cluster, path)
    cluster.refuse, cluster.room = FREE, ROOM
    served = cluster.traffic()
    cluster.settle()
    straight = ServingCluster(spec=cluster.spec, source=cluster.source)
    straight.settle()
    end, expected = cluster.status, straight.status
    if expected.phase is ServingPhase.READY:
        assert facts(cluster) == facts(straight)
        assert end.phase is ServingPhase.READY
        assert end.candidate is None
        assert end.stable is not None
        assert expected.stable is not None
        assert end.stable.revision == expected.stable.revision
    elif expected.candidate is not None and cluster.traffic() == "":
        assert end.candidate is not None
        assert end.candidate.state is expected.candidate.state is RevisionState.FAILED
        assert end.candidate.reason == expected.candidate.reason
        assert facts(cluster) == facts(straight)
    else:
        assert cluster.traffic() == served
        assert cluster.revisions(DEPLOYMENTS) == ({served} if served else set())
        assert end.phase in (expected.phase, ServingPhase.DEGRADED)


@pytest.mark.parametrize("digest", [BETTER, INACTIVE])
def test_a_crash_after_any_write_changes_nothing_in_the_end(digest: str) -> None:
    def update(crash: int | None) -> tuple[ServingCluster, int]:
        """An update whose operator dies after its nth write; how many writes it made."""
        cluster = start()
        cluster.settle()
        cluster.spec, writes = pinned(digest), 0
        for _ in range(8):
            actions = len(cluster.plan().actions)
            dies = crash is not None and writes <= crash <= writes + actions
            cluster.reconcile(crash_after=crash - writes if dies and crash is not None else None)
            writes += actions + 1
            cluster.run_controllers()
            cluster.now += timedelta(seconds=1)
        cluster.settle()
        return cluster, writes

    undisturbed, writes = update(None)
    for crash in range(writes):
        disturbed, _ = update(crash)
        assert facts(disturbed) == facts(undisturbed), f"crash after write {crash}"
        assert disturbed.traffic() == undisturbed.traffic()
        assert disturbed.status.phase is undisturbed.status.phase


@settings(max_examples=share(60), deadline=None)
@given(
    st.sampled_from(ARTIFACTS),
    st.lists(
        st.tuples(st.sampled_from([DEPLOYMENTS, SERVICES, JOBS, CONFIG_MAPS, NETWORK_POLICIES]), st.integers(0, 5))
    ),
)
def test_deleted_children_do_not_change_the_end(digest: str, deletions: list[tuple[Any, int]]) -> None:
    cluster = ServingCluster(spec=pinned(digest))
    for resource, passes in deletions:
        for _ in range(passes):
            cluster.reconcile()
            cluster.run_controllers()
        for name in list(cluster.objects.get(resource, {})):
            del cluster.objects[resource][name]
            cluster.pods.pop(name, None)
    cluster.settle()
    expected = ServingPhase.READY if FATES[digest] is None else ServingPhase.FAILED
    assert cluster.status.phase is expected
    assert cluster.traffic() == ("" if FATES[digest] else next(iter(cluster.revisions(DEPLOYMENTS))))


@settings(max_examples=share(20), deadline=None)
@given(
    served=st.booleans(),
    replicas=st.integers(1, 3),
    room=st.integers(0, 4),
    loads=st.booleans(),
    verifies=st.booleans(),
    refused=st.sampled_from([None, JOBS, NETWORK_POLICIES, CONFIG_MAPS]),
)
def test_no_candidate_holds_hardware_for_ever(
    served: bool, replicas: int, room: int, loads: bool, verifies: bool, refused: Resource | None
) -> None:
    """Whatever does not go on, and whatever does afterwards: it ends as if nothing had been."""
    cluster = start()
    if served:
        cluster.settle()
    cluster.spec, cluster.room = pinned(BETTER, replicas=replicas), room + served
    if not loads:
        cluster.loading.add(BETTER)
    if refused:
        cluster.refuse = Quota(refused, len(cluster.objects.get(refused, {})))
    held_since = cluster.now
    for _ in range(60):
        cluster.reconcile()
        cluster.run_deployments()
        if verifies:
            cluster.run_controllers()
        candidate = cluster.status.candidate
        if candidate is None or not cluster.held_by(candidate.deployment):
            held_since = cluster.now
        assert cluster.now - held_since <= timedelta(seconds=2 * START + VERIFY + 1200)
        cluster.now += timedelta(seconds=300)
    cluster.refuse, cluster.room = FREE, ROOM
    cluster.loading.clear()
    if candidate is not None and candidate.state is RevisionState.FAILED:
        cluster.spec["rerun"] = "it-can-now"
    cluster.generation += 1
    cluster.settle()
    assert cluster.status.phase is ServingPhase.READY
    assert cluster.status.stable is not None
    assert cluster.status.stable.artifact_digest == BETTER
    assert cluster.revisions(DEPLOYMENTS) == {cluster.traffic()}
