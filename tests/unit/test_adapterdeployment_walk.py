"""AdapterDeployment from any state to the end: crashes, changed minds, tampering, and what must hold all the time.

The oracle of a fault: the end is the one that a run without the fault reaches.
"""

import copy
import json
from collections.abc import Iterable
from datetime import timedelta
from functools import cache
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from finetune_api import meta
from finetune_api.endpoint_stages import ANSWER_SECONDS
from finetune_api.serving_status import RevisionState, ServingPhase
from finetune_operator.adapterdeployment.gap import STALE_SECONDS
from finetune_operator.framework.conditions import timestamp
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
from finetune_operator.resources.deployment import FETCH_SECONDS
from tests.support.fast import share
from tests.support.played_pods import BETTER, CORRUPT, CRASHING, FATES, GOOD, INACTIVE
from tests.support.serving import Quota, ServingCluster
from tests.support.serving_specs import SETTINGS, following, pinned, published, start_seconds

pytestmark = pytest.mark.unit

ARTIFACTS = (GOOD, BETTER, INACTIVE, CORRUPT, CRASHING)


class OneAtATime:
    """What holds in place after every single write of the operator, whoever else deletes what."""

    def __init__(self) -> None:
        self.before: dict[str, int] = {}

    def __call__(self, cluster: ServingCluster) -> None:
        now = wanted(cluster)
        if is_in_place(cluster):
            asked = {revision for revision, pods in now.items() if pods and not self.before.get(revision)}
            assert not asked or sum(map(bool, now.values())) == 1, f"two revisions have pods: {now}"
        served, candidate = cluster.traffic(), cluster.status.candidate
        if self.before.get(served) and now.get(served) == 0 and cluster.spec.get("replicas", 1):
            assert candidate is not None
            assert candidate.gap_starts_at is not None, "nobody announced that pods of what serves stop"
            assert candidate.gap_starts_at <= timestamp(cluster.now), "they stop before they were to"
        self.before = now

    def forget(self, cluster: ServingCluster) -> None:
        """Others than the operator have changed something."""
        self.before = wanted(cluster)


class Safety(OneAtATime):
    """What holds after every single write of the operator."""

    def __init__(self, proved: Iterable[str] = ()) -> None:
        super().__init__()
        self.proved = set(proved)

    def __call__(self, cluster: ServingCluster) -> None:
        super().__call__(cluster)
        for job in cluster.objects.get(JOBS, {}).values():
            ended = (job.get("status") or {}).get("conditions") or []
            if any(each["type"] == "Complete" for each in ended):
                self.proved.add(job["metadata"]["labels"][meta.LABEL_REVISION])
        served = cluster.traffic()
        if served:
            assert served in self.proved, "traffic points to a revision that was not proved"
            assert served in cluster.revisions(DEPLOYMENTS), "traffic points to pods that are gone"
        if cluster.shared():
            here = {revision for revision, pods in wanted(cluster).items() if pods}
            assert here <= self.proved, "clients may reach an unproved revision"
            assert len(here) <= 2, "clients may reach a third revision"
            assert served in here or not cluster.spec.get("replicas", 1), "the last good one has no pods"
        for policy in cluster.objects.get(NETWORK_POLICIES, {}).values():
            revision = policy["metadata"]["labels"][meta.LABEL_REVISION]
            if len(policy["spec"]["ingress"][0]["from"]) > 1:
                assert revision in self.proved, "an unproved revision is open to clients"


def wanted(cluster: ServingCluster) -> dict[str, int]:
    """How many pods of each revision are asked for."""
    found = cluster.objects.get(DEPLOYMENTS, {}).values()
    return {each["metadata"]["labels"][meta.LABEL_REVISION]: each["spec"]["replicas"] for each in found}


def is_in_place(cluster: ServingCluster) -> bool:
    """Whether the spec has the pods of what serves stop first."""
    return bool(cluster.spec.get("strategy", {}).get("type") == "InPlace")


IN_PLACE = {"type": "InPlace"}
CANARY: dict[str, Any] = {
    "type": "Canary",
    "canary": {"steps": [{"weight": 10, "pause": "1m"}, {"weight": 50, "pause": "2m"}]},
}
ANALYSED = {**CANARY, "canary": {**CANARY["canary"], "analysis": {}}}
ROOM = 1000
"""Nodes for everything."""
FREE = Quota(SERVICES, 100)
"""No refusal."""
START = start_seconds("tgi")
VERIFY = 2 * (600 + ANSWER_SECONDS * 50) + FETCH_SECONDS
"""How long a verification may take to get a node."""


def start() -> ServingCluster:
    """An endpoint that waits for its turn too."""
    return ServingCluster(watch=Safety(), settings=SETTINGS.model_copy(update={"max_concurrent_rollouts": 1}))


