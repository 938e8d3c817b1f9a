"""``docs/reference/api.md``: every field of the custom resources, from the same schema that the API server enforces."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from finetune_api import crdgen, meta
from finetune_api.base import is_retired
from finetune_api.spelled import is_spelled, spelled_out

Schema = dict[str, Any]


def page() -> str:
    """The whole page."""
    lines = [
        "<!-- Generated from crds/finetune_api by `make manifests`; do not edit. -->",
        "# API reference",
        "",
        f"Group and version: `{meta.API_VERSION}`. The cluster has the same text: `kubectl explain ftj.spec.training`.",
        "Both kinds are in the category `finetune`: `kubectl get finetune` lists them. Field selectors know",
        "`status.phase`, `spec.profile` and `spec.runtime`: `kubectl get ftj --field-selector status.phase=Failed`.",
    ]
    for kind in crdgen.KINDS:
        lines += ["", *_kind(kind)]
    return "\n".join(lines) + "\n"


def _kind(kind: crdgen.Kind) -> Iterator[str]:
    root = crdgen.crd(kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    yield f"## {kind.kind} (`{kind.short_name}`)"
    yield ""
    yield _prose(root["description"])
    for part in ("spec", "status"):
        yield from _object(part, root["properties"][part])
    yield ""
    yield f"### {kind.kind}: validation rules"
    yield ""
    yield "The API server rejects objects that break these rules, or the types, enum values and bounds in the tables:"
    yield ""
    yield from (f"- {path}: {message}." for path, message in _rules("", root))


def _object(path: str, schema: Schema) -> Iterator[str]:
    yield ""
    yield f"### {path}"
    yield ""
    yield _prose(schema["description"])
    yield ""
    yield "| field | type | default | description |"
    yield "| --- | --- | --- | --- |"
    required = set(schema.get("required", []))
    fields = {name: field for name, field in schema["properties"].items() if not is_retired(field)}
    for name, field in fields.items():
        default = "required" if name in required else _default(field)
        yield f"| `{name}` | {_type(field)} | {default} | {_cell(_prose(field['description']) + _bounds(field))} |"
    for name, field in fields.items():
        inner, suffix = (field["items"], "[]") if field["type"] == "array" else (field, "")
        if "properties" in inner:
            yield from _object(f"{path}.{name}{suffix}", {"description": field["description"], **inner})


def _type(field: Schema) -> str:
    if field["type"] == "array":
        return f"list of {_type(field['items'])}"
    return "time" if field.get("format") == "date-time" else str(field["type"])


def _default(field: Schema) -> str:
    return f"`{json.dumps(field['default'])}`" if "default" in field else ""


def _bounds(field: Schema) -> str:
    inner = field.get("items", {}) if field["type"] == "array" else {}
    parts = []
    for schema in (field, inner):
        if "enum" in schema:
            parts.append("one of " + ", ".join(f"`{value}`" for value in schema["enum"]))
        if "minimum" in schema or "maximum" in schema:
            parts.append(_range(schema.get("minimum"), schema.get("maximum"), ""))
        if "minLength" in schema or "maxLength" in schema:
            parts.append(_range(schema.get("minLength"), schema.get("maxLength"), " characters"))
        if "minItems" in schema or "maxItems" in schema:
            parts.append(_range(schema.get("minItems"), schema.get("maxItems"), " entries"))
        if words := spelled_out(schema):
            parts.append(words[1])
        elif "pattern" in schema:
            parts.append(f"matches `{schema['pattern']}`")
    return f" ({'; '.join(parts)})" if parts else ""


def _range(low: float | None, high: float | None, unit: str) -> str:
    if low is None:
        return f"at most {high}{unit}"
    if high is None:
        return f"at least {low}{unit}"
    return f"{low}{unit}" if low == high else f"{low} to {high}{unit}"


def _prose(description: str) -> str:
    """On one line, as in a table row; text in angle brackets is not an HTML tag."""
    return " ".join(description.split()).replace("<", "&lt;")


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _rules(path: str, schema: Schema) -> Iterator[tuple[str, str]]:
    yield from ((f"`{path}`" if path else "the object", rule["message"]) for rule in _own_rules(schema))
    for name, child in schema.get("properties", {}).items():
        yield from _rules(f"{path}.{name}".lstrip("."), child)
    if isinstance(schema.get("items"), dict):
        yield from _rules(f"{path}[]", schema["items"])


def _own_rules(schema: Schema) -> list[dict[str, str]]:
    """But for those that stand for a pattern, which are among the bounds."""
    return [rule for rule in schema.get("x-kubernetes-validations", []) if not is_spelled(rule)]
