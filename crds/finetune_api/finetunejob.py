"""FineTuneJob: *the artifact of this spec exists*. Dataset in, published and evaluated artifact out."""

from enum import StrEnum
from typing import Annotated, Final

from pydantic import ConfigDict, Field, model_validator

from finetune_api.access import access_rules, require_fitting
from finetune_api.base import ApiModel, Name, ObjectMeta, RerunToken, WireModel
from finetune_api.budget import Budget
from finetune_api.dataset import Dataset, Task
from finetune_api.evaluation import Evaluation, Generator
from finetune_api.export import Export, ExportFormat
from finetune_api.freeze import Changes
from finetune_api.goals import OF_CANARIES, PLANTED
from finetune_api.job_status import FineTuneJobStatus
from finetune_api.push import MAX_TARGETS, PushTarget
from finetune_api.references import SecretKeyRef
from finetune_api.rules import Rule
from finetune_api.storage import InputStorage, ModelUri, S3Uri, Storage
from finetune_api.tracking import Retention, Tracking
from finetune_api.training import AdapterKind, Method, Training


class BaseModelRef(ApiModel):
    """The model to start from."""

    model_config = ConfigDict(json_schema_extra={"x-kubernetes-validations": access_rules()})

    uri: ModelUri
    """s3://bucket/prefix of a checkpoint with safetensors, or hf://organisation/name@revision."""
    storage: InputStorage | None = None
    """How to reach the model's store, in place of spec.storage as a whole."""
    secret_key_ref: Annotated[SecretKeyRef | None, Changes.RETRY] = None
    """Hugging Face token for a gated or private model."""

    @model_validator(mode="after")
    def _fitting(self) -> "BaseModelRef":
        require_fitting(self.uri, self.storage, self.secret_key_ref)
        return self


class Signing(ApiModel):
    """The key that signs where a published artifact comes from."""

    secret_key_ref: SecretKeyRef
    """A private key in PEM (PKCS #8, without a password): Ed25519, or ECDSA on the curve P-256. To sign what is
    published already, name the key and set spec.rerun to a new value."""


class Output(ApiModel):
    """Where results are stored."""

    uri: S3Uri
    """Bucket and prefix of all results of this job, e.g. s3://models/team-a."""
    name: Name
    """Name under which the artifact is published; only one FineTuneJob may use it."""
    storage: Storage | None = None
    """How to reach the results' store, in place of spec.storage as a whole."""
    signing: Annotated[Signing | None, Changes.RETRY] = None
    """Signs each published artifact; AdapterDeployments can ask for the signature (spec.policy.signature)."""
    push_to: Annotated[list[PushTarget], Field(max_length=MAX_TARGETS)] = []
    """Where the published model is copied too. A run has succeeded once all of it is there; what has been published is
    pushed by a new run, in which nothing else runs again."""


class Reuse(StrEnum):
    """Whether results of the same input are reused."""

    ALLOWED = "Allowed"
    NEVER = "Never"


_ADAPTER_ALONE: Final = Rule(
    "(self.export.format != 'Adapter' && !self.export.alternatives.exists(each, each == 'Adapter')) || "
    "(self.training.method != 'Full' && self.training.adapter == 'LoRA')",
    "export format Adapter is for training.adapter LoRA with method LoRA or QLoRA: no model server loads another kind "
    "of adapter. Choose another format",
)
_VLLM_TAKES_LORA: Final = Rule(
    "self.evaluation.generator != 'VLLM' || self.training.method == 'Full' || self.training.adapter == 'LoRA'",
    "evaluation.generator VLLM is for training.adapter LoRA or method Full: vLLM loads no other kind of adapter. Set "
    "evaluation.generator to Transformers",
)


class FineTuneJobSpec(ApiModel):
    """The artifact to make. Frozen while a stage is at work, except for suspend, tracking, retention, credentials,
    caBundle and a higher budget; any other change, also of `rerun`, starts a new run."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [each.as_schema() for each in (PLANTED, _ADAPTER_ALONE, _VLLM_TAKES_LORA)]
        }
    )

    profile: Name
    """Hardware profile from the platform's values, e.g. cpu-small."""
    model: BaseModelRef
    """The base model."""
    dataset: Dataset
    """The examples."""
    task: Task = Task()
    """What the model is for."""
    training: Training = Training()
    """How to train."""
    export: Export = Export()
    """How to prepare the tuned model for serving."""
    evaluation: Evaluation = Evaluation()
    """How to test the artifact."""
    output: Output
    """Where to publish."""
    budget: Annotated[Budget | None, Changes.RETRY] = None
    """What a run's GPUs may cost; no limit if omitted. A higher one holds for the stages that start later."""
    storage: Storage = Storage()
    """How to reach S3, for sources, base model and output, unless one of them has a storage of its own."""
    tracking: Annotated[Tracking, Changes.NOTHING] = Tracking()
    """Where training metrics are tracked."""
    retention: Annotated[Retention, Changes.NOTHING] = Retention()
    """How much of the runs' state is kept."""
    suspend: Annotated[bool, Changes.NOTHING] = False
    """True stops the running stage's pod and keeps all finished work; false resumes."""
    rerun: RerunToken = ""
    """Any new value starts a new run once the last one has ended, e.g. with new credentials; finished stages are
    reused."""
    reuse: Reuse = Reuse.ALLOWED
    """Never: run every stage again even if a result for the same input exists."""

    @model_validator(mode="after")
    def _planted(self) -> "FineTuneJobSpec":
        if self.dataset.canaries is None and any(goal.metric in OF_CANARIES for goal in self.evaluation.goals):
            raise ValueError(PLANTED.message)
        return self

    @model_validator(mode="after")
    def _adapter_alone(self) -> "FineTuneJobSpec":
        lora = self.training.method is not Method.FULL and self.training.adapter is AdapterKind.LORA
        if not lora and ExportFormat.ADAPTER in (self.export.format, *self.export.alternatives):
            raise ValueError(_ADAPTER_ALONE.message)
        return self

    @model_validator(mode="after")
    def _vllm_takes_lora(self) -> "FineTuneJobSpec":
        odd = self.training.method is not Method.FULL and self.training.adapter is not AdapterKind.LORA
        if odd and self.evaluation.generator is Generator.VLLM:
            raise ValueError(_VLLM_TAKES_LORA.message)
        return self

    @property
    def output_storage(self) -> Storage:
        """How the results' store is reached."""
        return self.output.storage or self.storage


class FineTuneJob(WireModel):
    """A FineTuneJob turns examples and a base model into an evaluated, published artifact."""

    api_version: str = "finetune.dev/v1alpha1"
    kind: str = "FineTuneJob"
    metadata: ObjectMeta
    spec: FineTuneJobSpec
    status: FineTuneJobStatus = FineTuneJobStatus()
