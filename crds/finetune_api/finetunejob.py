"""FineTuneJob: *the artifact of this spec exists*. Dataset in, published and evaluated artifact out."""

from enum import StrEnum
from typing import Annotated, Final

from pydantic import ConfigDict, Field, model_validator

from finetune_api.access import access_rules, require_fitting
from finetune_api.base import (
    ApiModel,
    Condition,
    Count,
    Digest,
    Message,
    Name,
    ObjectMeta,
    OpenEnum,
    Timestamp,
    WireModel,
    Word,
    as_map,
)
from finetune_api.budget import Budget, CostStatus, FitStatus
from finetune_api.custom_metrics import CustomMetrics
from finetune_api.dataset import Dataset, Task
from finetune_api.freeze import Changes
from finetune_api.goals import (
    CONTAINED,
    ELSEWHERE,
    JUDGED,
    MAX_GOALS,
    OF_CANARIES,
    PLANTED,
    Baseline,
    Gates,
    GoalStatus,
    Metric,
    asked_rule,
    concerns,
)
from finetune_api.judging import Judge, JudgeStatus, OtherModel
from finetune_api.push import MAX_TARGETS, PushStatus, PushTarget
from finetune_api.readiness import MAX_SUMMARY
from finetune_api.references import SecretKeyRef
from finetune_api.review import Reviewing, ReviewStatus
from finetune_api.rules import Rule
from finetune_api.storage import MODEL_URI, InputStorage, S3Uri, Storage
from finetune_api.tracking import Retention, Tracking
from finetune_api.training import AdapterKind, Method, Training


class BaseModelRef(ApiModel):
    """The model to start from."""

    model_config = ConfigDict(json_schema_extra={"x-kubernetes-validations": access_rules()})

    uri: Annotated[str, Field(pattern=MODEL_URI, min_length=6, max_length=512)]
    """s3://bucket/prefix of a checkpoint with safetensors, or hf://organisation/name@revision."""
    storage: InputStorage | None = None
    """How to reach the model's store, in place of spec.storage as a whole."""
    secret_key_ref: Annotated[SecretKeyRef | None, Changes.RETRY] = None
    """Hugging Face token for a gated or private model."""

    @model_validator(mode="after")
    def _fitting(self) -> "BaseModelRef":
        require_fitting(self.uri, self.storage, self.secret_key_ref)
        return self


class ExportFormat(StrEnum):
    """Format of the artifact that is served: one merged model, its values in so many bits, or the adapter alone."""

    INT8 = "INT8"
    W8A16 = "W8A16"
    FP8 = "FP8"
    INT4 = "INT4"
    MERGED = "Merged"
    ADAPTER = "Adapter"


WHOLE_MODELS: Final = tuple(each for each in ExportFormat if each is not ExportFormat.ADAPTER)
"""Formats in which the adapter is part of the model."""


class OnRegression(StrEnum):
    """What becomes of an artifact that is worse than the model that was trained."""

    FAIL = "Fail"
    FALL_BACK = "FallBack"


class Export(ApiModel):
    """How the tuned model is prepared for serving."""

    format: ExportFormat = ExportFormat.INT8
    """Of the weights of all linear layers but the output layer. INT8: 8-bit integers, activations too (W8A8). W8A16:
    8-bit integers, activations in 16 bits. FP8: 8-bit floating point, activations too. INT4: 4-bit integers, calibrated
    by GPTQ on training examples, activations in 16 bits. Merged: 16 bits, nothing is rounded. Adapter: the adapter
    itself, beside the 16-bit model that it was trained on: an AdapterDeployment serves several such on one copy of that
    (source.adapters). Not with method Full, nor with DoRA."""
    alternatives: Annotated[list[ExportFormat], Field(max_length=4)] = []
    """Other formats, made and evaluated on the same examples beside it: the report compares them, and FallBack tries
    them in this order."""
    on_regression: OnRegression = OnRegression.FAIL
    """What to do if the artifact is worse than the tuned model on the test examples, beyond chance. Fail: as if a goal
    was missed (evaluation.onFail). FallBack: the first of alternatives that is not worse is the artifact; Merged is
    tried last, whether it is listed or not."""

    @property
    def formats(self) -> list[ExportFormat]:
        """All that are made, in the order in which they are tried."""
        others = list(self.alternatives)
        if self.on_regression is OnRegression.FALL_BACK:
            others = [*(each for each in others if each is not ExportFormat.MERGED), ExportFormat.MERGED]
        return list(dict.fromkeys([self.format, *others]))

    @property
    def servable(self) -> list[ExportFormat]:
        """Those of them that may become the artifact; the others are compared with it."""
        return self.formats if self.on_regression is OnRegression.FALL_BACK else [self.format]


class Coverage(StrEnum):
    """How much of a set of questions that come with this version is asked."""

    OFF = "Off"
    SAMPLE = "Sample"
    FULL = "Full"


