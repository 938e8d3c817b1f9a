"""FineTuneJob: *the artifact of this spec exists*. Dataset in, published and evaluated artifact out."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from finetune_api.base import ApiModel, Condition, Digest, Message, Name, ObjectMeta, Timestamp, WireModel
from finetune_api.budget import Budget, CostStatus, FitStatus
from finetune_api.dataset import Dataset, Task
from finetune_api.readiness import MAX_SUMMARY
from finetune_api.storage import MODEL_URI, S3Uri, Storage
from finetune_api.tracking import Retention, Tracking
from finetune_api.training import Training


class BaseModelRef(ApiModel):
    """The model to start from."""

    uri: Annotated[str, Field(pattern=MODEL_URI, min_length=6, max_length=512)]
    """s3://bucket/prefix of a checkpoint with safetensors, or hf://organisation/name@revision."""


class ExportFormat(StrEnum):
    """Format of the artifact that is served."""

    INT8 = "INT8"


class Export(ApiModel):
    """How the tuned model is made ready for serving."""

    format: ExportFormat = ExportFormat.INT8
    """INT8: merged, then 8-bit weights and activations (W8A8, compressed-tensors), read by TGI and vLLM."""


class Evaluation(ApiModel):
    """What the exported artifact is asked before it is published."""

    max_samples: Annotated[int, Field(ge=10, le=100000)] = 200
    """At most this many test examples are answered by base, tuned model and artifact each."""
    golden_prompts: Annotated[int, Field(ge=2, le=32)] = 8
    """Prompts whose answers are published with the artifact, to prove at serving that the tuning is really on."""


class Output(ApiModel):
    """Where results go."""

    uri: S3Uri
    """Bucket and prefix of all results of this job, e.g. s3://models/team-a."""
    name: Name
    """Name under which the artifact is published; one FineTuneJob per name."""


class Reuse(StrEnum):
    """Whether results of equal inputs are taken over."""

    ALLOWED = "Allowed"
    NEVER = "Never"


class FineTuneJobSpec(ApiModel):
    """What to make. Frozen while a run is active; a change afterwards, or of `rerun`, starts a new run."""

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
    """What to make of the tuned model."""
    evaluation: Evaluation = Evaluation()
    """How to judge it."""
    output: Output
    """Where to publish."""
    budget: Budget | None = None
    """What a run's GPUs may cost; left out: no limit."""
    storage: Storage = Storage()
    """How to reach S3; used for sources, base model and output."""
    tracking: Tracking = Tracking()
    """Where the measurements of the training go."""
    retention: Retention = Retention()
    """What stays of the state of runs."""
    suspend: bool = False
    """True stops the running stage's pod and keeps everything finished; false goes on."""
    rerun: Annotated[str, Field(max_length=64, pattern=r"^[A-Za-z0-9._:-]*$")] = ""
    """Any new value starts a new run after one has ended, e.g. with new credentials; finished stages are reused."""
    reuse: Reuse = Reuse.ALLOWED
    """Never: do every stage again even where a result for the same input exists."""


class Phase(StrEnum):
    """One word for people; programs read the conditions."""

    PENDING = "Pending"
    RUNNING = "Running"
    SUSPENDED = "Suspended"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


class StageState(StrEnum):
    """Where a stage stands."""

    PENDING = "Pending"
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    REUSED = "Reused"
    FAILED = "Failed"


class StageStatus(WireModel):
    """One line of the stage table."""

    name: Annotated[str, Field(max_length=16)]
    """resolve, prepare, train, export, evaluate or publish."""
    state: StageState = StageState.PENDING
    """Pending, Running, Succeeded, Reused or Failed."""
    job: Annotated[str, Field(max_length=63)] = ""
    """Name of the stage's Job."""
    input_key: Annotated[str, Field(max_length=64)] = ""
    """Identity of the stage's input; equal keys mean equal work."""
    output_digest: Annotated[str, Field(max_length=64)] = ""
    """Content address of the result."""
    attempts: int = 0
    """Pods that were started."""
    started_at: Timestamp | None = None
    """When its first pod ran, or when its result was found; after a suspension, its first pod since then."""
    earlier_seconds: int | None = None
    """Seconds that pods took which are gone, e.g. those before a suspension."""
    finished_at: Timestamp | None = None
    """When it ended."""
    message: Message = ""
    """What it found, or why it waits."""
    ended: Annotated[str, Field(max_length=63)] = ""
    """Of train: why it ended, e.g. TrainingCompleted, Plateau, Overfitting or BudgetExceeded."""


class Progress(WireModel):
    """How far the running stage is."""

    stage: Annotated[str, Field(max_length=16)]
    """The running stage."""
    percent: Annotated[int, Field(ge=0, le=100)]
    """Share of its work that is done."""
    eta_seconds: int | None = None
    """Seconds that are left, from the speed so far."""
    message: Annotated[str, Field(max_length=256)] = ""
    """Details, e.g. step and loss."""
    updated_at: Timestamp
    """When the stage reported this."""


class Rows(WireModel):
    """What became of the rows."""

    read: int = 0
    """Rows in the sources."""
    invalid: int = 0
    """Rows left out because they were wrong."""
    duplicates: int = 0
    """Rows left out because another was the same."""
    dropped: int = 0
    """Valid rows that the rules of spec.dataset left out."""
    train: int = 0
    """Examples for training."""
    validation: int = 0
    """Examples for validation."""
    test: int = 0
    """Examples for the test."""


