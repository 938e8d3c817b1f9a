"""What the API server itself refuses, and what it shows: every bound, enum, pattern and CEL rule of both CRDs.

Bounds, enums and patterns are walked from the generated schema (tests/support/crd_cases.py), so that a new field is
covered the day it appears. CEL rules have tables of their own. What the API server refuses of a spec, the models refuse
too, and they take what it takes: the operator reads every object that was let in, and the jobs run outside a cluster.
"""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from kubernetes import client, config
from pydantic import BaseModel, ValidationError

from finetune_api import adapterdeployment, crdgen, finetunejob, meta
from finetune_operator.framework.stored_status import sparse
from hack.cluster.controlplane import ControlPlane
from tests.support.crd_cases import (
    ABSENT,
    DATASET,
    DISTILLATION,
    IN_ITS_OWN_WORDS,
    OLD_SHAPES,
    ONLY_THE_API_SERVER,
    RULE_CASES,
    SPEC_CASES,
    STATUS_CASES,
    TIME,
    Case,
    Path,
    changed,
    dotted,
    message_of,
    rules,
    valid_object,
)
from tests.support.crd_patterns import DIGEST, KINDS, PATTERNS, SCHEMAS, Object

pytestmark = pytest.mark.controlplane

NAMESPACE = "default"


class Api:
    """Requests to the API server under test; each returns the stored object or the server's complaint."""

    def __init__(self, plane: ControlPlane) -> None:
        self.plane = plane
        self._objects = client.CustomObjectsApi(config.new_client_from_config(str(plane.kubeconfig)))

    def create(self, body: Object, dry_run: bool = True) -> Object | str:
        return self._call("create_namespaced_custom_object", body, dry_run)

    def replace(self, body: Object, dry_run: bool = False) -> Object | str:
        return self._call("replace_namespaced_custom_object", body, dry_run, body["metadata"]["name"])

    def replace_status(self, body: Object, dry_run: bool = False) -> Object | str:
        return self._call("replace_namespaced_custom_object_status", body, dry_run, body["metadata"]["name"])

    def fresh(self, body: Object) -> Object:
        """Create the object under a name that no other test uses, with the status that it holds."""
        body = copy.deepcopy(body)
        del body["metadata"]["name"]
        body["metadata"]["generateName"] = "fresh-"
        stored = self.create(body, dry_run=False)
        assert isinstance(stored, dict), stored
        if "status" in body:
            stored = self.replace_status(stored | {"status": body["status"]})
            assert isinstance(stored, dict), stored
        return stored

    def _call(self, method: str, body: Object, dry_run: bool, *name: str) -> Object | str:
        plural = KINDS[body["kind"]].plural
        options = {"field_validation": "Strict"} | ({"dry_run": "All"} if dry_run else {})
        try:
            stored: Object = getattr(self._objects, method)(
                meta.GROUP, meta.VERSION, NAMESPACE, plural, *name, body=body, **options
            )
        except client.ApiException as error:
            if error.status not in {400, 422}:
                raise
            return str(json.loads(error.body)["message"])
        return stored


@pytest.fixture(scope="module")
def api() -> Iterator[Api]:
    with ControlPlane.temporary() as plane:
        for kind in crdgen.KINDS:
            plane.kubectl("apply", "-f", "-", stdin=crdgen.text(kind))
        for kind in crdgen.KINDS:
            name = f"{kind.plural}.{meta.GROUP}"
            plane.kubectl("wait", "--for=condition=Established", f"crd/{name}", "--timeout=30s")
        yield Api(plane)


def judge(answer: Object | str, complaint: str | None) -> None:
    if complaint is None:
        assert isinstance(answer, dict), answer
    else:
        assert isinstance(answer, str), "accepted"
        assert complaint in answer


def complaint_of_the_model(body: Object) -> str | None:
    """What the model says to a spec; None: it accepts."""
    try:
        KINDS[body["kind"]].spec.model_validate(body["spec"])
    except ValidationError as error:
        return str(error)
    return None


PARTS = ("spec", "status")


def test_every_pattern_is_tried_once_with_all_its_texts_and_at_every_field_that_has_it() -> None:
    tried = [case for case in SPEC_CASES + STATUS_CASES if case.complaint and case.complaint.startswith("should match")]
    for pattern, texts in PATTERNS.items():
        refused = Counter(case.value for case in tried if case.complaint == f"should match '{pattern}'")
        assert set(refused) == set(texts.refused)
        fields = sum(fields_with(SCHEMAS[kind]["properties"][part], pattern) for kind in KINDS for part in PARTS)
        assert sorted(refused.values(), reverse=True) == [fields, *[1] * (len(texts.refused) - 1)], pattern


