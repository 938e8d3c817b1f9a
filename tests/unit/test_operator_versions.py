"""What an operator makes of resources that another version has written to, or whose CRDs are newer."""

from __future__ import annotations

import logging
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import pytest

from finetune_api.adapterdeployment import AdapterDeploymentSpec
from finetune_api.base import Condition, ObjectMeta
from finetune_api.crdgen import KINDS, Kind, crd
from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.job_status import ArtifactTokens, DatasetStatus, FineTuneJobStatus, Phase, Rows
from finetune_api.meta import ADAPTERDEPLOYMENT, FINETUNEJOB
from finetune_api.reasons import Reason
from finetune_api.serving_status import AdapterDeploymentStatus, RevisionState, ServingPhase
from finetune_api.storage import Addressing, Storage
from finetune_operator.finetunejob.observe import ObservedJob, UnplannedJob
from finetune_operator.finetunejob.plan import current_run, plan
from finetune_operator.framework import reading
from finetune_operator.framework.conditions import timestamp
from finetune_operator.framework.ownership import Owner
from finetune_operator.framework.reading import Unplanned, parse_spec, parse_status
from finetune_operator.framework.stored_status import status_patch
from finetune_operator.kinds import FINETUNEJOBS
from finetune_operator.outcome.job import State, judge
from finetune_operator.outcome.pod import parse_result
from tests.support.played_pods import GOOD, INACTIVE
from tests.support.retired_fields import JOB, OLD, Old
from tests.support.sentences import assert_says
from tests.support.serving import ServingCluster, serving
from tests.support.serving_specs import SETTINGS, pinned
from tests.support.stage_objects import ended, failure, job, pod, terminated

pytestmark = pytest.mark.unit

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
GIVEN: dict[str, Any] = {
    "profile": "small",
    "model": {"uri": "s3://models/base"},
    "dataset": {"sources": [{"uri": "s3://data/a.csv"}, {"uri": "s3://data/b.csv"}]},
    "output": {"uri": "s3://artifacts/team", "name": "ft"},
}
SPEC = FineTuneJobSpec.model_validate(GIVEN)
UNREADABLE = "spec.export.format: Input should be 'INT8', 'W8A16', 'FP8', 'INT4' or 'Merged'"
"""Of a spec with a value that a newer CRD knows."""


def test_fields_of_newer_crds_are_ignored_and_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    """At every level, whichever objects have them and however often they are read."""
    reading._tell_unknown.cache_clear()
    sources = [source | {"addedLater": 1} for source in GIVEN["dataset"]["sources"]]
    newer = GIVEN | {"dataset": {"sources": sources}, "storage": {"addedLater": "x"}, "addedLater": None}
    with caplog.at_level(logging.WARNING):
        assert [parse_spec(FineTuneJobSpec, newer) for _ in range(2)] == [(SPEC, "")] * 2
        served = pinned(GOOD) | {"verification": {"addedLater": {"more": []}}}
        spec, problem = parse_spec(AdapterDeploymentSpec, served)
    assert (spec, problem) == (AdapterDeploymentSpec.model_validate(pinned(GOOD)), "")
    ignored = "is ignored: the CRDs are newer than this operator, which does not know it"
    assert caplog.messages == [
        f"FineTuneJob: spec.dataset.sources.addedLater {ignored}",
        f"FineTuneJob: spec.storage.addedLater {ignored}",
        f"FineTuneJob: spec.addedLater {ignored}",
        f"AdapterDeployment: spec.verification.addedLater {ignored}",
    ]


def test_workers_that_read_at_the_same_time_tell_of_a_field_once(monkeypatch: pytest.MonkeyPatch) -> None:
    reading._tell_unknown.cache_clear()
    told: list[str] = []

    def slowly(_: str, __: str, field: str) -> None:
        time.sleep(0.05)
        told.append(field)

    monkeypatch.setattr(reading.logger, "warning", slowly)
    newer = GIVEN | {"addedLater": None}
    with ThreadPoolExecutor(4) as workers:
        list(workers.map(lambda _: parse_spec(FineTuneJobSpec, newer), range(4)))
    assert told == ["addedLater"]


@pytest.mark.parametrize("old", OLD, ids=str)
def test_a_stored_spec_of_an_earlier_api_is_not_read_without_what_it_says(old: Old) -> None:
    """An object that was stored before the CRDs were replaced: its Secret would be ignored."""
    model = FineTuneJobSpec if old.body is JOB else AdapterDeploymentSpec
    spec, problem = parse_spec(model, old.object["spec"])
    assert spec is None
    assert "was a field of an earlier version" in problem
    assert old.says in problem
    assert parse_spec(model, old.body["spec"])[1] == ""


def test_a_stored_field_of_an_earlier_version_is_not_read_over() -> None:
    """The spec would mean something else without it."""
    older = GIVEN | {"training": {"dora": True}, "dataset": GIVEN["dataset"] | {"duplicates": {"dropNear": True}}}
    spec, problem = parse_spec(FineTuneJobSpec, older)
    assert spec is None
    assert_says(problem, "spec.dataset.duplicates", "dropNear", "near: Drop", "spec.training", "dora", "adapter: DoRA")


