"""The stages: their input (StageInput), their result (StageResult), and what identifies their work.

The operator writes a StageInput as JSON into an immutable ConfigMap; the stage's container reads it, and its
termination message is a StageResult. Readers ignore unknown fields at every level, so that operator and job images of
neighbouring versions understand each other. One exception: a stage refuses an input with an unknown field among the
parameters that are part of a key. Fields are added with a default. Where they move, the earlier place is still read; a
stage that only knows the earlier place refuses the input.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, Final

from pydantic import Field, model_validator

from finetune_api.access import without_access
from finetune_api.artifact_source import artifact_digest
from finetune_api.base import WireModel
from finetune_api.budget import HardwareFacts
from finetune_api.custom_metrics import MetricRun
from finetune_api.dataset import Dataset, Task
from finetune_api.endpoint_stages import AnalyseParams, FetchParams, FollowParams, VerifyParams
from finetune_api.evaluation import Examination
from finetune_api.export import Export, OnRegression
from finetune_api.finetunejob import Output
from finetune_api.gates import Gates
from finetune_api.hashing import digest, without_defaults
from finetune_api.judging import Judge
from finetune_api.meta import ADAPTERDEPLOYMENT, FINETUNEJOB
from finetune_api.reasons import Reason
from finetune_api.references import SecretKeyRef
from finetune_api.review import Reviewing
from finetune_api.serving_status import VerificationCheck
from finetune_api.storage import InputStorage, Storage
from finetune_api.suitability import ServingFacts
from finetune_api.tracking import Retention, Tracking
from finetune_api.training import Loss, Training

MAX_RESULT_BYTES: Final = 3900
"""Longest StageResult; the kubelet truncates termination messages at 4,096 bytes."""


class Stage(StrEnum):
    """What runs in a stage's container: ``python -m finetune_jobs.<stage>``."""

    RESOLVE = "resolve"
    PREPARE = "prepare"
    TRAIN = "train"
    EXPORT = "export"
    EVALUATE = "evaluate"
    PUBLISH = "publish"
    FETCH = "fetch"
    VERIFY = "verify"
    ANALYSE = "analyse"
    FOLLOW = "follow"


PIPELINE: Final = (Stage.PREPARE, Stage.TRAIN, Stage.EXPORT, Stage.EVALUATE, Stage.PUBLISH)
"""The stages of a FineTuneJob that produce output, in order; ``resolve`` runs before them."""

OF_ENDPOINTS: Final = frozenset({Stage.FETCH, Stage.VERIFY, Stage.ANALYSE, Stage.FOLLOW})
"""The stages of an AdapterDeployment."""


def kind_of(stage: Stage) -> str:
    """The kind of custom resource that a stage works for."""
    return ADAPTERDEPLOYMENT if stage in OF_ENDPOINTS else FINETUNEJOB


RECIPE_VERSIONS: Final[Mapping[Stage, int]] = {
    Stage.PREPARE: 15,
    Stage.TRAIN: 6,
    Stage.EXPORT: 5,
    Stage.EVALUATE: 16,
    Stage.PUBLISH: 9,
}
"""Raise a number when the stage's code changes its result for the same input: old results are then not reused."""


class PrepareParams(WireModel):
    """The part of the spec that prepare depends on."""

    dataset: Dataset
    """spec.dataset, whole."""
    task: Task = Task()
    max_length: int = 512
    """Maximum tokens of an example: spec.training.maxLength."""
    loss: Loss = Loss.ANSWER
    """Which answers of a conversation the model learns: spec.training.loss."""

    @model_validator(mode="before")
    @classmethod
    def _read_flat(cls, given: Any) -> Any:
        """Up to recipe 8, the fields of the data set stood beside the others: such an input is still read."""
        if not isinstance(given, dict) or "dataset" in given:
            return given
        names = {name for field, info in Dataset.model_fields.items() for name in (field, info.alias)}
        flat = {name: value for name, value in given.items() if name in names}
        rest = {name: value for name, value in given.items() if name not in names}
        return {**rest, "dataset": flat} if flat else given


class TrainParams(WireModel):
    """The part of the spec that train depends on."""

    training: Training


class ExportParams(WireModel):
    """The part of the spec that export depends on. The method determines how the base model is merged."""

    export: Export
    method: str


class EvaluateParams(WireModel):
    """The part of the spec that evaluate depends on."""

    evaluation: Examination
    task: Task
    method: str
    on_regression: OnRegression = OnRegression.FAIL
    """Whether another format is the artifact if the first is worse than the tuned model: spec.export.onRegression."""
    metrics: list[MetricRun] = []
    """Metric containers that measure what was answered: spec.evaluation.metrics, as the platform's values have them."""