class DatasetStatus(WireModel):
    """The version of the data that this run used."""

    digest: Digest
    """Content address of the prepared data set."""
    rows: Rows
    """What became of the rows."""
    labels: int = 0
    """Number of different labels."""
    tokens: int = 0
    """Tokens that one epoch trains."""
    longest: int = 0
    """Tokens of the longest example, before spec.dataset.cleaning shortened or left out any."""
    readiness: Annotated[str, Field(max_length=MAX_SUMMARY)] = ""
    """The checklist in short, e.g. 10 passed, 2 warnings (balance, baseline), 0 failed; after the evaluation with the
    base model's score, which settles the item baseline."""
    report_uri: Annotated[str, Field(max_length=1024)] = ""
    """The readiness report, a page for a browser."""


class Scores(WireModel):
    """One measure for the three models that were compared."""

    base: str = ""
    """The base model with the same instruction."""
    tuned: str = ""
    """Base and adapter as trained."""
    artifact: str = ""
    """The exported files, exactly as served."""


class EvaluationStatus(WireModel):
    """What the evaluation measured on the test split."""

    samples: int
    """Test examples that were answered."""
    accuracy: Scores
    """Share of right answers: exactly the label (Classification), the same JSON value (Extraction), the same words
    (Text)."""
    f1: Scores
    """Mean F1 of the labels (Classification), or of the examples by their fields (Extraction) or words (Text)."""
    report_uri: Annotated[str, Field(max_length=1024)] = ""
    """Where the details are."""


class ArtifactTokens(WireModel):
    """How long what the artifact learnt and is asked is, to be compared with what a runtime takes; 0: not counted."""

    golden_prompt: int = 0
    """Tokens of the longest golden prompt."""
    answer: int = 0
    """Tokens that an answer to it may have."""
    example: int = 0
    """Tokens of the longest example of the data, prompt and answer, as it was trained."""


class ArtifactStatus(WireModel):
    """What was published."""

    digest: Digest
    """Content address of the artifact."""
    uri: Annotated[str, Field(max_length=1024)]
    """Folder of the artifact; give it to an AdapterDeployment to pin this version."""
    format: ExportFormat
    """Format of the weights."""
    size_bytes: int = 0
    """Size of the weights."""
    storage: Storage | None = None
    """How it is reached: spec.storage as it was when it was published, which a later run may have changed since."""
    tokens: ArtifactTokens | None = None
    """How long what it learnt and is asked is."""


class RunStatus(WireModel):
    """One attempt to make the artifact of a spec."""

    id: Annotated[str, Field(max_length=16)]
    """Names the run in labels and in the store."""
    number: int
    """1 for the first run of this resource."""
    spec_hash: Annotated[str, Field(max_length=64)]
    """Identity of the spec (without suspend) that this run works on, as this version of the operator computes it."""
    generation: Annotated[int, Field(json_schema_extra={"format": "int64"})] = 0
    """The newest generation of the resource whose spec this is: no upgrade makes a finished run of it begin again."""
    started_at: Timestamp
    """When it began."""
    finished_at: Timestamp | None = None
    """When it ended."""
    outcome: Annotated[Phase, Field(json_schema_extra={"enum": ["Running", "Succeeded", "Failed"]})] = Phase.RUNNING
    """Running, Succeeded or Failed."""
    reason: Annotated[str, Field(max_length=63)] = ""
    """Root cause of the outcome."""
    message: Message = ""
    """What happened."""
    source_digest: Annotated[str, Field(max_length=64)] = ""
    """Identity of the source files as they were when the run began."""
    model_digest: Annotated[str, Field(max_length=64)] = ""
    """Identity of the base model's files as they were when the run began."""
    artifact_digest: Annotated[str, Field(max_length=64)] = ""
    """What the run published."""


class FineTuneJobStatus(WireModel):
    """What the operator knows. Nothing here is needed to find the results again: they are addressed by content."""

    observed_generation: Annotated[int, Field(json_schema_extra={"format": "int64"})] = -1
    """Generation of the spec that this status speaks of."""
    phase: Phase | None = None
    """Pending, Running, Suspended, Succeeded or Failed."""
    conditions: Annotated[list[Condition], Field(max_length=16)] = []
    """Ready, Reconciling, Stalled (kstatus), Complete, Failed and Suspended (as batch Jobs say it); Discouraged where
    settings are known to do badly."""
    run: RunStatus | None = None
    """The run that is active, or the last one."""
    runs: Annotated[list[RunStatus], Field(max_length=10)] = []
    """Earlier runs, newest first."""
    stages: Annotated[list[StageStatus], Field(max_length=8)] = []
    """The stage table of the run."""
    stages_done: Annotated[str, Field(max_length=8)] = ""
    """Finished stages of all, e.g. 3/5."""
    progress: Progress | None = None
    """How far the running stage is."""
    fit: FitStatus | None = None
    """What preflight, the estimate before a GPU is asked for, found out about memory and time."""
    cost: CostStatus | None = None
    """What the run's GPUs cost; absent for a profile without a price."""
    dataset: DatasetStatus | None = None
    """The data of the run."""
    evaluation: EvaluationStatus | None = None
    """The scores of the run."""
    artifact: ArtifactStatus | None = None
    """The newest published artifact."""


class FineTuneJob(WireModel):
    """A FineTuneJob makes a published, evaluated artifact out of examples and a base model."""

    api_version: str = "finetune.dev/v1alpha1"
    kind: str = "FineTuneJob"
    metadata: ObjectMeta
    spec: FineTuneJobSpec
    status: FineTuneJobStatus = FineTuneJobStatus()
