"""The exported model that an artifact names: where it lies, how large it is, and what a server needs beside it."""

from collections.abc import Sequence

from pydantic import ValidationError

from finetune_api.dataset import TaskType
from finetune_api.layout import Manifest, output_folder
from finetune_api.stages import Stage
from finetune_jobs.artifacts.artifact import BASE_REF, Answer, BaseRef, ExportedConfig, ModelRef
from finetune_jobs.artifacts.folders import get_listed, require_manifest
from finetune_jobs.artifacts.formats import ExportedFormat
from finetune_jobs.base.documents import parse_json
from finetune_jobs.store.s3 import Store


def model_ref(store: Store, served: ExportedFormat, export: Manifest, base_model_uri: str, task: TaskType) -> ModelRef:
    """What ``model.json`` says of a format; ``export`` is its folder's manifest. Raises StageError (ArtifactCorrupt)
    for an adapter whose note of its base is not the one that was published."""
    folder = output_folder(Stage.EXPORT, served.digest)
    is_adapter = any(file.path == BASE_REF for file in export.files)
    found = get_listed(store, folder, export, BASE_REF) if is_adapter else b""
    return ModelRef(
        digest=served.digest,
        folder=folder,
        format=served.format,
        size_bytes=sum(file.size for file in export.files),
        base_model_uri=base_model_uri,
        task=task,
        base=parse_json(found, BaseRef, store.uri(f"{folder}/{BASE_REF}")) if is_adapter else None,
    )


def published_facts(store: Store, model: ModelRef, golden: Sequence[Answer]) -> dict[str, str]:
    """Scalars of an artifact, by which the operator tells before a pod starts whether a runtime can serve it.
    ``golden``: its golden prompts. Raises StageError as require_manifest."""
    architecture = _architecture(store, model)
    tokens = {
        "goldenPromptTokens": max((answer.prompt_tokens for answer in golden), default=0),
        "answerTokens": max((answer.max_tokens for answer in golden), default=0),
    }
    return {
        "format": model.format,
        **({"architecture": architecture} if architecture else {}),
        **_base_facts(store, model),
        "sizeBytes": str(model.size_bytes),
        **{name: str(count) for name, count in tokens.items() if count},
    }


def _base_facts(store: Store, model: ModelRef) -> dict[str, str]:
    """Scalars about what an adapter's server needs besides it; none of a whole model."""
    if (base := model.base) is None:
        return {}
    size = sum(file.size for file in require_manifest(store, base.folder).files)
    return {"baseDigest": base.digest, "baseSizeBytes": str(size), "rank": str(base.rank)}


def _architecture(store: Store, model: ModelRef) -> str:
    """``model_type`` of what is served, of an adapter that of its base; empty if its config.json does not say: this
    costs a check, no run."""
    folder = model.base.folder if model.base else model.folder
    try:
        return ExportedConfig.model_validate_json(store.get(f"{folder}/config.json") or b"{}").model_type
    except ValidationError:
        return ""
