"""The cache under what lists and streams really do: repeat, reorder, miss; and the merge patch of a status."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api import meta
from finetune_operator.controller import INDEXES
from finetune_operator.finetunejob.observe import elder_publishers
from finetune_operator.finetunejob.output import Output, output_of
from finetune_operator.framework.cache import Cache
from finetune_operator.framework.objects import CONFIG_MAPS, JOBS, Object
from finetune_operator.framework.ownership import Key, Owner
from finetune_operator.framework.stored_status import merge_patch, sparse
from finetune_operator.kinds import ADAPTERDEPLOYMENTS, FINETUNEJOBS, WATCHED_OWNERS
from tests.support.memory_cluster import merged

pytestmark = pytest.mark.unit

KEY = Key("FineTuneJob", "team", "ft")


def child(version: int, uid: str = "a", owner: str = "ft") -> Object:
    """A Job of a FineTuneJob."""
    metadata = Owner(FINETUNEJOBS, "team", owner, "owner").metadata("job")
    return {"metadata": metadata | {"uid": uid, "resourceVersion": str(version), "managedFields": ["much"]}}


def uids(cache: Cache) -> list[str]:
    """The Jobs that the cache knows."""
    return [found["metadata"]["uid"] for found in cache.children(KEY, JOBS)]


def publisher(name: str, version: int, output: str, endpoint: str = "", namespace: str = "team") -> Object:
    """A FineTuneJob with an output."""
    metadata = {"name": name, "namespace": namespace, "uid": name, "resourceVersion": str(version)}
    metadata["creationTimestamp"] = f"2026-01-01T00:00:{version:02}Z"
    storage = {"storage": {"endpoint": endpoint}} if endpoint else {}
    return {"metadata": metadata, "spec": {"output": {"uri": output, "name": "n"}} | storage}


def leaving(job: Object) -> Object:
    """The same FineTuneJob, being deleted."""
    return job | {"metadata": job["metadata"] | {"deletionTimestamp": "2026-01-01T00:00:09Z"}}


def test_only_newer_versions_are_news() -> None:
    """Our own write comes back on the stream, and old events may come after new ones."""
    cache = Cache(INDEXES)
    assert [cache.record(JOBS, child(version)) for version in (9, 9, 10, 4)] == [True, False, True, False]
    assert [found["metadata"]["resourceVersion"] for found in cache.children(KEY, JOBS)] == ["10"]
    assert "managedFields" not in cache.children(KEY, JOBS)[0]["metadata"]


def test_what_was_deleted_does_not_come_back() -> None:
    """The answer to a write may arrive after the event of the deletion; a new object of the name is another one."""
    cache = Cache(INDEXES)
    cache.record(JOBS, child(1))
    assert cache.forget(JOBS, child(3))
    assert [cache.record(JOBS, child(version)) for version in (1, 2, 3)] == [False, False, False]
    assert cache.children(KEY, JOBS) == []
    assert cache.record(JOBS, child(4, uid="b"))
    assert not cache.forget(JOBS, child(3))
    assert len(cache.children(KEY, JOBS)) == 1


def test_what_lost_its_label_comes_back_with_it() -> None:
    """A stream shows an object that loses the label as deleted, and as added when it gets the label back."""
    cache = Cache(INDEXES)
    cache.record(JOBS, child(1))
    assert cache.forget(JOBS, child(2))
    assert cache.record(JOBS, child(3))
    assert uids(cache) == ["a"]
    assert not cache.forget(JOBS, child(2)), "the event of an earlier loss, after our own repair"
    assert uids(cache) == ["a"]


def test_a_list_finds_what_the_stream_missed() -> None:
    """Gone is what was known before the LIST and is not in it; what came during the LIST stays."""
    cache = Cache(INDEXES)
    cache.record(JOBS, child(1))
    asked = cache.moment()
    late = child(5, uid="late")
    late["metadata"]["name"] = "late"
    cache.record(JOBS, late)
    assert [found["metadata"]["uid"] for found in cache.sweep(JOBS, None, asked)] == ["a"]
    assert uids(cache) == ["late"]


def test_a_list_counts_more_than_a_tombstone_from_before_it() -> None:
    cache = Cache(INDEXES)
    cache.record(JOBS, child(1))
    cache.forget(JOBS, child(2))
    asked = cache.moment()
    assert cache.record(JOBS, child(2), asked)
    assert uids(cache) == ["a"]


def test_a_deletion_during_a_list_counts_more_than_its_pages() -> None:
    cache = Cache(INDEXES)
    cache.record(JOBS, child(1))
    asked = cache.moment()
    cache.forget(JOBS, child(2))
    assert not cache.record(JOBS, child(1), asked)
    assert cache.sweep(JOBS, None, asked) == []
    assert uids(cache) == []


def test_a_restored_etcd_has_lower_versions() -> None:
    """What is read now is what there is; what the operator wrote since it asked is newer still."""
    cache = Cache(INDEXES)
    cache.record(JOBS, child(900))
    assert cache.record(JOBS, child(40), cache.moment())
    assert cache.children(KEY, JOBS)[0]["metadata"]["resourceVersion"] == "40"
    asked = cache.moment()
    cache.record(JOBS, child(50))
    assert not cache.record(JOBS, child(41), asked)
    assert cache.children(KEY, JOBS)[0]["metadata"]["resourceVersion"] == "50"


def test_a_list_of_one_namespace_says_nothing_of_others() -> None:
    cache = Cache(INDEXES)
    cache.record(JOBS, child(1))
    assert cache.sweep(JOBS, "elsewhere", cache.moment()) == []
    assert uids(cache) == ["a"]


@dataclass
class Server:
    """What the API server has, and the events that a stream has yet to show."""

    version: int = 0
    objects: dict[str, Object] = field(default_factory=dict)
    events: list[tuple[bool, Object]] = field(default_factory=list)

    def change(self, name: str) -> None:
        """Create or change an object, which keeps its uid as long as it exists."""
        self.version += 1
        uid = self.objects[name]["metadata"]["uid"] if name in self.objects else f"{name}-{self.version}"
        self.objects[name] = named(name, self.version, uid)
        self.events.append((False, self.objects[name]))

    def remove(self, name: str) -> None:
        if name in self.objects:
            self.version += 1
            gone = self.objects.pop(name)
            self.events.append((True, named(name, self.version, gone["metadata"]["uid"])))


def named(name: str, version: int, uid: str) -> Object:
    found = child(version, uid)
    found["metadata"]["name"] = name
    return found


STEPS = st.lists(
    st.tuples(st.sampled_from(["change", "remove", "watch", "answer", "lose events", "list"]), st.sampled_from("ab"))
)


@given(STEPS)
def test_after_a_list_the_cache_is_what_the_api_server_has(steps: list[tuple[str, str]]) -> None:
    """Whatever came before, in whatever order: events late or lost, answers to writes before their events.

    And whatever comes late afterwards changes nothing.
    """
    server, cache = Server(), Cache(INDEXES)
    late: list[tuple[bool, Object]] = []

    def show(events: list[tuple[bool, Object]]) -> None:
        for gone, found in events:
            if gone:
                cache.forget(JOBS, found)
            else:
                cache.record(JOBS, found)

    def read() -> None:
        asked = cache.moment()
        for found in server.objects.values():
            cache.record(JOBS, found, asked)
        cache.sweep(JOBS, None, asked)
        known = {each["metadata"]["name"]: each["metadata"]["resourceVersion"] for each in cache.all(JOBS)}
        assert known == {name: each["metadata"]["resourceVersion"] for name, each in server.objects.items()}

    for what, name in steps:
        match what:
            case "change":
                server.change(name)
            case "remove":
                server.remove(name)
            case "watch":
                show(server.events)
                server.events.clear()
            case "answer" if name in server.objects:
                cache.record(JOBS, server.objects[name])
            case "lose events":
                late += server.events
                server.events.clear()
            case "list":
                read()
    read()
    show(late)
    show(server.events)
    read()


def test_no_more_is_kept_than_is_observed() -> None:
    """Of the children that are not watched, the operator's own writes are not kept either."""
    cache = Cache(INDEXES, WATCHED_OWNERS)
    ours = {"metadata": Owner(FINETUNEJOBS, "team", "ft", "u").metadata("c") | {"uid": "u", "resourceVersion": "1"}}
    theirs = {
        "metadata": Owner(ADAPTERDEPLOYMENTS, "team", "s", "u").metadata("d") | {"uid": "v", "resourceVersion": "1"}
    }
    foreign = {"metadata": {"namespace": "team", "name": "e", "uid": "w", "resourceVersion": "1"}}
    assert [cache.record(CONFIG_MAPS, each) for each in (ours, theirs, foreign)] == [False, True, False]
    assert [found["metadata"]["name"] for found in cache.all(CONFIG_MAPS)] == ["d"]