@pytest.mark.parametrize(
    ("place", "value", "says"),
    [
        ({"endpoint": ""}, "spec.storage.endpoint", "omit endpoint for AWS"),
        ({"encryption": {"algorithm": "aws:kms", "kmsKeyId": ""}}, "spec.storage.encryption.kmsKeyId", "omit kmsKeyId"),
    ],
)
def test_a_stored_text_that_is_empty_is_refused_with_what_to_write(
    place: dict[str, Any], value: str, says: str
) -> None:
    spec, problem = parse_spec(FineTuneJobSpec, GIVEN | {"storage": place})
    assert spec is None
    assert_says(problem, value, "an empty text", says)


@pytest.mark.parametrize(
    ("stored", "read"),
    [
        ({"endpoint": "http://s3", "pathStyle": True}, Storage(endpoint="http://s3", addressing=Addressing.PATH)),
        (
            {"endpoint": "http://s3", "pathStyle": False},
            Storage(endpoint="http://s3", addressing=Addressing.VIRTUAL_HOST),
        ),
        ({"endpoint": "", "pathStyle": False}, Storage(addressing=Addressing.VIRTUAL_HOST)),
        ({"pathStyle": False, "addressing": "Path"}, Storage(addressing=Addressing.PATH)),  # written since
        ({"pathStyle": None}, Storage()),
    ],
)
def test_the_storage_in_a_status_of_an_earlier_version_means_the_same(stored: dict[str, Any], read: Storage) -> None:
    """Of what it serves, only the status may know how it is reached."""
    artifact = {"digest": GOOD, "uri": "s3://models/team/artifacts/1", "format": "INT8", "storage": stored}
    status = parse_status(FineTuneJobStatus, {"artifact": artifact})
    assert status.artifact
    assert status.artifact.storage == read
    assert status_patch({"artifact": artifact}, status, status) == {}


def test_a_zero_of_an_earlier_version_says_that_nothing_was_counted() -> None:
    tokens = {"goldenPrompt": 0, "answer": 20, "example": 0}
    artifact = {
        "digest": GOOD,
        "uri": "s3://models/team/artifacts/1",
        "format": "INT8",
        "sizeBytes": 0,
        "tokens": tokens,
    }
    counts = {"labels": 0, "tokens": 0, "longest": 0, "testMasked": 0}
    stored = {"artifact": artifact, "dataset": {"digest": GOOD, "rows": {"read": 0}, **counts}}
    status = parse_status(FineTuneJobStatus, stored)
    assert status.artifact
    assert (status.artifact.size_bytes, status.artifact.tokens) == (None, ArtifactTokens(answer=20))
    assert status.dataset == DatasetStatus(digest=GOOD, rows=Rows(read=0), test_masked=0)
    assert status_patch(stored, status, status) == {}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind)
def test_the_api_server_keeps_the_earlier_storage_of_a_status_as_it_is(kind: Kind) -> None:
    """What the schema lacks it drops, and beside the earlier field it must not fill in the default of the later one."""
    schema = crd(kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]
    for place in {FINETUNEJOB: ("artifact",), ADAPTERDEPLOYMENT: ("stable", "candidate")}[kind.kind]:
        fields = schema["properties"][place]["properties"]["storage"]["properties"]
        assert fields["pathStyle"] == {"type": "boolean", "description": "Written by earlier versions."}
        assert "default" not in fields["addressing"]
        assert "credentials" not in fields


def test_a_status_with_fields_of_a_newer_version_is_kept() -> None:
    """What was forgotten would be tried again, such as a candidate that has failed."""
    revision = {
        "revision": "1",
        "artifactDigest": GOOD,
        "artifactUri": "s3://models/team/artifacts/1",
        "deployment": "demo-1",
        "since": "2026-01-01T12:00:00Z",
        "storage": {"endpoint": "http://store", "addedLater": True},
    }
    stable, candidate = revision | {"state": "Serving"}, revision | {"state": "Failed", "addedLater": "x"}
    status = parse_status(AdapterDeploymentStatus, {"stable": stable, "candidate": candidate})
    assert status.stable
    assert status.stable.storage
    assert status.stable.storage.endpoint == "http://store"
    assert status.candidate
    assert status.candidate.state is RevisionState.FAILED


@pytest.mark.parametrize("outcome", [Phase.SUCCEEDED, Phase.FAILED])
def test_a_run_that_has_ended_stays_what_it_is_though_its_spec_cannot_be_read(outcome: Phase) -> None:
    before = status(outcome, outcome=outcome, reason=Reason.OUT_OF_MEMORY, message="Too large.")
    made = plan(unreadable(before), NOW)
    assert (made.status.phase, made.status.run) == (outcome, before.run)
    assert conditions(made.status)["Ready"] == (str(outcome is Phase.SUCCEEDED), Reason.OUT_OF_MEMORY)
    assert conditions(made.status)["Failed"][0] == str(outcome is Phase.FAILED)
    assert (made.actions, made.events) == ((), ())