def fields_with(schema: Object, pattern: str) -> int:
    """Fields of the spec and the status with this pattern, items of lists included."""
    below = [*schema.get("properties", {}).values(), *([schema["items"]] if "items" in schema else [])]
    return (schema.get("pattern") == pattern) + sum(fields_with(each, pattern) for each in below)


@pytest.mark.parametrize("case", SPEC_CASES, ids=str)
def test_bounds_of_the_spec(api: Api, case: Case) -> None:
    body = changed(case)
    judge(api.create(body), case.complaint)
    assert (complaint_of_the_model(body) is None) == (case.complaint is None)


@pytest.mark.parametrize("case", RULE_CASES, ids=str)
def test_cel_rules(api: Api, case: Case) -> None:
    """The API server's only complaint is the rule's message, at its place; the model says the same."""
    body = changed(case)
    answer, model = api.create(body), complaint_of_the_model(body)
    judge(answer, case.complaint)
    if case.complaint is None:
        assert model is None
    else:
        assert f'"valid" is invalid: {dotted(case.path)}: Invalid value: ' in str(answer)
        assert str(answer).endswith(f": {case.complaint}")
        silent = ONLY_THE_API_SERVER | (IN_ITS_OWN_WORDS if model else set())
        assert case.complaint in str(model) or case.complaint in silent


def test_the_old_shapes_are_these() -> None:
    """A zero that meant something: whoever has such a manifest is told what to write. Fields that are gone are in
    ``test_retired_fields.py``."""
    refused = [dotted(case.path).removeprefix("spec.") for case in OLD_SHAPES if case.complaint]
    assert sorted(refused) == [
        "dataset.distillation.deadlineMinutes",
        "dataset.distillation.maxAnswerWords",
        "dataset.distillation.requestsPerMinute",
        "dataset.duplicates.nearPercent",
        "training.checkpointMinutes",
        "training.maxSteps",
        "training.patience",
    ]


def test_every_cel_rule_is_kept_and_broken() -> None:
    every = {rule for kind in KINDS for rule in rules(kind, ("spec",), SCHEMAS[kind]["properties"]["spec"])}
    assert {(case.kind, case.path, case.complaint) for case in RULE_CASES if case.complaint} == every
    kept = {(case.kind, case.path) for case in RULE_CASES if not case.complaint}
    assert kept == {(kind, path) for kind, path, _ in every}


@pytest.fixture(scope="module")
def stored(api: Api) -> dict[str, Object]:
    return {kind: api.fresh(valid_object(kind)) for kind in KINDS}


@pytest.mark.parametrize("case", STATUS_CASES, ids=str)
def test_bounds_of_the_status(api: Api, stored: dict[str, Object], case: Case) -> None:
    body = stored[case.kind] | {"status": changed(case)["status"]}
    judge(api.replace_status(body, dry_run=True), case.complaint)


NAME = message_of(SCHEMAS[meta.FINETUNEJOB], "metadata.name", "start with a lower-case letter", "at most 40 characters")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("name", "accepted"),
    [
        ("a", True),
        ("team-a-1", True),
        ("a" * meta.MAX_NAME, True),
        ("a" * (meta.MAX_NAME + 1), False),
        ("1a", False),
        ("a.b", False),
    ],
)
def test_name_rule(api: Api, kind: str, name: str, accepted: bool) -> None:
    body = valid_object(kind)
    body["metadata"]["name"] = name
    judge(api.create(body), None if accepted else NAME)


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
    "export": None,
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
"""Another value for every field of a FineTuneJob's spec; None where there is only one."""


def test_every_field_of_the_spec_is_tried_against_the_freeze() -> None:
    assert CHANGES.keys() == SCHEMAS[meta.FINETUNEJOB]["properties"]["spec"]["properties"].keys()


@pytest.mark.parametrize(("status", "frozen"), STATUSES.values(), ids=STATUSES.keys())
def test_what_freezes_a_spec(api: Api, status: Object, frozen: bool) -> None:
    """The model answers as the rule does."""
    assert finetunejob.FineTuneJobStatus.model_validate(status).at_work is frozen
    job = api.fresh(valid_object(meta.FINETUNEJOB) | {"status": status})
    judge(api.replace(job | {"spec": job["spec"] | {"profile": "other"}}), FROZEN if frozen else None)


