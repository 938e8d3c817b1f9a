"""Base models that are models of other FineTuneJobs: what they contain, what is trained on them contains too.

A model that was published here is known by the address in its URI (``…/models/<digest>/quantized``), which a copy to
another bucket keeps, or, on the Hugging Face hub, by the note of the push that put it there.
"""

import logging
from collections.abc import Callable, Iterator
from typing import Final

from finetune_api.layout import PushRecord, output_folder, pushes_folder, withdrawn_object
from finetune_api.reasons import Reason
from finetune_api.stages import Stage
from finetune_jobs.artifacts.folders import is_address, read_manifest
from finetune_jobs.artifacts.push import read_pushes
from finetune_jobs.artifacts.withdrawal import in_words, models_of, read_withdrawal
from finetune_jobs.base.errors import StageError
from finetune_jobs.store.hub_repository import MAIN
from finetune_jobs.store.s3 import Store

log = logging.getLogger(__name__)

_OF_MODELS: Final = (Stage.EXPORT, Stage.TRAIN)
"""Stages whose folder can be a base model; of a training, where it tuned all weights."""
_HUB: Final = "hf://"


def published_model(uri: str) -> tuple[str, Stage, str] | None:
    """Results' root, stage and digest of a base model that a FineTuneJob has made; None for any other."""
    place = uri.rstrip("/")
    parts = place.split("/")
    digest = parts[-2] if len(parts) > 1 else ""
    for stage in _OF_MODELS:
        folder = f"/{output_folder(stage, digest)}"
        if is_address(digest) and place.endswith(folder):
            return place.removesuffix(folder), stage, digest
    return None


def is_copy(uri: str, record: PushRecord) -> bool:
    """Whether a base model on the Hugging Face hub is this copy: the same repository, at its commit or its tag."""
    repository, revision = _on_hub(uri)
    pushed, tag = _pushed(record)
    return bool(repository) and repository == pushed and revision in (record.digest, tag)


def may_be_copy(uri: str, record: PushRecord) -> bool:
    """Whether it is, or was when it was used: each push is a commit on main."""
    repository, revision = _on_hub(uri)
    return is_copy(uri, record) or (revision == MAIN and repository == _pushed(record)[0])


def require_standing_base(open_store: Callable[[str], Store], results: Store, uri: str) -> None:
    """Raises StageError (ArtifactWithdrawn) if a base model is that of a withdrawn artifact, or was trained on one,
    however many trainings ago; and as Store, if the marks beside the base model itself cannot be read. Those of its
    own base may be out of reach, since it may have been promoted from another bucket: then that is logged. Which models
    on the hub are copies, ``results`` knows: the job's own output."""
    base, seen = uri, set[str]()
    while base and base not in seen:
        seen.add(base)
        try:
            fault, before = _looked_up(open_store, results, base)
        except StageError as error:
            if base == uri:
                raise
            log.warning("whether %s, on which %s was trained, was withdrawn is unknown: %s", base, uri, error.message)
            return
        if fault:
            through = "" if base == uri else f", on which the base model {uri} was trained"
            text = f"The base model {base} is that of {fault[0]}{through}. {fault[1]}"
            raise StageError(Reason.ARTIFACT_WITHDRAWN, text)
        base = before


def _looked_up(open_store: Callable[[str], Store], results: Store, base: str) -> tuple[tuple[str, str] | None, str]:
    """The withdrawn artifact of a base model, and what was said of it; None if there is none. And the model's own base;
    empty for a model that is not known to be made here."""
    if found := published_model(base):
        return _looked_up_address(open_store(found[0]), *found[1:])
    before = ""
    for artifact in _copied(results, base):
        folder = output_folder(Stage.PUBLISH, artifact)
        if mark := read_withdrawal(results, artifact):
            return (results.uri(folder), f"That artifact was {in_words(mark)}."), ""
        manifest = read_manifest(results, folder)
        before = manifest.lineage.base_model_uri if manifest else before
    return None, before


def _looked_up_address(store: Store, stage: Stage, digest: str) -> tuple[tuple[str, str] | None, str]:
    for artifact, said in _withdrawn(store):
        if digest in models_of(store, artifact):
            return (store.uri(output_folder(Stage.PUBLISH, artifact)), f"That artifact was {said}."), ""
    manifest = read_manifest(store, output_folder(stage, digest))
    return None, manifest.lineage.base_model_uri if manifest else ""


def _copied(results: Store, uri: str) -> Iterator[str]:
    """The artifacts of which a model on the hub is a copy."""
    if not uri.startswith(_HUB):
        return
    noted = set[str]()
    for entry in results.list("artifacts"):
        digest = entry.key.partition("/")[0]
        if f"artifacts/{entry.key}".startswith(f"{pushes_folder(digest)}/"):
            noted.add(digest)
    for digest in sorted(noted):
        if any(is_copy(uri, record) for record in read_pushes(results, digest)):
            yield digest


def _withdrawn(store: Store) -> Iterator[tuple[str, str]]:
    """Every withdrawn artifact of a store, with its mark in words."""
    for entry in store.list("artifacts"):
        digest = entry.key.partition("/")[0]
        if f"artifacts/{entry.key}" == withdrawn_object(digest) and (mark := read_withdrawal(store, digest)):
            yield digest, in_words(mark)


def _on_hub(uri: str) -> tuple[str, str]:
    """Repository and revision of a model on the hub; nothing for any other."""
    repository, _, revision = uri.removeprefix(_HUB).partition("@")
    return (repository, revision) if uri.startswith(_HUB) else ("", "")


def _pushed(record: PushRecord) -> tuple[str, str]:
    """Repository and tag of a copy."""
    repository, _, tag = record.to.partition("/")[2].partition("@")
    return repository, tag
