"""What a stage needs to reach what it reads and writes: Secrets and certificate authorities, and no more than those."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from finetune_api.custom_metrics import MetricRun
from finetune_api.dataset import Dataset
from finetune_api.push import PushTarget
from finetune_api.references import ConfigMapKeyRef, SecretKeyRef, SecretRef
from finetune_api.stages import Stage, StageInput
from finetune_api.storage import InputStorage

READS_SOURCES: Final = frozenset({Stage.RESOLVE, Stage.PREPARE})
"""Stages that read the sources of the data."""
_READS_MODEL: Final = READS_SOURCES | {Stage.TRAIN, Stage.EXPORT, Stage.EVALUATE}
"""Stages that read the base model, or at least its tokenizer."""


@dataclass(frozen=True)
class Access:
    """Distinct references, in the order in which a stage needs them."""

    stores: tuple[SecretRef, ...]
    """Secrets with the keys of stores."""
    tokens: tuple[SecretKeyRef, ...]
    """Tokens for the Hugging Face hub; for publish, the key that signs, the logins of what it pushes to, the judge's
    key. For evaluate, the key of the model to compare with."""
    authorities: tuple[ConfigMapKeyRef, ...]
    """Certificates of private authorities."""


def access_of(given: StageInput) -> Access:
    """What a stage needs: of its results' store always, of sources, base model and metrics' data if it reads them, of
    registries if it pushes."""
    storages = list(dict.fromkeys(_storages(given)))
    bundles = [*(each.ca_bundle for each in storages), *(target.place.ca_bundle for target in _pushed_to(given))]
    return Access(
        stores=tuple(dict.fromkeys(each.secret_ref for each in storages if each.secret_ref)),
        tokens=tuple(dict.fromkeys(_tokens(given))),
        authorities=tuple(dict.fromkeys(each.config_map_key_ref for each in bundles if each)),
    )


def dataset_read(given: StageInput) -> Dataset | None:
    """The data set whose sources a stage reads."""
    prepare = given.params.prepare if given.stage in READS_SOURCES else None
    return prepare.dataset if prepare else None


def metrics_fed(given: StageInput) -> list[MetricRun]:
    """The metric containers whose data a stage reads: resolve to tell the version, the answers to hand it over."""
    if given.stage is Stage.RESOLVE and given.params.evaluate:
        return given.params.evaluate.metrics
    return given.hands_over


def _pushed_to(given: StageInput) -> list[PushTarget]:
    return given.output.push_to if given.stage is Stage.PUBLISH and given.output else []


def _storages(given: StageInput) -> Iterator[InputStorage]:
    yield given.results_storage
    if given.stage in _READS_MODEL and given.base_model_uri.startswith("s3://"):
        yield given.base_model_storage or given.storage
    data = dataset_read(given)
    for each in data.all_sources if data else []:
        if each.source.uri and each.source.uri.startswith("s3://"):
            yield each.source.storage or given.storage
    if data and data.pii.ner and data.pii.ner.uri:
        yield data.pii.ner.storage or given.storage
    yield from (each.data.storage or given.storage for each in metrics_fed(given) if each.data)


def _tokens(given: StageInput) -> Iterator[SecretKeyRef]:
    if given.stage in _READS_MODEL and given.base_model_secret_key_ref:
        yield given.base_model_secret_key_ref
    if given.stage is Stage.PUBLISH and given.output and given.output.signing:
        yield given.output.signing.secret_key_ref
    for target in _pushed_to(given):
        yield from target.place.login
    evaluating = given.params.evaluate if given.stage is Stage.EVALUATE else None
    other = evaluating.evaluation.baseline if evaluating else None
    if other and other.endpoint.secret_key_ref:
        yield other.endpoint.secret_key_ref
    publishing = given.params.publish if given.stage is Stage.PUBLISH else None
    if publishing and publishing.judge and publishing.judge.endpoint.secret_key_ref:
        yield publishing.judge.endpoint.secret_key_ref
    data = dataset_read(given)
    yield from (each.source.secret_key_ref for each in (data.all_sources if data else []) if each.source.secret_key_ref)
