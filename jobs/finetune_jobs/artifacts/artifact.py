"""Contents of a published artifact, for its writer (publish) and its readers (resolve, fetch, verify)."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, Self

from pydantic import BaseModel, model_validator

from finetune_api.base import Digest, WireModel
from finetune_api.dataset import TaskType
from finetune_api.layout import output_folder
from finetune_api.stages import Stage
from finetune_jobs.artifacts.calls import CallFormat
from finetune_jobs.artifacts.formats import MeasuredFormat
from finetune_jobs.artifacts.measurements import Automation, Measurements
from finetune_jobs.base.documents import parse_json

GOLDEN: Final = "golden.jsonl"
"""Prompts whose answers prove when serving that the fine-tune is active: one Answer a line."""
SAMPLE: Final = "sample.jsonl"
"""Test examples with the artifact's own answers, to compare the server with the evaluation: one Answer a line."""
REFERENCE: Final = "reference.jsonl"
"""Texts with the log-probability of each of their tokens, which prove the very weights: one ReferenceText a line.
Artifacts of earlier versions have none."""
SCHEMA: Final = "schema.json"
"""JSON Schema that answers are to match, as spec.task.answerSchema has it. Absent where there is none."""
AUTOMATION: Final = "automation.json"
"""From which probability on an answer needs no human review: AutomationTable. Absent where that was not measured."""
MODEL_CARD: Final = "README.md"
MODEL_REF: Final = "model.json"
ANSWERS: Final = "answers.jsonl"
"""Of evaluate's output: one Answer for each test example that was asked."""
METRICS: Final = "metrics.json"
"""Of evaluate's output: Metrics."""
REVIEW: Final = "review.json"
"""Of evaluate's output: the pairs of answers on the review page, and which side is whose."""
BEHAVIOUR: Final = "behaviour.json"
"""Of evaluate's output: what tuning did beside the task, with every item and both answers."""


class Marks(WireModel):
    """What stands around the thoughts in a model's text."""

    begin: str = ""
    """Empty: they begin at once, since the prompt has begun them."""
    end: str

    def answer_in(self, text: str) -> str:
        """What follows the thoughts, as reasoning parsers have it; nothing, if these have no end."""
        thoughts, end, answer = text.partition(self.end)
        if end:
            return answer
        return "" if not self.begin or thoughts.lstrip().startswith(self.begin) else text


class Answer(WireModel):
    """A test example and the answers of the models, each with greedy decoding."""

    messages: list[dict[str, Any]]
    """The prompt, without the answer."""
    tools: list[dict[str, Any]] = []
    """The tools that the prompt allows."""
    group: str = ""
    """The same for examples that are alike; empty: it stands for itself."""
    prompt: str = ""
    """The prompt as text, as the template renders it: what a server is sent where it would render a chat with tools in
    its own way. Empty: it is sent the messages."""
    calls: CallFormat | None = None
    """How the answers call tools; None: they call none, or in a form that is not known."""
    label: str
    """The right answer."""
    base: str
    """The base model's answer."""
    few_shot: str | None = None
    """That of the base model with examples in its prompt and room for a sentence; None: it was not asked so."""
    verbose: str | None = None
    """The base model's answer with room for a sentence around it; None: it was not asked so."""
    constrained: str | None = None
    """The base model's choice among the labels; None: it was not asked so."""
    endpoint: str | None = None
    """What the model of spec.evaluation.baseline wrote, as it is; None: none was asked."""
    tuned: str
    """That of base and adapter."""
    artifact: str
    """That of the exported files."""
    max_tokens: int = 64
    """The most tokens that each was allowed to generate."""
    thoughts: Marks | None = None
    """What a server's text has before the answer; None: it is the answer."""
    prompt_tokens: int = 0
    """Tokens of the prompt with the model's own tokenizer and template; 0: an earlier version did not count them."""
    stopped: bool = False
    """Whether the artifact surely ended this answer itself, before the limit."""
    log_probability: float | None = None
    """How likely the artifact found its own answer: the sum of the natural logarithms of its tokens' probabilities,
    without the token that ends it; None: not measured."""

    def read(self, text: str) -> str:
        """What one of the answers means: calls of tools whatever the form, a text as it is."""
        return self.calls.canonical(text) if self.calls else text

    @property
    def distinguishes_base(self) -> bool:
        """Whether this prompt tells the artifact from its base model."""
        return self.base.strip() != self.artifact.strip()


