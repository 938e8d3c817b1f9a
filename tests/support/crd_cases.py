"""Values at and beyond every bound of the CRDs' schemas, for tests against a real API server."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from string import ascii_lowercase
from typing import Any, Final

from finetune_api import meta
from finetune_api.custom_metrics import CUSTOM_PATTERN
from tests.support.copies import copied
from tests.support.crd_patterns import KINDS, PATTERNS, SCHEMAS, Object, complaint

Path = tuple[str | int, ...]

TIME: Final = "2026-01-31T12:00:00Z"
ABSENT: Final = "(absent)"
"""As a case's value: the field is left out."""
_EXCLUSIVE: Final = re.compile(r"\[has\(self\.\w+\)(, has\(self\.\w+\))+]\.exists_one\(set, set\)|!\(has\(.*\)\)")
"""CEL rules by which fields exclude each other: exactly one of them, or not both."""
_ONLY_WITH: Final = re.compile(r"self\.\w+ == '[^']+' \|\| !has\(self\.(\w+)\)")
"""CEL rules by which a field goes with one value of another, the first of its enum."""


GOAL: Final[Path] = ("spec", "evaluation", "goals", 0)
LOW: Final = ("forgetting", "forgettingNll", "safetyLoss", "harmfulAnswers", "overRefusals", "leaks")
OF_CANARIES: Final = ("canaryLeaks", "memorisation")
"""Metrics that go with ``atMost`` only, and with questions that are asked."""
_AT_MOST: Final = {**dict.fromkeys((*LOW, *OF_CANARIES), "0.1"), "perplexity": "8.5"}
"""What goes with ``atMost`` only, and a value that it may have."""


_LONGEST_CUSTOM: Final = f"{'a' * 40}."
"""How the longest figure of a metric container begins."""
_SCHEMES: Final = {"storage": "s3://", "secretKeyRef": "hf://"}
"""Fields that go with a URI of one scheme only."""


@dataclass(frozen=True)
class Case:
    """One change to a valid object, and what the API server must say about it (None: it accepts)."""

    kind: str
    path: Path
    value: Any
    complaint: str | None
    of_a_rule: bool = False
    """A CEL rule complains, to which the API server comes only where everything else is right."""

    def __str__(self) -> str:
        shown = json.dumps(self.value)
        return (
            f"{self.kind}.{'.'.join(map(str, self.path))}={shown if len(shown) < 30 else f'{shown[:20]}…{len(shown)}'}"
        )


def valid(schema: Object, path: Path = ()) -> Any:
    """A value with every field set, which the schema accepts. Of fields that exclude each other it has the one that
    ``path`` goes through, or else the first."""
    if "enum" in schema:
        return schema["enum"][0]
    match schema["type"]:
        case "object" if "properties" in schema:
            left_out = _left_out(schema, path)
            made = {
                name: valid(child, path[1:] if path[:1] == (name,) else ())
                for name, child in schema["properties"].items()
                if name not in left_out
            }
            for field, scheme in _SCHEMES.items():
                if field in made and _reaches(schema):
                    texts = PATTERNS[schema["properties"]["uri"]["pattern"]].accepted
                    made["uri"] = next(text for text in texts if text.startswith(scheme))
            return made
        case "array":
            return _many(schema, schema.get("minItems", 1), path[1:])
        case "integer":
            limit = means_nothing(schema) and "default" not in schema
            return schema["maximum"] if limit else _least(schema)
        case "boolean":
            return False
        case "string":
            if schema.get("format") == "date-time":
                return TIME
            return PATTERNS[schema["pattern"]].accepted[-1] if "pattern" in schema else "a"
    raise AssertionError(f"no value for {schema}")


def means_nothing(schema: Object) -> bool:
    """Whether 0, or the empty text, once meant something, and a rule now says what to write instead."""
    return any(rule["rule"] in ("self != 0", "self != ''") for rule in schema.get("x-kubernetes-validations", []))


def _least(schema: Object) -> int:
    return int(schema.get("minimum", 0)) + means_nothing(schema)


def _left_out(schema: Object, path: Path) -> set[str]:
    left_out: set[str] = set()
    for names in exclusive_fields(schema):
        left_out |= set(names) - {path[0] if path and path[0] in names else names[0]}
    found = [_ONLY_WITH.fullmatch(rule["rule"]) for rule in schema.get("x-kubernetes-validations", [])]
    left_out |= {match[1] for match in found if match} - set(path[:1])
    if _reaches(schema):
        left_out |= _SCHEMES.keys() - {path[0] if path else "storage"}
    return left_out


