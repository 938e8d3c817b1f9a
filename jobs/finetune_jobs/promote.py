"""Command promote: copy a published artifact and its model to another bucket, under the same addresses.

Of an adapter its base goes along, and so does the evaluation, which has all that the models said, unless
``--without-evaluation`` keeps its examples where they are. Each folder is downloaded and every hash verified, then
uploaded with its manifest; the signatures, and what its gates said, go before the artifact. No output name points to it
there: an AdapterDeployment pins it.
"""

import logging
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from finetune_api.layout import MANIFEST, Manifest, gates_folder, output_folder
from finetune_api.reasons import Reason
from finetune_api.stages import Stage
from finetune_jobs.artifacts import artifact
from finetune_jobs.artifacts.folders import fetch_folder, is_address, require_manifest
from finetune_jobs.artifacts.withdrawal import require_standing
from finetune_jobs.base.documents import read_json
from finetune_jobs.base.errors import StageError
from finetune_jobs.runtime.tools import add_store, open_store, parser, run_command, split_artifact
from finetune_jobs.store.s3 import Store

log = logging.getLogger(__name__)


def promote(source: Store, target: Store, digest: str, scratch: Path, *, with_evaluation: bool = True) -> list[str]:
    """Copy an artifact, the models that it names, its evaluation if that is wanted and still there, its signatures and
    what its gates said; returns the folders and objects that were not there yet. The artifact's manifest is written
    last, so that it does not exist in the target before it is whole, nor before its signatures and verdicts, for which
    a rollout there asks at once.

    Raises StageError: ArtifactWithdrawn, ArtifactNotFound, ArtifactCorrupt, ManifestNewer, as Store.
    """
    require_standing(source, digest)
    published, local = output_folder(Stage.PUBLISH, digest), scratch / "artifact"
    manifest = fetch_folder(source, published, local)  # first: which model it names is verified too
    model = read_json(local / artifact.MODEL_REF, artifact.ModelRef)
    base = [model.base.folder] if model.base else []
    evaluation = _evaluation(source, manifest) if with_evaluation else []
    copied = [folder for folder in (*base, model.folder, *evaluation) if _copy(source, target, folder, scratch)]
    for place in (f"{published}/provenance", gates_folder(digest)):
        copied += _copy_objects(source, target, place)
    require_standing(source, digest)  # again: the models may have taken an hour
    return copied + ([published] if _copy(source, target, published, scratch) else [])


def _evaluation(source: Store, manifest: Manifest) -> list[str]:
    """The folder of an artifact's evaluation. None if it was deleted, since the model serves without, or if the release
    that published the artifact did not name it yet."""
    if not (digest := manifest.lineage.upstream.evaluation):
        log.warning("The artifact does not name its evaluation: what the models said is not copied.")
        return []
    folder = output_folder(Stage.EVALUATE, digest)
    if not is_address(digest):
        published = source.uri(output_folder(Stage.PUBLISH, manifest.content_digest()))
        raise StageError(
            Reason.ARTIFACT_CORRUPT, f"{published}/{MANIFEST} names an evaluation without an address: {digest!r}."
        )
    if source.exists(f"{folder}/{MANIFEST}"):
        return [folder]
    log.warning("%s was deleted: what the models said in the evaluation is not copied.", source.uri(folder))
    return []


def _copy(source: Store, target: Store, folder: str, scratch: Path) -> bool:
    """Whether the folder had to be copied. What stands in the target under this address is verified by its readers."""
    if target.exists(f"{folder}/{MANIFEST}"):
        require_manifest(target, folder)
        return False
    local, place = scratch / "copy", target.below(folder)
    manifest = fetch_folder(source, folder, local)
    for file in manifest.files:
        place.upload(file.path, local / file.path)
    return place.put_if_absent(MANIFEST, (local / MANIFEST).read_bytes())


def _copy_objects(source: Store, target: Store, place: str) -> Iterator[str]:
    for entry in source.list(place):
        path = f"{place}/{entry.key}"
        if (content := source.get(path)) and target.put_if_absent(path, content):
            yield path


def main(argv: Sequence[str] | None = None) -> None:
    """``python -m finetune_jobs.promote``"""
    options = parser("promote", "Copies a published artifact and its model to another bucket, under the same digests.")
    options.add_argument("--artifact", required=True, metavar="URI", help="s3://bucket/prefix/artifacts/<digest>")
    options.add_argument("--to", required=True, metavar="URI", help="the other output URI; its keys may be in TO_AWS_…")
    options.add_argument(
        "--without-evaluation",
        action="store_true",
        help="leave out what the models said in the evaluation: it quotes test and validation examples",
    )
    add_store(options, "to-")
    given = options.parse_args(argv)

    def work() -> None:
        root, digest = split_artifact(given.artifact)
        source, target = open_store(given, root), open_store(given, given.to, "to-")
        with tempfile.TemporaryDirectory(prefix="finetune-promote-") as scratch:
            copied = promote(source, target, digest, Path(scratch), with_evaluation=not given.without_evaluation)
        place = target.uri(output_folder(Stage.PUBLISH, digest))
        sys.stdout.write(f"{place} is complete: {len(copied)} of its parts were copied, the others existed.\n")

    run_command(work)


if __name__ == "__main__":
    main()
