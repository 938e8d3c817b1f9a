"""Bad input becomes a condition that names place and remedy, within one pod run; nothing is retried in vain."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from finetune_api.finetunejob import FineTuneJob
from finetune_api.job_status import Phase
from finetune_api.meta import LABEL_OWNER_NAME
from finetune_api.reasons import REMEDIES, Reason
from hack.cluster.console import ClusterError
from hack.platform import object_store
from hack.platform.kubectl import Kubectl, Object, wait_for
from hack.platform.tiny import tiny_job
from tests.support.sentences import assert_says
from tests.support.teams import team_namespace

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(3600)]

Spec = dict[str, Any]


def dataset(uri: str, **changes: Any) -> Spec:
    """``spec.dataset`` over another file."""
    given: Spec = tiny_job("x")["spec"]["dataset"]
    return given | {"sources": [{"uri": uri}]} | changes


@dataclass(frozen=True)
class Case:
    """A FineTuneJob that cannot succeed, and what its status must say."""

    name: str
    reason: Reason
    says: tuple[str, ...]
    """Parts of the message: stage, place, value. The reason's remedy follows."""
    changes: Spec = field(default_factory=dict)
    upload: tuple[str, bytes] | None = None
    """Object of the bucket ``datasets`` that the case needs."""


FAILS = (
    Case(
        "unknown-column",
        Reason.DATASET_INVALID,
        ("prepare: s3://datasets/tiny.csv:", "'memo'", "does not exist", "'text', 'label'"),
        {"dataset": dataset("s3://datasets/tiny.csv", columns={"input": "memo", "label": "label"})},
    ),
    Case(
        "empty-file",
        Reason.DATASET_INVALID,
        ("prepare: s3://datasets/empty.csv:", "empty", "no header", "no rows"),
        {"dataset": dataset("s3://datasets/empty.csv")},
        ("empty.csv", b""),
    ),
    Case(
        "bad-utf8",
        Reason.DATASET_INVALID,
        (
            *("prepare:", "20 of 39", "5 %", "s3://datasets/latin1.csv line 2", "UTF-8", "byte 14"),
            *("4 of the line", "('0xe9'); "),
        ),
        {"dataset": dataset("s3://datasets/latin1.csv")},
        ("latin1.csv", "text,label\ncafé au lait,FEES\n".encode("latin-1") * 20),
    ),
    Case(
        "malformed-jsonl",
        Reason.DATASET_INVALID,
        (
            *("prepare:", "10 of 20", "5 %", "s3://datasets/broken.jsonl line 2", "JSON"),
            "column 15: Expecting property name enclosed in double quotes (",
        ),
        {"dataset": dataset("s3://datasets/broken.jsonl")},
        ("broken.jsonl", b'{"text": "a", "label": "FEES"}\n{"text": "b", \n' * 10),
    ),
    Case(
        "one-class",
        Reason.DATASET_INVALID,
        ("prepare:", "200 examples", "'FEES'", "two labels", "Check spec.dataset.columns.label"),
        {"dataset": dataset("s3://datasets/one-class.csv")},
        ("one-class.csv", b"text,label\n" + b"".join(b"payment %d,FEES\n" % n for n in range(200))),
    ),
    Case(
        "no-such-file",
        Reason.DATASET_NOT_FOUND,
        ("resolve: s3://datasets/nowhere.csv", "does not exist"),
        {"dataset": dataset("s3://datasets/nowhere.csv")},
    ),
    Case(
        "no-such-bucket",
        Reason.BUCKET_NOT_FOUND,
        ("resolve: s3://no-such-bucket/out:", "'no-such-bucket'", "does not exist"),
        {"output": {"uri": "s3://no-such-bucket/out", "name": "no-such-bucket"}},
    ),
    Case(
        "no-such-model",
        Reason.MODEL_NOT_FOUND,
        ("resolve: s3://base-models/nothing", "no files"),
        {"model": {"uri": "s3://base-models/nothing"}},
    ),
)


@pytest.fixture(scope="module")
def failing(cluster: Kubectl) -> Iterator[Kubectl]:
    """A namespace in which all cases of ``FAILS`` run at the same time: they mostly wait for the node."""
    with team_namespace(cluster) as kubectl:
        with object_store.client(kubectl) as s3:
            for key, content in filter(None, (case.upload for case in FAILS)):
                s3.put_object(Bucket="datasets", Key=key, Body=content)
        kubectl.apply(*(tiny_job(case.name, **case.changes) for case in FAILS))
        yield kubectl


