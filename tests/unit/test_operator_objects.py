"""The objects that a stage becomes: restricted, reproducible, and without anything secret."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from hashlib import sha256
from typing import Any

import pytest

from finetune_api import meta
from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.meta import FINETUNEJOB
from finetune_api.reasons import Reason
from finetune_api.references import ConfigMapKeyRef, SecretKeyRef, SecretRef
from finetune_api.stages import PIPELINE, Found, RunRef, Stage, StageInput, Upstream
from finetune_api.storage import CaBundle, Storage
from finetune_api.tracking import MLFLOW_SECRET_KEYS, Mlflow, Tracking, Wandb
from finetune_operator.finetunejob.context import RunContext
from finetune_operator.finetunejob.hardware import alone, hardware_facts
from finetune_operator.finetunejob.ledger import RunLedger
from finetune_operator.finetunejob.observe import ObservedJob
from finetune_operator.finetunejob.params import params_of
from finetune_operator.finetunejob.plan import current_run
from finetune_operator.finetunejob.stage_jobs import stage_request
from finetune_operator.framework.actions import Event
from finetune_operator.framework.conditions import ConditionType, Finding, merge_conditions
from finetune_operator.framework.events import event_object
from finetune_operator.framework.objects import Object
from finetune_operator.framework.ownership import Key, Owner, owner_key
from finetune_operator.kinds import FINETUNEJOBS
from finetune_operator.resources.peers import peers_service
from finetune_operator.resources.stage_job import input_config_map, stage_job
from finetune_operator.resources.stage_request import StageRequest
from finetune_operator.settings import Gpu, Images, ModelCache, PodShape, Profile, Proxy
from tests.support.runs import NOW, SETTINGS, SPEC, observed
from tests.unit.test_operator_gpu_shares import EIGHT, profile_of

pytestmark = pytest.mark.unit

OWNER = Owner(FINETUNEJOBS, "team", "a" * 40, "uid")
IMAGES = Images(
    data="data:1", prepare="prepare:1", jobs="jobs:1", quantize="quantize:1", proxy="proxy:1", pull_secrets=["registry"]
)
SHAPE = PodShape(
    requests={"cpu": "1"},
    limits={"cpu": "2", "nvidia.com/gpu": "1"},
    node_selector={"gpu": "l4"},
    tolerations=[{"key": "gpu", "operator": "Exists"}],
    priority_class_name="batch",
    runtime_class_name="nvidia",
)
SECRET = SecretRef(name="s3")


def request(stage: Stage = Stage.TRAIN, spec: FineTuneJobSpec = SPEC, **more: Any) -> StageRequest:
    """A stage to run."""
    given = StageInput(
        stage=stage,
        run=RunRef(kind="FineTuneJob", namespace="team", name=OWNER.name, uid="uid", id="run"),
        storage=Storage(endpoint="http://s3:8333", secret_ref=SECRET),
        upstream=Upstream(dataset="d"),
        params=params_of(spec),
    )
    base: dict[str, Any] = {"image": "jobs:1", "images": IMAGES, "shape": SHAPE, "service_account": "runner"}
    return StageRequest(owner=OWNER, input=given, labels={meta.LABEL_RUN: "run"}, **(base | more))


def test_the_pod_is_restricted() -> None:
    """What Pod Security's restricted level asks for, and more: a read-only root and no API token."""
    pod = stage_job(request())["spec"]["template"]["spec"]
    container = pod["containers"][0]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert (pod["automountServiceAccountToken"], pod["enableServiceLinks"]) == (False, False)
    assert {volume["name"]: next(iter(volume.keys() - {"name"})) for volume in pod["volumes"]} == {
        "scratch": "emptyDir",
        "input": "configMap",
    }
    assert not {"hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace"} & pod.keys()


