"""Metrics of an evaluation that a container of the platform's admin measures: what is asked for, and what is written.

The admin lists containers in the chart's values, users ask for one by its name. It reads a folder with the test
examples and every model's answers, and with the models themselves where it is allowed to, and writes a
``MetricsReport``. docs/reference/metric-containers.md is about both sides.
"""

from collections.abc import Mapping
from math import isfinite
from typing import Annotated, ClassVar, Final, TypeVar

from pydantic import AfterValidator, Field, model_validator

from finetune_api.base import ApiModel, Name, WireModel, as_map
from finetune_api.dataset import TaskType
from finetune_api.spelled import spelled
from finetune_api.storage import InputStorage, S3Uri

MAX_METRICS: Final = 8
"""Containers that one evaluation runs, one after the other."""
FIGURE_PATTERN: Final = r"^[A-Za-z]([A-Za-z0-9_]{0,22}[A-Za-z0-9])?$"
"""Name of what a container measures."""
CUSTOM_PATTERN: Final = r"^[a-z]([-a-z0-9]*[a-z0-9])?\.[A-Za-z]([A-Za-z0-9_]{0,22}[A-Za-z0-9])?$"
"""The same with its container: ``<container>.<figure>``."""
PARAMETER_PATTERN: Final = r"^[A-Za-z]([A-Za-z0-9_-]{0,62}[A-Za-z0-9])?$"
MAX_REPORT_BYTES: Final = 64 * 1024 * 1024
"""Longest ``metrics.json``: a score of each model for each of 100,000 answers has room."""

MAX_FIGURE: Final = 1e100
"""Largest number of a report: squares and sums of more could not be computed."""
MAX_CASES: Final = 10**12
"""Most cases that a figure rests on."""

IN_DIR: Final = "/metrics/in"
"""Where a metric container reads: REQUEST and ANSWERS."""
MODELS_DIR: Final = "/metrics/models"
"""Where a metric container that may read the models finds them, each in a folder named as in MetricRequest.models."""
DATA_DIR: Final = "/metrics/data"
"""Where a metric container that was given data finds it; also in its environment, as DATA_VARIABLE."""
DATA_VARIABLE: Final = "METRICS_DATA"
OUT_DIR: Final = "/metrics/out"
"""Where a metric container writes REPORT."""
REQUEST: Final = "request.json"
ANSWERS: Final = "answers.jsonl"
REPORT: Final = "metrics.json"

FigureName = Annotated[str, Field(pattern=FIGURE_PATTERN, max_length=24)]


Named = TypeVar("Named", "MetricParameter", "CustomMetric")


def _each_once(items: list[Named]) -> list[Named]:
    names = [item.name for item in items]
    if twice := next((name for number, name in enumerate(names) if name in names[:number]), ""):
        raise ValueError(f"{twice!r} is listed twice")
    return items


class MetricParameter(ApiModel):
    """A parameter of a metric container."""

    name: Annotated[
        str,
        spelled(
            PARAMETER_PATTERN,
            "write letters, digits, _ and -, starting with a letter and ending with a letter or digit",
            max_length=64,
        ),
    ]
    """Its name, as the container's admin has documented it."""
    value: Annotated[str, Field(max_length=1024)]
    """Its value, as text."""


class MetricData(ApiModel):
    """A folder in a store that a metric container reads, e.g. tasks with their questions."""

    uri: S3Uri
    """s3://bucket/prefix: all files below it, at most 10,000 and 4 GiB. The container finds them in $METRICS_DATA and
    needs no keys; other files under the same prefix give another evaluation."""
    storage: InputStorage | None = None
    """How to reach their store, in place of spec.storage as a whole."""


class CustomMetric(ApiModel):
    """A metric container that an evaluation runs."""

    name: Name
    """Name of the container in the platform's values (metricContainers)."""
    parameters: Annotated[list[MetricParameter], Field(max_length=16), as_map("name"), AfterValidator(_each_once)] = []
    """What it is told, e.g. which tasks to run."""
    data: MetricData | None = None
    """Files that it reads in addition to the answers; none by default."""

    @property
    def given(self) -> dict[str, str]:
        """The parameters by name."""
        return {each.name: each.value for each in self.parameters}


CustomMetrics = Annotated[list[CustomMetric], Field(max_length=MAX_METRICS), as_map("name"), AfterValidator(_each_once)]
"""The metric containers of an evaluation, each of them once."""


class FigureRule(ApiModel):
    """What is known of a figure before it is measured."""

    higher_is_better: bool = True
    """Whether more is better: improveOverBase asks for more of it, otherwise for less."""
    minimum: float | None = None
    """The least that it can be, e.g. 0. With maximum it also keeps an interval honest where every answer is right."""
    maximum: float | None = None
    """The most that it can be, e.g. 1."""
    optional: bool = False
    """Whether a report without it is fine, e.g. since not every task has it."""

    @model_validator(mode="after")
    def _in_order(self) -> "FigureRule":
        low, high = self.minimum, self.maximum
        if not all(isfinite(bound) for bound in (low, high) if bound is not None):
            raise ValueError("minimum and maximum are finite numbers: leave out the one that is not known")
        if low is not None and high is not None and low >= high:
            raise ValueError(f"minimum {low:g} must be less than maximum {high:g}")
        return self


