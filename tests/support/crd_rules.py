"""CEL rules of the CRDs: what each accepts and refuses, and what its message must name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from finetune_api import meta
from finetune_api.spelled import is_spelled
from tests.support.crd_cases import GOAL, LOW, OF_CANARIES, Case, Path, means_nothing, valid, valid_object
from tests.support.crd_patterns import KINDS, SCHEMAS, Object


def message_of(schema: Object, *parts: str) -> str:
    """The message of the only CEL rule of a schema that has all these parts."""
    messages = [rule["message"] for rule in schema["x-kubernetes-validations"]]
    found = [message for message in messages if all(part in message for part in parts)]
    assert len(found) == 1, f"{parts} are in {len(found)} of {messages}"
    return str(found[0])


def _schema(kind: str, path: Path) -> Object:
    schema: Object = SCHEMAS[kind]
    for step in path:
        schema = schema["items"] if isinstance(step, int) else schema["properties"][step]
    return schema


DATASET: Final = ("spec", "dataset")
DISTILLATION: Final = (*DATASET, "distillation")
_ONE_OF: Final[list[tuple[str, Path, tuple[str, str]]]] = [
    (meta.FINETUNEJOB, (*DATASET, "sources", 0), ("uri", "configMapKeyRef")),
    (meta.FINETUNEJOB, (*DATASET, "benchmarks", 0), ("uri", "configMapKeyRef")),
    (meta.FINETUNEJOB, (*DATASET, "replay", "source"), ("uri", "configMapKeyRef")),
    (meta.FINETUNEJOB, (*DATASET, "columns"), ("input", "template")),
    (meta.FINETUNEJOB, (*DATASET, "pii", "ner"), ("uri", "package")),
    (meta.FINETUNEJOB, ("spec", "output", "pushTo", 0), ("oci", "huggingFace")),
    (meta.ADAPTERDEPLOYMENT, ("spec", "access", "route"), ("httpRoute", "ingress")),
]
_COLUMNS_OR_TEACHER: Final = message_of(
    _schema(meta.FINETUNEJOB, DATASET), "columns and distillation exclude each other", "distillation.column"
)
_SPLIT: Final = message_of(
    _schema(meta.FINETUNEJOB, (*DATASET, "split")), "validationPercent and testPercent", "60 or less"
)
ONLY_THE_API_SERVER: Final = frozenset({_SPLIT})
"""Rules that the models do not repeat: a job that runs outside a cluster takes such a spec, and splits as it says."""
_TEACHER: Final = _schema(meta.FINETUNEJOB, DISTILLATION)
_COST: Final = message_of(
    _TEACHER, "maxCost needs prices", "prices.usdPerMillionInputTokens", "prices.usdPerMillionOutputTokens"
)
_COST_ZERO: Final = message_of(_TEACHER, "maxCost must be above 0", "omit it")
_SAMPLES: Final = message_of(_TEACHER, "samplesPerPrompt above 1", "temperature above 0")
_WARM: Final = message_of(_TEACHER, "temperature", "2 or less")
_WORDS: Final = message_of(_TEACHER, "minAnswerWords", "must not exceed maxAnswerWords")
_SPLITS: Final[list[tuple[Object, str | None]]] = [
    ({"validationPercent": 40, "testPercent": 20}, None),
    ({"validationPercent": 20, "testPercent": 40}, None),
    ({"validationPercent": 40}, None),
    ({"validationPercent": 40, "testPercent": 21}, _SPLIT),
    ({"validationPercent": 40, "testPercent": 40}, _SPLIT),
]
_FREE: Final = {"usdPerMillionInputTokens": "0", "usdPerMillionOutputTokens": "0.0"}
_DISTILLATIONS: Final[list[tuple[Object, str | None]]] = [
    ({}, None),
    ({"maxCost": "0e9", "prices": _FREE}, _COST_ZERO),
    ({"maxCost": "0"}, _COST_ZERO),
    ({"prices": _FREE}, None),
    ({"maxCost": "5", "prices": {"usdPerMillionInputTokens": "0.15"}}, None),
    ({"maxCost": "5", "prices": {"usdPerMillionOutputTokens": "6e-1"}}, None),
    ({"maxCost": "5"}, _COST),
    ({"maxCost": "1e-9", "prices": _FREE}, _COST),
    ({"samplesPerPrompt": 1, "temperature": "0"}, None),
    ({"samplesPerPrompt": 2}, None),
    ({"samplesPerPrompt": 2, "temperature": "1e-2"}, None),
    ({"samplesPerPrompt": 2, "temperature": "0.0"}, _SAMPLES),
    ({"temperature": "2"}, None),
    ({"temperature": "20e-1"}, None),
    ({"temperature": "2.00000001"}, _WARM),
    ({"temperature": "1e1"}, _WARM),
    ({"minAnswerWords": 5, "maxAnswerWords": 5}, None),
    ({"minAnswerWords": 5}, None),
    ({"minAnswerWords": 5, "maxAnswerWords": 4}, _WORDS),
]


_KEY: Final = message_of(
    _schema(meta.FINETUNEJOB, ("spec", "storage", "encryption")), "kmsKeyId needs algorithm aws:kms", "AES256"
)
_ENCRYPTIONS: Final[list[tuple[Object, str | None]]] = [
    ({"algorithm": "AES256"}, None),
    ({"algorithm": "aws:kms"}, None),
    ({"algorithm": "aws:kms", "kmsKeyId": "alias/models"}, None),
    ({"algorithm": "AES256", "kmsKeyId": "alias/models"}, _KEY),
]
_COMPARED: Final = message_of(_schema(meta.FINETUNEJOB, GOAL), "improveOverBase goes with", "set atLeast")
_ONE_BOUND: Final = message_of(_schema(meta.FINETUNEJOB, GOAL), "exactly one of", "improveOverBase", "atMost")
_LOW: Final = message_of(_schema(meta.FINETUNEJOB, GOAL), "take atMost", "no other metric")
_ABOVE_1: Final = message_of(_schema(meta.FINETUNEJOB, GOAL), "atMost is a share of 1", "perplexity", "above 1")
_NO_SHARE: Final = message_of(
    _schema(meta.FINETUNEJOB, GOAL), "atLeast and improveOverBase are shares", "custom figure"
)
_UNNAMED: Final = message_of(_schema(meta.FINETUNEJOB, GOAL), "metric custom needs custom", "set it")
_NOT_CUSTOM: Final = message_of(_schema(meta.FINETUNEJOB, GOAL), "goes with metric custom", "remove custom")
_GOALS: Final[list[tuple[Object, str | None]]] = [
    ({"metric": "automation", "atPrecision": "0.98", "atLeast": "0.4"}, None),
    ({"metric": "recall", "improveOverBase": "0.1"}, None),
    ({"metric": "automation", "improveOverBase": "0.1"}, _COMPARED),
    ({"metric": "f1"}, _ONE_BOUND),
    ({"metric": "f1", "atLeast": "0.5", "improveOverBase": "0.1"}, _ONE_BOUND),
    ({"metric": "leaks", "atLeast": "0.5", "atMost": "0.1"}, _ONE_BOUND),
    *(({"metric": metric, "atMost": "0.1"}, None) for metric in LOW),
    *(({"metric": metric, "atLeast": "0.1"}, _LOW) for metric in OF_CANARIES),
    ({"metric": "forgetting", "atLeast": "0.9"}, _LOW),
    ({"metric": "accuracy", "atMost": "0.1"}, _LOW),
    ({"metric": "chrf", "improveOverBase": "0.1"}, None),
    ({"metric": "exactMatch", "atLeast": "0.1"}, None),
    ({"metric": "perplexity", "atMost": "1.0001"}, None),
    ({"metric": "perplexity", "atMost": "1"}, _ABOVE_1),
    ({"metric": "leaks", "atMost": "1"}, None),
    ({"metric": "forgettingNll", "atMost": "1.5"}, None),
    ({"metric": "leaks", "atMost": "8.5"}, _ABOVE_1),
    ({"metric": "perplexity", "atLeast": "0.5"}, _LOW),
    ({"metric": "custom", "atLeast": "0.5"}, _UNNAMED),
    ({"metric": "custom", "custom": "a.b", "atLeast": "7.5"}, None),
    ({"metric": "custom", "custom": "a.b", "improveOverBase": "2"}, None),
    ({"metric": "accuracy", "atLeast": "1.5"}, _NO_SHARE),
    ({"metric": "accuracy", "atLeast": "95"}, _NO_SHARE),
    ({"metric": "f1", "improveOverBase": "1.0001"}, _NO_SHARE),
    ({"metric": "f1", "improveOverBase": "1"}, None),
    ({"metric": "f1", "custom": "a.b", "atLeast": "0.5"}, _NOT_CUSTOM),
]
_UNASKED: Final = {
    field: message_of(_schema(meta.FINETUNEJOB, GOAL[:2]), f"needs {field}", "Sample or Full", "remove the goal")
    for field in ("general", "adversarial")
}
_UNJUDGED: Final = message_of(_schema(meta.FINETUNEJOB, GOAL[:2]), "needs judge", "judge.endpoint", "remove the goal")
_JUDGED: Final[Object] = {"goals": [{"metric": "judgeWinRate", "atLeast": "0.6"}]}
_UNCOMPARED: Final = message_of(_schema(meta.FINETUNEJOB, GOAL[:2]), "needs baseline", "baseline.endpoint", "change")
_ELSEWHERE: Final[Object] = {"goals": [{"metric": "f1", "improveOverBase": "0.1", "baseline": "Endpoint"}]}
_NOT_RUN: Final = message_of(_schema(meta.FINETUNEJOB, GOAL[:2]), "needs its container", "add it to metrics", "change")
_CUSTOM: Final[Object] = {
    "goals": [{"metric": "custom", "custom": "a.b", field: "0.5"} for field in ("atLeast", "atMost", "improveOverBase")]
}
_APART: Final = message_of(_schema(meta.FINETUNEJOB, GOAL[:2]), "contradict each other", "change one", "remove")


def _between(least: str, most: str, *classes: str) -> Object:
    """Two goals about a custom figure, each of a class if there is one for it."""
    bounds = ({"atLeast": least}, {"atMost": most})
    named = [{"class": each} for each in classes] or [{}, {}]
    about = {"metric": "custom", "custom": "a.b"}
    return {
        "metrics": [{"name": "a"}],
        "goals": [about | bound | name for bound, name in zip(bounds, named, strict=True)],
    }


_EVALUATIONS: Final[list[tuple[Object, str | None]]] = [
    ({"general": "Off", "goals": [{"metric": "leaks", "atMost": "0.1"}]}, None),
    ({"adversarial": "Off", "goals": [{"metric": "forgetting", "atMost": "0.1"}]}, None),
    ({"general": "Off", "adversarial": "Off", "goals": [{"metric": "f1", "atLeast": "0.1"}]}, None),
    ({"general": "Off", "adversarial": "Off"}, None),
    (_JUDGED, _UNJUDGED),
    (_CUSTOM, _NOT_RUN),
    (_CUSTOM | {"metrics": [{"name": "ab"}]}, _NOT_RUN),
    (_CUSTOM | {"metrics": [{"name": "b"}, {"name": "a"}]}, None),
    (_between("0.9", "0.5"), _APART),
    (_between("0.9", "0.5", "x", "x"), _APART),
    (_between("0.9", "0.5", "x", "y"), None),
    (_between("0.5", "0.9"), None),
    (_between("0.9", "10.5"), None),
    (_ELSEWHERE, _UNCOMPARED),
    (_ELSEWHERE | {"baseline": {"endpoint": {"url": "http://large/v1", "model": "m"}}}, None),
    (_JUDGED | {"judge": {"endpoint": {"url": "http://judge/v1", "model": "m"}}}, None),
    *(({"general": "Off", "goals": [{"metric": metric, "atMost": "0.1"}]}, _UNASKED["general"]) for metric in LOW[:2]),
    *(
        ({"adversarial": "Off", "goals": [{"metric": metric, "atMost": "0.1"}]}, _UNASKED["adversarial"])
        for metric in LOW[2:]
    ),
]
_ALONE: Final = message_of(_schema(meta.FINETUNEJOB, ("spec",)), "format Adapter", "Choose another format")
_ADAPTERS: Final[list[tuple[Object, Object, str | None]]] = [
    ({"format": "Adapter"}, {}, None),
    ({"format": "Adapter"}, {"method": "LoRA"}, None),
    ({"format": "INT8", "alternatives": ["Adapter"]}, {"adapter": "DoRA"}, _ALONE),
    ({"format": "Adapter"}, {"method": "Full"}, _ALONE),
    ({"format": "INT8"}, {"adapter": "DoRA"}, None),
]
"""Export, training, and what is said of the two."""
_LORA_IN_VLLM: Final = message_of(_schema(meta.FINETUNEJOB, ("spec",)), "generator VLLM", "to Transformers")
_GENERATORS: Final[list[tuple[str, Object, str | None]]] = [
    ("VLLM", {}, None),
    ("VLLM", {"adapter": "DoRA"}, _LORA_IN_VLLM),
    ("VLLM", {"adapter": "DoRA", "method": "LoRA"}, _LORA_IN_VLLM),
    ("VLLM", {"adapter": "DoRA", "method": "Full"}, None),
    ("Transformers", {"adapter": "DoRA"}, None),
]
"""Which program answers, training, and what is said of the two."""
_PLANTED: Final = message_of(_schema(meta.FINETUNEJOB, ("spec",)), "needs dataset.canaries", "remove the goal")
_PLANTINGS: Final[list[tuple[int | None, str, str | None]]] = [
    *((32, metric, None) for metric in OF_CANARIES),
    *((None, metric, _PLANTED) for metric in OF_CANARIES),
    (None, "leaks", None),
]
"""Canaries, a metric that must stay low, and what the API server says to a goal about it."""
_NOTHING_KEPT: Final = message_of(_schema(meta.ADAPTERDEPLOYMENT, ("spec",)), "InPlace", "remove keepLastGood", "0s")
_STRATEGIES: Final[list[tuple[Object, str | None]]] = [
    ({"strategy": {"type": "InPlace"}}, None),
    ({"strategy": {"type": "InPlace"}, "keepLastGood": "0s"}, None),
    ({"strategy": {"type": "InPlace"}, "keepLastGood": "00m"}, None),
    ({"strategy": {"type": "InPlace"}, "keepLastGood": "10m"}, None),
    ({"strategy": {"type": "InPlace"}, "keepLastGood": "5m"}, _NOTHING_KEPT),
    ({"strategy": {"notice": "5m"}, "keepLastGood": "10m"}, None),
    ({"keepLastGood": "10m"}, None),
]
_DIVIDED: Final = message_of(_schema(meta.ADAPTERDEPLOYMENT, ("spec",)), "weight above 50", "access.route.httpRoute")
_HTTP_ROUTE: Final = {"httpRoute": {"parentRefs": [{"name": "a"}], "hostnames": ["a.example"]}}
_INGRESS: Final = {"ingress": {"className": "nginx", "host": "a.example"}}
_TLS: Final = {"tls": {"secretRef": {"name": "a"}}}
_SHARES: Final[list[tuple[list[int], Object, str | None]]] = [
    ([50], {}, None),
    ([10, 51], {}, _DIVIDED),
    ([10, 51], {"route": _INGRESS}, _DIVIDED),
    ([10, 51], {"route": _HTTP_ROUTE} | _TLS, _DIVIDED),
    ([50], {"route": _HTTP_ROUTE} | _TLS, None),
    ([10, 51, 99], {"route": _HTTP_ROUTE}, None),
]
"""The weights of a canary's steps, and how its clients get in."""
_STORAGES: Final[list[tuple[str, Path]]] = [
    (meta.FINETUNEJOB, ("spec", "storage")),
    (meta.FINETUNEJOB, ("spec", "output", "storage")),
    (meta.ADAPTERDEPLOYMENT, ("spec", "source", "artifact", "storage")),
    (meta.ADAPTERDEPLOYMENT, ("spec", "source", "output", "storage")),
    (meta.ADAPTERDEPLOYMENT, ("spec", "source", "adapters", 0, "artifact", "storage")),
    (meta.ADAPTERDEPLOYMENT, ("spec", "source", "adapters", 0, "output", "storage")),
]


