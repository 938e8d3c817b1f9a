"""The mark of an artifact that must no longer be served: ``withdrawn.json``, beside the files of its folder.

The folder itself never changes. The mark is written once; readers look for it where a rollout or a publication begins.
"""

import logging
from typing import Final

from finetune_api.hashing import canonical_json
from finetune_api.layout import MANIFEST, Withdrawal, output_folder, withdrawn_object
from finetune_api.reasons import Reason
from finetune_api.stages import Stage, Upstream
from finetune_jobs.artifacts.artifact import MODEL_REF, ModelRef
from finetune_jobs.artifacts.folders import read_manifest
from finetune_jobs.base.documents import parse_json
from finetune_jobs.base.errors import StageError
from finetune_jobs.base.wording import shorten
from finetune_jobs.store.s3 import Store

log = logging.getLogger(__name__)

MAX_WORDS: Final = 300
"""Longest quotation of a mark, in characters: it goes into messages of a status."""


def read_withdrawal(store: Store, digest: str) -> Withdrawal | None:
    """An artifact's mark; None without one. One that cannot be read counts as a mark that says nothing."""
    place = withdrawn_object(digest)
    content = store.get(place)
    if content is None:
        return None
    try:
        return parse_json(content, Withdrawal, store.uri(place))
    except StageError:
        return Withdrawal(reason=f"{store.uri(place)} cannot be read", by="", withdrawn_at="")


def withdraw(store: Store, digest: str, mark: Withdrawal) -> Withdrawal:
    """Mark a published artifact; returns the mark in force, which is an earlier one if there was one.

    Raises StageError (ArtifactNotFound) if nothing is published there.
    """
    folder = output_folder(Stage.PUBLISH, digest)
    if not store.exists(f"{folder}/{MANIFEST}"):
        raise StageError(
            Reason.ARTIFACT_NOT_FOUND, f"{store.uri(folder)} contains no {MANIFEST}: nothing is published there."
        )
    noted = mark.model_copy(update={"models": sorted(_models(store, digest))})
    store.put_if_absent(withdrawn_object(digest), canonical_json(noted))
    return read_withdrawal(store, digest) or noted


def models_of(store: Store, digest: str) -> frozenset[str]:
    """The addresses of a withdrawn artifact's model: as its mark says, or as its files do."""
    mark = read_withdrawal(store, digest)
    return frozenset(mark.models) if mark and mark.models else _models(store, digest)


def _models(store: Store, digest: str) -> frozenset[str]:
    """Nothing of files that cannot be read: they must not keep an artifact from being withdrawn."""
    folder = output_folder(Stage.PUBLISH, digest)
    try:
        manifest, content = read_manifest(store, folder), store.get(f"{folder}/{MODEL_REF}")
        served = parse_json(content, ModelRef, store.uri(f"{folder}/{MODEL_REF}")).digest if content else ""
    except StageError as error:
        if error.reason not in (Reason.ARTIFACT_CORRUPT, Reason.MANIFEST_NEWER):
            raise
        log.warning("which model the artifact has is unknown: %s", error.message)
        return frozenset()
    made = manifest.lineage.upstream if manifest else Upstream()
    return frozenset({made.adapter, made.export, served} - {""})


def require_standing(store: Store, digest: str) -> None:
    """Raises StageError (ArtifactWithdrawn) if the artifact is withdrawn."""
    if mark := read_withdrawal(store, digest):
        raise StageError(
            Reason.ARTIFACT_WITHDRAWN, f"{store.uri(output_folder(Stage.PUBLISH, digest))} was {in_words(mark)}."
        )


def in_words(mark: Withdrawal) -> str:
    """``withdrawn by … on …: …``, short enough for a status."""
    who = f" by {mark.by}" if mark.by else ""
    when = f" on {mark.withdrawn_at[:10]}" if mark.withdrawn_at else ""
    return shorten(f"withdrawn{who}{when}: {mark.reason}", MAX_WORDS)
