"""JSON documents of the contract, read with errors that name the document and the field."""

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from finetune_api import __version__
from finetune_api.base import WireModel
from finetune_api.reasons import Reason
from finetune_jobs.base.errors import StageError

M = TypeVar("M", bound=BaseModel)


class _Form(WireModel):
    """What every form of a document says."""

    schema_version: int = 0


def parse_json(content: bytes | str, model: type[M], place: str, reason: Reason = Reason.ARTIFACT_CORRUPT) -> M:
    """A document, of which ``place`` is the name for people, without what only a newer version knows of it.

    Raises StageError with ``reason``; in place of ArtifactCorrupt, with ManifestNewer for one whose ``schemaVersion``
    is later than the one that ``model`` writes: what it says may mean something else by now.
    """
    try:
        _require_known_form(content, model, place, reason)
        return model.model_validate_json(content, extra="ignore")
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in fault["loc"]) or "the document"
        raise StageError(reason, f"{place} cannot be read as {model.__name__}: {field}: {fault['msg']}.") from None


def _require_known_form(content: bytes | str, model: type[BaseModel], place: str, reason: Reason) -> None:
    """Before anything else is read: a later form may lack fields, which would otherwise be named instead."""
    field = model.model_fields.get("schema_version")
    if field is None or field.is_required():
        return
    found = _Form.model_validate_json(content).schema_version
    if found > field.default:
        raise StageError(
            Reason.MANIFEST_NEWER if reason is Reason.ARTIFACT_CORRUPT else reason,
            f"{place} has schemaVersion {found}; version {__version__} of this stage knows those up to "
            f"{field.default}.",
        )


def read_json(path: Path, model: type[M]) -> M:
    """A document of a local folder. Raises StageError (ArtifactCorrupt, ManifestNewer)."""
    try:
        return parse_json(path.read_bytes(), model, path.name)
    except FileNotFoundError:
        raise StageError(Reason.ARTIFACT_CORRUPT, f"{path.parent.name} contains no {path.name}.") from None