_SOURCE: Final = (*DATASET, "sources", 0)
_STORAGE_FOR_S3: Final = message_of(_schema(meta.FINETUNEJOB, _SOURCE), "storage", "s3:// uri", "leave it out")
_TOKEN_FOR_HUB: Final = message_of(_schema(meta.FINETUNEJOB, _SOURCE), "secretKeyRef", "hf:// uri", "storage.secretRef")
_S3: Final = {"uri": "s3://abc/x"}
_HUB: Final = {"uri": "hf://org/name@main"}
_HUB_DATA: Final = {"uri": "hf://datasets/org/name@main/data.csv"}
_FILE: Final = {"configMapKeyRef": {"name": "rows", "key": "rows.csv"}}
_TOKEN: Final = {"secretKeyRef": {"name": "hub", "key": "token"}}
_STORE: Final = {"storage": {"endpoint": "http://s3"}}
_ACCESSES: Final[list[tuple[Path, Object, str | None]]] = [
    (("spec", "model"), _S3 | _STORE, None),
    (("spec", "model"), _HUB | _TOKEN, None),
    (("spec", "model"), _S3 | _TOKEN, _TOKEN_FOR_HUB),
    (("spec", "model"), _HUB | _STORE, _STORAGE_FOR_S3),
    *(
        (path, value, message)
        for path in (_SOURCE, (*DATASET, "benchmarks", 0), (*DATASET, "replay", "source"))
        for value, message in (
            (_S3 | _STORE, None),
            (_HUB_DATA | _TOKEN, None),
            (_S3 | _TOKEN, _TOKEN_FOR_HUB),
            (_FILE | _TOKEN, _TOKEN_FOR_HUB),
            (_HUB_DATA | _STORE, _STORAGE_FOR_S3),
            (_FILE | _STORE, _STORAGE_FOR_S3),
        )
    ),
    ((*DATASET, "pii", "ner"), _S3 | _STORE, None),
    ((*DATASET, "pii", "ner"), {"package": "a"} | _STORE, _STORAGE_FOR_S3),
]