specs = st.builds(
    lambda digest, runtime, replicas, rerun, how: pinned(
        digest, runtime=runtime, replicas=replicas, rerun=rerun, **how
    ),
    st.sampled_from(ARTIFACTS),
    st.sampled_from(["tgi", "tgi-cpu", "unknown"]),
    st.integers(0, 2),
    st.sampled_from(["", "again"]),
    st.sampled_from(
        [
            *({"keepLastGood": "0s"}, {"keepLastGood": "5m"}, {"strategy": IN_PLACE}, {"strategy": IN_PLACE}),
            *({"strategy": CANARY}, {"strategy": ANALYSED, "keepLastGood": "5m"}),
        ]
    ),
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


@cache
def _straight(spec: str, followed: str) -> ServingCluster:
    """Where the straight path ends, by what is asked for. Many paths share it, and none changes it."""
    cluster = ServingCluster(spec=json.loads(spec), source=published(followed) if followed else None)
    cluster.settle()
    return cluster


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


@pytest.mark.slow
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
    followed = cluster.source.artifact if cluster.source else None
    straight = _straight(json.dumps(cluster.spec), followed.digest if followed else "")
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
        assert wanted(cluster) == ({served: cluster.spec.get("replicas", 1)} if served else {})
        assert end.phase in (expected.phase, ServingPhase.DEGRADED)


@pytest.mark.slow
@pytest.mark.parametrize("digest", [BETTER, INACTIVE])
@pytest.mark.parametrize(
    "how",
    [{}, {"strategy": IN_PLACE | {"notice": "0s"}}, {"strategy": CANARY}, {"strategy": ANALYSED}],
    ids=["BlueGreen", "InPlace", "Canary", "analysed"],
)
def test_a_crash_after_any_write_changes_nothing_in_the_end(digest: str, how: dict[str, Any]) -> None:
    cluster = start()
    cluster.settle()
    cluster.spec = pinned(digest, **how)
    on_the_way, by_steps = [], how.get("strategy") in (CANARY, ANALYSED)
    for _ in range(14 if by_steps else 8):
        before = copy.deepcopy(cluster)
        on_the_way.append((before, len(cluster.reconcile().actions)))
        cluster.run_controllers()
        cluster.now += timedelta(seconds=25 if by_steps else 1)
    cluster.settle()
    for number, (before, writes) in enumerate(on_the_way):
        # One before the first write leaves nothing behind. The last one is before that of the status.
        for crash in range(1, writes + 1):
            disturbed = copy.deepcopy(before)
            disturbed.reconcile(crash_after=crash)
            disturbed.settle()
            assert facts(disturbed) == facts(cluster), f"crash in pass {number} after write {crash}"
            assert disturbed.traffic() == cluster.traffic()
            assert disturbed.status.phase is cluster.status.phase


@pytest.mark.slow
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
            if not cluster.goes_on():
                break
        for name in list(cluster.objects.get(resource, {})):
            del cluster.objects[resource][name]
            cluster.pods.pop(name, None)
    cluster.settle()
    expected = ServingPhase.READY if FATES[digest] is None else ServingPhase.FAILED
    assert cluster.status.phase is expected
    assert cluster.traffic() == ("" if FATES[digest] else next(iter(cluster.revisions(DEPLOYMENTS))))


@pytest.mark.slow
@settings(max_examples=share(20), deadline=None)
@given(
    how=st.sampled_from([{}, {"strategy": IN_PLACE}, {"strategy": CANARY}]),
    served=st.booleans(),
    replicas=st.integers(1, 3),
    room=st.integers(0, 4),
    loads=st.booleans(),
    verifies=st.booleans(),
    refused=st.sampled_from([None, JOBS, NETWORK_POLICIES, CONFIG_MAPS]),
)
def test_no_candidate_holds_hardware_for_ever(
    how: dict[str, Any], served: bool, replicas: int, room: int, loads: bool, verifies: bool, refused: Resource | None
) -> None:
    """Whatever does not go on, and whatever does afterwards: it ends as if nothing had been."""
    cluster = start()
    if served:
        cluster.settle()
    cluster.spec, cluster.room = pinned(BETTER, replicas=replicas, **how), room + served
    if not loads:
        cluster.loading.add(BETTER)
    if refused:
        cluster.refuse = Quota(refused, len(cluster.objects.get(refused, {})))
    held_since = answered = cluster.now
    end = cluster.now + timedelta(hours=5)
    while cluster.now < end:
        status = cluster.status
        made = cluster.reconcile()
        rests = made.requeue_after is None and not made.actions and cluster.status == status
        cluster.run_deployments()
        if verifies:
            cluster.run_controllers()
        candidate = cluster.status.candidate
        if candidate is None or not cluster.held_by(candidate.deployment):
            held_since = cluster.now
        assert cluster.now - held_since <= timedelta(seconds=2 * START + VERIFY + 1200)
        if not served or cluster.status.ready_replicas:
            answered = cluster.now
        assert cluster.now - answered <= timedelta(seconds=2 * START + VERIFY + 2 * STALE_SECONDS)
        cluster.now += timedelta(seconds=3600 if rests else 300)  # nothing is due: hours pass as they are
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
