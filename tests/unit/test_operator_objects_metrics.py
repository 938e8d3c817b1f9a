"""Metric containers in the pod of an evaluation: their order, their data, and what is part of the key."""

from __future__ import annotations

import json
from dataclasses import replace
from hashlib import sha256
from typing import Any

import pytest

from finetune_api.custom_metrics import FigureRule
from finetune_api.stages import Stage
from finetune_operator.finetunejob.stage_jobs import stage_request
from finetune_operator.resources.access import access_of
from finetune_operator.resources.stage_job import input_config_map, stage_job
from finetune_operator.resources.stage_request import StageRequest
from finetune_operator.settings import MetricContainer, Profile
from tests.support.runs import GIVEN, SETTINGS, SPEC, observed
from tests.unit.test_operator_objects import SHAPE, context, input_digests

pytestmark = pytest.mark.unit

BREVITY = MetricContainer(
    image="registry/brevity@sha256:1",
    args=["--strict"],
    env={"MODE": "fast"},
    figures={"brief": FigureRule(minimum=0, maximum=1)},
    limits={"cpu": "1", "memory": "1Gi"},
    timeout_seconds=60,
)


def measuring(**metrics: MetricContainer) -> tuple[StageRequest, Any]:
    """An evaluation with these metric containers, all of which it asks for, and its Job."""
    asked = [{"name": name, "parameters": [{"name": "words", "value": "9"}]} for name in metrics]
    spec = SPEC.model_validate(GIVEN | {"evaluation": {"metrics": asked}})
    settings = SETTINGS.model_copy(update={"metric_containers": metrics, "profiles": {"small": Profile(cpu=SHAPE)}})
    made = stage_request(context(replace(observed(spec), settings=settings)), Stage.EVALUATE)
    return made, stage_job(made)


def test_metric_containers_run_between_the_answers_and_the_rest() -> None:
    """One after the other, each with its own folders, and without anything by which a store is reached."""
    made, job = measuring(brevity=BREVITY, deep=BREVITY.model_copy(update={"needs_models": True}))
    pod = job["spec"]["template"]["spec"]
    assert [each["name"] for each in pod["initContainers"]] == ["answers", "metric-brevity", "metric-deep"]
    answers, brevity, deep = pod["initContainers"]
    [last] = pod["containers"]
    assert [each["command"][2] for each in (answers, last)] == ["finetune_jobs.evaluate", "finetune_jobs.measure"]
    assert answers["command"][4] == "/etc/finetune/answers.json"
    assert answers["command"][-2:] == last["command"][-2:] == ["--metrics", "/metrics"]
    assert last["resources"]["limits"] == SHAPE.limits, "those of a stage without a model"
    assert (brevity["image"], brevity["args"]) == (BREVITY.image, ["--strict"])
    assert "command" not in brevity
    assert brevity["securityContext"] == answers["securityContext"]
    assert {each["name"]: each.get("value") for each in brevity["env"]}.items() >= {
        "MODE": "fast",
        "HOME": "/tmp",
    }.items()
    assert not [each for each in brevity["env"] if "secretKeyRef" in each.get("valueFrom", {})]
    mounts = {
        each["mountPath"]: (each["name"], each["subPath"], each.get("readOnly", False))
        for each in brevity["volumeMounts"]
    }
    assert mounts == {
        "/metrics/in": ("metrics", "in/brevity", True),
        "/metrics/out": ("metrics", "out/brevity", False),
        "/tmp": ("metrics", "tmp/brevity", False),
    }
    models = [each for each in deep["volumeMounts"] if each["mountPath"] == "/metrics/models"]
    assert models == [{"name": "metrics", "subPath": "models", "mountPath": "/metrics/models", "readOnly": True}]
    failures = [rule["onExitCodes"] for rule in job["spec"]["podFailurePolicy"]["rules"] if rule["action"] == "FailJob"]
    assert [(each["containerName"], each["operator"], each["values"]) for each in failures] == [
        ("stage", "In", [65]),
        ("answers", "In", [65]),
        ("metric-brevity", "NotIn", [0, 75, 137, 143]),
        ("metric-deep", "NotIn", [0, 75, 137, 143]),
    ]
    assert input_digests(pod) == {
        container: sha256(input_config_map(made)["data"][name].encode()).hexdigest()
        for container, name in {"answers": "answers.json", "stage": "input.json"}.items()
    }
    first, whole = (json.loads(input_config_map(made)["data"][name]) for name in ("answers.json", "input.json"))
    plain = stage_request(context(observed()), Stage.EVALUATE)
    assert first["inputKey"] == plain.input.input_key != whole["inputKey"]
    assert first["params"]["evaluate"]["metrics"] == []
    assert first["handsOver"] == whole["params"]["evaluate"]["metrics"]
    assert whole["params"]["evaluate"]["metrics"][0]["parameters"] == {"words": "9"}


