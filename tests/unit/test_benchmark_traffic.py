"""The benchmark of the time to traffic: when each part of a rollout was over, and that the parts are the whole."""

from __future__ import annotations

from typing import Any

import pytest

from finetune_api.endpoint_stages import DOOR_SECONDS
from finetune_api.reasons import Reason
from finetune_api.serving_status import RevisionState, RevisionStatus
from finetune_api.stages import Outcome, Stage, StageResult
from hack.benchmarks.time_to_traffic import Moments, moments_of, split
from hack.benchmarks.watching import Watched
from hack.cluster.console import ClusterError

pytestmark = pytest.mark.unit


def test_the_parts_of_a_rollout_are_the_whole() -> None:
    found = split(Moments(100, 101, 104, 114, 116, 116.5, 130, 141, 141.5))
    parts = (found.fetch, found.server, found.verification, found.to_pod, found.to_job, found.to_service)
    assert (*parts, found.to_answer) == (3, 10, 15.5, 1, 0.5, 11, 0.5)
    assert sum(parts) + found.to_answer == found.total
    assert found.without_verification == found.total - 15.5


def seen_pod(name: str, role: str, **status: Any) -> dict[str, Any]:
    labels = {"finetune.dev/revision": "new", "finetune.dev/role": role}
    return {"metadata": {"name": name, "labels": labels}, "status": {"phase": "Running"} | status}


def test_moments_are_read_from_what_was_seen_of_the_new_revision() -> None:
    """Watches that begin anew show what is there once more: the first time counts, and only what is the revision's."""
    old = seen_pod("old", "server")
    old["metadata"]["labels"]["finetune.dev/revision"] = "old"
    fetched = {"initContainerStatuses": [{"name": "fetch", "state": {"terminated": {}}, "ready": True}]}
    loaded = {"containerStatuses": [{"name": "server", "state": {"running": {}}, "ready": True}]}
    ready = {"conditions": [{"type": "Ready", "status": "True"}]}
    passed = StageResult(
        stage=Stage.VERIFY, outcome=Outcome.SUCCEEDED, reason=Reason.VERIFIED, scalars={DOOR_SECONDS: "0.25"}
    )
    terminated = {"exitCode": 0, "message": passed.model_dump_json(by_alias=True)}
    ended = {"containerStatuses": [{"name": "stage", "state": {"terminated": terminated}, "ready": False}]}
    job = {"metadata": {"name": "demo-verify-1", "labels": {"finetune.dev/revision": "new"}}}
    service = {"metadata": {"name": "demo"}, "spec": {"selector": {"finetune.dev/revision": "new"}}}
    adep = {"spec": {"source": {"artifact": {"uri": "s3://new"}}}}
    events = [
        ("adep", {"spec": {"source": {"artifact": {"uri": "s3://old"}}}}),
        ("pod", old),
        ("adep", adep),
        ("pod", seen_pod("new", "server")),
        ("pod", seen_pod("new", "server", **fetched)),
        ("adep", adep),
        ("pod", seen_pod("new", "server", **fetched, **loaded)),
        ("pod", seen_pod("new", "server", **fetched, **loaded, **ready)),
        ("job", job),
        ("pod", seen_pod("demo-verify-1-x", "verify", phase="Succeeded", **ended)),
        ("service", service),
        ("service", service),
    ]
    watched = Watched([(float(at), kind, each) for at, (kind, each) in enumerate(events)])
    after = RevisionStatus(
        revision="new",
        state=RevisionState.SERVING,
        artifact_digest="0" * 64,
        artifact_uri="s3://new",
        deployment="demo-new",
        since="2026-01-01T00:00:00Z",
    )
    assert moments_of(watched, "demo", after, 0.0, 12.0) == Moments(2, 3, 4, 6, 7, 8, 8.75, 10, 12)
    with pytest.raises(ClusterError):
        moments_of(Watched(watched.seen[:9]), "demo", after, 0.0, 12.0)
