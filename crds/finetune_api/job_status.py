"""Status of a FineTuneJob: its runs, their stages, data, scores and artifacts."""

from typing import Annotated, Final

from pydantic import Field

from finetune_api.base import Condition, Count, Digest, Message, OpenEnum, Timestamp, WireModel, Word, as_map
from finetune_api.budget import CostStatus, FitStatus
from finetune_api.gates import GoalStatus
from finetune_api.goals import MAX_GOALS
from finetune_api.judging import JudgeStatus
from finetune_api.push import MAX_TARGETS, PushStatus
from finetune_api.readiness import MAX_SUMMARY
from finetune_api.review import ReviewStatus
from finetune_api.storage import Storage


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


MAX_PROMPTING: Final = 256


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
    prompting: Annotated[str, Field(max_length=MAX_PROMPTING)] = ""
    """Whether prompting the base model would have been enough, in a sentence. Empty: no other prompt was tried, or
    publish has not said yet."""
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
    base_size_bytes: Count = None
    """Format Adapter: size of the model that it was trained on, which a server loads too."""
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
    metrics_digest: Annotated[str, Field(max_length=64)] = ""
    """Identity of the files that metric containers read, when the run started; empty where none are named."""
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