class ReferenceText(WireModel):
    """A conversation with its right answer, and how likely two models find each of its tokens after those before it
    (teacher forcing): nothing is generated, so nothing can diverge."""

    text: str
    """From the template, with the answer and the token that ends it; a server adds special tokens before it."""
    ids: list[int]
    """What the tokenizer makes of the text, special tokens included."""
    long: bool = False
    """Whether it is as long as it is because positions that are nearly right show only there."""
    positions_only: bool = False
    """Whether it is there for its positions only: in others, base and artifact differ more."""
    base: list[float]
    """Natural logarithms of the base model's probabilities, of all tokens but the first."""
    artifact: list[float]
    """The same of the exported files, as the evaluation loaded them."""
    straight: list[float] = []
    """The same without the rounding of activations. Earlier releases recorded it of long texts only."""
    turned: list[float] = []
    """The same as ``straight`` with wrong rotary positions: further from the right ones in short texts, which show
    less."""
    noise: float | None = None
    """How far apart two right servers would be that each round in their own way, in nats a token; None: not measured,
    as of long texts, or by an earlier release."""

    @property
    def of_weights(self) -> bool:
        """Whether the weights are judged by it."""
        return not (self.long or self.positions_only)


class Metrics(WireModel):
    """The part of ``metrics.json`` that publish reads."""

    golden_prompts: int
    """How many golden prompts the artifact gets."""
    scalars: dict[str, str]
    """Those of evaluate's result, for the model card."""
    task: TaskType = TaskType.CLASSIFICATION
    """The task that the model was measured for."""
    thoughts: Marks | None = None
    """What stands around the thoughts that the model writes before an answer; None: it was tuned to write none."""
    measurements: Measurements | None = None
    """Every metric with its interval; None: an earlier version did not measure them."""
    formats: list[MeasuredFormat] = []
    """What was found of each format that was made, the artifact first; empty: an earlier version made one only."""
    base_license: str = ""
    """The licence that the base model's card names; empty: not known."""
    closed: bool = False
    """Whether its chat template closes a block of thoughts before every answer."""


class AutomationTable(WireModel):
    """``automation.json``: thresholds for whoever reads log-probabilities."""

    schema_version: int = 1
    compare: str = (
        "sum of the natural logarithms of the probabilities of the answer's tokens, without the token that ends it, "
        "with greedy decoding"
    )
    """What is compared with a threshold."""
    levels: list[Automation]
    """At each precision that has a threshold, the lowest precision first."""


BASE_REF: Final = "base.json"
"""Of an export in format Adapter: BaseRef."""


class BaseRef(WireModel):
    """What an exported adapter belongs to."""

    schema_version: int = 1
    digest: Digest
    """Content address of the model that it was trained on, in 16 bits, as export has written it beside the adapter:
    adapters with the same one can share a server."""
    rank: int

    @property
    def folder(self) -> str:
        """Relative to the results' root."""
        return output_folder(Stage.EXPORT, self.digest)


class ModelRef(WireModel):
    """``model.json``: which exported model belongs to the artifact."""

    schema_version: int = 1
    digest: Digest
    folder: str
    """Relative to the results' root: the one of this address, as every reader holds its files to that."""
    format: str
    size_bytes: int
    base_model_uri: str
    task: TaskType = TaskType.CLASSIFICATION
    """What counts as a right answer."""
    base: BaseRef | None = None
    """None: the exported files are a whole model."""

    @model_validator(mode="after")
    def _require_own_folder(self) -> Self:
        """Whoever may write to a bucket may write an artifact by hand: it must not name what no address pins, nor
        folders that are no model's, which promote would copy to where they mean something."""
        if self.folder != output_folder(Stage.EXPORT, self.digest):
            raise ValueError(f"folder {self.folder!r} is not that of model {self.digest[:12]}")
        return self


class ExportedConfig(BaseModel):
    """The part of an exported model's ``config.json`` that publish reads."""

    model_type: str = ""
    """Its architecture."""


def read_references(lines: Iterable[str], place: str) -> list[ReferenceText]:
    """References, one a line. Raises StageError (ArtifactCorrupt) with the line that is wrong."""
    return [parse_json(line, ReferenceText, f"{place} line {number}") for number, line in enumerate(lines, start=1)]


def read_answers(lines: Iterable[str], place: str) -> list[Answer]:
    """Answers, one a line. Raises StageError (ArtifactCorrupt) with the line that is wrong."""
    return [parse_json(line, Answer, f"{place} line {number}") for number, line in enumerate(lines, start=1)]


def write_references(path: Path, references: Iterable[ReferenceText]) -> None:
    """The inverse of ``read_references``."""
    _write(path, references)


def write_answers(path: Path, answers: Iterable[Answer]) -> None:
    """The inverse of ``read_answers``."""
    _write(path, answers)


def _write(path: Path, rows: Iterable[BaseModel]) -> None:
    path.write_text("".join(f"{row.model_dump_json(by_alias=True)}\n" for row in rows), encoding="utf-8")