def rules(kind: str, path: Path, schema: Object) -> Iterator[tuple[str, Path, str]]:
    """Every CEL rule of a schema: where it is, and its message. Those that stand for a pattern are among the bounds
    (``crd_cases``)."""
    own = (rule for rule in schema.get("x-kubernetes-validations", []) if not is_spelled(rule))
    yield from ((kind, path, rule["message"]) for rule in own)
    if schema["type"] == "array":
        yield from rules(kind, (*path, 0), schema["items"])
    for name, child in schema.get("properties", {}).items():
        yield from rules(kind, (*path, name), child)


def _old_shapes(kind: str, path: Path, schema: Object) -> Iterator[Case]:
    """What an earlier version took, refused with what is written now; and the same without it."""
    rules_ = schema.get("x-kubernetes-validations", [])
    if means_nothing(schema):
        yield Case(kind, path, "" if schema["type"] == "string" else 0, rules_[0]["message"])
        yield Case(kind, path, valid(schema), None)
    if schema["type"] == "array":
        yield from _old_shapes(kind, (*path, 0), schema["items"])
    for name, child in schema.get("properties", {}).items():
        yield from _old_shapes(kind, (*path, name), child)


OLD_SHAPES: Final = [
    case for kind in KINDS for case in _old_shapes(kind, ("spec",), SCHEMAS[kind]["properties"]["spec"])
]
IN_ITS_OWN_WORDS: Final = frozenset(case.complaint for case in OLD_SHAPES)
"""What the models refuse too, but cannot say what is written instead."""