class Examination(ApiModel):
    """What the models are asked: the part of an evaluation that its figures depend on."""

    max_samples: Annotated[int, Field(ge=10, le=100000)] = 200
    """Maximum number of test examples that the base model, the tuned model and the artifact each answer."""
    golden_prompts: Annotated[int, Field(ge=2, le=32)] = 8
    """Prompts whose answers are published with the artifact; serving uses them to prove that the adapter is active."""
    general: Coverage = Coverage.SAMPLE
    """Questions beside the task (arithmetic, instructions, format, facts, reading, refusals), which base and tuned
    model answer: what tuning made the model forget. Sample: a fixed part of each kind."""
    adversarial: Coverage = Coverage.SAMPLE
    """Harmful requests and benign ones that sound alike, jailbreaks, injected instructions, secrets, questions off the
    topic, persons to be treated alike: what tuning did to safety. Sample: a fixed part of each kind."""
    baseline: OtherModel | None = None
    """Another model that answers the same test examples, prompted as well as it can be: whether using that one would
    have done."""


class Evaluation(Gates, Reviewing, Examination):
    """How the exported artifact is tested before it is published."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                rule.as_schema()
                for rule in (asked_rule("general"), asked_rule("adversarial"), JUDGED, ELSEWHERE, CONTAINED)
            ]
        }
    )

    judge: Judge | None = None
    """Have another model compare the artifact's answers with the base model's, before anything is published: for free
    text, where no metric says whether an answer is good."""
    metrics: CustomMetrics = []
    """Metric containers of the platform that measure the answers, or the models, beside what is measured anyway, one
    after the other. Goals use their figures as metric custom."""

    @model_validator(mode="after")
    def _asked(self) -> "Evaluation":
        if self.judge is None and any(goal.metric is Metric.JUDGE_WIN_RATE for goal in self.goals):
            raise ValueError(JUDGED.message)
        if self.baseline is None and any(goal.baseline is Baseline.ENDPOINT for goal in self.goals):
            raise ValueError(ELSEWHERE.message)
        names = {each.name for each in self.metrics}
        if any(goal.custom and goal.custom.partition(".")[0] not in names for goal in self.goals):
            raise ValueError(CONTAINED.message)
        for field, coverage in (("general", self.general), ("adversarial", self.adversarial)):
            if coverage is Coverage.OFF and concerns(field, self.goals):
                raise ValueError(asked_rule(field).message)
        return self

    @property
    def examination(self) -> Examination:
        """Without what is judged by: other goals need no other answers."""
        return Examination(**{name: getattr(self, name) for name in Examination.model_fields})

    @property
    def gates(self) -> Gates:
        """What the figures are judged by."""
        return Gates(goals=self.goals, on_inconclusive=self.on_inconclusive, on_fail=self.on_fail)

    @property
    def reviewing(self) -> Reviewing:
        """Whether people have a say."""
        return Reviewing(human_review=self.human_review, review=self.review)


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


class FineTuneJobSpec(ApiModel):
    """The artifact to make. Frozen while a stage is at work, except for suspend, tracking, retention, credentials,
    caBundle and a higher budget; any other change, also of `rerun`, starts a new run."""

    model_config = ConfigDict(
        json_schema_extra={"x-kubernetes-validations": [PLANTED.as_schema(), _ADAPTER_ALONE.as_schema()]}
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
    rerun: Annotated[str, Field(max_length=64, pattern=r"^[A-Za-z0-9._:-]*$")] = ""
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

    @property
    def output_storage(self) -> Storage:
        """How the results' store is reached."""
        return self.output.storage or self.storage


class Phase(OpenEnum):
    """A one-word summary for people; programs read the conditions."""

    PENDING = "Pending"
    RUNNING = "Running"
    SUSPENDED = "Suspended"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


class StageState(OpenEnum):
    """State of a stage."""

    PENDING = "Pending"
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    REUSED = "Reused"
    FAILED = "Failed"


class StageStatus(WireModel):
    """One row of the stage table."""

    name: Annotated[str, Field(max_length=16)]
    """resolve, prepare, train, export, evaluate or publish."""
    state: StageState = StageState.PENDING
    """Pending, Running, Succeeded, Reused or Failed."""
    job: Annotated[str, Field(max_length=63)] = ""
    """Name of the stage's Job."""
    input_key: Annotated[str, Field(max_length=64)] = ""
    """Identity of the stage's input: equal keys mean the same work."""
    output_digest: Annotated[str, Field(max_length=64)] = ""
    """Content address of the result."""
    attempts: int = 0
    """Number of pods started."""
    started_at: Timestamp | None = None
    """When its first pod started, or its result was found; after a suspension, when its first pod since then
    started."""
    earlier_seconds: int | None = None
    """Seconds that its deleted pods ran, e.g. before a suspension."""
    working_since: Timestamp | None = None
    """When its pods were first seen at work, not only scheduled; absent again while it is suspended. While a running
    stage has it, the spec is frozen."""
    finished_at: Timestamp | None = None
    """When it ended."""
    message: Message = ""
    """What the stage found, or why it waits."""
    ended: Annotated[str, Field(max_length=63)] = ""
    """For train: why it ended, e.g. TrainingCompleted, Plateau, Overfitting or BudgetExceeded."""


