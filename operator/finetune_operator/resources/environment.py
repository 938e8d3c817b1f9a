"""Environment variables of containers: references to credentials, folders, threads, the pod's name."""

from finetune_api import meta
from finetune_api.stages import Stage
from finetune_api.storage import Storage
from finetune_api.tracking import MLFLOW_SECRET_KEYS, WANDB_KEY_VARIABLE
from finetune_operator.framework.objects import Object
from finetune_operator.resources.stage_request import StageRequest
from finetune_operator.settings import PodShape


def credentials_env(storage: Storage) -> list[Object]:
    """The keys of the Secret that the resource names. The kubelet reads it, the operator never does."""
    if storage.credentials is None:
        return []
    secret = storage.credentials
    keys = {
        "AWS_ACCESS_KEY_ID": secret.access_key_id_key,
        "AWS_SECRET_ACCESS_KEY": secret.secret_access_key_key,
    }
    return [
        {"name": name, "valueFrom": {"secretKeyRef": {"name": secret.secret_name, "key": key}}}
        for name, key in keys.items()
    ]


def teacher_env(request: StageRequest) -> list[Object]:
    """The API key of the distillation teacher, for the stage that calls it."""
    prepare = request.input.params.prepare if request.stage is Stage.PREPARE else None
    credentials = prepare.dataset.distillation.teacher.credentials if prepare and prepare.dataset.distillation else None
    if credentials is None:
        return []
    reference = {"name": credentials.secret_name, "key": credentials.key}
    return [{"name": meta.TEACHER_KEY_VARIABLE, "valueFrom": {"secretKeyRef": reference}}]


def tracking_env(request: StageRequest) -> list[Object]:
    """The training's credentials for its trackers. Optional: a missing key costs only the tracking."""
    if request.stage is not Stage.TRAIN:
        return []
    mlflow, wandb = request.input.tracking.mlflow, request.input.tracking.wandb
    references: dict[str, Object] = {}
    if mlflow and mlflow.credentials:
        references |= {name: {"name": mlflow.credentials.secret_name, "key": name} for name in MLFLOW_SECRET_KEYS}
    if wandb:
        references[WANDB_KEY_VARIABLE] = {"name": wandb.credentials.secret_name, "key": wandb.credentials.api_key_key}
    return [
        {"name": name, "valueFrom": {"secretKeyRef": reference | {"optional": True}}}
        for name, reference in references.items()
    ]


def name_env(request: StageRequest) -> list[Object]:
    """The pod's name, which distinguishes attempts with the same number."""
    if request.nodes == 1:
        return []
    return [{"name": meta.POD_VARIABLE, "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]


def scratch_env() -> list[Object]:
    """Libraries write to the writable volume. TMPDIR must exist, so it is the volume itself."""
    scratch = meta.SCRATCH_DIR
    folders = {"HOME": scratch, "TMPDIR": scratch, "HF_HOME": f"{scratch}/huggingface"}
    return [{"name": name, "value": folder} for name, folder in folders.items()]


def cpu_env(shape: PodShape) -> list[Object]:
    """As many threads as the CPU limit allows (rounded up by the kubelet); libraries would count the node's cores.

    Idle threads sleep: on shared cores, spinning made a training step five times slower.
    """
    if "cpu" not in shape.limits:
        return []
    reference = {"resource": "limits.cpu", "divisor": "1"}
    return [
        {"name": "OMP_NUM_THREADS", "valueFrom": {"resourceFieldRef": reference}},
        {"name": "OMP_WAIT_POLICY", "value": "PASSIVE"},
    ]