def test_the_profile_places_the_pod() -> None:
    """Everything of the shape arrives; what is empty is left out."""
    pod = stage_job(request())["spec"]["template"]["spec"]
    assert pod["nodeSelector"] == {"gpu": "l4"}
    assert pod["tolerations"] == [{"key": "gpu", "operator": "Exists"}]
    assert (pod["priorityClassName"], pod["runtimeClassName"]) == ("batch", "nvidia")
    assert pod["imagePullSecrets"] == [{"name": "registry"}]
    assert pod["containers"][0]["resources"]["limits"] == {"cpu": "2", "nvidia.com/gpu": "1"}
    plain = stage_job(request(shape=PodShape()))["spec"]["template"]["spec"]
    assert not {"nodeSelector", "tolerations", "priorityClassName", "runtimeClassName"} & plain.keys()


def test_the_command_needs_no_shell() -> None:
    """An argument list, with the paths that the contract names."""
    assert stage_job(request())["spec"]["template"]["spec"]["containers"][0]["command"] == [
        *("python", "-m", "finetune_jobs.train"),
        *("--input", "/etc/finetune/input.json", "--result", "/dev/termination-log"),
    ]


def test_the_pod_is_told_which_input_it_takes() -> None:
    """By what nobody writes who may only write ConfigMaps."""
    [given] = input_config_map(request())["data"].values()
    assert input_digests(stage_job(request())["spec"]["template"]["spec"]) == {
        "stage": sha256(given.encode()).hexdigest()
    }


def input_digests(pod: Object) -> dict[str, str]:
    """The inputs that containers take, by the names of these."""
    containers = [*pod.get("initContainers", []), *pod["containers"]]
    return {
        each["name"]: variable["value"]
        for each in containers
        for variable in each["env"]
        if variable["name"] == meta.INPUT_DIGEST_VARIABLE
    }


def test_credentials_are_references() -> None:
    """The Secret's keys by name; neither Job nor ConfigMap holds a value."""
    variables = stage_job(request())["spec"]["template"]["spec"]["containers"][0]["env"]
    assert variables[:3] == [
        _variable("s3", "AWS_ACCESS_KEY_ID"),
        _variable("s3", "AWS_SECRET_ACCESS_KEY"),
        _variable("s3", "AWS_SESSION_TOKEN", optional=True),
    ]
    others = {variable["name"]: variable.get("value") for variable in variables[3:]}
    assert others.items() >= {"HOME": "/scratch", "TMPDIR": "/scratch", "HF_HOME": "/scratch/huggingface"}.items()
    assert "OMP_NUM_THREADS" in others


def _variable(name: str, key: str, **more: bool) -> dict[str, Any]:
    reference = {"name": name, "key": key} | more
    return {"name": f"FINETUNE_SECRET.{name}_{key}", "valueFrom": {"secretKeyRef": reference}}


def test_trackers_keys_are_references_of_the_training_alone() -> None:
    """Optional ones: a key that is missing costs the tracking, and keeps no pod from starting."""
    tracking = Tracking(
        mlflow=Mlflow(url="http://mlflow:5000", secret_ref=SecretRef(name="m")),
        wandb=Wandb(secret_key_ref=SecretKeyRef(name="w", key="key")),
    )
    found = {}
    for stage in PIPELINE:
        given = request(stage)
        given = replace(given, input=given.input.model_copy(update={"tracking": tracking}))
        (body,) = stage_job(given)["spec"]["template"]["spec"]["containers"]
        found[stage] = {
            variable["name"]: variable["valueFrom"]["secretKeyRef"]
            for variable in body["env"]
            if variable["name"].startswith(("MLFLOW", "WANDB"))
        }
        assert "envFrom" not in body
    assert found.pop(Stage.TRAIN) == {
        **{name: {"name": "m", "key": name, "optional": True} for name in MLFLOW_SECRET_KEYS},
        "WANDB_API_KEY": {"name": "w", "key": "key", "optional": True},
    }
    assert not any(found.values())


