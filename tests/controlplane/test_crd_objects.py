"""What the API server makes of an object, and how kubectl shows it: defaults, columns, selectors, scale, explain."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from pydantic import BaseModel

from finetune_api import finetunejob, job_status, meta, serving_status
from finetune_operator.framework.stored_status import sparse
from tests.support.crd_cases import (
    TIME,
    valid_object,
)
from tests.support.crd_patterns import DIGEST, KINDS, SCHEMAS, Object
from tests.support.crd_server import CrdServer, judge

pytestmark = pytest.mark.controlplane


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        (meta.FINETUNEJOB, job_status.FineTuneJobStatus()),
        (meta.ADAPTERDEPLOYMENT, serving_status.AdapterDeploymentStatus()),
    ],
)
def test_a_new_object_has_an_empty_status_of_generation_minus_one(
    crds: CrdServer, kind: str, status: BaseModel
) -> None:
    answer = crds.create(valid_object(kind))
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
def test_defaults_are_written_into_the_object(crds: CrdServer, spec: Object) -> None:
    """``kubectl get -o yaml`` tells what will be done: the stored object equals what the models fill in."""
    answer = crds.create(valid_object(meta.FINETUNEJOB) | {"spec": spec})
    assert isinstance(answer, dict), answer
    model = finetunejob.FineTuneJobSpec.model_validate(spec)
    filled_in = model.model_dump(mode="json", exclude_none=True)
    for absent in ("column", "answerSchema"):  # empty in the model only, for the sake of prepare's key
        filled_in["dataset"].get("distillation", {}).pop(absent, None)
    assert answer["spec"] == filled_in


@pytest.mark.parametrize("kind", KINDS)
def test_unknown_fields_are_named(crds: CrdServer, kind: str) -> None:
    body = valid_object(kind)
    body["spec"]["modle"] = "typo"
    judge(crds.create(body), 'unknown field "spec.modle"')


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
                "goalsMet": "1/2",
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
        "NAME PHASE STAGES STAGE PERCENT ACCURACY GOALS REASON AGE",
        "Running 2/5 train 42 0.90 1/2 StageStarted",
        "0.20 1/2 StageStarted s3://abc/artifacts/x m",
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
                "state": "Canary",
                "artifactDigest": DIGEST,
                "artifactUri": "s3://abc/artifacts/y",
                "deployment": "x-def",
                "since": TIME,
                "canary": {"step": 1, "steps": 2, "weight": 10, "share": 25, "pods": "1 of 4", "summary": "1/2 25%"},
            },
            "conditions": [
                {"type": "Ready", "status": "True", "reason": "Serving", "message": "m", "lastTransitionTime": TIME}
            ],
        },
        "NAME PHASE READY REVISION CANDIDATE CANARY REPLICAS ACCURACY ENDPOINT AGE",
        "Progressing True abc def 1/2 25% 2 0.90 http://x.default.svc:80",
        "Serving m",
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_printer_columns(crds: CrdServer, kind: str) -> None:
    status, header, row, wide = COLUMNS[kind]
    stored = crds.fresh(valid_object(kind) | {"status": status})
    name, short_name = stored["metadata"]["name"], KINDS[kind].short_name
    lines = [line.split() for line in crds.plane.kubectl("get", short_name, name).splitlines()]
    assert lines[0] == header.split()
    assert lines[1][:-1] == [name, *row.split()]
    line = " ".join(crds.plane.kubectl("get", short_name, name, "-o", "wide").splitlines()[1].split())
    assert wide in line


SELECTED: dict[str, tuple[str, dict[str, str]]] = {
    meta.FINETUNEJOB: ("Failed", {"status.phase": "Failed", "spec.profile": "selected"}),
    meta.ADAPTERDEPLOYMENT: ("Degraded", {"status.phase": "Degraded", "spec.runtime": "selected"}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_objects_are_selected_by_phase_and_profile(crds: CrdServer, kind: str) -> None:
    phase, fields = SELECTED[kind]
    named = next(name for name in fields if name.startswith("spec.")).removeprefix("spec.")
    bodies = [valid_object(kind) | {"status": {"phase": each}} for each in (phase, "Pending", phase)]
    bodies[0]["spec"][named] = bodies[1]["spec"][named] = "selected"
    wanted, *_ = (crds.fresh(body)["metadata"]["name"] for body in bodies)
    selector = ",".join(f"{path}={value}" for path, value in fields.items())
    listed = crds.plane.kubectl("get", KINDS[kind].short_name, "--field-selector", selector, "-o", "name")
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
def test_appliers_share_a_set(
    crds: CrdServer, mine: Object, yours: Object, path: tuple[str, ...], merged: list[str]
) -> None:
    """Server-side apply: each owns its values, and takes back only these."""
    body = {"apiVersion": meta.API_VERSION, "kind": meta.FINETUNEJOB, "metadata": {"name": f"shared-{path[1].lower()}"}}

    def apply(manager: str, spec: Object) -> list[str]:
        options = ("--server-side", f"--field-manager={manager}", "-o", "json", "-f", "-")
        value = json.loads(crds.plane.kubectl("apply", *options, stdin=json.dumps(body | {"spec": spec})))["spec"]
        for step in path:
            value = value[step]
        return sorted(value)

    apply("me", SHORT | mine)
    assert apply("you", yours) == merged
    assert apply("me", SHORT) == merged[1:]


def test_both_kinds_are_in_one_category(crds: CrdServer) -> None:
    names = {crds.fresh(valid_object(kind))["metadata"]["name"] for kind in KINDS}
    listed = crds.plane.kubectl("get", "finetune", "-o", "name")
    assert names <= {line.split("/")[1] for line in listed.splitlines()}


def test_adapter_deployments_scale(crds: CrdServer) -> None:
    body = valid_object(meta.ADAPTERDEPLOYMENT) | {"status": {"replicas": 1, "selector": "app=x"}}
    name = crds.fresh(body)["metadata"]["name"]
    crds.plane.kubectl("scale", f"adep/{name}", "--replicas=3")
    scale = json.loads(crds.plane.kubectl("get", "adep", name, "--subresource=scale", "-o", "json"))
    assert scale["spec"]["replicas"] == 3
    assert scale["status"] == {"replicas": 1, "selector": "app=x"}


def objects(path: str, schema: Object) -> Iterator[tuple[str, Object]]:
    """Every object in a schema, with the path that kubectl explain takes."""
    inner = schema["items"] if schema["type"] == "array" else schema
    if "properties" in inner:
        yield path, inner["properties"]
        for name, child in inner["properties"].items():
            yield from objects(f"{path}.{name}", child)


EXPLAINED = {
    (name, part): dict(objects(f"{kind.plural}.{part}", SCHEMAS[name]["properties"][part]))
    for name, kind in KINDS.items()
    for part in ("spec", "status")
}
"""For spec and status of each kind: the fields of every object, by the path that kubectl explain takes."""


@pytest.fixture(scope="module")
def published(crds: CrdServer) -> dict[str, Object]:
    """The schemas that kubectl explain reads, by the plural of their kind."""
    document = json.loads(crds.plane.kubectl("get", "--raw", f"/openapi/v3/apis/{meta.API_VERSION}"))
    return {kind.plural: document["components"]["schemas"][schema_name(name)] for name, kind in KINDS.items()}


def schema_name(kind: str) -> str:
    """As the API server calls it: ``dev.finetune.v1alpha1.FineTuneJob``."""
    return ".".join((*reversed(meta.GROUP.split(".")), meta.VERSION, kind))


@pytest.mark.parametrize(
    ("path", "fields"),
    [pytest.param(path, fields, id=path) for paths in EXPLAINED.values() for path, fields in paths.items()],
)
def test_every_field_is_explained(published: dict[str, Object], path: str, fields: dict[str, Object]) -> None:
    plural, *names = path.split(".")
    schema = published[plural]
    for name in names:
        schema = schema["properties"][name]
        schema = schema.get("items", schema)
    for name, field in fields.items():
        assert schema["properties"][name]["description"] == field["description"], name


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        pytest.param(path, paths[path], id=path)
        for paths in EXPLAINED.values()
        for path in (min(paths, key=len), max(paths, key=lambda each: each.count(".")))
    ],
)
def test_kubectl_explains_what_is_published(crds: CrdServer, path: str, fields: dict[str, Object]) -> None:
    """It reads nothing but the published schemas; shown by the highest and a lowest object of each part."""
    shown = " ".join(crds.plane.kubectl("explain", path).split())
    for name, field in fields.items():
        assert f"{name} <" in shown
        assert " ".join(field["description"].split()) in shown, name