class Progress(WireModel):
    """Progress of the running stage."""

    stage: Annotated[str, Field(max_length=16)]
    """The running stage."""
    percent: Annotated[int, Field(ge=0, le=100)]
    """Share of the work that is done."""
    eta_seconds: int | None = None
    """Estimated seconds left, from the speed so far."""
    message: Annotated[str, Field(max_length=256)] = ""
    """Details, e.g. step and loss."""
    updated_at: Timestamp
    """When the stage reported it."""


class Rows(WireModel):
    """Row counts of the data set."""

    read: int = 0
    """Rows in the sources."""
    invalid: int = 0
    """Invalid rows, dropped."""
    duplicates: int = 0
    """Duplicate rows, dropped."""
    dropped: int = 0
    """Valid rows that a rule of spec.dataset dropped."""
    train: int = 0
    """Examples for training."""
    validation: int = 0
    """Examples for validation."""
    test: int = 0
    """Examples for testing."""


class DatasetStatus(WireModel):
    """The version of the data that this run uses."""

    digest: Digest
    """Content address of the prepared data set."""
    rows: Rows
    """Row counts: read, dropped and used."""
    labels: Count = None
    """Number of distinct labels; absent for tasks without labels."""
    tokens: Count = None
    """Tokens trained per epoch."""
    longest: Count = None
    """Tokens of the longest example, before spec.dataset.cleaning shortened or dropped any."""
    test_masked: int | None = None
    """Test examples that hold placeholders for personal data, which the evaluation scores apart."""
    answers_masked: int | None = None
    """Examples of all parts whose answer holds placeholders."""
    readiness: Annotated[str, Field(max_length=MAX_SUMMARY)] = ""
    """Summary of the readiness checklist, e.g. 10 passed, 2 warnings (balance, baseline), 0 failed. The evaluation adds
    the base model's score, which resolves the item baseline."""
    report_uri: Annotated[str, Field(max_length=1024)] = ""
    """The readiness report, an HTML page."""


class Scores(WireModel):
    """One metric for the three compared models."""

    base: str = ""
    """The base model, given the same instruction."""
    few_shot: str = ""
    """The base model, shown training examples in its prompt."""
    tuned: str = ""
    """The base model with the adapter, as trained."""
    artifact: str = ""
    """The exported files, exactly as they are served."""


class EvaluationStatus(WireModel):
    """Scores on the test split."""

    samples: int
    """Number of test examples answered."""
    accuracy: Scores
    """Share of correct answers: exactly the label (Classification) or the same JSON value (Extraction). Empty for
    texts."""
    f1: Scores
    """Mean F1 of the labels (Classification), or of the examples by their fields (Extraction) or words (Text)."""
    chrf: Scores | None = None
    """Of texts: mean character n-gram F-score of answer and expected answer, 0 to 1."""
    perplexity: Scores | None = None
    """Of texts: how unlikely the models find the expected answers, 1 and more; lower is better. fewShot is never set: a
    prompt with examples has none."""
    goals: Annotated[list[GoalStatus], Field(max_length=MAX_GOALS)] = []
    """The goals and what the artifact reached; without goals in the spec, how it compares with the base model."""
    goals_met: Annotated[str, Field(max_length=8)] = ""
    """Goals met out of all, e.g. 2/3."""
    review: ReviewStatus | None = None
    """What people voted, where spec.evaluation.humanReview is Required."""
    judge: JudgeStatus | None = None
    """What the model of spec.evaluation.judge said."""
    report_uri: Annotated[str, Field(max_length=1024)] = ""
    """Where the detailed report is."""


class ArtifactTokens(WireModel):
    """Token lengths of the artifact's prompts and examples, to compare with a runtime's limits. Absent: not counted."""

    golden_prompt: Count = None
    """Tokens of the longest golden prompt."""
    answer: Count = None
    """Maximum tokens of its answer."""
    example: Count = None
    """Tokens of the longest training example, prompt and answer together."""


