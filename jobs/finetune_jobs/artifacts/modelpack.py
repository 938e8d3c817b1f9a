"""A published model as an OCI artifact, in the layout of CNCF's ModelPack (pure).

https://github.com/modelpack/model-spec/blob/v0.0.7/docs/spec.md and config.md: a manifest of OCI whose layers are the
model's files as they are, each with its path. A layer's digest is thus the SHA-256 that our own manifests list.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from finetune_api.export import ExportFormat
from finetune_api.hashing import canonical_json
from finetune_api.layout import FileEntry
from finetune_jobs.artifacts.artifact import MODEL_CARD
from finetune_jobs.artifacts.bom import BOM
from finetune_jobs.store.registry import OCI_MANIFEST, sha256_digest

ARTIFACT_TYPE: Final = "application/vnd.cncf.model.manifest.v1+json"
CONFIG_TYPE: Final = "application/vnd.cncf.model.config.v1+json"
WEIGHTS: Final = "application/vnd.cncf.model.weight.v1.raw"
WEIGHT_CONFIG: Final = "application/vnd.cncf.model.weight.config.v1.raw"
DOCUMENT: Final = "application/vnd.cncf.model.doc.v1.raw"
FILE_PATH: Final = "org.cncf.model.filepath"
"""The annotation of a layer that has its path, for ModelPack."""
TITLE: Final = "org.opencontainers.image.title"
"""The same for ORAS, which names the files that it pulls by it; of a manifest, the name of the model."""
ARTIFACT_DIGEST: Final = "dev.finetune.artifact.digest"
"""The annotation of a manifest that has the content address of the published artifact."""

_DOCUMENT: Final = re.compile(r"(README|LICEN[CS]E|NOTICE)[^/]*|[^/]*\.md", re.IGNORECASE)
SHOWN: Final = (MODEL_CARD, BOM)
"""Files of the artifact that go with the model. The others hold examples of the data set: they stay in S3."""
_PRECISION: Final[Mapping[str, str]] = {
    ExportFormat.INT8: "int8",
    ExportFormat.W8A16: "int8",
    ExportFormat.FP8: "fp8",
    ExportFormat.FP8_STATIC: "fp8",
    ExportFormat.INT4: "int4",
    ExportFormat.INT4_AWQ: "int4",
}
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_FLOATS: Final = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}


@dataclass(frozen=True)
class FileLayer:
    """A file of the model or of the artifact."""

    folder: str
    """Where it is in the store."""
    file: FileEntry

    @property
    def digest(self) -> str:
        """As OCI writes it."""
        return f"sha256:{self.file.sha256}"

    @property
    def media_type(self) -> str:
        """What ModelPack calls such a file."""
        if self.file.path.endswith(".safetensors"):
            return WEIGHTS
        if self.file.path == BOM or _DOCUMENT.fullmatch(self.file.path):
            return DOCUMENT
        return WEIGHT_CONFIG


@dataclass(frozen=True)
class Packed:
    """What is pushed."""

    layers: Sequence[FileLayer]
    config: bytes
    manifest: bytes

    @property
    def digest(self) -> str:
        """Of the manifest, hence of everything."""
        return sha256_digest(self.manifest)

    @property
    def digests(self) -> Sequence[str]:
        """Of the layers, sorted."""
        return sorted(layer.digest for layer in self.layers)


def pack(name: str, artifact: str, written: str, files: Sequence[FileLayer], config: Mapping[str, Any]) -> Packed:
    """The same bytes for the same artifact, whenever it is pushed: nothing in them says when or where.

    ``artifact`` is its content address, ``written`` the format of its weights, and ``config`` what the model's
    config.json says.
    """
    layers = sorted(files, key=lambda layer: (layer.media_type != WEIGHTS, layer.file.path))
    about = {
        "descriptor": {"name": name, "revision": artifact, **_named("family", config.get("model_type"))},
        "config": _about_model(written, config),
        "modelfs": {"type": "layers", "diffIds": [layer.digest for layer in layers]},
    }
    description = canonical_json(about)
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": ARTIFACT_TYPE,
        "config": {"mediaType": CONFIG_TYPE, "digest": sha256_digest(description), "size": len(description)},
        "layers": [_descriptor(layer) for layer in layers],
        "annotations": {ARTIFACT_DIGEST: artifact, TITLE: name},
    }
    return Packed(layers, description, canonical_json(manifest))


def is_copy(manifest: bytes, artifact: str, packed: Packed) -> bool:
    """Whether a manifest is of the files of ``packed`` and says that they are ``artifact``: what it is called, and how
    it is described, may be another release's."""
    try:
        found = json.loads(manifest)
        layers = sorted(each["digest"] for each in found["layers"])
        return bool(found["annotations"][ARTIFACT_DIGEST] == artifact and layers == packed.digests)
    except (ValueError, LookupError, TypeError):
        return False


def blobs_of(manifest: bytes) -> list[tuple[str, int]]:
    """Digest and bytes of all that a manifest names, its configuration last; nothing where it is no manifest."""
    try:
        found = json.loads(manifest)
        blobs = [(each["digest"], each["size"]) for each in (*found["layers"], found["config"])]
    except (ValueError, LookupError, TypeError):
        return []
    good = all(isinstance(size, int) and _DIGEST.fullmatch(str(digest)) for digest, size in blobs)
    return blobs if good else []


def _descriptor(layer: FileLayer) -> dict[str, Any]:
    described = {"mediaType": layer.media_type, "digest": layer.digest, "size": layer.file.size}
    return described | {"annotations": {FILE_PATH: layer.file.path, TITLE: layer.file.path}}


def _about_model(written: str, config: Mapping[str, Any]) -> dict[str, Any]:
    rounded = config.get("quantization_config")
    kept = _FLOATS.get(str(config.get("dtype") or config.get("torch_dtype")))
    return {
        "architecture": "transformer",
        "format": "safetensors",
        **_named("precision", _PRECISION.get(written, kept)),
        **_named("quantization", rounded.get("quant_method") if isinstance(rounded, dict) else None),
        "capabilities": {"inputTypes": ["text"], "outputTypes": ["text"]},
    }


def _named(field: str, value: object) -> dict[str, str]:
    """An optional field, which is left out where nothing is known."""
    return {field: value} if isinstance(value, str) else {}