@pytest.mark.parametrize("field", [field for field, value in CHANGES.items() if value is not None])
def test_spec_is_frozen_while_a_stage_is_at_work(api: Api, field: str) -> None:
    job = api.fresh(valid_object(meta.FINETUNEJOB) | {"status": AT_WORK})
    job["spec"][field] = CHANGES[field]
    judge(api.replace(job), None if field in FREE else FROZEN)


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
    api: Api, before: Object | None, after: Object | None, allowed: bool
) -> None:
    def budgeted(spec: Object, budget: Object | None) -> Object:
        return {name: value for name, value in (spec | {"budget": budget}).items() if value is not None}

    body = valid_object(meta.FINETUNEJOB)
    job = api.fresh(body | {"spec": budgeted(body["spec"], before), "status": AT_WORK})
    judge(api.replace(job | {"spec": budgeted(job["spec"], after)}), None if allowed else FROZEN)


FREE_AT_DEPTH = [
    (("spec", "storage", "secretRef"), ABSENT),
    (("spec", "storage", "secretRef", "name"), "other"),
    (("spec", "storage", "caBundle", "configMapKeyRef", "name"), "other"),
    ((*DISTILLATION, "teacher", "secretKeyRef"), ABSENT),
    ((*DISTILLATION, "teacher", "secretKeyRef", "key"), "OTHER"),
    (("spec", "tracking", "mlflow", "secretRef"), ABSENT),
    (("spec", "tracking", "wandb", "project"), "other"),
    (("spec", "retention", "checkpoints"), 9),
]


@pytest.mark.parametrize("back", [False, True], ids=["there", "back"])
@pytest.mark.parametrize(("path", "value"), FREE_AT_DEPTH, ids=lambda each: str(each))
def test_what_may_change_while_a_stage_is_at_work(api: Api, path: Path, value: Any, back: bool) -> None:
    before, after = valid_object(meta.FINETUNEJOB, path), changed(Case(meta.FINETUNEJOB, path, value, None))
    if back:
        before, after = after, before
    job = api.fresh(before | {"status": AT_WORK})
    judge(api.replace(job | {"spec": after["spec"]}), None)


DEEP_CHANGES = [
    Case(meta.FINETUNEJOB, path, value, FROZEN)
    for path, value in (
        ((*DATASET, "sources", 0), {"configMapKeyRef": {"name": "rows", "key": "rows.csv"}}),
        ((*DATASET, "columns", "template"), "{other}"),
        ((*DATASET, "pii", "ner"), ABSENT),
        ((*DATASET, "pilot", "examples"), 99),
        ((*DISTILLATION, "teacher", "model"), "other"),
        ((*DISTILLATION, "questionTemplate"), ABSENT),
        (("spec", "training", "targetModules"), []),
        (("spec", "budget", "onExceeded"), "Fail"),
        (("spec", "storage", "encryption"), ABSENT),
    )
]


@pytest.mark.parametrize("back", [False, True], ids=["there", "back"])
@pytest.mark.parametrize("case", DEEP_CHANGES, ids=str)
def test_the_freeze_reaches_every_depth(api: Api, case: Case, back: bool) -> None:
    """What is set, changed or left out below the spec is refused until the run is suspended."""
    before, after = valid_object(case.kind, case.path), changed(case)
    if back:
        before, after = after, before
    job = api.fresh(before | {"status": AT_WORK})
    judge(api.replace(job | {"spec": after["spec"]}), case.complaint)
    waiting = [{"name": "train", "state": "Running"}]
    suspended = api.replace_status(job | {"status": AT_WORK | {"phase": "Suspended", "stages": waiting}})
    assert isinstance(suspended, dict), suspended
    judge(api.replace(suspended | {"spec": after["spec"]}), None)


def test_labels_and_status_stay_free_while_a_stage_is_at_work(api: Api) -> None:
    job = api.fresh(valid_object(meta.FINETUNEJOB) | {"status": AT_WORK})
    job["metadata"]["labels"] = {"team": "a"}
    updated = api.replace(job)
    assert isinstance(updated, dict), updated
    judge(api.replace_status(updated | {"status": {"phase": "Succeeded"}}), None)


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        (meta.FINETUNEJOB, finetunejob.FineTuneJobStatus()),
        (meta.ADAPTERDEPLOYMENT, adapterdeployment.AdapterDeploymentStatus()),
    ],
)
def test_a_new_object_has_an_empty_status_of_generation_minus_one(api: Api, kind: str, status: BaseModel) -> None:
    answer = api.create(valid_object(kind))
    assert isinstance(answer, dict), answer
    assert answer["status"]["observedGeneration"] == -1
    assert answer["status"] == sparse(status.model_dump(mode="json", exclude_none=True))


