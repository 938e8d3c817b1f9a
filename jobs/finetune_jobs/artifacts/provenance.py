"""Where an artifact comes from: an in-toto statement with SLSA provenance beside the artifact's folder, signed if there
is a key.

Formats: https://github.com/in-toto/attestation (Statement v1) and https://slsa.dev/spec/v1.0/provenance. Its subjects
are the artifact by its content address, and each of its files. What no address holds stands here: who made each part,
when, with which image and libraries, on what, for how long and at what cost (decision 38).
"""

import json
from collections.abc import Mapping
from typing import Any, Final

from securesystemslib.signer import CryptoSigner

from finetune_api.access import without_access
from finetune_api.hashing import canonical_json
from finetune_api.layout import UNSIGNED, Lineage, Manifest, output_folder, provenance_object
from finetune_api.stages import PIPELINE, Stage, StageInput, Upstream
from finetune_jobs.artifacts.artifact import MODEL_REF, ModelRef
from finetune_jobs.artifacts.folders import get_listed, require_manifest
from finetune_jobs.artifacts.signing import seal
from finetune_jobs.base.documents import parse_json
from finetune_jobs.store.s3 import Store

STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE: Final = "https://slsa.dev/provenance/v1"
BUILD_TYPE: Final = "https://finetune.dev/FineTuneJob/v1alpha1"
"""What the parameters mean: those of a FineTuneJob's stages."""
ADDRESS: Final = "finetuneContentSha256"
"""How a statement calls our content addresses: the SHA-256 of a folder's list of files (``Manifest.content_digest``),
which is that of no single file."""
_OUTPUTS: Final[Mapping[Stage, str]] = {
    Stage.PREPARE: "dataset",
    Stage.TRAIN: "adapter",
    Stage.EXPORT: "export",
    Stage.EVALUATE: "evaluation",
}
"""The field of ``Upstream`` that holds each stage's output."""


def attest(store: Store, given: StageInput, digest: str, signer: CryptoSigner | None) -> None:
    """Say where a published artifact comes from, signed with the key; without one, as the plain statement, which proves
    nothing. Once for each key, and once without.

    Raises StageError: ArtifactNotFound, ArtifactCorrupt, ManifestNewer.
    """
    place = provenance_object(digest, signer.public_key.keyid if signer else UNSIGNED)
    if store.exists(place):
        return
    folder = output_folder(Stage.PUBLISH, digest)
    published = require_manifest(store, folder)
    model = parse_json(get_listed(store, folder, published, MODEL_REF), ModelRef, store.uri(f"{folder}/{MODEL_REF}"))
    # Of several formats, the input names the first, and the artifact the one that is served.
    chain = given.upstream.with_output(Stage.EXPORT, model.digest)
    made = {
        stage: require_manifest(store, output_folder(stage, getattr(chain, field))) for stage, field in _OUTPUTS.items()
    }
    made[Stage.PUBLISH] = published
    said = canonical_json(statement(given, digest, chain, made))
    store.put_if_absent(place, seal(said, signer) if signer else said)


def statement(given: StageInput, digest: str, chain: Upstream, made: Mapping[Stage, Manifest]) -> dict[str, Any]:
    """The statement as JSON (pure). ``chain``: what the artifact was made from. ``made`` has the manifest of every
    stage, the artifact's own too."""
    published = made[Stage.PUBLISH]
    own = published.lineage
    files = [{"name": file.path, "digest": {"sha256": file.sha256}} for file in published.files]
    return {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": output_folder(Stage.PUBLISH, digest), "digest": {ADDRESS: digest}}, *files],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": without_access(
                    given.params.model_dump(mode="json", by_alias=True, exclude_none=True)
                ),
                "resolvedDependencies": _dependencies(chain, given.base_model_uri),
            },
            "runDetails": {
                "builder": {"id": BUILD_TYPE, "version": {"finetune-operator": own.operator_version}},
                "metadata": {"invocationId": _invocation(own), "finishedOn": own.created_at},
                "finetune_stages": {stage.value: _history(made[stage]) for stage in PIPELINE if stage in made},
            },
        },
    }


def _dependencies(chain: Upstream, base_model_uri: str) -> list[dict[str, Any]]:
    """What the model was made from, by address."""
    folders = {
        field: output_folder(stage, address) for stage, field in _OUTPUTS.items() if (address := getattr(chain, field))
    }
    named = {"model": base_model_uri, "source": "", "metrics": ""} | folders
    return [
        {"name": field, **({"uri": uri} if uri else {}), "digest": {ADDRESS: address}}
        for field, uri in named.items()
        if (address := getattr(chain, field))
    ]


def _history(manifest: Manifest) -> dict[str, Any]:
    """How one part was made; its usage is that of the attempt that made it."""
    plain: dict[str, Any] = json.loads(manifest.lineage.model_dump_json(by_alias=True, exclude_none=True))
    return plain | {"facts": manifest.facts}


def _invocation(own: Lineage) -> str:
    run = own.run
    return f"{run.namespace}/{run.name}/{run.uid}/{run.id}" if run else ""