def test_publishers_follow_the_spec() -> None:
    """Found by output, whatever its trailing slash, until the spec changes or the resource goes."""
    cache = Cache(INDEXES)
    cache.record(FINETUNEJOBS, publisher("one", 1, "s3://b/x/"))
    cache.record(FINETUNEJOBS, publisher("two", 2, "s3://b/x"))
    cache.record(FINETUNEJOBS, publisher("foreign", 2, "s3://b/x", namespace="other"))
    wanted = Output("team", "", "s3://b/x", "n")
    assert {each["metadata"]["name"] for each in cache.indexed(wanted)} == {"one", "two"}
    cache.record(FINETUNEJOBS, publisher("one", 3, "s3://b/y"))
    assert [each["metadata"]["name"] for each in cache.indexed(wanted)] == ["two"]
    cache.forget(FINETUNEJOBS, publisher("two", 4, "s3://b/x"))
    assert cache.indexed(wanted) == []
    assert {key.name for key in cache.names(FINETUNEJOBS)} == {"one", "foreign"}


def test_a_bucket_of_the_same_name_in_another_store_is_another_bucket() -> None:
    cache = Cache(INDEXES)
    places = (publisher("aws", 1, "s3://b/x"), publisher("minio", 2, "s3://b/x", "http://minio.a.svc:9000"))
    for each in places:
        cache.record(FINETUNEJOBS, each)
    for each in places:
        assert cache.indexed(output_of(each)) == [each]