SHORT: Object = {
    "profile": "cpu-small",
    "model": {"uri": "s3://abc/model"},
    "dataset": {"sources": [{"uri": "s3://abc/d.csv"}]},
    "output": {"uri": "s3://abc/out", "name": "out"},
}
SHORT_BLOCKS: Object = {
    "dataset": {
        "sources": [{"configMapKeyRef": {"name": "rows", "key": "rows.csv"}}],
        "cleaning": {},
        "pii": {"ner": {"package": "en_core_web_sm"}},
        "duplicates": {},
        "split": {"testPercent": 5},
        "benchmarks": [{"uri": "s3://abc/b.jsonl"}],
        "replay": {"source": {"uri": "s3://abc/r.jsonl"}},
        "distillation": {
            "teacher": {"url": "http://t/v1", "model": "m", "secretKeyRef": {"name": "s", "key": "k"}},
            "prices": {"usdPerMillionInputTokens": "1"},
        },
        "pilot": {},
    },
    "budget": {"maxCost": "25"},
    "storage": {
        "secretRef": {"name": "s"},
        "caBundle": {"configMapKeyRef": {"name": "ca", "key": "ca.crt"}},
        "encryption": {"algorithm": "aws:kms"},
    },
    "tracking": {
        "mlflow": {"url": "http://mlflow", "secretRef": {"name": "s"}},
        "wandb": {"secretKeyRef": {"name": "s", "key": "k"}},
    },
    "retention": {},
}
"""Every optional block, as short as it may be."""


@pytest.mark.parametrize("spec", [SHORT, SHORT | SHORT_BLOCKS], ids=["short", "with every block"])
def test_defaults_are_written_into_the_object(api: Api, spec: Object) -> None:
    """``kubectl get -o yaml`` tells what will be done: the stored object equals what the models fill in."""
    answer = api.create(valid_object(meta.FINETUNEJOB) | {"spec": spec})
    assert isinstance(answer, dict), answer
    model = finetunejob.FineTuneJobSpec.model_validate(spec)
    assert answer["spec"] == model.model_dump(mode="json", exclude_none=True)


@pytest.mark.parametrize("kind", KINDS)
def test_unknown_fields_are_named(api: Api, kind: str) -> None:
    body = valid_object(kind)
    body["spec"]["modle"] = "typo"
    judge(api.create(body), 'unknown field "spec.modle"')


