"""Environment variables of containers: references to credentials, folders, threads, the pod's name."""

from finetune_api import meta
from finetune_api.hashing import digest
from finetune_api.references import SecretKeyRef
from finetune_api.stages import Stage, StageInput
from finetune_api.storage import STORE_SECRET_KEYS, STORE_SESSION_KEY
from finetune_api.tracking import MLFLOW_SECRET_KEYS, WANDB_KEY_VARIABLE
from finetune_operator.framework.objects import Object
from finetune_operator.resources.access import Access
from finetune_operator.resources.stage_request import StageRequest
from finetune_operator.settings import PodShape


def access_env(access: Access) -> list[Object]:
    """The keys of the Secrets by which a stage reaches what it reads and writes, each under a name of its own.

    None under the names that clients look for by themselves: a store without a Secret must not be shown the keys of
    another. The kubelet reads Secrets, the operator never does.
    """
    keys = [secret.at(key) for secret in access.stores for key in STORE_SECRET_KEYS]
    sessions = [secret.at(STORE_SESSION_KEY) for secret in access.stores]
    return [
        *(_secret_env(each.variable, each) for each in dict.fromkeys((*keys, *access.tokens))),
        *(_secret_env(each.variable, each, optional=True) for each in sessions),
    ]


def teacher_env(request: StageRequest) -> list[Object]:
    """The API key of the distillation teacher, for the stage that calls it."""
    prepare = request.input.params.prepare if request.stage is Stage.PREPARE else None
    distillation = prepare.dataset.distillation if prepare else None
    secret = distillation.teacher.secret_key_ref if distillation else None
    return [_secret_env(meta.TEACHER_KEY_VARIABLE, secret)] if secret else []


def tracking_env(request: StageRequest) -> list[Object]:
    """The training's credentials for its trackers. Optional: a missing key costs only the tracking."""
    if request.stage is not Stage.TRAIN:
        return []
    mlflow, wandb = request.input.tracking.mlflow, request.input.tracking.wandb
    login = mlflow.secret_ref if mlflow else None
    found = {name: login.at(name) for name in MLFLOW_SECRET_KEYS} if login else {}
    found |= {WANDB_KEY_VARIABLE: wandb.secret_key_ref} if wandb else {}
    return [_secret_env(name, reference, optional=True) for name, reference in found.items()]


def _secret_env(name: str, reference: SecretKeyRef, *, optional: bool = False) -> Object:
    """A variable with the value of a Secret's key."""
    named = {"name": reference.name, "key": reference.key} | ({"optional": True} if optional else {})
    return {"name": name, "valueFrom": {"secretKeyRef": named}}


def name_env(request: StageRequest) -> list[Object]:
    """The pod's name, which distinguishes attempts with the same number."""
    if request.nodes == 1:
        return []
    return [{"name": meta.POD_VARIABLE, "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]


def input_env(given: StageInput) -> list[Object]:
    """What the input is, as the Job says it, which only its creator writes: a ConfigMap can be replaced under its name,
    immutable or not, by whoever may create one, and the rules of tenancy were applied to what is in it."""
    return [{"name": meta.INPUT_DIGEST_VARIABLE, "value": digest(given)}]


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