def test_data_is_fetched_by_the_answers_and_read_by_its_container_alone() -> None:
    """Only the container that asks the models gets the keys of the data's store, and the certificates to reach it."""
    storage = {"secretRef": {"name": "questions"}, "caBundle": {"configMapKeyRef": {"name": "their-ca", "key": "ca"}}}
    asked = [{"name": "deep", "data": {"uri": "s3://questions/tasks", "storage": storage}}, {"name": "brevity"}]
    spec = SPEC.model_validate(GIVEN | {"evaluation": {"metrics": asked}})
    settings = SETTINGS.model_copy(
        update={"metric_containers": {"deep": BREVITY, "brevity": BREVITY}, "profiles": {"small": Profile(cpu=SHAPE)}}
    )
    seen = context(replace(observed(spec), settings=settings))
    seen.ledger.resolved({"sourceDigest": "s", "modelDigest": "m", "metricsDigest": "d"})
    made = stage_request(seen, Stage.EVALUATE)
    pod = stage_job(made)["spec"]["template"]["spec"]
    answers, deep, brevity = pod["initContainers"]
    [last] = pod["containers"]
    mounted = {"name": "metrics", "subPath": "data/deep", "mountPath": "/metrics/data", "readOnly": True}
    assert mounted in deep["volumeMounts"]
    assert {"name": "METRICS_DATA", "value": "/metrics/data"} in deep["env"]
    assert not [each for each in brevity["volumeMounts"] if each["mountPath"] == "/metrics/data"]
    assert not [each for each in brevity["env"] if each["name"] == "METRICS_DATA"]
    secrets = [
        {
            each["valueFrom"]["secretKeyRef"]["name"]
            for each in one["env"]
            if "secretKeyRef" in each.get("valueFrom", {})
        }
        for one in (answers, deep, brevity, last)
    ]
    assert "questions" in secrets[0]
    assert secrets[1] == secrets[2] == set()
    assert "questions" not in secrets[3]
    [bundle] = [each for each in pod["volumes"] if each["name"] == "store-ca"]
    assert [each["configMap"]["name"] for each in bundle["projected"]["sources"]] == ["their-ca"]
    assert made.answers is not None
    assert made.answers.upstream.metrics == made.input.upstream.metrics == "d"
    resolving = stage_request(seen, Stage.RESOLVE)
    assert "questions" in {each.name for each in access_of(resolving.input).stores}


def test_without_metrics_an_evaluation_is_as_it_was() -> None:
    made = stage_request(context(observed()), Stage.EVALUATE)
    job, config = stage_job(made), input_config_map(made)
    assert "initContainers" not in job["spec"]["template"]["spec"]
    assert "annotations" not in job["spec"]["template"]["metadata"]
    assert list(config["data"]) == ["input.json"]


@pytest.mark.parametrize("change", [{"image": "other"}, {"args": []}, {"figures": {"a": FigureRule()}}])
def test_what_a_metric_measures_is_part_of_the_key_and_what_it_may_use_is_not(change: dict[str, Any]) -> None:
    before, after = (measuring(brevity=BREVITY.model_copy(update=each))[0].input for each in ({}, change))
    assert before.input_key != after.input_key
    other = {"limits": {}, "timeout_seconds": 9, "description": "other"}
    assert measuring(brevity=BREVITY.model_copy(update=other))[0].input.input_key == before.input_key
