"""A status of a newer version: nothing of it is lost, and nothing that has ended begins again."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from finetune_api.crdgen import KINDS, structural
from finetune_api.job_status import FineTuneJobStatus, Phase
from finetune_api.meta import ADAPTERDEPLOYMENT, FINETUNEJOB
from finetune_api.reasons import Reason, remedy
from finetune_api.serving_status import AdapterDeploymentStatus, RevisionState
from finetune_operator.adapterdeployment.kind import adapter_deployment_kind
from finetune_operator.adapterdeployment.observe import published_artifact
from finetune_operator.adapterdeployment.plan import undecidable
from finetune_operator.framework.cache import Cache
from finetune_operator.framework.objects import CONFIG_MAPS, JOBS, Object, Resource
from finetune_operator.framework.ownership import Key
from finetune_operator.framework.reading import StatusUnreadable, parse_status
from finetune_operator.framework.reconcile import Reconciler
from finetune_operator.framework.stored_status import merge_patch
from finetune_operator.kinds import ADAPTERDEPLOYMENTS, FINETUNEJOBS
from tests.support.fast import share
from tests.support.memory_cluster import MemoryCluster, merged
from tests.support.played_pods import BETTER, INACTIVE
from tests.support.sentences import assert_says
from tests.support.serving import ServingCluster, serving
from tests.support.serving_specs import SETTINGS, pinned
from tests.unit.test_operator_walk import Walk

pytestmark = pytest.mark.unit

Path = tuple[str | int, ...]
LATER = "AddedLater"
UNKNOWN = (LATER, "Added later!", 17, 0.5, {"addedLater": 1}, [{"addedLater": 1}])
"""What no field, or hardly any, may hold in this version."""


def finished() -> Walk:
    """A FineTuneJob that has published, with a run before the last; all that a status can say is said."""
    walk = Walk()
    walk.settle()
    walk.step("rerun")
    walk.settle()
    stored = walk.cluster.objects[FINETUNEJOBS.kind, "walk"]
    status = FineTuneJobStatus.model_validate(stored["status"])
    assert status.phase is Phase.SUCCEEDED
    assert status.run
    assert status.runs
    more: Object = {
        "fit": {"verdict": "Fits", "memoryGib": "3.5", "availableGib": "16"},
        "cost": {"spent": "1.50", "forecast": "1.50", "basis": "Finished", "maxCost": "2.00", "currency": "USD"},
        "addedLater": {"word": LATER},
    }
    stored["status"] |= more
    stored["status"]["stages"][2] |= {"ended": "Plateau", "addedLater": 1}
    stored["status"]["evaluation"]["review"] = {
        "outcome": "Pass",
        "votes": 40,
        "reviewers": 2,
        "winRate": "0.8000",
        "low": "0.6500",
        "high": "0.9000",
    }
    return walk


DONE = finished()
STATUS: Object = DONE.cluster.objects[FINETUNEJOBS.kind, "walk"]["status"]


def paths(value: Any, at: Path = ()) -> Iterator[Path]:
    """Every place in a status, its fields and their parts."""
    if at:
        yield at
    entries: list[tuple[str | int, Any]] = []
    if isinstance(value, dict):
        entries = list(value.items())
    elif isinstance(value, list):
        entries = list(enumerate(value))
    for name, part in entries:
        yield from paths(part, (*at, name))


def replaced(status: Object, path: Path, value: Any) -> Object:
    """The status with another value at one place."""
    changed = copy.deepcopy(status)
    place: Any = changed
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return changed


def without(status: Object, path: Path) -> Object:
    """The status apart from conditions and the field that was replaced."""
    kept = copy.deepcopy(status)
    kept.pop("conditions", None)
    if path[0] in kept:
        kept = replaced(kept, path, None)
    return kept


def again() -> Walk:
    """The finished job, as an operator finds it that has just started."""
    walk = Walk()
    walk.cluster = copy.deepcopy(DONE.cluster)
    return walk


def reconciled(status: Object) -> MemoryCluster:
    """The cluster of the finished job after the operator has started anew and met this status."""
    walk = again()
    walk.cluster.objects[FINETUNEJOBS.kind, "walk"]["status"] = copy.deepcopy(status)
    for kind, name in list(walk.cluster.objects):
        if kind in (JOBS.kind, CONFIG_MAPS.kind):
            walk.cluster.objects.pop((kind, name))  # nothing but the status tells that the work is done
    walk.restart()
    for _ in range(2):
        walk.reconcile()
    return walk.cluster


@pytest.mark.slow
@settings(max_examples=share(100), deadline=None)
@example(("artifact", "format"), "FP8")
@example(("phase",), LATER)
@example(("run", "outcome"), LATER)
@example(("stages", 2, "state"), LATER)
@example(("stages", 2, "name"), LATER)
@example(("fit", "verdict"), LATER)
@example(("cost", "basis"), LATER)
@example(("conditions", 0, "status"), 17)
@example(("conditions",), LATER)
@given(st.sampled_from(list(paths(STATUS))), st.sampled_from(UNKNOWN))
def test_an_unknown_value_in_a_finished_job_loses_nothing_else(path: Path, value: Any) -> None:
    status = replaced(STATUS, path, value)
    cluster = reconciled(status)
    after = cluster.objects[FINETUNEJOBS.kind, "walk"]["status"]
    assert without(after, path) == without(status, path)
    started = [name for kind, name in cluster.objects if kind in (JOBS.kind, CONFIG_MAPS.kind)]
    assert started == []
    if path[0] != "conditions":
        told = {each["type"]: each["status"] for each in after["conditions"]}
        assert told["Complete"] == "True"


def words(status: type[Any]) -> set[tuple[str, ...]]:
    """The places of a status that hold one of a few words, as its CRD has them."""

    def found(schema: Object, at: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        if "enum" in schema and schema.get("type") == "string":
            yield at
        for name, part in schema.get("properties", {}).items():
            yield from found(part, (*at, name))
        if "items" in schema:
            yield from found(schema["items"], at)

    return {at for at in found(structural(status), ()) if "storage" not in at and at[0] != "conditions"}


def in_lists(status: Object, names: tuple[str, ...]) -> Path:
    """The path with the first element of each list on the way."""
    path: list[str | int] = []
    place: Any = status
    for name in names:
        if isinstance(place, list):
            path.append(0)
            place = place[0]
        path.append(name)
        place = place[name]
    return tuple(path)


def with_canaries(status: Object) -> Object:
    """The status as if each revision in it were a canary that is analysed."""
    check = {"name": "failedRequests", "outcome": "Passed"}
    analysis = {"outcome": "Running", "until": "2026-01-01T00:00:00Z", "checks": [check]}
    revisions = ("stable", "candidate", "previous")
    return status | {name: status[name] | {"canary": {"step": 1, "analysis": analysis}} for name in revisions}


def with_adapters(status: Object) -> Object:
    """The status with an adapter in each revision."""
    one = {"name": "fr", "artifactDigest": "a" * 64, "artifactUri": "s3://b/artifacts/a", "outcome": "Passed"}
    one |= {"state": "Loaded"}
    revisions = [name for name in ("stable", "candidate", "previous") if name in status]
    return status | {name: status[name] | {"adapters": [one]} for name in revisions}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind)
def test_every_word_of_a_status_may_be_a_newer_one(kind: Any) -> None:
    """It is read, and shown as it was."""
    given_status = {FINETUNEJOB: STATUS, ADAPTERDEPLOYMENT: with_adapters(with_canaries(SERVED))}[kind.kind]
    places = words(kind.status)
    assert places
    for place in places:
        at = in_lists(given_status, place)
        newer = replaced(given_status, at, LATER)
        shown = parse_status(kind.status, newer).model_dump(mode="json", by_alias=True)
        for step in at:
            shown = shown[step]
        assert shown == LATER, place


def test_what_cannot_be_read_is_told_with_the_remedy_once() -> None:
    cluster = reconciled(replaced(STATUS, ("artifact", "digest"), "sha512:1"))
    status = cluster.objects[FINETUNEJOBS.kind, "walk"]["status"]
    told = {each["type"]: each for each in status["conditions"]}
    assert (told["Stalled"]["status"], told["Stalled"]["reason"]) == ("True", Reason.STATUS_UNREADABLE)
    assert_says(told["Stalled"]["message"], "status.artifact.digest", remedy(Reason.STATUS_UNREADABLE, FINETUNEJOB))
    events = [each for (kind, _), each in cluster.objects.items() if kind == "Event"]
    assert [each["reason"] for each in events if each["reason"] == Reason.STATUS_UNREADABLE] == ["StatusUnreadable"]


def test_after_an_upgrade_the_status_is_worked_with_again() -> None:
    """The conditions then say again what is."""
    walk = again()
    stored = walk.cluster.objects[FINETUNEJOBS.kind, "walk"]
    stored["status"] = replaced(STATUS, ("run", "outcome"), LATER)
    walk.restart()
    walk.reconcile()
    newer = walk.cluster.objects[FINETUNEJOBS.kind, "walk"]
    assert {each["type"]: each["status"] for each in newer["status"]["conditions"]}["Stalled"] == "True"
    newer["status"]["run"]["outcome"] = "Succeeded"
    walk.restart()
    walk.reconcile()
    after = walk.cluster.objects[FINETUNEJOBS.kind, "walk"]["status"]
    assert {each["type"]: each["status"] for each in after["conditions"]}["Stalled"] == "False"


@pytest.mark.parametrize(("at", "value"), [(("stages", 1, "state"), "Skipped"), (("stages", 1, "name"), "tokenize")])
def test_a_run_with_stages_of_a_newer_version_is_left_alone(at: Path, value: str) -> None:
    """What the newer version has done or left out, this one would do again."""
    walk = Walk()
    for _ in range(12):
        walk.turn()
    assert walk.status().phase is Phase.RUNNING
    stored = walk.cluster.objects[FINETUNEJOBS.kind, "walk"]
    stored["status"] = replaced(stored["status"], at, value)
    before = {key for key in walk.cluster.objects if key[0] != "Event"}
    walk.restart()
    walk.reconcile()
    assert {key for key in walk.cluster.objects if key[0] != "Event"} == before
    after = walk.cluster.objects[FINETUNEJOBS.kind, "walk"]["status"]
    assert without(after, at) == without(stored["status"], at)
    stalled = next(each for each in after["conditions"] if each["type"] == "Stalled")
    assert_says(stalled["message"], "status.stages[1]", f"'{value}'")


class ServingMemory(MemoryCluster):
    """One AdapterDeployment in the API; nothing may be written but its status."""

    def apply(self, resource: Resource, body: Object, field_manager: str) -> Object:
        raise AssertionError(f"{resource.kind} is applied")


def served(cluster: ServingCluster) -> MemoryCluster:
    """The cluster as the API shows it to an operator that starts."""
    memory = ServingMemory()
    metadata = {"name": "demo", "namespace": "team", "uid": "uid-of-demo", "generation": 1, "resourceVersion": "1"}
    status = cluster.status.model_dump(mode="json", by_alias=True, exclude_none=True)
    raw = {"metadata": metadata, "spec": cluster.spec, "status": status}
    memory.objects[ADAPTERDEPLOYMENTS.kind, "demo"] = raw
    return memory


def failed_beside_a_good_one() -> ServingCluster:
    """A revision serves, the pods of the one before stay; the next one was refused."""
    cluster = serving()
    for digest in (BETTER, INACTIVE):
        cluster.spec = pinned(digest, keepLastGood="10m")
        for _ in range(8):
            cluster.reconcile()
            cluster.run_controllers()
            cluster.now += timedelta(seconds=10)
    assert cluster.status.previous
    assert cluster.status.candidate
    assert cluster.status.candidate.state is RevisionState.FAILED
    return cluster


REFUSED = failed_beside_a_good_one()
SERVED: Object = REFUSED.status.model_dump(mode="json", by_alias=True, exclude_none=True)
OURS = ("state", "since", "storage", "reason", "phase")
"""Fields of revisions that are words, times or objects: where a string is free, any is known."""
COUNT = "verificationRetries"
"""Any number is known there, and another one means another Job of the verification."""


@settings(max_examples=share(100), deadline=None)
@example(("candidate", "state"), LATER)
@example(("stable", "state"), LATER)
@example(("phase",), LATER)
@given(st.sampled_from(list(paths(SERVED))), st.sampled_from(UNKNOWN))
def test_an_unknown_value_in_a_serving_revision_loses_nothing_else(path: Path, value: Any) -> None:
    """What this version can read, it works with as before; what it cannot read gets conditions only."""
    if (isinstance(value, str) and path[-1] not in OURS) or (isinstance(value, int) and path[-1] == COUNT):
        return
    status = replaced(SERVED, path, value)
    cluster = copy.deepcopy(REFUSED)
    try:
        read = parse_status(AdapterDeploymentStatus, status)
    except StatusUnreadable:
        read = None
    if read is None or undecidable(read):
        after = conditions_only(status)
    else:
        cluster.status = read
        made = cluster.plan()
        assert made.actions == ()
        after = made.status.model_dump(mode="json", by_alias=True, exclude_none=True)
    assert without(after, path) == without(status, path)


def conditions_only(status: Object) -> Object:
    """The status after the reconciler has met it."""
    memory = served(REFUSED)
    memory.objects[ADAPTERDEPLOYMENTS.kind, "demo"]["status"] = copy.deepcopy(status)
    cache = Cache()
    for found in memory.select(ADAPTERDEPLOYMENTS, None):
        cache.record(ADAPTERDEPLOYMENTS, found)
    kinds = {ADAPTERDEPLOYMENTS.kind: adapter_deployment_kind(memory, cache, SETTINGS)}
    Reconciler(memory, cache, kinds, lambda: memory.now).reconcile(Key(ADAPTERDEPLOYMENTS.kind, "team", "demo"))
    after: Object = memory.objects[ADAPTERDEPLOYMENTS.kind, "demo"]["status"]
    said = [each for each in after["conditions"] if isinstance(each, dict) and each.get("type") == "Stalled"]
    assert [each["reason"] for each in said] == [Reason.STATUS_UNREADABLE]
    return after


@pytest.mark.parametrize("at", [("phase",), ("artifact", "format"), ("stages", 1, "state"), ("progress",), ("run",)])
def test_an_artifact_is_served_whatever_else_its_job_says(at: Path) -> None:
    assert published_artifact(replaced(STATUS | {"progress": {}}, at, LATER)) is not None
    assert published_artifact({}) is None


ANY = st.integers(0, 2) | st.lists(st.integers(0, 2), max_size=2)
FIELDS = st.dictionaries(st.sampled_from("xyz"), ANY, max_size=3)


@given(FIELDS, FIELDS, FIELDS)
def test_a_patch_touches_what_was_read_only(read: Object, wanted: Object, unknown: Object) -> None:
    """What is stored beside it stays, whatever is wanted."""
    later = {f"later {name}": value for name, value in unknown.items()}
    stored = read | later
    assert merged(stored, merge_patch(stored, read, wanted)) == wanted | later


def test_an_entry_that_has_not_changed_keeps_what_only_a_newer_version_knows() -> None:
    read = {"rows": [{"name": "a"}, {"name": "b"}]}
    stored = {"rows": [{"name": "a", "later": 1}, {"name": "b", "later": 2}]}
    patch = merge_patch(stored, read, {"rows": [{"name": "a"}, {"name": "c"}]})
    assert patch == {"rows": [{"name": "a", "later": 1}, {"name": "c"}]}
