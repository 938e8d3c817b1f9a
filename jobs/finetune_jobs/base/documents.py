"""JSON documents of the contract, read with errors that name the document and the field."""

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from finetune_api.reasons import Reason
from finetune_jobs.base.errors import StageError

M = TypeVar("M", bound=BaseModel)


def parse_json(content: bytes | str, model: type[M], place: str, reason: Reason = Reason.ARTIFACT_CORRUPT) -> M:
    """A document, of which ``place`` is the name for people, without what only a newer version knows of it.

    Raises StageError with ``reason``.
    """
    try:
        return model.model_validate_json(content, extra="ignore")
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in fault["loc"]) or "the document"
        raise StageError(reason, f"{place} cannot be read as {model.__name__}: {field}: {fault['msg']}.") from None


def read_json(path: Path, model: type[M]) -> M:
    """A document of a local folder. Raises StageError (ArtifactCorrupt)."""
    try:
        return parse_json(path.read_bytes(), model, path.name)
    except FileNotFoundError:
        raise StageError(Reason.ARTIFACT_CORRUPT, f"{path.parent.name} contains no {path.name}.") from None
