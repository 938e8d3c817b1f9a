"""The CEL rule that freezes a FineTuneJob's spec while a stage is at work: when, which fields, and at which depth."""

from __future__ import annotations

from typing import Any

import pytest

from finetune_api import job_status, meta
from tests.support.crd_cases import ABSENT, TIME, Case, Path, changed, valid_object
from tests.support.crd_patterns import SCHEMAS, Object
from tests.support.crd_rules import DATASET, DISTILLATION, message_of
from tests.support.crd_server import CrdServer, judge

pytestmark = pytest.mark.controlplane


FREE = {"budget", "retention", "suspend", "tracking"}
FROZEN = message_of(
    SCHEMAS[meta.FINETUNEJOB],
    *(
        "spec is frozen while a stage is at work",
        "only suspend, tracking, retention, credentials, caBundle and a higher budget may change",
        "set spec.suspend to true",
        "wait for the run",
    ),
)
OPEN_RUN: Object = {"id": "r", "number": 1, "specHash": "h", "startedAt": TIME}
WORKING: Object = {"name": "train", "state": "Running", "workingSince": TIME}
AT_WORK: Object = {"phase": "Running", "run": OPEN_RUN, "stages": [{"name": "prepare", "state": "Reused"}, WORKING]}
STATUSES: dict[str, tuple[Object, bool]] = {
    "at work": (AT_WORK, True),
    "at work, in other words": (AT_WORK | {"phase": "Pending"}, True),
    "no status": ({}, False),
    "no stage yet": ({"run": OPEN_RUN}, False),
    "no pod at work": (AT_WORK | {"stages": [{"name": "train", "state": "Running", "startedAt": TIME}]}, False),
    "between two stages": (AT_WORK | {"stages": [WORKING | {"state": "Succeeded"}]}, False),
    "ended": (AT_WORK | {"run": OPEN_RUN | {"finishedAt": TIME, "outcome": "Failed"}}, False),
}
"""A status, and whether it freezes the spec."""
CHANGES: Object = {
    "profile": "other",
    "model": {"uri": "s3://abc/other"},
    "dataset": {"sources": [{"uri": "s3://abc/other.csv"}]},
    "task": {"labels": ["other"]},
    "training": {"rank": 64},
    "export": {"format": "FP8"},
    "evaluation": {"maxSamples": 99},
    "output": {"uri": "s3://abc/other", "name": "other"},
    "budget": {"maxCost": "9999999.99"},
    "storage": {"region": "other"},
    "tracking": {"mlflow": {"url": "http://other"}},
    "retention": {"checkpoints": 9},
    "suspend": True,
    "rerun": "other",
    "reuse": "Never",
}
"""Another value for every field of a FineTuneJob's spec."""


def test_every_field_of_the_spec_is_tried_against_the_freeze() -> None:
    assert CHANGES.keys() == SCHEMAS[meta.FINETUNEJOB]["properties"]["spec"]["properties"].keys()


@pytest.mark.parametrize(("status", "frozen"), STATUSES.values(), ids=STATUSES.keys())
def test_what_freezes_a_spec(crds: CrdServer, status: Object, frozen: bool) -> None:
    """The model answers as the rule does."""
    assert job_status.FineTuneJobStatus.model_validate(status).at_work is frozen
    job = crds.fresh(valid_object(meta.FINETUNEJOB) | {"status": status})
    judge(crds.replace(job | {"spec": job["spec"] | {"profile": "other"}}), FROZEN if frozen else None)


@pytest.mark.parametrize("field", CHANGES)
def test_spec_is_frozen_while_a_stage_is_at_work(crds: CrdServer, field: str) -> None:
    job = crds.fresh(valid_object(meta.FINETUNEJOB) | {"status": AT_WORK})
    job["spec"][field] = CHANGES[field]
    judge(crds.replace(job), None if field in FREE else FROZEN)


BUDGETS: list[tuple[Object | None, Object | None, bool]] = [
    ({"maxCost": "5"}, {"maxCost": "5.00"}, True),
    ({"maxCost": "5"}, {"maxCost": "10"}, True),
    ({"maxCost": "5"}, None, True),
    (None, None, True),
    ({"maxCost": "10"}, {"maxCost": "9.99"}, False),
    ({"maxCost": "5"}, {"maxCost": "6", "onExceeded": "Fail"}, False),
    (None, {"maxCost": "1000"}, False),
]