class PublishParams(WireModel):
    """The part of the spec that publish depends on."""

    output: Output
    format: str
    gates: Gates = Gates()
    """What the evaluation is judged by."""
    reviewing: Reviewing = Reviewing()
    """Whether people must prefer the artifact, too."""
    judge: Judge | None = None
    """Another model that compares answers: spec.evaluation.judge."""
    answer_schema: str = ""
    """JSON Schema that answers are to match, for who serves the artifact: spec.task.answerSchema; empty: there is
    none."""


class Params(WireModel):
    """All parameters of the pipeline. Each stage of a FineTuneJob uses its own part; resolve needs all of them."""

    prepare: PrepareParams | None = None
    train: TrainParams | None = None
    export: ExportParams | None = None
    evaluate: EvaluateParams | None = None
    publish: PublishParams | None = None
    fetch: FetchParams | None = None
    verify: VerifyParams | None = None
    analyse: AnalyseParams | None = None
    follow: FollowParams | None = None


class RunRef(WireModel):
    """The resource and run that a stage works for."""

    kind: str
    namespace: str
    name: str
    uid: str
    id: str
    """Run id of a FineTuneJob, revision of an AdapterDeployment."""


class Upstream(WireModel):
    """Content addresses that a stage depends on; empty if not available yet."""

    source: str = ""
    """Identity of the source files (from resolve)."""
    model: str = ""
    """Identity of the base model's files (from resolve)."""
    metrics: str = ""
    """Identity of the data that metric containers read (from resolve); empty where none is named."""
    dataset: str = ""
    """Output of prepare."""
    adapter: str = ""
    """Output of train."""
    export: str = ""
    """Output of export."""
    evaluation: str = ""
    """Output of evaluate."""

    def with_output(self, stage: Stage, output: str) -> "Upstream":
        """This chain with a stage's output filled in; nothing depends on publish, so it changes nothing."""
        field = {
            Stage.PREPARE: "dataset",
            Stage.TRAIN: "adapter",
            Stage.EXPORT: "export",
            Stage.EVALUATE: "evaluation",
        }.get(stage)
        return self.model_copy(update={field: output}) if field else self


DEPENDS_ON: Final[Mapping[Stage, tuple[str, ...]]] = {
    Stage.PREPARE: ("source", "model"),
    Stage.TRAIN: ("model", "dataset"),
    Stage.EXPORT: ("model", "adapter"),
    Stage.EVALUATE: ("model", "dataset", "adapter", "export"),
    Stage.PUBLISH: ("dataset", "adapter", "export", "evaluation"),
}
"""The upstream addresses that are part of each stage's input key, whatever its parameters."""


def depends_on(stage: Stage, params: Params) -> tuple[str, ...]:
    """The upstream addresses that are part of a stage's input key with these parameters. An evaluation without data of
    metric containers has the key that it had before there was such data."""
    runs = params.evaluate.metrics if stage is Stage.EVALUATE and params.evaluate else []
    return (*DEPENDS_ON[stage], *(("metrics",) if any(run.data for run in runs) else ()))


class StageInput(WireModel):
    """Everything that a stage needs, except secrets: credentials are environment variables."""

    schema_version: int = 1
    stage: Stage
    run: RunRef
    storage: Storage = Storage()
    """How to reach every store that has no ``storage`` of its own beside its URI."""
    output: Output | None = None
    """Where a FineTuneJob's results are stored."""
    base_model_uri: str = ""
    base_model_storage: InputStorage | None = None
    """How to reach the base model's store, if not as ``storage`` says."""
    base_model_secret_key_ref: SecretKeyRef | None = None
    """Token for a base model of the hub."""
    artifact_uri: str = ""
    """Folder of the artifact that fetch, verify and analyse work on."""
    artifact_digest: str = ""
    """Content address of that artifact."""
    input_key: str = ""
    """Identity of this stage's work; empty for resolve and the stages of an AdapterDeployment."""
    reuse: bool = True
    reuse_own: bool = False
    """Without ``reuse``: whether a pod takes what an earlier one has made for this very run. By hand it does not, as
    inputs may change from one start to the next."""
    upstream: Upstream = Upstream()
    params: Params = Params()
    tracking: Tracking = Tracking()
    """Where training metrics are tracked; not part of any key."""
    retention: Retention = Retention()
    """How much of the run's state is kept; not part of any key."""
    hardware: HardwareFacts | None = None
    """For resolve and the stages with a model: hardware of the profile's pods for those stages. Not part of any key,
    like the next two fields. None: unknown, and a pod without a GPU uses its CPUs."""
    alternatives: list[HardwareFacts] = []
    """For resolve: the platform's other profiles, to suggest one that would fit."""
    runtimes: list[ServingFacts] = []
    """For resolve: the model servers that the platform offers, to tell which of them can serve the artifact; not part
    of any key."""
    time_budget_seconds: int | None = None
    """For train: its time budget in seconds, over all attempts; it stops in time and keeps the best checkpoint. None:
    no limit."""
    max_cost: str = ""
    """For resolve and train: the spec.budget.maxCost that may end a training early; not part of any key. A training
    that this or a higher budget ended is reused. Empty: only trainings that no budget ended are reused."""
    operator_version: str = ""
    """For lineage only."""
    image: str = ""
    """The image in which the stage runs, as the platform's values name it: for lineage only."""
    hands_over: list[MetricRun] = []
    """For evaluate: the metric containers that run after it in its pod, for which it leaves what they read. Not part of
    any key: its own result is without them."""

    @property
    def results_storage(self) -> Storage:
        """How the store of the results or the artifact is reached."""
        return self.output.storage if self.output and self.output.storage else self.storage

    @model_validator(mode="before")
    @classmethod
    def _read_allowance(cls, given: Any) -> Any:
        """An input of an earlier version calls the time budget ``allowanceSeconds``."""
        if not isinstance(given, dict) or "allowanceSeconds" not in given:
            return given
        rest = {name: value for name, value in given.items() if name != "allowanceSeconds"}
        return {"timeBudgetSeconds": given["allowanceSeconds"], **rest}

    @model_validator(mode="before")
    @classmethod
    def _read_digest_from_uri(cls, given: Any) -> Any:
        """An input of an earlier version names the artifact's digest in its URI only."""
        if not isinstance(given, dict) or given.keys() & {"artifactDigest", "artifact_digest"}:
            return given
        uri = given.get("artifactUri") or given.get("artifact_uri")
        return given | {"artifactDigest": artifact_digest(uri)} if isinstance(uri, str) else given


