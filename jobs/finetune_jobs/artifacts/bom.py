"""The bill of materials of an artifact: CycloneDX 1.6, with the model card that the format has for models (pure).

It stands in the artifact's folder, so it holds nothing but what the addresses of its parts decide: neither times nor
places of a run (decision 38). Format: https://cyclonedx.org/docs/1.6/json/. No library writes its model cards yet, so
it is JSON made here; a test holds it against the official schema.
"""

import re
import uuid
from collections.abc import Iterator, Mapping
from typing import Any, Final

from finetune_api.access import without_access
from finetune_api.layout import Manifest
from finetune_api.stages import Stage, StageInput
from finetune_jobs.artifacts.artifact import Metrics, ModelRef

BOM: Final = "bom.cdx.json"
"""Its file in the artifact's folder."""
_NAMESPACE: Final = uuid.uuid5(uuid.NAMESPACE_DNS, "finetune.dev")
_SCORE: Final = re.compile(r"(?P<type>.+)(?P<of>Base|Tuned|Artifact)")
_WHO: Final = {"Base": "base model", "Tuned": "base model with adapter", "Artifact": "the exported files"}


def bill_of_materials(
    given: StageInput, model: ModelRef, made: Mapping[Stage, Manifest], metrics: Metrics, architecture: str
) -> dict[str, Any]:
    """The bill as JSON. ``made`` has the manifests of prepare, train and export; ``architecture`` may be empty."""
    chain, name = given.upstream, given.output.name if given.output else given.run.name
    card: dict[str, Any] = {
        "modelParameters": {
            "approach": {"type": "supervised"},
            "task": metrics.task.value,
            **({"architectureFamily": architecture} if architecture else {}),
            "datasets": [{"ref": "dataset"}],
            "inputs": [{"format": "text"}],
            "outputs": [{"format": "text"}],
        },
        "quantitativeAnalysis": {"performanceMetrics": list(_scores(metrics.scalars))},
    }
    subject = {
        **_component("machine-learning-model", "model", name),
        "version": model.digest[:12],
        "modelCard": card,
        "properties": _properties(
            {"contentDigest": model.digest, "format": model.format, "evaluationDigest": chain.evaluation}
            | ({"baseDigest": model.base.digest} if model.base else {})
            | dict(_hyperparameters(given))
        ),
        "components": _files(made[Stage.EXPORT], "model"),
    }
    uri, revision = _named(model.base_model_uri)
    base = {
        **_component("machine-learning-model", "base", uri),
        "version": revision or chain.model[:12],
        "externalReferences": [{"type": "distribution", "url": model.base_model_uri}],
        "properties": _properties({"contentDigest": chain.model}),
    }
    dataset = {
        **_component("data", "dataset", f"dataset {chain.dataset[:12]}"),
        "version": chain.dataset[:12],
        "data": [{"type": "dataset", "name": f"dataset {chain.dataset[:12]}"}],
        "properties": _properties(
            {"contentDigest": chain.dataset, "sourceDigest": chain.source}
            | {
                name: value
                for name, value in made[Stage.PREPARE].facts.items()
                if name.startswith(("rows", "canaries"))
            }
        ),
        "components": _files(made[Stage.PREPARE], "dataset"),
    }
    adapter = {
        **_component("machine-learning-model", "adapter", f"adapter {chain.adapter[:12]}"),
        "version": chain.adapter[:12],
        "properties": _properties({"contentDigest": chain.adapter}),
        "components": _files(made[Stage.TRAIN], "adapter"),
    }
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(_NAMESPACE, f'{name} {chain.model_dump_json()}')}",
        "version": 1,
        "metadata": {"component": subject},
        "components": [base, dataset, adapter],
        "dependencies": [
            {"ref": "model", "dependsOn": ["base", "adapter"]},
            {"ref": "adapter", "dependsOn": ["base", "dataset"]},
        ],
    }


def _named(base_model_uri: str) -> tuple[str, str]:
    """Name and revision; a key in S3 may have an @, and has no revision."""
    uri, _, revision = base_model_uri.partition("@")
    return (uri, revision) if uri.startswith("hf://") else (base_model_uri, "")


def _component(kind: str, reference: str, name: str) -> dict[str, Any]:
    return {"type": kind, "bom-ref": reference, "name": name}


def _files(manifest: Manifest, owner: str) -> list[dict[str, Any]]:
    return [
        {
            **_component("file", f"{owner}/{file.path}", file.path),
            "hashes": [{"alg": "SHA-256", "content": file.sha256}],
            "properties": _properties({"size": str(file.size)}),
        }
        for file in sorted(manifest.files, key=lambda file: file.path)
    ]


def _properties(values: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"name": f"finetune:{name}", "value": value} for name, value in values.items() if value]


def _hyperparameters(given: StageInput) -> Iterator[tuple[str, str]]:
    """Every setting of the training, the seed among them, by its place in the spec."""
    train = given.params.train
    plain = without_access(train.training.model_dump(mode="json", by_alias=True, exclude_none=True)) if train else {}
    yield from _flat(plain, "training")


def _flat(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for name, each in value.items():
            yield from _flat(each, f"{path}.{name}")
    elif isinstance(value, list):
        yield path, ", ".join(map(str, value))
    else:
        yield path, str(value)


def _scores(scalars: Mapping[str, str]) -> Iterator[dict[str, str]]:
    for name, value in scalars.items():
        if match := _SCORE.fullmatch(name):
            yield {"type": match["type"], "value": value, "slice": f"test split, {_WHO[match['of']]}"}
