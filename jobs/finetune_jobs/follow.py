"""Stage follow: where a channel of an output name points, for an AdapterDeployment that serves what is published there.

It reads what the store says and writes nothing: the pointer, whose the name is, and whether the artifact is there and
stands. The operator holds no keys; this runs with those of its own namespace.
"""

import logging

from finetune_api.endpoint_stages import PUBLISHED_AT
from finetune_api.layout import MANIFEST, channel_object, output_folder
from finetune_api.meta import FINETUNEJOB
from finetune_api.reasons import Reason
from finetune_api.stages import RunRef, Stage
from finetune_api.verification import WithdrawnPolicy
from finetune_jobs.artifacts.artifact import GOLDEN, MODEL_REF, ModelRef, read_answers
from finetune_jobs.artifacts.channel import owner_of, read_channel
from finetune_jobs.artifacts.exported_model import published_facts
from finetune_jobs.artifacts.folders import get_listed, require_manifest
from finetune_jobs.artifacts.withdrawal import require_standing
from finetune_jobs.base.documents import parse_json
from finetune_jobs.base.errors import StageError, require
from finetune_jobs.runtime.runner import Context, StageOutput, run_stage
from finetune_jobs.store.s3 import Store

log = logging.getLogger(__name__)


def follow(context: Context) -> StageOutput:
    """The stage. Raises StageError: ChannelNotFound, OutputNameForeign, ArtifactNotFound, ArtifactWithdrawn."""
    params, store = require(context.input.params.follow, "params.follow"), context.store
    store.require_bucket()
    require_own(store, params.name, context.input.run.namespace)
    place = store.uri(channel_object(params.name, params.channel))
    found = read_channel(store, params.name, params.channel)
    if found is None:
        raise StageError(Reason.CHANNEL_NOT_FOUND, f"{place} does not exist: channel {params.channel} has no artifact.")
    pointer, _ = found
    # Earlier versions let each channel have its own owner, which is not that of the name then.
    _require_of(place, pointer.owner, context.input.run.namespace)
    folder = output_folder(Stage.PUBLISH, pointer.artifact_digest)
    if not store.exists(f"{folder}/{MANIFEST}"):
        raise StageError(
            Reason.ARTIFACT_NOT_FOUND, f"{place} points to {store.uri(folder)}, which contains no {MANIFEST}."
        )
    if params.withdrawn is WithdrawnPolicy.REFUSE:
        require_standing(store, pointer.artifact_digest)
    return StageOutput(
        output_digest=pointer.artifact_digest,
        scalars={PUBLISHED_AT: pointer.updated_at, **_facts(store, folder)},
        message=f"{place} points to {pointer.artifact_digest[:12]}, since {pointer.updated_at}.",
    )


def _facts(store: Store, folder: str) -> dict[str, str]:
    """What publish said of the artifact, so that a runtime that cannot serve it is refused before a pod starts; empty
    if that cannot be read. What is wrong with the artifact, its download says."""
    try:
        manifest = require_manifest(store, folder)
        found = get_listed(store, folder, manifest, MODEL_REF)
        golden = lines_of(get_listed(store, folder, manifest, GOLDEN))
        model = parse_json(found, ModelRef, store.uri(f"{folder}/{MODEL_REF}"))
        return published_facts(store, model, read_answers(golden, store.uri(f"{folder}/{GOLDEN}")))
    except StageError as error:
        if error.retriable:
            raise
        log.warning("what the artifact consists of is not known: %s", error.message)
        return {}


def lines_of(content: bytes) -> list[str]:
    """Those of a file; the texts in it may hold other ends of lines (U+2028), at which ``splitlines`` would cut."""
    return content.decode(errors="replace").removesuffix("\n").split("\n")


def require_own(store: Store, name: str, namespace: str) -> None:
    """Raises StageError (OutputNameForeign) if the output name belongs to another namespace."""
    if found := owner_of(store, name):
        _require_of(*found, namespace)


def _require_of(place: str, owner: RunRef, namespace: str) -> None:
    if (owner.kind, owner.namespace) != (FINETUNEJOB, namespace):
        raise StageError(
            Reason.OUTPUT_NAME_FOREIGN,
            f"{place} belongs to {owner.kind} {owner.namespace}/{owner.name}; an AdapterDeployment of namespace "
            f"{namespace} does not follow it.",
        )


def main() -> None:
    """``python -m finetune_jobs.follow``"""
    run_stage(Stage.FOLLOW, follow)


if __name__ == "__main__":
    main()