class ArtifactStatus(WireModel):
    """What was published."""

    digest: Digest
    """Content address of the artifact."""
    uri: Annotated[str, Field(max_length=1024)]
    """Folder of the artifact; set it in an AdapterDeployment to pin this version."""
    format: Annotated[str, Field(max_length=16)]
    """Format of the weights, as in spec.export.format, or one that a newer version knows."""
    architecture: Annotated[str | None, Field(max_length=64)] = None
    """Architecture of the weights, the model_type of their config.json, e.g. llama; absent if unknown."""
    size_bytes: Count = None
    """Size of the weights."""
    base_digest: Annotated[str | None, Field(max_length=64)] = None
    """Format Adapter: content address of the model that it was trained on; adapters with the same one share a
    server."""
    rank: Count = None
    """Format Adapter: its rank."""
    storage: Storage | None = None
    """How to reach it: the output's storage at the time of publishing, which may have changed since."""
    tokens: ArtifactTokens | None = None
    """Token lengths of its prompts and examples."""
    signed_by: Annotated[str | None, Field(max_length=64)] = None
    """Id of the public key whose private key signed it; absent if it was not signed."""
    pushed: Annotated[list[PushStatus] | None, Field(max_length=MAX_TARGETS)] = None
    """Its copies in the places that spec.output.pushTo names; absent if there is none."""


class RunStatus(WireModel):
    """One attempt to make the artifact of a spec."""

    id: Annotated[str, Field(max_length=16)]
    """Identifies the run in labels and in the store."""
    number: int
    """1 for the first run of this resource."""
    spec_hash: Annotated[str, Field(max_length=64)]
    """Identity of what this run makes, as this version of the operator computes it."""
    means_hash: Annotated[str, Field(max_length=64)] = ""
    """Identity of its credentials and budget; if they change after it has failed, a new run starts."""
    generation: Annotated[int, Field(json_schema_extra={"format": "int64"})] = 0
    """Newest generation of the resource with this spec, so that an operator upgrade does not restart a finished run."""
    started_at: Timestamp
    """When it started."""
    finished_at: Timestamp | None = None
    """When it ended."""
    outcome: Annotated[Phase, Field(json_schema_extra={"enum": ["Running", "Succeeded", "Failed"]})] = Phase.RUNNING
    """Running, Succeeded or Failed."""
    reason: Word = ""
    """Root cause of the outcome."""
    message: Message = ""
    """What happened."""
    source_digest: Annotated[str, Field(max_length=64)] = ""
    """Identity of the source files when the run started."""
    model_digest: Annotated[str, Field(max_length=64)] = ""
    """Identity of the base model's files when the run started."""
    artifact_digest: Annotated[str, Field(max_length=64)] = ""
    """Content address of the published artifact."""


class FineTuneJobStatus(WireModel):
    """Observed state. Results do not depend on it: they are addressed by content in the store."""

    observed_generation: Annotated[int, Field(json_schema_extra={"format": "int64"})] = -1
    """Generation of the spec that this status describes."""
    phase: Phase | None = None
    """Pending, Running, Suspended, Succeeded or Failed."""
    conditions: Annotated[list[Condition], Field(max_length=16), as_map("type")] = []
    """Ready, Reconciling and Stalled (kstatus); Complete, Failed and Suspended (as in batch Jobs); Finished, once the
    run has ended, well or not; Discouraged if settings are known to perform badly, or preflight warns."""
    run: RunStatus | None = None
    """The active run, or the last one."""
    runs: Annotated[list[RunStatus], Field(max_length=10), as_map("id")] = []
    """Earlier runs, newest first."""
    stages: Annotated[list[StageStatus], Field(max_length=8), as_map("name")] = []
    """The stages of the run."""
    stages_done: Annotated[str, Field(max_length=8)] = ""
    """Finished stages out of all, e.g. 3/5."""
    progress: Progress | None = None
    """Progress of the running stage."""
    fit: FitStatus | None = None
    """Memory and time as preflight estimates them before a GPU is requested."""
    cost: CostStatus | None = None
    """Cost of the run's GPUs; absent if the profile has no price."""
    dataset: DatasetStatus | None = None
    """The data of the run."""
    evaluation: EvaluationStatus | None = None
    """The scores of the run."""
    artifact: ArtifactStatus | None = None
    """The newest published artifact that was accepted."""
    candidate: ArtifactStatus | None = None
    """The newest artifact, if it missed a goal and spec.evaluation.onFail is PublishAsCandidate. Only an
    AdapterDeployment that names its URI serves it."""

    @property
    def at_work(self) -> bool:
        """Whether a stage of the open run has pods at work: the API server freezes the spec (``rules.py``)."""
        is_open = self.run is not None and self.run.finished_at is None
        return is_open and any(row.state is StageState.RUNNING and row.working_since for row in self.stages)


class FineTuneJob(WireModel):
    """A FineTuneJob turns examples and a base model into an evaluated, published artifact."""

    api_version: str = "finetune.dev/v1alpha1"
    kind: str = "FineTuneJob"
    metadata: ObjectMeta
    spec: FineTuneJobSpec
    status: FineTuneJobStatus = FineTuneJobStatus()