def _reaches(schema: Object) -> bool:
    """Whether rules say which fields go with the URI."""
    return any("startsWith" in rule["rule"] for rule in schema.get("x-kubernetes-validations", []))


def exclusive_fields(schema: Object) -> list[list[str]]:
    """Groups of an object's fields of which no two may be set, as its CEL rules have it."""
    rules = [rule["rule"] for rule in schema.get("x-kubernetes-validations", [])]
    return [re.findall(r"has\(self\.(\w+)\)", rule) for rule in rules if _EXCLUSIVE.fullmatch(rule)]


def valid_object(kind: str, path: Path = ()) -> Object:
    """A valid object in which ``path`` exists, and which may be changed."""
    return copied(_valid_object(kind, path))


@cache
def _valid_object(kind: str, path: Path) -> Object:
    schema = SCHEMAS[kind]["properties"]
    made = {
        "apiVersion": meta.API_VERSION,
        "kind": kind,
        "metadata": {"name": "valid"},
        **{part: valid(schema[part], path[1:] if path[:1] == (part,) else ()) for part in ("spec", "status")},
    }
    if path[: len(GOAL)] == GOAL:  # which may be about any questions
        made["spec"]["evaluation"] |= {"general": "Sample", "adversarial": "Sample"}
        made["spec"]["evaluation"]["goals"][0] |= {"metric": LOW[0]} if path[-1] == "atMost" else {}
        named = [*PATTERNS[CUSTOM_PATTERN].accepted, _LONGEST_CUSTOM]
        made["spec"]["evaluation"]["metrics"] = [{"name": each.partition(".")[0]} for each in named]
    if path == (*GOAL, "custom"):
        made["spec"]["evaluation"]["goals"][0]["metric"] = "custom"
    return made


def changed(*cases: Case) -> Object:
    """The valid object with the changes of a case, or of those that stand together (``batches``)."""
    result = valid_object(cases[0].kind, cases[0].path)
    for case in cases:
        _change(result, case)
    return result


def _change(result: Object, case: Case) -> None:
    target: Any = result
    for step in case.path[:-1]:
        target = target[step]
    if case.value == ABSENT:
        target.pop(case.path[-1], None)
    else:
        target[case.path[-1]] = case.value
    if case.path == (*GOAL, "metric") and case.value in _AT_MOST:
        del target["atLeast"]
        target["atMost"] = _AT_MOST[case.value]
    if case.path == (*GOAL, "atMost") and case.complaint is None and case.value != ABSENT and float(case.value) > 1:
        target["metric"] = "perplexity"
    if _is_of_a_custom_figure(case):
        target |= {"metric": "custom", "custom": "a.score"}
    if case.value == "InPlace":  # which keeps nothing
        result["spec"]["keepLastGood"] = "0s"
    if _is_divided(case):
        del result["spec"]["access"]["tls"]


def _is_of_a_custom_figure(case: Case) -> bool:
    """Whether a goal has that metric, or a bound that no other has."""
    if case.path == (*GOAL, "metric"):
        return bool(case.value == "custom")
    bounds = [(*GOAL, name) for name in ("atLeast", "improveOverBase")]
    return case.path in bounds and case.complaint is None and case.value != ABSENT and float(case.value) > 1


def _is_divided(case: Case) -> bool:
    """Whether a canary gets a share that only an HTTPRoute in front of plain HTTP can give it."""
    return case.path[-1] == "weight" and case.complaint is None and isinstance(case.value, int) and case.value > 50


def batches(cases: Iterable[Case]) -> list[list[Case]]:
    """Cases whose changes one object can bear: each changes another place of the same valid object, and what is
    refused stands apart from what is accepted, and what a rule refuses from the rest. What changes a second place for
    its own sake stands alone."""
    found: list[list[Case]] = []
    open_: dict[tuple[str, bool, bool], list[_Batch]] = {}
    for case in cases:
        if case.complaint is None and (case.path[: len(GOAL)] == GOAL or case.value == "InPlace" or _is_divided(case)):
            found.append([case])
            continue
        kept_apart = (json.dumps(_valid_object(case.kind, case.path)), case.complaint is None, case.of_a_rule)
        same = open_.setdefault(kept_apart, [])
        batch = next((each for each in same if each.has_room(case.path)), None)
        if batch is None:
            batch = _Batch()
            same.append(batch)
            found.append(batch.cases)
        batch.add(case)
    return found


class _Batch:
    """Cases of which none changes a place of another, or above or below it."""

    def __init__(self) -> None:
        self.cases: list[Case] = []
        self._changed: set[Path] = set()
        self._above: set[Path] = set()

    def has_room(self, path: Path) -> bool:
        return path not in self._above and not any(path[:end] in self._changed for end in range(1, len(path)))

    def add(self, case: Case) -> None:
        self.cases.append(case)
        self._changed.add(case.path)
        self._above |= {case.path[:end] for end in range(1, len(case.path) + 1)}


