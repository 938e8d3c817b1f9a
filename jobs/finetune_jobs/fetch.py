"""Stage fetch: the artifact and the exported model that it names, verified, onto the volume of the model server.

``<models>/<artifact digest>/artifact/`` holds the artifact's own files, ``…/model/`` those that the server loads. Of
several adapters each has such a folder, and their base is in ``<models>/<address of the set>/model/``. With a cache,
the model, or the base, is a link into it; what is small is not worth one.
"""

import logging
from pathlib import Path

from finetune_api.artifact_source import set_address
from finetune_api.endpoint_stages import MODEL_CACHE, MODEL_CACHE_PROBLEM, AdapterRef, FetchParams, WantedAdapters
from finetune_api.layout import Manifest, Withdrawal
from finetune_api.reasons import Reason
from finetune_api.stages import Stage
from finetune_jobs.artifacts.folders import (
    Fetched,
    fetch_folder,
    fetch_folder_through,
    require_manifest,
)
from finetune_jobs.artifacts.signature import require_signature
from finetune_jobs.artifacts.withdrawal import in_words, read_withdrawal
from finetune_jobs.base.documents import read_json
from finetune_jobs.base.errors import StageError
from finetune_jobs.base.progress import Report
from finetune_jobs.modelling.base_model import WEIGHTS
from finetune_jobs.runtime.adapters import AdapterSource, fetch_artifact, require_no_code, require_room
from finetune_jobs.runtime.runner import Context, StageOutput, run_stage
from finetune_jobs.store.s3 import Store

log = logging.getLogger(__name__)


def fetch(context: Context) -> StageOutput:
    """The stage. Raises StageError: ArtifactNotFound, ArtifactCorrupt, ModelUnsupported, as require_signature and
    Store."""
    digest = context.input.artifact_digest
    asked = context.input.params.fetch or FetchParams()
    if asked.adapters:
        return _fetch_adapters(context, asked)
    signed_by = require_signature(context.store, digest, asked.public_keys) if asked.public_keys else ""
    home = context.models / digest
    model = fetch_artifact(context.store, home, digest, context.progress.part(0, 0.05, "downloading the artifact"))
    if model.base:
        raise StageError(
            Reason.ADAPTERS_UNSUITABLE,
            f"Artifact {digest[:12]} is an adapter, which is served on its base model: name it in "
            "spec.source.adapters.",
        )
    manifest = require_manifest(context.store, model.folder)
    _require_safetensors(context.store.uri(model.folder), manifest)
    report = context.progress.part(0.05, 1, "downloading the model")
    size = sum(file.size for file in manifest.files)
    found = _fetch_model(context, context.store, model.folder, size, home / "model", report)
    signed = f", signed by key {signed_by[:12]}" if signed_by else ""
    mark = _mark(context.store, digest)
    return StageOutput(
        output_digest=digest,
        scalars={
            "sizeBytes": str(size),
            **_use(found),
            **({"signedBy": signed_by} if signed_by else {}),
            **({"withdrawn": in_words(mark)} if mark else {}),
        },
        message=f"{len(manifest.files)} files ({size} bytes) in {home / 'model'}{_how(found)}; every hash matches"
        f"{signed}.",
    )


def _fetch_adapters(context: Context, asked: FetchParams) -> StageOutput:
    """The adapters first, which are small, and say whether they share a base; then that, once. Its address stays that
    of the first set, whatever is wanted by now: it is among the server's arguments."""
    source = AdapterSource(context.places, context.input.storage, asked, context.models, context.models_room)
    found = _wanted(asked)
    places = [
        source.download(each, context.progress.part(0, 0.05, f"downloading adapter {each.name}")) for each in found
    ]
    first = places[0]
    for other in places[1:]:
        if other.base.digest != first.base.digest:
            raise StageError(
                Reason.ADAPTERS_UNSUITABLE,
                f"Adapters {first.ref.name!r} and {other.ref.name!r} were trained on different base models "
                f"({first.base.digest[:12]} and {other.base.digest[:12]}), so they cannot share a server.",
            )
    manifest = require_manifest(first.store, first.base.folder)
    _require_safetensors(first.store.uri(first.base.folder), manifest)
    address = set_address({each.name: each.digest for each in asked.adapters})
    (context.models / address).mkdir(parents=True, exist_ok=True)
    report = context.progress.part(0.05, 1, "downloading the base model")
    size = sum(file.size for file in manifest.files)
    shared = _fetch_model(context, first.store, first.base.folder, size, context.models / address / "model", report)
    marks = [(each.ref.name, _mark(each.store, each.ref.digest)) for each in places]
    withdrawn = "; ".join(f"{in_words(mark)} (adapter {name!r})" for name, mark in marks if mark)
    return StageOutput(
        output_digest=address,
        scalars={"sizeBytes": str(size), **_use(shared), **({"withdrawn": withdrawn} if withdrawn else {})},
        message=f"{len(places)} adapters, and their base model ({size} bytes){_how(shared)}; every hash matches"
        f"{', and each is signed' if asked.public_keys else ''}.",
    )


def _fetch_model(
    context: Context, store: Store, folder: str, size: int, target: Path, report: Report
) -> Fetched | None:
    """What is large: through the cache, where there is one. Returns what came of that. Raises StageError as
    fetch_folder_through, and ScratchFull before the download where it does not fit."""
    if context.cache is None:
        require_room(context.models, context.models_room, store.uri(folder), size, target)
        fetch_folder(store, folder, target, report=report)
        return None
    found = fetch_folder_through(context.cache, store, folder, target, room=context.models_room, report=report)
    log.info("%s: %s", store.uri(folder), found.how)
    return found


def _use(found: Fetched | None) -> dict[str, str]:
    """For the status of the AdapterDeployment."""
    if found is None:
        return {}
    return {MODEL_CACHE: found.use.value, **({MODEL_CACHE_PROBLEM: found.problem} if found.problem else {})}


def _how(found: Fetched | None) -> str:
    """Where the model came from, to be put behind what it is."""
    return f", {found.how}" if found else ""


def _wanted(asked: FetchParams) -> list[AdapterRef]:
    """The adapters without which the pod is of no use: of a set that has changed since, those that were proved."""
    if not asked.wanted:
        return asked.adapters
    wanted = read_json(Path(asked.wanted), WantedAdapters).adapters
    required = [AdapterRef(name=each.name, uri=each.uri, digest=each.digest) for each in wanted if each.required]
    return required or asked.adapters


def _mark(store: Store, digest: str) -> Withdrawal | None:
    """The artifact's withdrawal, which is told and not refused: this pod may replace one of what serves. What a new
    revision must prove, verify asks. For the same reason keys that may not look for it are no failure here."""
    try:
        return read_withdrawal(store, digest)
    except StageError as error:
        if error.reason is not Reason.S3_ACCESS_DENIED:
            raise
        log.warning("whether the artifact was withdrawn is not known: %s", error.message)
        return None


def _require_safetensors(uri: str, manifest: Manifest) -> None:
    names = [file.path for file in manifest.files]
    require_no_code(uri, manifest)
    if not any(name.endswith(WEIGHTS) for name in names) or "config.json" not in names:
        raise StageError(Reason.MODEL_UNSUPPORTED, f"{uri} is not a model: config.json and *.safetensors are required.")


def main() -> None:
    """``python -m finetune_jobs.fetch``"""
    run_stage(Stage.FETCH, fetch)


if __name__ == "__main__":
    main()