def test_a_private_authority_is_mounted_where_the_variable_says() -> None:
    """One key of the ConfigMap that the resource names; without one, nothing of it."""
    plain = request()
    storage = plain.input.storage.model_copy(
        update={"ca_bundle": CaBundle(config_map_key_ref=ConfigMapKeyRef(name="corp", key="root.pem"))}
    )
    asked = replace(plain, input=plain.input.model_copy(update={"storage": storage}))
    pod = stage_job(asked)["spec"]["template"]["spec"]
    [volume] = [each for each in pod["volumes"] if each["name"] == "store-ca"]
    items = [{"key": "root.pem", "path": "corp/root.pem"}]
    assert volume["projected"]["sources"] == [{"configMap": {"name": "corp", "items": items, "optional": True}}]
    [stage] = pod["containers"]
    assert {"name": "store-ca", "mountPath": "/etc/finetune-ca", "readOnly": True} in stage["volumeMounts"]
    assert "store-ca" not in str(stage_job(plain))


@pytest.mark.parametrize(
    ("proxy", "variables"),
    [
        (Proxy(no_proxy=".svc"), {}),
        (Proxy(http_proxy="http://p:1"), {"HTTP_PROXY": "http://p:1"}),
        (
            Proxy(http_proxy="http://p:1", https_proxy="http://p:2", no_proxy=".svc,10.0.0.0/8"),
            {"HTTP_PROXY": "http://p:1", "HTTPS_PROXY": "http://p:2", "NO_PROXY": ".svc,10.0.0.0/8"},
        ),
    ],
)
def test_the_proxy_is_in_the_environment(proxy: Proxy, variables: dict[str, str]) -> None:
    """Exceptions without a proxy say nothing."""
    [stage] = stage_job(request(proxy=proxy))["spec"]["template"]["spec"]["containers"]
    found = {variable["name"]: variable["value"] for variable in stage["env"] if "PROXY" in variable["name"]}
    assert found == variables


def test_exit_codes_decide_about_retries() -> None:
    """65 fails the Job at once, a disruption does not count, and two pods never run at the same time."""
    spec = stage_job(request(retries=4, deadline_seconds=99))["spec"]
    ignore, fail = spec["podFailurePolicy"]["rules"]
    assert ignore == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    assert (fail["action"], fail["onExitCodes"]["values"]) == ("FailJob", [65])
    assert spec["backoffLimit"] == 4
    assert spec["template"]["spec"]["activeDeadlineSeconds"] == 99
    assert "activeDeadlineSeconds" not in spec, "it would count while there is no pod"
    assert spec["podReplacementPolicy"] == "Failed"
    assert spec["template"]["spec"]["restartPolicy"] == "Never"
    assert "ttlSecondsAfterFinished" not in spec


