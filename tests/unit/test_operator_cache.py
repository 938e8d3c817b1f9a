"""The cache under what streams really do: repeat, reorder, miss; and the merge patch of a status."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api import meta
from finetune_operator.finetunejob.observe import elder_publishers
from finetune_operator.finetunejob.output import OUTPUT_INDEX, Output, output_of
from finetune_operator.framework.cache import Cache
from finetune_operator.framework.objects import JOBS, Object
from finetune_operator.framework.ownership import Key, Owner
from finetune_operator.framework.stored_status import merge_patch, sparse
from finetune_operator.kinds import FINETUNEJOBS
from tests.support.memory_cluster import merged

pytestmark = pytest.mark.unit

KEY = Key("FineTuneJob", "team", "ft")


def child(version: int, uid: str = "a", owner: str = "ft") -> Object:
    """A Job of a FineTuneJob."""
    metadata = Owner(FINETUNEJOBS, "team", owner, "owner").metadata("job")
    return {"metadata": metadata | {"uid": uid, "resourceVersion": str(version), "managedFields": ["much"]}}


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
    cache = Cache(OUTPUT_INDEX)
    assert [cache.record(JOBS, child(version)) for version in (9, 9, 10, 4)] == [True, False, True, False]
    assert [found["metadata"]["resourceVersion"] for found in cache.children(KEY, JOBS)] == ["10"]
    assert "managedFields" not in cache.children(KEY, JOBS)[0]["metadata"]


def test_what_was_deleted_does_not_come_back() -> None:
    """The answer to a write may arrive after the event of the deletion; a new object of the name is another one."""
    cache = Cache(OUTPUT_INDEX)
    cache.record(JOBS, child(1))
    assert cache.forget(JOBS, child(2))
    assert not cache.record(JOBS, child(3))
    assert cache.children(KEY, JOBS) == []
    assert cache.record(JOBS, child(4, uid="b"))
    assert not cache.forget(JOBS, child(2))
    assert len(cache.children(KEY, JOBS)) == 1


def test_a_list_finds_what_the_stream_missed() -> None:
    """Gone is what was known before the LIST and is not in it; what came during the LIST stays."""
    cache = Cache(OUTPUT_INDEX)
    cache.record(JOBS, child(1))
    before = cache.versions(JOBS)
    late = child(5, uid="late")
    late["metadata"]["name"] = "late"
    cache.record(JOBS, late)
    cache.replace(JOBS, before, [])
    assert [found["metadata"]["uid"] for found in cache.children(KEY, JOBS)] == ["late"]


def test_publishers_follow_the_spec() -> None:
    """Found by output, whatever its trailing slash, until the spec changes or the resource goes."""
    cache = Cache(OUTPUT_INDEX)
    cache.record(FINETUNEJOBS, publisher("one", 1, "s3://b/x/"))
    cache.record(FINETUNEJOBS, publisher("two", 2, "s3://b/x"))
    cache.record(FINETUNEJOBS, publisher("foreign", 2, "s3://b/x", namespace="other"))
    wanted = Output("team", "", "s3://b/x", "n")
    assert {each["metadata"]["name"] for each in cache.indexed(wanted)} == {"one", "two"}
    cache.record(FINETUNEJOBS, publisher("one", 3, "s3://b/y"))
    assert [each["metadata"]["name"] for each in cache.indexed(wanted)] == ["two"]
    cache.forget(FINETUNEJOBS, publisher("two", 4, "s3://b/x"))
    assert cache.indexed(wanted) == []
    assert len(cache.all(FINETUNEJOBS)) == 2


def test_a_bucket_of_the_same_name_in_another_store_is_another_bucket() -> None:
    cache = Cache(OUTPUT_INDEX)
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
    cache = Cache(OUTPUT_INDEX)
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
