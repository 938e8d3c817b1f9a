"""Stage fetch: the artifact and the exported model that it names, verified, onto the volume of the model server.

``<models>/<artifact digest>/artifact/`` holds the artifact's own files, ``…/model/`` those that the server loads. Of
several adapters each has such a folder, and their base is in ``<models>/<address of the set>/model/``.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

from finetune_api.adapterdeployment import set_address
from finetune_api.layout import Manifest, Withdrawal, output_folder
from finetune_api.reasons import Reason
from finetune_api.stages import AdapterRef, FetchParams, Stage
from finetune_jobs.artifacts import artifact
from finetune_jobs.artifacts.folders import fetch_folder, require_manifest
from finetune_jobs.artifacts.signature import require_signature
from finetune_jobs.artifacts.withdrawal import in_words, read_withdrawal
from finetune_jobs.base.documents import read_json
from finetune_jobs.base.errors import StageError
from finetune_jobs.base.progress import Report
from finetune_jobs.modelling.base_model import WEIGHTS
from finetune_jobs.runtime.runner import Context, StageOutput, artifact_root, run_stage
from finetune_jobs.store.s3 import Store

log = logging.getLogger(__name__)

_UNSAFE = (".bin", ".pt", ".pth", ".pkl", ".ckpt", ".h5", ".msgpack", ".py")


def fetch(context: Context) -> StageOutput:
    """The stage. Raises StageError: ArtifactNotFound, ArtifactCorrupt, ModelUnsupported, as require_signature and
    Store."""
    digest = context.input.artifact_digest
    asked = context.input.params.fetch or FetchParams()
    if asked.adapters:
        return _fetch_adapters(context, asked)
    signed_by = require_signature(context.store, digest, asked.public_keys) if asked.public_keys else ""
    home = context.models / digest
    model = _fetch_artifact(context.store, home, digest, context.progress.part(0, 0.05, "downloading the artifact"))
    if model.base:
        raise StageError(
            Reason.ADAPTERS_UNSUITABLE,
            f"Artifact {digest[:12]} is an adapter, which is served on its base model: name it in "
            "spec.source.adapters.",
        )
    manifest = require_manifest(context.store, model.folder)
    _require_safetensors(context.store.uri(model.folder), manifest)
    fetch_folder(
        context.store,
        model.folder,
        home / "model",
        report=context.progress.part(0.05, 1, "downloading the model"),
    )
    size = sum(file.size for file in manifest.files)
    signed = f", signed by key {signed_by[:12]}" if signed_by else ""
    mark = _mark(context.store, digest)
    return StageOutput(
        output_digest=digest,
        scalars={
            "sizeBytes": str(size),
            **({"signedBy": signed_by} if signed_by else {}),
            **({"withdrawn": in_words(mark)} if mark else {}),
        },
        message=f"{len(manifest.files)} files ({size} bytes) in {home / 'model'}; every hash matches{signed}.",
    )


@dataclass(frozen=True)
class _Adapter:
    """One of several, and where its base is."""

    ref: AdapterRef
    base: artifact.BaseRef
    store: Store


def _fetch_adapters(context: Context, asked: FetchParams) -> StageOutput:
    """The adapters first, which are small, and say whether they share a base; then that, once."""
    places = [_find_adapter(context, each, asked) for each in asked.adapters]
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
    fetch_folder(
        first.store,
        first.base.folder,
        context.models / address / "model",
        report=context.progress.part(0.05, 1, "downloading the base model"),
    )
    size = sum(file.size for file in manifest.files)
    marks = [(each.ref.name, _mark(each.store, each.ref.digest)) for each in places]
    withdrawn = "; ".join(f"{in_words(mark)} (adapter {name!r})" for name, mark in marks if mark)
    return StageOutput(
        output_digest=address,
        scalars={"sizeBytes": str(size), **({"withdrawn": withdrawn} if withdrawn else {})},
        message=f"{len(places)} adapters, and their base model ({size} bytes); every hash matches"
        f"{', and each is signed' if asked.public_keys else ''}.",
    )


def _find_adapter(context: Context, ref: AdapterRef, asked: FetchParams) -> _Adapter:
    """Download an adapter and its artifact. Failures name it."""
    try:
        return _download(context, ref, asked)
    except StageError as error:
        raise error.of(f"Adapter {ref.name!r}") from error


def _download(context: Context, ref: AdapterRef, asked: FetchParams) -> _Adapter:
    store = context.places.open(artifact_root(ref.uri, ref.digest), context.input.storage)
    if asked.public_keys:
        require_signature(store, ref.digest, asked.public_keys)
    home = context.models / ref.digest
    model = _fetch_artifact(store, home, ref.digest, context.progress.part(0, 0.05, f"downloading adapter {ref.name}"))
    if model.base is None:
        raise StageError(
            Reason.ADAPTERS_UNSUITABLE,
            f"Artifact {ref.digest[:12]} is a whole model ({model.format}), not one of format Adapter.",
        )
    if model.base.rank > asked.max_rank:
        raise StageError(
            Reason.ADAPTERS_UNSUITABLE,
            f"It has rank {model.base.rank}; the runtime makes room for {asked.max_rank}. Set --max-lora-rank in args "
            "of the runtime in the chart's values.",
        )
    _require_no_code(store.uri(model.folder), require_manifest(store, model.folder))
    fetch_folder(store, model.folder, home / "model")
    return _Adapter(ref, model.base, store)


def _fetch_artifact(store: Store, home: Path, digest: str, report: Report) -> artifact.ModelRef:
    """The artifact's own files."""
    home.mkdir(parents=True, exist_ok=True)
    fetch_folder(store, output_folder(Stage.PUBLISH, digest), home / "artifact", report=report)
    return read_json(home / "artifact" / artifact.MODEL_REF, artifact.ModelRef)


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
    _require_no_code(uri, manifest)
    if not any(name.endswith(WEIGHTS) for name in names) or "config.json" not in names:
        raise StageError(Reason.MODEL_UNSUPPORTED, f"{uri} is not a model: config.json and *.safetensors are required.")


def _require_no_code(uri: str, manifest: Manifest) -> None:
    unsafe = [file.path for file in manifest.files if file.path.endswith(_UNSAFE)]
    if unsafe:
        raise StageError(
            Reason.MODEL_UNSUPPORTED, f"{uri} contains {unsafe[0]}, which may run code; only safetensors are accepted."
        )


def main() -> None:
    """``python -m finetune_jobs.fetch``"""
    run_stage(Stage.FETCH, fetch)


if __name__ == "__main__":
    main()