@pytest.mark.parametrize("of", ["processes", "engine_gpus"])
@pytest.mark.parametrize(("number", "size"), [(1, None), (2, "2Gi"), (8, "8Gi")])
def test_processes_of_one_pod_share_memory(of: str, number: int, size: str | None) -> None:
    """The container runtime's 64 MiB are too little for NCCL and an engine's messages; one process needs none."""
    more: dict[str, Any] = {of: number}
    pod = stage_job(request(**more))["spec"]["template"]["spec"]
    volumes = {volume["name"]: volume.get("emptyDir") for volume in pod["volumes"]}
    mounts = {mount["mountPath"]: mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
    assert volumes.get(mounts.get("/dev/shm", "")) == (size and {"medium": "Memory", "sizeLimit": size})


def test_several_pods_are_one_indexed_job() -> None:
    """The first one decides; an end that only followed another pod's is no failure; each has a name that is known."""
    given = request(nodes=2, retries=3)
    job, service = stage_job(given), peers_service(OWNER, given.name, given.input.run.id, given.stage)
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 2, 2)
    assert spec["successPolicy"] == {"rules": [{"succeededIndexes": "0"}]}
    assert spec["backoffLimit"] == 6
    *_, last = spec["podFailurePolicy"]["rules"]
    assert (last["action"], last["onExitCodes"]["values"]) == ("Ignore", [meta.ExitCode.RESTART_GROUP])
    assert pod["subdomain"] == service["metadata"]["name"] == given.name
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": given.name}
    assert OWNER.owns(service)
    command = pod["containers"][0]["command"]
    assert command[7:] == [
        *("--processes", "1", "--nodes", "2"),
        *("--coordinator", f"{given.name}-0.{given.name}"),
    ]
    assert len(f"{given.name}-63") <= 63, "a pod's host name is a label"
    name = {"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}
    assert pod["containers"][0]["env"][-1] == name, "hosts of one number have one name, whose logs would be one"


def test_several_gpus_of_one_pod_are_as_many_processes() -> None:
    job = stage_job(request(processes=8))
    assert job["spec"]["template"]["spec"]["containers"][0]["command"][7:] == ["--processes", "8"]
    assert not {"completionMode", "completions", "parallelism", "successPolicy"} & job["spec"].keys()
    assert "subdomain" not in job["spec"]["template"]["spec"]


def context(seen: ObservedJob) -> RunContext:
    """A run whose stages are all done."""
    ledger = RunLedger(seen.spec, seen.status, current_run(seen, NOW), NOW)
    ledger.resolved({"sourceDigest": "s", "modelDigest": "m"})
    for stage in PIPELINE:
        ledger.reuse(Found(stage=stage, output_digest=f"{PIPELINE.index(stage)}" * 64), "key", None)
    return RunContext(seen, ledger, (), NOW)


@pytest.mark.parametrize(
    ("stage", "nodes", "processes"), [(Stage.TRAIN, 2, 4), (Stage.EXPORT, 1, 1), (Stage.EVALUATE, 1, 1)]
)
@pytest.mark.parametrize("known", [True, False], ids=["by its facts", "by its limit"])
def test_only_training_is_shared(stage: Stage, nodes: int, processes: int, known: bool) -> None:
    gpu = Gpu(name="NVIDIA L4", count=4, memory_gib=22, peak_tflops=121, usd_per_hour=1)
    shape = PodShape(limits={"nvidia.com/gpu": "4"})
    profile = Profile(accelerator=shape, nodes=2, gpu=gpu if known else None)
    seen = replace(observed(), settings=SETTINGS.model_copy(update={"profiles": {"small": profile}}))
    made = stage_request(context(seen), stage)
    assert (made.nodes, made.processes) == (nodes, processes)
    assert made.shape.limits["nvidia.com/gpu"] == str(processes)
    if known:
        assert made.input.hardware is not None
        assert (made.input.hardware.count, made.input.hardware.nodes) == (processes, nodes), "what the pod is promised"
    single = stage_request(context(observed()), stage)
    stripped = [each.input.model_copy(update={"hardware": None}) for each in (made, single)]
    assert stripped[0] == stripped[1], "who shares the work is no part of the key, nor of anything but the hardware"


@pytest.mark.parametrize("stage", PIPELINE)
def test_stages_with_the_base_model_share_the_profiles_cache(stage: Stage) -> None:
    """A claim, which the restricted level allows, named in an argument; nothing of it without the profile's field."""
    pods = []
    for profile in (Profile(model_cache=ModelCache(claim_name="base-models", size_limit="1Gi")), Profile()):
        seen = replace(observed(), settings=SETTINGS.model_copy(update={"profiles": {"small": profile}}))
        pods.append(stage_job(stage_request(context(seen), stage))["spec"]["template"]["spec"])
    cached, plain = pods
    if stage not in (Stage.TRAIN, Stage.EXPORT, Stage.EVALUATE):
        assert cached == plain
        return
    assert cached["volumes"] == [
        *plain["volumes"],
        {"name": "model-cache", "persistentVolumeClaim": {"claimName": "base-models"}},
    ]
    assert cached["containers"][0]["volumeMounts"] == [
        *plain["containers"][0]["volumeMounts"],
        {"name": "model-cache", "mountPath": "/model-cache"},
    ]
    assert cached["containers"][0]["command"] == [
        *plain["containers"][0]["command"],
        *("--model-cache", "/model-cache", "--model-cache-limit", "1073741824"),
    ]


def test_what_a_stage_is_promised_alone() -> None:
    """One GPU, or the CPUs of its own pod; an older or newer operator's other facts stay."""
    eight = hardware_facts("big", profile_of(EIGHT, 8))
    assert (eight.count, eight.nodes, eight.cpus) == (8, 2, 96)
    assert alone(eight) == eight.model_copy(update={"count": 1, "nodes": 1, "cpus": 12})
    cpus = hardware_facts("cpu", Profile(accelerator=PodShape(limits={"cpu": "2"}), nodes=3))
    assert alone(cpus) == cpus.model_copy(update={"nodes": 1})


@pytest.mark.parametrize("stage", [Stage.RESOLVE, *PIPELINE])
def test_names_fit_and_follow_the_input(stage: Stage) -> None:
    """The longest resource name leaves room for stage and hash; another input has another name."""
    first, config_map = stage_job(request(stage)), input_config_map(request(stage))
    assert first["metadata"]["name"] == config_map["metadata"]["name"]
    assert len(first["metadata"]["name"]) <= 63
    changed = SPEC.model_copy(update={"dataset": SPEC.dataset.model_copy(update={"instruction": "x"})})
    assert stage_job(request(stage, changed))["metadata"]["name"] != first["metadata"]["name"]


def test_the_config_map_is_the_input() -> None:
    """Immutable, readable by the contract's model, and owned."""
    made = input_config_map(request())
    assert made["immutable"] is True
    assert StageInput.model_validate_json(made["data"]["input.json"]) == request().input
    assert json.loads(made["data"]["input.json"])["stage"] == "train"
    assert OWNER.owns(made)
    assert owner_key(made) == Key("FineTuneJob", "team", OWNER.name)


def test_ownership_is_by_uid() -> None:
    """A child of a deleted resource of the same name belongs to somebody else."""
    child = {"metadata": Owner(FINETUNEJOBS, "team", "ft", "first").metadata("x")}
    assert not Owner(FINETUNEJOBS, "team", "ft", "second").owns(child)
    assert owner_key({"metadata": {"name": "x", "namespace": "team", "labels": {}}}) is None


def test_events_are_written_once() -> None:
    """The same edge has the same name, so that telling it twice is refused; another one has another."""
    event = Event("Warning", Reason.DATASET_INVALID, "row 3")
    first = event_object(OWNER, event, "7", NOW)
    assert event_object(OWNER, event, "7", NOW)["metadata"] == first["metadata"]
    assert event_object(OWNER, event, "8", NOW)["metadata"] != first["metadata"]
    assert first["message"].startswith("row 3 ")


def test_conditions_keep_their_time_until_they_turn() -> None:
    """A new message or reason alone is no transition."""
    kind = FINETUNEJOB
    waiting = merge_conditions([], [Finding(ConditionType.READY, False, Reason.WAITING, "a")], kind, 1, NOW)
    later = NOW + timedelta(hours=1)
    still = merge_conditions(
        waiting, [Finding(ConditionType.READY, False, Reason.UNSCHEDULABLE, "b")], FINETUNEJOB, 2, later
    )
    turned = merge_conditions(
        still, [Finding(ConditionType.READY, True, Reason.RUN_SUCCEEDED, "c")], FINETUNEJOB, 2, later
    )
    times = [conditions[0].last_transition_time for conditions in (waiting, still, turned)]
    assert times == ["2026-01-01T12:00:00Z", "2026-01-01T12:00:00Z", "2026-01-01T13:00:00Z"]
    assert still[0].observed_generation == 2
