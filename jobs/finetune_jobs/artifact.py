"""What a published artifact holds, for those who write it (publish) and those who read it (resolve, fetch, verify)."""

from collections.abc import Iterable
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from finetune_api.base import WireModel
from finetune_api.reasons import Reason
from finetune_jobs.errors import StageError

GOLDEN: Final = "golden.jsonl"
"""Prompts whose answers prove at serving that the tuning is on: one Answer a line."""
SAMPLE: Final = "sample.jsonl"
"""Test examples with the artifact's own answers, to compare the server with the evaluation: one Answer a line."""
MODEL_CARD: Final = "README.md"
MODEL_REF: Final = "model.json"
ANSWERS: Final = "answers.jsonl"
"""Of evaluate's output: one Answer for each test example that was asked."""
METRICS: Final = "metrics.json"
"""Of evaluate's output: Metrics."""


class Answer(WireModel):
    """A test example and what three models said to it, each with greedy decoding."""

    messages: list[dict[str, str]]
    """The prompt, without the answer."""
    label: str
    """The right answer."""
    base: str
    """The base model's answer."""
    tuned: str
    """That of base and adapter."""
    artifact: str
    """That of the exported files."""
    max_tokens: int = 64
    """The most tokens that each was allowed to generate."""

    @property
    def tells(self) -> bool:
        """Whether this prompt tells the artifact from its base model."""
        return self.base.strip() != self.artifact.strip()


class ModelRef(WireModel):
    """``model.json``: which exported model belongs to the artifact."""

    schema_version: int = 1
    digest: str
    folder: str
    """Relative to the results' root."""
    format: str
    size_bytes: int
    base_model_uri: str


def artifact_digest(uri: str) -> str:
    """Digest at the end of ``…/artifacts/<digest>``."""
    return uri.rstrip("/").rpartition("/")[2]


def read_model_ref(folder: Path) -> ModelRef:
    """The model of an artifact's local copy. Raises StageError (ArtifactCorrupt)."""
    path = folder / MODEL_REF
    try:
        return parse_model_ref(path.read_bytes(), str(path))
    except FileNotFoundError:
        raise StageError(Reason.ARTIFACT_CORRUPT, f"the artifact has no {MODEL_REF}.") from None


def parse_model_ref(content: bytes, place: str) -> ModelRef:
    """The content of a ``model.json``. Raises StageError (ArtifactCorrupt)."""
    try:
        return ModelRef.model_validate_json(content)
    except ValidationError as error:
        raise StageError(Reason.ARTIFACT_CORRUPT, f"{place} cannot be read: {_first(error)}.") from None


def read_answers(lines: Iterable[str], place: str) -> list[Answer]:
    """Answers, one a line. Raises StageError (ArtifactCorrupt) with the line that is wrong."""
    answers = []
    for number, line in enumerate(lines, start=1):
        try:
            answers.append(Answer.model_validate_json(line))
        except ValidationError as error:
            raise StageError(Reason.ARTIFACT_CORRUPT, f"{place} line {number}: {_first(error)}.") from None
    return answers


def write_answers(path: Path, answers: Iterable[Answer]) -> None:
    """The inverse of ``read_answers``."""
    path.write_text("".join(f"{answer.model_dump_json(by_alias=True)}\n" for answer in answers), encoding="utf-8")


def _first(error: ValidationError) -> str:
    fault = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(str(part) for part in fault['loc']) or 'the document'}: {fault['msg']}"