class MetricRun(WireModel):
    """A metric container as an evaluation runs it: all on which its figures depend."""

    name: str
    image: str
    """By digest in production: with a tag, another image under the same tag is taken for the same metric."""
    command: list[str] = []
    args: list[str] = []
    env: dict[str, str] = {}
    figures: dict[str, FigureRule]
    needs_models: bool = False
    """Whether it reads the models beside the answers."""
    parameters: dict[str, str] = {}
    data: MetricData | None = None
    """What it reads beside the answers. Its files are no part of this: Upstream.metrics is their identity."""


class ModelFolders(WireModel):
    """The models of an evaluation, as folders in the format of Hugging Face below MODELS_DIR."""

    base: str = "base"
    """The base model."""
    artifact: str = "artifact"
    """The exported model that is served: whole, or an adapter where ``artifact_base`` is given."""
    artifact_base: str = ""
    """The model that the adapter in ``artifact`` belongs to; empty: that is a whole model."""


class DataFolder(WireModel):
    """The data of a metric container."""

    path: str = DATA_DIR
    """Where they are."""
    uri: str
    """Where they come from."""
    sha256: str
    """Of a list of their paths, sizes and SHA-256, in the order of the paths."""
    files: int
    size: int
    """Bytes of all files."""


class MetricRequest(WireModel):
    """``request.json``: what a metric container is asked."""

    SCHEMA: ClassVar[int] = 1

    schema_version: int = SCHEMA
    metric: str
    """The container's name in the platform's values."""
    parameters: dict[str, str] = {}
    """From the FineTuneJob."""
    task: TaskType
    """What counts as a right answer."""
    figures: list[str]
    """What may be reported."""
    models: ModelFolders | None = None
    """None: it does not read the models."""
    data: DataFolder | None = None
    """None: the FineTuneJob names none."""


class MetricAnswer(WireModel):
    """A line of ``answers.jsonl``: a test example and what the models answered, each with greedy decoding."""

    messages: list[dict[str, object]]
    """The prompt, as messages of OpenAI's API."""
    tools: list[dict[str, object]] = []
    """The tools that the prompt allows."""
    reference: str
    """The expected answer."""
    answers: dict[str, str]
    """By model: ``base``, ``artifact``, ``tuned``, and as far as they were asked ``fewShot``, ``verbose``,
    ``constrained``, ``endpoint``."""


class ModelFigure(ApiModel):
    """A figure of one model: its score of each answer, or what is known of their mean."""

    scores: list[float] = []
    """One for each line of ``answers.jsonl``, in that order. Value, interval and the paired difference of two models
    follow from them."""
    value: float | None = None
    """Without scores: the figure."""
    n: Annotated[int, Field(ge=1, le=MAX_CASES)] | None = None
    """Without scores: the number of cases that it rests on."""
    standard_error: Annotated[float, Field(ge=0)] | None = None
    """Of the value, if it is known."""
    low: float | None = None
    """Lower end of its 95 % interval, in place of the standard error."""
    high: float | None = None
    """Upper end."""

    @model_validator(mode="after")
    def _one_form(self) -> "ModelFigure":
        told = [self.value, self.n, self.standard_error, self.low, self.high]
        if self.scores and any(each is not None for each in told):
            raise ValueError("give scores, or value and n, not both")
        if not self.scores and (self.value is None or self.n is None):
            raise ValueError("without scores, value and n are needed")
        if (self.low is None) != (self.high is None):
            raise ValueError("low and high go together")
        if self.low is not None and self.standard_error is not None:
            raise ValueError("give standardError, or low and high, not both")
        numbers = [*self.scores, *(each for each in told if each is not None)]
        if not all(abs(number) <= MAX_FIGURE for number in numbers):  # nor is NaN
            raise ValueError(f"every number must be finite, and at most {MAX_FIGURE:g} in size")
        if self.low is not None and self.high is not None and not self.low <= (self.value or 0.0) <= self.high:
            raise ValueError("value must lie between low and high")
        return self


class ReportedFigure(ApiModel):
    """A figure of the models."""

    figure: FigureName
    """One of those that the admin has listed."""
    part: Annotated[str, Field(pattern=r"^([A-Za-z0-9][A-Za-z0-9 _.,:/()+-]*)?$", max_length=128)] = ""
    """What it is about, where it is measured of several things, e.g. a task's name; a goal names it as ``class``."""
    models: dict[str, ModelFigure]
    """By model, as in ``answers.jsonl``: ``artifact`` at least, and ``base`` for a difference."""


class MetricsReport(ApiModel):
    """``metrics.json``: what a metric container has measured. Unknown fields are errors: a misspelt ``standardError``
    would make a figure look certain."""

    SCHEMA: ClassVar[int] = 1

    schema_version: int
    """1."""
    measured: Annotated[list[ReportedFigure], Field(max_length=256)]
    """Each figure and part once."""
    tools: Annotated[
        dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=128)]], Field(max_length=32)
    ] = {}
    """Versions of what measured, for the model's origin, e.g. {"lm-eval": "0.4.9"}."""


def custom_name(metric: str, figure: str) -> str:
    """How goals and reports name a figure of a container."""
    return f"{metric}.{figure}"


def offered_figures(figures: Mapping[str, FigureRule]) -> str:
    """Their names, for people."""
    return ", ".join(sorted(figures)) or "none"