@pytest.mark.parametrize("phase", [Phase.RUNNING, Phase.SUSPENDED])
def test_a_run_goes_on_though_its_spec_cannot_be_read(phase: Phase) -> None:
    """The phase holds its spec: the API server freezes what is running."""
    made = plan(unreadable(status(phase)), NOW)
    assert made.status.phase is phase
    assert conditions(made.status)["Stalled"] == ("True", Reason.SPEC_INVALID)
    assert made.actions == ()


def test_a_spec_that_cannot_be_read_and_is_newer_than_the_last_run_waits() -> None:
    made = plan(unreadable(status(Phase.SUCCEEDED, outcome=Phase.SUCCEEDED), generation=4), NOW)
    assert made.status.phase is Phase.PENDING
    assert conditions(made.status)["Stalled"] == ("True", Reason.SPEC_INVALID)


class TestReasons:
    """A word of a newer version is a reason like any other, without a remedy."""

    def test_of_a_run(self) -> None:
        before = status(Phase.FAILED, outcome=Phase.FAILED, reason="AddedLater", message="Later.")
        made = plan(observed(before), NOW)
        assert (made.status.phase, made.status.run) == (Phase.FAILED, before.run)
        assert conditions(made.status)["Ready"] == ("False", "AddedLater")
        assert [each.message for each in made.status.conditions if each.type == "Ready"] == ["Later."]
        again = plan(observed(made.status), NOW)
        assert (again.status, again.events) == (made.status, ())

    def test_of_a_condition(self) -> None:
        """The transition from a blocker that only the newer version knows."""
        blocked = Condition(type="Ready", status="False", reason="AddedLater", last_transition_time=timestamp(NOW))
        before = status(Phase.PENDING).model_copy(update={"conditions": [blocked]})
        made = plan(observed(before), NOW)
        assert conditions(made.status)["Ready"] == ("False", Reason.PROFILE_UNKNOWN)
        assert [each.reason for each in made.events] == [Reason.PROFILE_UNKNOWN]

    def test_of_a_stage(self) -> None:
        """The root cause that a newer image found reaches the status; what is no word does not."""
        said = failure(Reason("AddedLater"), "It was too new.")
        failed = pod("Failed", **terminated(2, message=said))
        verdict = judge(job(**ended("Failed")), [failed])
        assert (verdict.state, verdict.reason, verdict.message) == (State.FAILED, "AddedLater", "It was too new.")
        for word in ("", "Added later", "A" * 64, "Ä"):
            assert parse_result(said.replace("AddedLater", word)) is None

    def test_of_a_revision_that_has_failed(self) -> None:
        cluster = serving()
        cluster.spec = pinned(INACTIVE)
        cluster.settle()
        assert cluster.status.candidate
        newer = cluster.status.candidate.model_copy(update={"reason": "AddedLater"})
        cluster.status = cluster.status.model_copy(update={"candidate": newer})
        cluster.settle()
        assert cluster.status.candidate == newer
        assert conditions(cluster.status)["Stalled"] == ("True", "AddedLater")
        cluster.spec = pinned(GOOD)
        cluster.settle()
        assert cluster.status.phase is ServingPhase.READY

    def test_of_a_revision_that_is_started(self) -> None:
        cluster = ServingCluster()
        cluster.reconcile()
        assert cluster.status.candidate
        newer = cluster.status.candidate.model_copy(update={"reason": "AddedLater"})
        shown = [each.model_copy(update={"reason": "AddedLater"}) for each in cluster.status.conditions]
        cluster.status = cluster.status.model_copy(update={"candidate": newer, "conditions": shown})
        cluster.settle()
        assert cluster.status.phase is ServingPhase.READY


METADATA = ObjectMeta(name="ft", namespace="team", uid="uid", generation=3)


def unreadable(before: FineTuneJobStatus, generation: int = 3) -> UnplannedJob:
    """A FineTuneJob whose spec is of a newer version."""
    metadata = METADATA.model_copy(update={"generation": generation})
    return Unplanned(metadata, before, Reason.SPEC_INVALID, UNREADABLE)


def observed(before: FineTuneJobStatus) -> ObservedJob:
    """A FineTuneJob whose spec can be read."""
    owner = Owner.of(FINETUNEJOBS, METADATA)
    return ObservedJob(owner=owner, metadata=METADATA, spec=SPEC, status=before, settings=SETTINGS)


def status(phase: Phase, **run: Any) -> FineTuneJobStatus:
    """The status of a run of generation 3."""
    fresh = current_run(observed(FineTuneJobStatus()), NOW)
    return FineTuneJobStatus(phase=phase, run=fresh.model_copy(update=run))


def conditions(found: FineTuneJobStatus | AdapterDeploymentStatus) -> dict[str, tuple[str, str]]:
    """Status and reason of each condition."""
    return {each.type: (each.status, each.reason) for each in found.conditions}