@pytest.mark.parametrize(
    ("others", "elders"),
    [
        ([], []),
        ([publisher("younger", 9, "s3://b/x")], []),
        ([leaving(publisher("gone soon", 1, "s3://b/x"))], []),
        ([publisher("third", 4, "s3://b/x"), publisher("second", 3, "s3://b/x")], ["second", "third"]),
    ],
)
def test_the_older_publishers_by_age(others: list[Object], elders: list[str]) -> None:
    mine = publisher("mine", 5, "s3://b/x")
    assert [each["metadata"]["name"] for each in elder_publishers(mine, [*others, mine])] == elders


def test_objects_of_others_are_nobodys_children() -> None:
    """The labels decide, and they name another owner."""
    cache = Cache(INDEXES)
    cache.record(JOBS, child(1, owner="other"))
    assert cache.children(KEY, JOBS) == []
    assert meta.LABEL_OWNER_NAME in child(1)["metadata"]["labels"]


VALUES = st.recursive(
    st.integers(0, 2) | st.text("ab", max_size=1) | st.lists(st.integers(0, 2), max_size=2),
    lambda inner: st.dictionaries(st.text("xyz", min_size=1, max_size=1), inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.dictionaries(st.text("xyz", min_size=1, max_size=1), VALUES, max_size=3)


@given(OBJECTS, OBJECTS)
def test_a_merge_patch_makes_what_is_wanted(current: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Applied to the current object it gives the wanted one, and it is empty exactly if they are equal."""
    untouched = copy.deepcopy(current)
    patch = merge_patch(current, current, wanted)
    assert merged(current, patch) == wanted
    assert (patch == {}) is (current == wanted)
    assert current == untouched
    json.dumps(patch)


def test_a_status_holds_what_there_is_to_say() -> None:
    condition = {"type": "Ready", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}
    rows = [{"name": "train", "job": "", "attempts": 0}, {"name": "export", "message": "INT8"}]
    status = {"phase": "Running", "runs": [], "conditions": [condition], "stages": rows, "fit": {"gib": ""}}
    told = {
        "phase": "Running",
        "conditions": [condition],
        "stages": [{"name": "train", "attempts": 0}, {"name": "export", "message": "INT8"}],
        "fit": {},
    }
    assert sparse(status) == sparse(told) == told
