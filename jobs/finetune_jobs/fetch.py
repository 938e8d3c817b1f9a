"""Stage fetch: the artifact and the exported model that it names, verified, onto the volume of the model server.

``<models>/<artifact digest>/artifact/`` holds the artifact's own files, ``…/model/`` those that the server loads.
"""

import logging

from finetune_api.layout import Manifest, Withdrawal, output_folder
from finetune_api.reasons import Reason
from finetune_api.stages import FetchParams, Stage
from finetune_jobs.artifacts import artifact
from finetune_jobs.artifacts.folders import fetch_folder, require_manifest
from finetune_jobs.artifacts.signature import require_signature
from finetune_jobs.artifacts.withdrawal import in_words, read_withdrawal
from finetune_jobs.base.documents import read_json
from finetune_jobs.base.errors import StageError
from finetune_jobs.modelling.base_model import WEIGHTS
from finetune_jobs.runtime.runner import Context, StageOutput, run_stage
from finetune_jobs.store.s3 import Store

log = logging.getLogger(__name__)

_UNSAFE = (".bin", ".pt", ".pth", ".pkl", ".ckpt", ".h5", ".msgpack", ".py")


def fetch(context: Context) -> StageOutput:
    """The stage. Raises StageError: ArtifactNotFound, ArtifactCorrupt, ModelUnsupported, as require_signature and
    Store."""
    digest = context.input.artifact_digest
    asked = context.input.params.fetch or FetchParams()
    signed_by = require_signature(context.store, digest, asked.public_keys) if asked.public_keys else ""
    home = context.models / digest
    home.mkdir(parents=True, exist_ok=True)
    fetch_folder(
        context.store,
        output_folder(Stage.PUBLISH, digest),
        home / "artifact",
        report=context.progress.part(0, 0.05, "downloading the artifact"),
    )
    model = read_json(home / "artifact" / artifact.MODEL_REF, artifact.ModelRef)
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
    unsafe = [name for name in names if name.endswith(_UNSAFE)]
    if unsafe:
        raise StageError(
            Reason.MODEL_UNSUPPORTED, f"{uri} contains {unsafe[0]}, which may run code; only safetensors are accepted."
        )
    if not any(name.endswith(WEIGHTS) for name in names) or "config.json" not in names:
        raise StageError(Reason.MODEL_UNSUPPORTED, f"{uri} is not a model: config.json and *.safetensors are required.")


def main() -> None:
    """``python -m finetune_jobs.fetch``"""
    run_stage(Stage.FETCH, fetch)


if __name__ == "__main__":
    main()