@pytest.mark.parametrize(("before", "after", "allowed"), BUDGETS)
def test_a_budget_may_be_raised_while_a_stage_is_at_work(
    crds: CrdServer, before: Object | None, after: Object | None, allowed: bool
) -> None:
    def budgeted(spec: Object, budget: Object | None) -> Object:
        return {name: value for name, value in (spec | {"budget": budget}).items() if value is not None}

    body = valid_object(meta.FINETUNEJOB)
    job = crds.fresh(body | {"spec": budgeted(body["spec"], before), "status": AT_WORK})
    judge(crds.replace(job | {"spec": budgeted(job["spec"], after)}), None if allowed else FROZEN)


FREE_AT_DEPTH = [
    (("spec", "storage", "secretRef"), ABSENT),
    (("spec", "storage", "secretRef", "name"), "other"),
    (("spec", "storage", "caBundle", "configMapKeyRef", "name"), "other"),
    (("spec", "output", "signing"), ABSENT),
    (("spec", "output", "signing", "secretKeyRef", "name"), "other"),
    (("spec", "output", "pushTo", 0, "oci", "secretRef", "name"), "other"),
    (("spec", "output", "pushTo", 0, "huggingFace", "secretKeyRef", "key"), "OTHER"),
    (("spec", "output", "pushTo", 0, "oci", "caBundle", "configMapKeyRef", "key"), "other"),
    ((*DISTILLATION, "teacher", "secretKeyRef"), ABSENT),
    ((*DISTILLATION, "teacher", "secretKeyRef", "key"), "OTHER"),
    (("spec", "evaluation", "judge", "endpoint", "secretKeyRef", "name"), "other"),
    (("spec", "evaluation", "baseline", "endpoint", "secretKeyRef"), ABSENT),
    (("spec", "tracking", "mlflow", "secretRef"), ABSENT),
    (("spec", "tracking", "wandb", "project"), "other"),
    (("spec", "retention", "checkpoints"), 9),
]


@pytest.mark.parametrize("back", [False, True], ids=["there", "back"])
@pytest.mark.parametrize(("path", "value"), FREE_AT_DEPTH, ids=lambda each: str(each))
def test_what_may_change_while_a_stage_is_at_work(crds: CrdServer, path: Path, value: Any, back: bool) -> None:
    before, after = valid_object(meta.FINETUNEJOB, path), changed(Case(meta.FINETUNEJOB, path, value, None))
    if back:
        before, after = after, before
    job = crds.fresh(before | {"status": AT_WORK})
    judge(crds.replace(job | {"spec": after["spec"]}), None)


DEEP_CHANGES = [
    Case(meta.FINETUNEJOB, path, value, FROZEN)
    for path, value in (
        ((*DATASET, "sources", 0), {"configMapKeyRef": {"name": "rows", "key": "rows.csv"}}),
        ((*DATASET, "columns", "template"), "{other}"),
        ((*DATASET, "pii", "ner"), ABSENT),
        ((*DATASET, "pilot", "examples"), 99),
        ((*DISTILLATION, "teacher", "model"), "other"),
        (("spec", "evaluation", "judge", "endpoint", "model"), "other"),
        (("spec", "evaluation", "baseline"), ABSENT),
        (("spec", "evaluation", "metrics", 0, "parameters", 0, "value"), "other"),
        (("spec", "evaluation", "metrics", 0, "data", "uri"), "s3://other/tasks"),
        ((*DISTILLATION, "questionTemplate"), ABSENT),
        (("spec", "training", "targetModules"), []),
        (("spec", "budget", "onExceeded"), "Fail"),
        (("spec", "storage", "encryption"), ABSENT),
    )
]


@pytest.mark.parametrize("back", [False, True], ids=["there", "back"])
@pytest.mark.parametrize("case", DEEP_CHANGES, ids=str)
def test_the_freeze_reaches_every_depth(crds: CrdServer, case: Case, back: bool) -> None:
    """What is set, changed or left out below the spec is refused until the run is suspended."""
    before, after = valid_object(case.kind, case.path), changed(case)
    if back:
        before, after = after, before
    job = crds.fresh(before | {"status": AT_WORK})
    judge(crds.replace(job | {"spec": after["spec"]}), case.complaint)
    waiting = [{"name": "train", "state": "Running"}]
    suspended = crds.replace_status(job | {"status": AT_WORK | {"phase": "Suspended", "stages": waiting}})
    assert isinstance(suspended, dict), suspended
    judge(crds.replace(suspended | {"spec": after["spec"]}), None)


def test_labels_and_status_stay_free_while_a_stage_is_at_work(crds: CrdServer) -> None:
    job = crds.fresh(valid_object(meta.FINETUNEJOB) | {"status": AT_WORK})
    job["metadata"]["labels"] = {"team": "a"}
    updated = crds.replace(job)
    assert isinstance(updated, dict), updated
    judge(crds.replace_status(updated | {"status": {"phase": "Succeeded"}}), None)