class Outcome(StrEnum):
    """How a stage ended."""

    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


class Found(WireModel):
    """A result that resolve found in the store for a stage of this run."""

    stage: Stage
    output_digest: str
    scalars: dict[str, str] = {}
    """Those of FOUND_SCALARS that the result has."""
    run: str = ""
    """Id of the run that made it; empty: not known."""


_SCORED: Final = ("Base", "FewShot", "Tuned", "Artifact")
_SCORES: Final = ("accuracy", "f1", "chrf", "perplexity")
FOUND_SCALARS: Final[Mapping[Stage, frozenset[str]]] = {
    Stage.PREPARE: frozenset(
        {
            *("rowsRead", "rowsInvalid", "rowsDropped", "rowsDuplicates", "rowsTrain", "rowsValidation", "rowsTest"),
            *("labels", "tokens", "longest", "rowsTestMasked", "answersMasked", "readiness"),
        }
    ),
    Stage.TRAIN: frozenset({"ended"}),
    Stage.EXPORT: frozenset(),
    Stage.EVALUATE: frozenset({"samples", *(f"{score}{model}" for score in _SCORES for model in _SCORED)}),
    Stage.PUBLISH: frozenset(
        {
            *("channel", "goals", "prompting", "review", "judge", "format", "architecture", "sizeBytes"),
            *("goldenPromptTokens", "answerTokens", "baseDigest", "baseSizeBytes", "rank"),
        }
    ),
}
"""The scalars of a found result that the operator reads. Five results are in one termination message, so resolve tells
no others: they are in the record and the manifest. The artifact's URI follows from its digest."""


class StageResult(WireModel):
    """The termination message of a stage's container: at most MAX_RESULT_BYTES of JSON."""

    schema_version: int = 1
    stage: Stage
    outcome: Outcome
    reason: Reason
    message: Annotated[str, Field(max_length=1024)] = ""
    output_digest: str = ""
    reused: bool = False
    """True if the result for this input already existed and no work was done."""
    scalars: dict[str, str] = {}
    """Facts for the status; docs/reference/stages.md lists their names for each stage."""
    found: list[Found] = []
    """For resolve: the stages whose results already exist, in order from the first."""
    checks: list[VerificationCheck] = []
    """For verify and analyse: what it compared."""


def input_key(stage: Stage, upstream: Upstream, params: Params) -> str:
    """Identity of a stage's work: upstream addresses, its part of the spec, and its recipe version.

    With which credentials something is read changes no result, so it changes no key. Nor does a parameter that a later
    version adds, where it has its default.

    Raises ValueError if an address that the stage depends on is not known yet.
    """
    chain, needed = upstream.model_dump(by_alias=False), depends_on(stage, params)
    missing = [name for name in needed if not chain[name]]
    if missing:
        raise ValueError(f"{stage}: no {', '.join(missing)} yet")
    return digest(
        {
            "stage": stage.value,
            "recipe": RECIPE_VERSIONS[stage],
            "upstream": {name: chain[name] for name in needed},
            "params": without_access(without_defaults(getattr(params, stage.value))),
        }
    )
