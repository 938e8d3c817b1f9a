"""Values at and beyond every bound of the CRDs' schemas, for tests against a real API server."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from finetune_api import adapterdeployment, budget, crdgen, finetunejob, meta, storage

Object = dict[str, Any]
Path = tuple[str | int, ...]

KINDS = {kind.kind: kind for kind in crdgen.KINDS}
SCHEMAS = {name: crdgen.crd(kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"] for name, kind in KINDS.items()}
TIME = "2026-01-31T12:00:00Z"
DIGEST = "0123456789abcdef" * 4


@dataclass(frozen=True)
class Pattern:
    """Texts that a pattern accepts and refuses, and one accepted text of any given length."""

    accepted: tuple[str, ...]
    refused: tuple[str, ...]
    long: Callable[[int], str] | None = None


def _pattern_of(model: Any, field: str) -> str:
    return str(next(part.pattern for part in model.model_fields[field].metadata if getattr(part, "pattern", None)))


PATTERNS = {
    meta.NAME_PATTERN: Pattern(("a", "a-1", "abc"), ("1a", "A", "a-", "a.b", "a_b", "ä", "a\n"), lambda n: "a" * n),
    storage.S3_URI: Pattern(
        ("s3://abc", "s3://abc/", "s3://a.b-c/d/e_f=1.csv"),
        (
            "https://abc/d",
            "s3://ab",
            "s3://Abc/d",
            "s3://abc/d e",
            "s3://abc/d?x=1",
            "s3://-abc/d",
            "file:///etc/passwd",
        ),
        lambda n: "s3://abc/" + "a" * (n - 9),
    ),
    storage.MODEL_URI: Pattern(
        ("s3://abc/model", "hf://org/name@main", "hf://org/na.me@0123abc"),
        ("s3://abc", "s3://abc/", "hf://org/name", "hf://name@main", "org/name", "hf://o/n@a b", "s3://abc/$(x)"),
        lambda n: "s3://abc/" + "a" * (n - 9),
    ),
    storage.SECRET_NAME: Pattern(("a", "1", "a.b-c"), ("A", "a_b", "-a", "a/", "team-a/secret"), lambda n: "a" * n),
    _pattern_of(storage.Credentials, "access_key_id_key"): Pattern(
        ("a", "AWS_ACCESS_KEY_ID", "x.y-z"), ("a b", "a/b", "a=b", "ä"), lambda n: "a" * n
    ),
    _pattern_of(storage.Storage, "endpoint"): Pattern(
        ("", "http://s3", "https://s3.example.com:8333"),
        ("s3", "ftp://s3", "http://s3/path", "http://user:pw@s3", "http://s3:123456", "http://s3?x"),
        lambda n: "http://" + "a" * (n - 7),
    ),
    _pattern_of(storage.Storage, "region"): Pattern(("a", "eu-central-1"), ("EU", "eu_1", "eu 1"), lambda n: "a" * n),
    _pattern_of(finetunejob.FineTuneJobSpec, "rerun"): Pattern(
        ("", "2026-01-31T12:00:00Z", "a.b_c"), ("a b", "a/b", "$x", "ä"), lambda n: "a" * n
    ),
    adapterdeployment.ARTIFACT_URI: Pattern(
        (f"s3://abc/artifacts/{DIGEST}", f"s3://abc/x/y/artifacts/{DIGEST}"),
        (
            "s3://abc/artifacts/0",
            f"s3://abc/models/{DIGEST}",
            f"s3://abc/artifacts/{DIGEST}/",
            f"abc/artifacts/{DIGEST}",
        ),
        lambda n: f"s3://abc/{'a' * (n - 84)}/artifacts/{DIGEST}",
    ),
    # 10 characters are the longest amount of money, so that its length bound (16) cannot be reached.
    _pattern_of(budget.Budget, "max_cost"): Pattern(
        ("0", "25", "12.5", "9999999.99"), ("", "-1", ".5", "1.", "1.234", "1e3", "1,50", "12345678", "5 USD")
    ),
    # 19 characters are the longest number, so that its length bound (20) cannot be reached.
    "^[0-9]{1,6}(\\.[0-9]{1,8})?([eE]-?[0-9]{1,2})?$": Pattern(
        ("0", "2e-4", "0.05", "123456.12345678e-10"), ("", "-1", ".5", "1.", "1e", "0,5", "NaN", "1234567", "1 ")
    ),
    "^[0-9a-f]{64}$": Pattern((DIGEST,), (DIGEST.upper(), "g" * 64), lambda n: DIGEST if n == 64 else "0" * n),
}


@dataclass(frozen=True)
class Case:
    """One change to a valid object, and what the API server must say about it (None: it accepts)."""

    kind: str
    path: Path
    value: Any
    complaint: str | None

    def __str__(self) -> str:
        shown = json.dumps(self.value)
        return (
            f"{self.kind}.{'.'.join(map(str, self.path))}={shown if len(shown) < 30 else f'{shown[:20]}…{len(shown)}'}"
        )


def valid(schema: Object) -> Any:
    """A value with every field set, which the schema accepts."""
    if "enum" in schema:
        return schema["enum"][0]
    match schema["type"]:
        case "object" if "properties" in schema:
            return {name: valid(child) for name, child in schema["properties"].items()}
        case "array":
            return [valid(schema["items"])]
        case "integer":
            return schema.get("minimum", 0)
        case "boolean":
            return False
        case "string":
            if schema.get("format") == "date-time":
                return TIME
            return PATTERNS[schema["pattern"]].accepted[-1] if "pattern" in schema else "a"
    raise AssertionError(f"no value for {schema}")


def valid_object(kind: str, path: Path = ()) -> Object:
    """A valid object in which ``path`` exists."""
    schema = SCHEMAS[kind]["properties"]
    result = {
        "apiVersion": meta.API_VERSION,
        "kind": kind,
        "metadata": {"name": "valid"},
        "spec": valid(schema["spec"]),
        "status": valid(schema["status"]),
    }
    if kind == meta.ADAPTERDEPLOYMENT:  # one-of
        result["spec"]["source"].pop("fineTuneJob" if path[1:3] == ("source", "artifact") else "artifact")
    return result


def changed(case: Case) -> Object:
    result = valid_object(case.kind, case.path)
    target: Any = result
    for step in case.path[:-1]:
        target = target[step]
    target[case.path[-1]] = case.value
    return result


def cases(kind: str, path: Path, schema: Object) -> Iterator[Case]:
    """At each bound, and one beyond it."""

    def accepted(value: Any) -> Case:
        return Case(kind, path, value, None)

    def refused(value: Any, complaint: str) -> Case:
        return Case(kind, path, value, complaint)

    if "enum" in schema:
        yield from (accepted(value) for value in schema["enum"])
        yield refused("Nonsense", 'Unsupported value: "Nonsense": supported values: ')
    if "minimum" in schema:
        yield accepted(schema["minimum"])
        yield refused(schema["minimum"] - 1, f"should be greater than or equal to {schema['minimum']}")
    if "maximum" in schema:
        yield accepted(schema["maximum"])
        yield refused(schema["maximum"] + 1, f"should be less than or equal to {schema['maximum']}")
    pattern = PATTERNS[schema["pattern"]] if "pattern" in schema else None
    if pattern:
        yield from (accepted(text) for text in pattern.accepted)
        yield from (refused(text, f"should match '{schema['pattern']}'") for text in pattern.refused)
    long = pattern.long if pattern else lambda length: "a" * length
    if long and schema.get("maxLength"):
        yield accepted(long(schema["maxLength"]))
        yield refused(long(schema["maxLength"] + 1), f"may not be more than {schema['maxLength']} bytes")
    if schema.get("minLength"):
        yield refused(
            "" if schema["minLength"] == 1 else "s3://", f"should be at least {schema['minLength']} chars long"
        )
    if schema["type"] == "array":
        item = valid(schema["items"])
        yield accepted(_many(item, schema["maxItems"]))
        yield refused(_many(item, schema["maxItems"] + 1), f"must have at most {schema['maxItems']} items")
        if "minItems" in schema:
            yield refused([], f"should have at least {schema['minItems']} items")
        yield from cases(kind, (*path, 0), schema["items"])
    for name, child in schema.get("properties", {}).items():
        yield from cases(kind, (*path, name), child)


def _many(item: Any, count: int) -> list[Any]:
    """Conditions are a map by type, so each needs its own."""
    if isinstance(item, dict) and "type" in item:
        return [item | {"type": f"T{number}"} for number in range(count)]
    return [item] * count


SPEC_CASES = [case for kind in KINDS for case in cases(kind, ("spec",), SCHEMAS[kind]["properties"]["spec"])]
STATUS_CASES = [case for kind in KINDS for case in cases(kind, ("status",), SCHEMAS[kind]["properties"]["status"])]
