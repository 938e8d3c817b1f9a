"""Two pods that train together over gloo, for real; one of them is killed in the middle."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest

from finetune_api.finetunejob import FineTuneJob
from finetune_api.job_status import Phase
from finetune_api.layout import MANIFEST, output_folder
from finetune_api.meta import LABEL_INDEX, LABEL_STAGE
from finetune_api.stages import Stage
from hack.platform import object_store
from hack.platform.kubectl import Kubectl, Object, wait_for
from hack.platform.tiny import tiny_job

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(3600)]

NAME = f"pair-{uuid.uuid4().hex[:8]}"
"""Nobody has trained it before: a result that is there already would be reused."""
STEPS = 300
"""Long enough to be killed in the middle: at most some twenty of them take a second."""
TRAINING = {
    "maxSteps": STEPS,
    "epochs": 40,
    "earlyStopping": "Never",
    "checkpointSteps": 20,
    "maxLength": 128,
    "gradientAccumulation": 1,
}


def test_a_pod_is_killed_and_both_go_on_from_the_last_checkpoint(team: Kubectl) -> None:
    team.apply(tiny_job(NAME, profile="cpu-pair", training=TRAINING))
    prefix = f"{NAME}/runs/"
    wait_for("a checkpoint", lambda: unfailed(team) and manifests(team, prefix), 1200)
    first, second = (pod["metadata"] for pod in training_pods(team))

    team("delete", "pod", second["name"], "--grace-period=0", "--force")

    job = wait_for("the end of the run", lambda: succeeded(team), 2000)
    train = next(stage for stage in job.status.stages if stage.name == Stage.TRAIN)
    folder = output_folder(Stage.TRAIN, train.output_digest)
    (manifest,) = manifests(team, f"{NAME}/{folder}/")
    assert manifest["facts"]["steps"] == str(STEPS)
    assert manifest["facts"]["batchSize"] == "4", "each of two processes takes half of a step's eight examples"
    assert train.attempts == 2
    assert first["uid"] not in {pod["metadata"]["uid"] for pod in training_pods(team) if is_succeeded(pod)}
    state = next(json.loads(body) for key, body in objects(team, prefix) if key.endswith("/state.json"))
    assert state["attempt"] == 2
    assert job.status.artifact


def training_pods(team: Kubectl) -> list[Object]:
    """The pods of the training, by their number."""
    pods = team.items("pods", f"{LABEL_STAGE}={Stage.TRAIN}")
    return sorted(pods, key=lambda pod: int(pod["metadata"]["labels"][LABEL_INDEX]))


def is_succeeded(pod: Object) -> bool:
    """Whether the pod has done its work."""
    return bool(pod["status"]["phase"] == "Succeeded")


def objects(team: Kubectl, prefix: str) -> list[tuple[str, bytes]]:
    """Key and content of the JSON files below a prefix of the bucket ``artifacts``."""
    with object_store.client(team) as s3:
        found = s3.list_objects_v2(Bucket="artifacts", Prefix=prefix).get("Contents", [])
        keys = [each["Key"] for each in found if each["Key"].endswith(".json")]
        return [(key, s3.get_object(Bucket="artifacts", Key=key)["Body"].read()) for key in keys]


def manifests(team: Kubectl, prefix: str) -> list[dict[str, Any]]:
    """The manifests of the complete folders below a prefix."""
    return [json.loads(body) for key, body in objects(team, prefix) if key.endswith(f"/{MANIFEST}")]


def unfailed(team: Kubectl) -> FineTuneJob:
    """The FineTuneJob; ends the test when its run has failed."""
    job = FineTuneJob.model_validate(team.get("ftj", NAME))
    assert job.status.phase is not Phase.FAILED, [each.message for each in job.status.conditions]
    return job


def succeeded(team: Kubectl) -> FineTuneJob | None:
    """The FineTuneJob once it has succeeded."""
    job = unfailed(team)
    return job if job.status.phase is Phase.SUCCEEDED else None