def _rule_cases() -> Iterator[Case]:
    yield from OLD_SHAPES
    teacher = {"teacher": {"url": "http://t/v1", "model": "m"}}
    yield from (Case(meta.FINETUNEJOB, (*DATASET, "split"), value, message) for value, message in _SPLITS)
    yield from (Case(meta.FINETUNEJOB, DISTILLATION, teacher | value, message) for value, message in _DISTILLATIONS)
    for kind, path in _STORAGES:
        yield from (Case(kind, (*path, "encryption"), value, message) for value, message in _ENCRYPTIONS)
    yield from (Case(meta.FINETUNEJOB, GOAL, value, message) for value, message in _GOALS)
    yield from (Case(meta.FINETUNEJOB, GOAL[:2], value, message) for value, message in _EVALUATIONS)
    for canaries, metric, message in _PLANTINGS:
        yield Case(meta.FINETUNEJOB, ("spec",), _planting(canaries, metric), message)
    for export, training, message in _ADAPTERS:
        yield Case(
            meta.FINETUNEJOB,
            ("spec",),
            valid_object(meta.FINETUNEJOB)["spec"] | {"export": export, "training": training},
            message,
        )
    for generator, training, message in _GENERATORS:
        yield Case(
            meta.FINETUNEJOB,
            ("spec",),
            valid_object(meta.FINETUNEJOB)["spec"] | {"evaluation": {"generator": generator}, "training": training},
            message,
        )
    yield from (Case(meta.FINETUNEJOB, *each) for each in _ACCESSES)
    served = {"source": {"fineTuneJob": {"name": "a"}}, "runtime": "a"}
    yield from (Case(meta.ADAPTERDEPLOYMENT, ("spec",), served | value, message) for value, message in _STRATEGIES)
    for weights, access, message in _SHARES:
        steps = {"canary": {"steps": [{"weight": weight} for weight in weights]}}
        yield Case(meta.ADAPTERDEPLOYMENT, ("spec",), served | {"strategy": steps, "access": access}, message)
    for kind, path, fields in _ONE_OF:
        yield from _choices(kind, path, fields, f"exactly one of {' and '.join(fields)} must be set")
    for fields in (("fineTuneJob", "artifact"), ("artifact", "output"), ("output", "adapters")):
        said = "exactly one of fineTuneJob, artifact, output and adapters must be set"
        yield from _choices(meta.ADAPTERDEPLOYMENT, ("spec", "source"), fields, said)
    for fields in (("fineTuneJob", "artifact"), ("artifact", "output")):
        said = "exactly one of fineTuneJob, artifact and output must be set"
        yield from _choices(meta.ADAPTERDEPLOYMENT, ("spec", "source", "adapters", 0), fields, said)
    *_, neither, both = _choices(meta.FINETUNEJOB, DATASET, ("columns", "distillation"), _COLUMNS_OR_TEACHER)
    yield from (Case(neither.kind, DATASET, neither.value, None), both)


def _planting(canaries: int | None, metric: str) -> Object:
    """A spec with a goal about a metric."""
    spec: Object = valid_object(meta.FINETUNEJOB)["spec"]
    dataset = {name: value for name, value in spec["dataset"].items() if name != "canaries"}
    dataset |= {"canaries": canaries} if canaries else {}
    return spec | {"dataset": dataset, "evaluation": {"goals": [{"metric": metric, "atMost": "0.1"}]}}


def _choices(kind: str, path: Path, fields: tuple[str, str], message: str) -> Iterator[Case]:
    """Either of two fields that exclude each other, none of them, and both."""
    one, other = (_at(valid_object(kind, (*path, field)), path) for field in fields)
    none = {name: value for name, value in one.items() if name not in fields}
    yield from (Case(kind, path, value, None) for value in (one, other))
    yield from (Case(kind, path, value, message) for value in (none, one | other))


def _at(body: Any, path: Path) -> Any:
    for step in path:
        body = body[step]
    return body


RULE_CASES = list(_rule_cases())