@pytest.mark.parametrize("case", FAILS, ids=lambda case: case.name)
def test_what_cannot_succeed_fails_once_and_says_why(failing: Kubectl, case: Case) -> None:
    job = wait_for("the end of the run", lambda: ended(failing, case.name), 1600)
    failed = condition(job, "Failed")
    assert job.status.phase is Phase.FAILED
    assert failed["reason"] == case.reason.value
    assert failed["message"].startswith(case.says[0]), failed["message"]
    assert_says(failed["message"], *case.says)
    assert f" {REMEDIES[case.reason]}" in failed["message"], failed["message"]
    pods = failing.items("pods", f"{LABEL_OWNER_NAME}={case.name}")
    assert sum(each["status"]["phase"] == "Failed" for each in pods) == 1, "tried again in vain"
    wait_for("the event", lambda: case.reason.value in reasons(failing, case.name), 240)  # it follows the status


def test_wrong_credentials_then_rerun(team: Kubectl) -> None:
    name = "credentials"
    wrong = object_store.Key("nobody", "nobody", "wrong-secret", ())
    team.apply(wrong.secret("s3-credentials"), tiny_job(name))
    job = wait_for("the end of the run", lambda: ended(team, name), 1600)
    failed = condition(job, "Failed")
    assert failed["reason"] == Reason.S3_ACCESS_DENIED.value
    assert f" {REMEDIES[Reason.S3_ACCESS_DENIED]}" in failed["message"]
    assert "wrong-secret" not in json.dumps(team.get("ftj", name))
    team.apply(object_store.OWNER.secret("s3-credentials"))
    team("patch", "ftj", name, "--type=merge", "-p", json.dumps({"spec": {"rerun": "1"}}))
    job = wait_for("the second run", lambda: ended(team, name, run=2), 1600)
    assert job.status.phase is Phase.SUCCEEDED
    assert [run.number for run in job.status.runs] == [1]


@dataclass(frozen=True)
class Wait:
    """A FineTuneJob that waits until an admin puts something right, and what its status must say meanwhile."""

    name: str
    reason: Reason
    says: tuple[str, ...]
    """Parts of the message: place and value. It ends in the reason's remedy."""
    prepare: Callable[[Kubectl], object]
    changes: Spec = field(default_factory=dict)


WAITS = (
    Wait(
        "runner",
        Reason.RUNNER_SERVICE_ACCOUNT_MISSING,
        ("ServiceAccount 'finetune-runner' of profile 'cpu-small' does not exist in namespace ",),
        lambda team: team("delete", "serviceaccount", "finetune-runner"),
    ),
    Wait(
        "quota",
        Reason.QUOTA_EXCEEDED,
        ("exceeded quota: nothing, requested: pods=1, used: pods=0, limited: pods=0.",),
        lambda team: team.apply(quota()),
    ),
    Wait(
        "secret",
        Reason.SECRET_MISSING,
        ('cannot start: secret "s3-credentials" not found.',),
        lambda team: team("delete", "secret", "s3-credentials"),
    ),
)


def quota() -> Object:
    """A ResourceQuota without room for a pod."""
    return {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "nothing"},
        "spec": {"hard": {"pods": "0"}},
    }


@pytest.mark.parametrize("wait", WAITS, ids=lambda wait: wait.name)
def test_what_an_admin_can_put_right_is_waited_for(team: Kubectl, wait: Wait) -> None:
    wait.prepare(team)
    team.apply(tiny_job(wait.name, **wait.changes))

    def stalled() -> dict[str, Any] | None:
        job = FineTuneJob.model_validate(team.get("ftj", wait.name))
        found = condition(job, "Stalled")
        return found if found.get("status") == "True" and found["reason"] == wait.reason.value else None

    message = wait_for(f"Stalled with {wait.reason}", stalled, 600)["message"]
    assert all(part in message for part in wait.says), message
    assert message.endswith(f" {REMEDIES[wait.reason]}"), message
    assert not [pod for pod in team.items("pods") if pod["status"]["phase"] in ("Running", "Failed")]


def test_a_profile_that_is_not_offered_is_refused_at_once(team: Kubectl) -> None:
    """By the chart's admission policy, which knows the profiles that this namespace may use."""
    with pytest.raises(ClusterError) as refused:
        team.apply(tiny_job("profile", profile="gpu-moon"))
    assert_says(str(refused.value), "spec.profile is 'gpu-moon'", team.namespace, "cpu-small", "admin", "tenancy.rules")


def reasons(team: Kubectl, name: str) -> set[str]:
    """Of the events of a FineTuneJob."""
    return {each["reason"] for each in team.items("events") if each["involvedObject"]["name"] == name}


def ended(team: Kubectl, name: str, run: int = 1) -> FineTuneJob | None:
    """The FineTuneJob once its run of this number has ended."""
    job = FineTuneJob.model_validate(team.get("ftj", name))
    current = job.status.run
    return job if current and current.number == run and current.finished_at else None


def condition(job: FineTuneJob, kind: str) -> dict[str, Any]:
    """One condition, by its wire names; empty if there is none."""
    return next((each.model_dump(by_alias=True) for each in job.status.conditions if each.type == kind), {})