def dotted(path: Path) -> str:
    """A path as the API server writes it: ``spec.dataset.sources[0].uri``."""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).removeprefix(".")


def cases(kind: str, path: Path, schema: Object, tried: set[str]) -> Iterator[Case]:
    """At each bound of a field and of all below it, one beyond it, and without what is required.

    All texts of a pattern are tried at the first field that has it. At another one, which is in every valid object, a
    text that it refuses shows that the field has the same: the API server's complaint quotes it.
    """
    texts = schema["pattern"] not in tried if "pattern" in schema else False
    tried |= {schema["pattern"]} if texts else set()
    yield from (Case(kind, path, value, None) for value in _accepted(schema, texts))
    for value, said in _refused(schema, texts):
        yield Case(kind, path, value, said, of_a_rule=said == schema.get("complaint"))
    for name in schema.get("required", []):
        yield Case(kind, (*path, name), ABSENT, f"{dotted((*path, name))}: Required value")
    if schema["type"] == "array":
        yield from cases(kind, (*path, 0), schema["items"], tried)
    for name, child in schema.get("properties", {}).items():
        yield from cases(kind, (*path, name), child, tried)


def _accepted(schema: Object, texts: bool) -> Iterator[Any]:
    yield from schema.get("enum", [])
    yield from [_least(schema)] if "minimum" in schema else []
    yield from [schema["maximum"]] if "maximum" in schema else []
    if "pattern" in schema:
        yield from PATTERNS[schema["pattern"]].accepted if texts else ()
    elif "maxLength" in schema:
        yield "ä" * schema["maxLength"]  # characters count, not bytes
    if long := _of_length(schema, 0):
        yield long
    if schema["type"] == "array":
        yield _many(schema, schema["maxItems"])


def _refused(schema: Object, texts: bool) -> Iterator[tuple[Any, str]]:
    if "enum" in schema:
        yield "Nonsense", 'Unsupported value: "Nonsense": supported values: '
    if "minimum" in schema:
        yield schema["minimum"] - 1, f"should be greater than or equal to {schema['minimum']}"
    if "maximum" in schema:
        yield schema["maximum"] + 1, f"should be less than or equal to {schema['maximum']}"
    if "pattern" in schema:
        refused = PATTERNS[schema["pattern"]].refused
        yield from ((text, complaint(schema)) for text in (refused if texts else refused[:1]))
    if long := _of_length(schema, 1):
        yield long, f"may not be more than {schema['maxLength']} bytes"
    if "minLength" in schema:
        yield "a" * (schema["minLength"] - 1), f"should be at least {schema['minLength']} chars long"
    if schema["type"] == "array":
        yield _many(schema, schema["maxItems"] + 1), f"must have at most {schema['maxItems']} items"
        if schema["x-kubernetes-list-type"] != "atomic":
            yield [*_many(schema, 2), _many(schema, 1)[0]], "Duplicate value"
        if "minItems" in schema:
            yield [], f"should have at least {schema['minItems']} items"


def _of_length(schema: Object, beyond: int) -> str | None:
    """A text of the greatest length, or so many characters beyond it, that is right otherwise."""
    long = PATTERNS[schema["pattern"]].long if "pattern" in schema else lambda length: "a" * length
    return long(schema["maxLength"] + beyond) if long and "maxLength" in schema else None


def _many(schema: Object, count: int, path: Path = ()) -> list[Any]:
    """So many items of a list, each with its own value, or its own key, where the list asks for that."""
    item = valid(schema["items"], path)
    match schema["x-kubernetes-list-type"]:
        case "map":
            [key] = schema["x-kubernetes-list-map-keys"]
            letter = "T" if item[key].istitle() else "t"
            return [item | {key: f"{letter}{number}"} for number in range(count)]
        case "set" if isinstance(item, int):
            return [item + number for number in range(count)]
        case "set":
            pairs = [one + other for one in ascii_lowercase for other in ascii_lowercase]
            after = "".join(item.partition(".")[1:])  # a container's figure, "lm-eval.acc", stays one
            return [(pair.upper() if item.isupper() else pair) + after for pair in pairs[:count]]
    return [item] * count


def _all_cases(part: str, tried: set[str]) -> list[Case]:
    return [case for kind in KINDS for case in cases(kind, (part,), SCHEMAS[kind]["properties"][part], tried)]


_tried: set[str] = set()
SPEC_CASES = _all_cases("spec", _tried)
STATUS_CASES = _all_cases("status", _tried)
