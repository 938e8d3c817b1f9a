"""Pods as the kubelet and their controllers leave them, whose fate depends on the artifact that they serve."""

from collections.abc import Mapping, Sequence

from finetune_api import meta
from finetune_api.endpoint_stages import AdapterRef
from finetune_api.reasons import Reason
from finetune_api.serving_status import CheckOutcome, VerificationCheck
from finetune_api.stages import Outcome, Stage, StageResult
from finetune_operator.framework.objects import Object
from finetune_operator.resources.self_check import loads_adapters

GOOD, BETTER, INACTIVE, CORRUPT, CRASHING, MISSING = (character * 64 for character in "abcdef")
"""Digests of artifacts, by their fate in a pod."""
FATES: Mapping[str, Reason | None] = {
    GOOD: None,
    BETTER: None,
    INACTIVE: Reason.ADAPTER_INACTIVE,
    CORRUPT: Reason.ARTIFACT_CORRUPT,
    CRASHING: Reason.CANDIDATE_FAILED,
    MISSING: Reason.ARTIFACT_NOT_FOUND,
}
"""Why a revision with the artifact fails; None: it serves."""
NEVER_READY = frozenset(
    {
        *(Reason.ARTIFACT_CORRUPT, Reason.ARTIFACT_NOT_FOUND, Reason.CANDIDATE_FAILED),
        *(Reason.S3_UNREACHABLE, Reason.DEADLINE_EXCEEDED, Reason.IMAGE_PULL_FAILED),
    }
)
"""Of these, and of what is outside of a revision: its pods tell by themselves."""
UNSCHEDULABLE: Object = {
    "phase": "Pending",
    "conditions": [
        {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes: insufficient GPU"}
    ],
}
"""The status of a pod that finds no node."""


def checks(fate: Reason | None) -> list[VerificationCheck]:
    """What the verification of a revision with this fate compares."""
    outcome = CheckOutcome.PASSED if fate is None else CheckOutcome.FAILED
    return [
        VerificationCheck(name="digest", expected="artifact", seen="artifact", outcome=CheckOutcome.PASSED),
        VerificationCheck(name="differsFromBase", expected="0.0", seen="0.0 or 1.2", outcome=outcome),
    ]


MISSING_IMAGE = "registry.example/no-such-image:1"
_BACKOFF = {"waiting": {"reason": "CrashLoopBackOff"}}
_STOPPED_WHILE_LOADING = {
    "exitCode": 137,
    "reason": "Error",
    "startedAt": "2026-01-01T00:00:00Z",
    "finishedAt": "2026-01-01T00:30:12Z",
}
"""The kubelet stops a server whose startup probe never succeeds: after ``startupTimeoutSeconds``, drain and grace."""
_NOT_FETCHED = {
    Reason.ARTIFACT_CORRUPT: (meta.ExitCode.FATAL, "model.safetensors has another hash."),
    Reason.ARTIFACT_NOT_FOUND: (meta.ExitCode.FATAL, "s3://m/x contains no manifest.json: nothing is published there."),
    Reason.S3_UNREACHABLE: (meta.ExitCode.RETRIABLE, "The store does not answer."),
}


def pod_status(fate: Reason | None) -> Object:
    """A serving pod's status, as the kubelet writes it for a healthy, a corrupt and a crashing artifact, for one that
    takes too long to load, and while the store does not answer or an image is not there."""
    fetched = {"name": "fetch", "restartCount": 0, "state": {"terminated": {"exitCode": 0}}}
    if fate in _NOT_FETCHED:
        code, said = _NOT_FETCHED[fate]
        result = StageResult(stage=Stage.FETCH, outcome=Outcome.FAILED, reason=fate, message=said)
        ended = {"exitCode": int(code), "message": result.model_dump_json(by_alias=True)}
        waiting = {"name": "server", "restartCount": 0, "state": {"waiting": {"reason": "PodInitializing"}}}
        failed = fetched | {"state": {"terminated": ended}}
        if code is meta.ExitCode.RETRIABLE:  # it has been so for a while
            failed |= {"restartCount": 5, "state": _BACKOFF, "lastState": {"terminated": ended}}
        return {"initContainerStatuses": [failed], "containerStatuses": [waiting]}
    server: Object = {"name": "server", "restartCount": 0, "state": {"running": {}}}
    if fate is Reason.CANDIDATE_FAILED:
        server = {
            "name": "server",
            "restartCount": 3,
            "state": _BACKOFF,
            "lastState": {"terminated": {"exitCode": 1, "reason": "Error"}},
        }
    if fate is Reason.DEADLINE_EXCEEDED:
        server |= {"restartCount": 1, "started": False, "lastState": {"terminated": _STOPPED_WHILE_LOADING}}
    if fate is Reason.IMAGE_PULL_FAILED:
        server |= {"image": MISSING_IMAGE, "state": {"waiting": {"reason": "ImagePullBackOff"}}}
    return {"initContainerStatuses": [fetched], "containerStatuses": [server]}


def server_pod(deployment: str, name: str, labels: dict[str, str], status: Object) -> Object:
    """A pod of a Deployment's ReplicaSet."""
    controller = {"kind": "ReplicaSet", "name": f"{deployment}-5d8f", "uid": f"uid-of-{deployment}", "controller": True}
    return {"metadata": {"name": name, "labels": labels, "ownerReferences": [controller]}, "status": status}


def job_pod(job: Object, result: StageResult, failure: meta.ExitCode = meta.ExitCode.FATAL) -> Object:
    """The finished pod of a stage's Job."""
    succeeded = result.outcome is Outcome.SUCCEEDED
    ended = {
        "exitCode": int(meta.ExitCode.OK if succeeded else failure),
        "message": result.model_dump_json(by_alias=True),
    }
    return {
        "metadata": {
            "name": f"{job['metadata']['name']}-x",
            "labels": job["spec"]["template"]["metadata"]["labels"],
            "creationTimestamp": job["metadata"]["creationTimestamp"],
            "ownerReferences": [{"uid": job["metadata"]["uid"], "controller": True}],
        },
        "status": {
            "phase": "Succeeded" if succeeded else "Failed",
            "containerStatuses": [{"name": "stage", "state": {"terminated": ended}}],
        },
    }


def killed_pod(job: Object) -> Object:
    """The pod of a stage's Job that has needed too much memory, and has said nothing."""
    silent = StageResult(stage=Stage.VERIFY, outcome=Outcome.FAILED, reason=Reason.OUT_OF_MEMORY, message="")
    found = job_pod(job, silent)
    ended = {"exitCode": 137, "reason": "OOMKilled"}
    found["status"]["containerStatuses"] = [{"name": "stage", "state": {"terminated": ended}}]
    return found


def served(pod: Object) -> str:
    """Digest of the artifact that a serving pod's spec names."""
    if loads_adapters({"spec": pod}):  # their base is good, and Jobs say what becomes of the adapters
        return GOOD
    server = pod["containers"][0]
    told = {each["name"]: each.get("value", "") for each in server["env"]}
    path = told.get("MODEL_ID") or next(each for each in server["args"] if each.startswith("--model="))
    return str(path).split("/")[2]


def outcome_of(fate: Reason | None) -> CheckOutcome:
    return CheckOutcome.FAILED if fate else CheckOutcome.PASSED


def adapter_checks(adapters: Sequence[AdapterRef]) -> list[VerificationCheck]:
    """What the verification of adapters compares, up to the first that fails."""
    made: list[VerificationCheck] = []
    for each in adapters:
        outcome = outcome_of(FATES[each.digest])
        made.append(VerificationCheck(name=f"{each.name}.checks", outcome=outcome))
        if outcome is CheckOutcome.FAILED:
            break
    return made
