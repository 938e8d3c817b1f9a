"""The CRDs take what they took before; every exception is listed, with its reason."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import pytest
import yaml
from pydantic import TypeAdapter

from finetune_api import crdgen
from finetune_api.spelled import spelled
from hack.manifests.compatibility import accepted, between, breaks, committed, listed, schema
from tests.support.sentences import Saying, assert_says

pytestmark = pytest.mark.unit

Schema = dict[str, Any]

ADVICE = "List it in crds/accepted/breaks.yaml with the reason, or keep what was accepted"


def unlisted(found: dict[str, list[str]]) -> list[str]:
    return [f"{place} {'; '.join(how)}. {ADVICE}" for place, how in found.items() if place not in listed()]


@pytest.mark.slow
def test_the_crds_take_what_was_accepted() -> None:
    """Also in a clone without history: the measure is in the repository."""
    old = accepted()
    assert old.keys() == {crdgen.file_name(kind) for kind in crdgen.KINDS}
    assert unlisted(between(old)) == []


@pytest.mark.slow
@pytest.mark.parametrize("revision", ["HEAD", "HEAD~1"])
def test_the_crds_take_what_the_last_commit_took(revision: str) -> None:
    """Where git knows it: a shallow clone has the comparison above."""
    old = committed(revision)
    assert old is None or unlisted(between(old)) == []


@pytest.mark.slow
def test_no_break_is_listed_that_is_none() -> None:
    """Of a field that came and went since the last acceptance, nobody else knows."""
    found, known = between(accepted()), set(accepted_places())
    assert [place for place in listed() if place not in found and place in known] == []
    assert [place for place, reason in listed().items() if len(reason.split()) < 3] == [], "a reason, in words"


def accepted_places() -> Iterator[str]:
    """Every place in the accepted CRDs."""
    for kind in crdgen.KINDS:
        whole = schema(yaml.load(accepted()[crdgen.file_name(kind)], yaml.CSafeLoader))
        yield from (f"{kind.kind} {path or '(object)'}" for path in places(whole, ""))


def places(node: Schema, path: str) -> Iterator[str]:
    yield path
    for name, child in node.get("properties", {}).items():
        yield from places(child, f"{path}.{name}".removeprefix("."))
    if "items" in node:
        yield from places(node["items"], f"{path}[]")


BASE: Schema = {
    "type": "object",
    "required": ["a"],
    "properties": {
        "a": {"type": "string", "maxLength": 9, "enum": ["x", "y"]},
        "b": {"type": "integer", "minimum": 1, "maximum": 5, "default": 3},
        "c": {"type": "array", "items": {"type": "object", "properties": {"d": {}}}},
        "e": {"type": "string", "pattern": "^e$"},
    },
}


def in_words(pattern: str) -> Schema:
    """A text whose pattern a rule spells out."""
    made = TypeAdapter(Annotated[str, spelled(pattern, "write it so", max_length=9)]).json_schema()
    return {name: made[name] for name in ("type", "x-kubernetes-validations")}


def edited(edit: Callable[[Schema], Any]) -> Schema:
    result = copy.deepcopy(BASE)
    edit(result["properties"])
    return result


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda p: p.pop("b"), Saying("b is gone")),
        (lambda p: p["c"]["items"]["properties"].pop("d"), Saying("c[].d is gone")),
        (lambda p: p["a"].update(enum=["x"]), Saying("a has fewer values", "y")),
        (lambda p: p["e"].update(enum=["x"]), Saying("e has fewer values", "any text before")),
        (lambda p: p["a"].update(maxLength=8), Saying("a has a narrower maxLength", "9 → 8")),
        (lambda p: p["b"].update(minimum=2), Saying("b has a narrower minimum", "1 → 2")),
        (lambda p: p["e"].update(maxLength=8), Saying("e has a narrower maxLength", "None → 8")),
        (lambda p: p["b"].update(default=4), Saying("b has another default", "3 → 4")),
        (lambda p: p["b"].pop("default"), Saying("b has another default", "3 → None")),
        (lambda p: p["b"].update(type="string"), Saying("b has another type", "integer → string")),
        (lambda p: p["e"].update(pattern="^f$"), Saying("e has another pattern", "^e$ → ^f$")),
        (lambda p: p.update(e=in_words("^f$")), Saying("e has another pattern", "^e$ → ^f$")),
        (lambda p: p["a"].update(in_words("^a$")), Saying("a has another pattern", "None → ^a$")),
        (lambda p: p["c"].update({"x-kubernetes-list-type": "set"}), Saying("c has another x-kubernetes-list-type")),
        (
            lambda p: p["c"].update({"x-kubernetes-validations": [{"rule": "r", "message": "m"}]}),
            Saying("c has another rule", "m"),
        ),
    ],
)
def test_what_breaks(edit: Callable[[Schema], Any], said: Saying) -> None:
    [(path, how)] = breaks(BASE, edited(edit))
    assert_says(f"{path} {how}", *said.parts)


@pytest.mark.parametrize(
    "edit",
    [
        lambda p: p.update(f={"type": "string"}),
        lambda p: p["a"].update(enum=["x", "y", "z"], maxLength=10),
        lambda p: p["b"].update(minimum=0, maximum=6),
        lambda p: p["e"].pop("pattern"),
        lambda p: p["e"].update(description="other words"),
        lambda p: p.update(e=in_words("^e$")),
    ],
)
def test_what_breaks_nothing(edit: Callable[[Schema], Any]) -> None:
    assert list(breaks(BASE, edited(edit))) == []


def test_a_field_that_is_now_required_breaks() -> None:
    new = copy.deepcopy(BASE) | {"required": ["a", "b"]}
    assert list(breaks(BASE, new)) == [("b", "is now required")]