COLUMNS = {
    meta.FINETUNEJOB: (
        {
            "phase": "Running",
            "stagesDone": "2/5",
            "progress": {"stage": "train", "percent": 42, "updatedAt": TIME},
            "evaluation": {
                "samples": 9,
                "accuracy": {"base": "0.20", "artifact": "0.90"},
                "f1": {"base": "0.10", "artifact": "0.80"},
            },
            "artifact": {"digest": DIGEST, "uri": "s3://abc/artifacts/x", "format": "INT8"},
            "conditions": [
                {
                    "type": "Ready",
                    "status": "False",
                    "reason": "StageStarted",
                    "message": "m",
                    "lastTransitionTime": TIME,
                }
            ],
        },
        "NAME PHASE STAGES STAGE PERCENT ACCURACY REASON AGE",
        "Running 2/5 train 42 0.90 StageStarted",
        "0.20 StageStarted s3://abc/artifacts/x m",
    ),
    meta.ADAPTERDEPLOYMENT: (
        {
            "phase": "Progressing",
            "endpoint": "http://x.default.svc:80",
            "readyReplicas": 2,
            "stable": {
                "revision": "abc",
                "state": "Serving",
                "artifactDigest": DIGEST,
                "artifactUri": "s3://abc/artifacts/x",
                "deployment": "x-abc",
                "since": TIME,
                "accuracy": "0.90",
            },
            "candidate": {
                "revision": "def",
                "state": "Verifying",
                "artifactDigest": DIGEST,
                "artifactUri": "s3://abc/artifacts/y",
                "deployment": "x-def",
                "since": TIME,
            },
            "conditions": [
                {"type": "Ready", "status": "True", "reason": "Serving", "message": "m", "lastTransitionTime": TIME}
            ],
        },
        "NAME PHASE READY REVISION CANDIDATE REPLICAS ACCURACY ENDPOINT AGE",
        "Progressing True abc def 2 0.90 http://x.default.svc:80",
        "Serving m",
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_printer_columns(api: Api, kind: str) -> None:
    status, header, row, wide = COLUMNS[kind]
    stored = api.fresh(valid_object(kind) | {"status": status})
    name, short_name = stored["metadata"]["name"], KINDS[kind].short_name
    lines = [line.split() for line in api.plane.kubectl("get", short_name, name).splitlines()]
    assert lines[0] == header.split()
    assert lines[1][:-1] == [name, *row.split()]
    line = " ".join(api.plane.kubectl("get", short_name, name, "-o", "wide").splitlines()[1].split())
    assert wide in line


SELECTED: dict[str, tuple[str, dict[str, str]]] = {
    meta.FINETUNEJOB: ("Failed", {"status.phase": "Failed", "spec.profile": "selected"}),
    meta.ADAPTERDEPLOYMENT: ("Degraded", {"status.phase": "Degraded", "spec.runtime": "selected"}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_objects_are_selected_by_phase_and_profile(api: Api, kind: str) -> None:
    phase, fields = SELECTED[kind]
    named = next(name for name in fields if name.startswith("spec.")).removeprefix("spec.")
    bodies = [valid_object(kind) | {"status": {"phase": each}} for each in (phase, "Pending", phase)]
    bodies[0]["spec"][named] = bodies[1]["spec"][named] = "selected"
    wanted, *_ = (api.fresh(body)["metadata"]["name"] for body in bodies)
    selector = ",".join(f"{path}={value}" for path, value in fields.items())
    listed = api.plane.kubectl("get", KINDS[kind].short_name, "--field-selector", selector, "-o", "name")
    assert [line.split("/")[1] for line in listed.splitlines()] == [wanted]


SHARED: list[tuple[Object, Object, tuple[str, ...], list[str]]] = [
    ({"task": {"labels": ["a"]}}, {"task": {"labels": ["b"]}}, ("task", "labels"), ["a", "b"]),
    (
        {"training": {"targetModules": ["q_proj"]}},
        {"training": {"targetModules": ["v_proj"]}},
        ("training", "targetModules"),
        ["q_proj", "v_proj"],
    ),
]


@pytest.mark.parametrize(("mine", "yours", "path", "merged"), SHARED, ids=["labels", "targetModules"])
def test_appliers_share_a_set(api: Api, mine: Object, yours: Object, path: tuple[str, ...], merged: list[str]) -> None:
    """Server-side apply: each owns its values, and takes back only these."""
    body = {"apiVersion": meta.API_VERSION, "kind": meta.FINETUNEJOB, "metadata": {"name": f"shared-{path[1].lower()}"}}

    def apply(manager: str, spec: Object) -> list[str]:
        options = ("--server-side", f"--field-manager={manager}", "-o", "json", "-f", "-")
        value = json.loads(api.plane.kubectl("apply", *options, stdin=json.dumps(body | {"spec": spec})))["spec"]
        for step in path:
            value = value[step]
        return sorted(value)

    apply("me", SHORT | mine)
    assert apply("you", yours) == merged
    assert apply("me", SHORT) == merged[1:]


def test_both_kinds_are_in_one_category(api: Api) -> None:
    names = {api.fresh(valid_object(kind))["metadata"]["name"] for kind in KINDS}
    listed = api.plane.kubectl("get", "finetune", "-o", "name")
    assert names <= {line.split("/")[1] for line in listed.splitlines()}


def test_adapter_deployments_scale(api: Api) -> None:
    body = valid_object(meta.ADAPTERDEPLOYMENT) | {"status": {"replicas": 1, "selector": "app=x"}}
    name = api.fresh(body)["metadata"]["name"]
    api.plane.kubectl("scale", f"adep/{name}", "--replicas=3")
    scale = json.loads(api.plane.kubectl("get", "adep", name, "--subresource=scale", "-o", "json"))
    assert scale["spec"]["replicas"] == 3
    assert scale["status"] == {"replicas": 1, "selector": "app=x"}


def objects(path: str, schema: Object) -> Iterator[tuple[str, Object]]:
    """Every object in a schema, with the path that kubectl explain takes."""
    inner = schema["items"] if schema["type"] == "array" else schema
    if "properties" in inner:
        yield path, inner["properties"]
        for name, child in inner["properties"].items():
            yield from objects(f"{path}.{name}", child)


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        pytest.param(path, fields, id=path)
        for name, kind in KINDS.items()
        for part in ("spec", "status")
        for path, fields in objects(f"{kind.plural}.{part}", SCHEMAS[name]["properties"][part])
    ],
)
def test_kubectl_explains_every_field(api: Api, path: str, fields: dict[str, Object]) -> None:
    shown = " ".join(api.plane.kubectl("explain", path).split())
    for name, field in fields.items():
        assert f"{name} <" in shown
        assert " ".join(field["description"].split()) in shown, name
