"""What `kubectl explain`, `helm` and the reference pages show of each field reads as text, not as source code."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from finetune_api import crdgen
from hack.cluster.layout import REPOSITORY

pytestmark = pytest.mark.unit

CRDS = {kind.kind: crdgen.crd(kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"] for kind in crdgen.KINDS}
VALUES = json.loads((REPOSITORY / "charts/finetune-operator/values.schema.json").read_text())


def texts(schema: Any, path: str, key: str = "description") -> Iterator[tuple[str, str]]:
    """Every text under this key in a schema, with its place."""
    if isinstance(schema, dict):
        if isinstance(schema.get(key), str):
            yield path, schema[key]
        for name, child in schema.items():
            yield from texts(child, f"{path}.{name}", key)
    elif isinstance(schema, list):
        for number, child in enumerate(schema):
            yield from texts(child, f"{path}[{number}]", key)


DESCRIPTIONS = [each for kind, schema in [*CRDS.items(), ("values", VALUES)] for each in texts(schema, kind)]
RULES = [each for kind, schema in CRDS.items() for each in texts(schema, kind, key="message")]


def test_every_part_has_descriptions() -> None:
    assert {path.partition(".")[0] for path, _ in DESCRIPTIONS} == {*CRDS, "values"}
    assert {path.partition(".")[0] for path, _ in RULES} == set(CRDS)


def test_texts_are_on_one_line() -> None:
    """Programs wrap lines themselves: a line break of the source would stand in the middle of theirs."""
    assert [(path, text) for path, text in DESCRIPTIONS + RULES if text != " ".join(text.split())] == []


def test_descriptions_are_sentences() -> None:
    assert [(path, text) for path, text in DESCRIPTIONS if not text.endswith((".", '."'))] == []


def test_people_are_told_in_words_what_a_text_must_be() -> None:
    """A field of the spec is made by ``spelled`` where it has a pattern: the API server would quote that."""
    specs = [(kind, schema["properties"]["spec"]) for kind, schema in CRDS.items()]
    assert [path for kind, schema in specs for path, _ in texts(schema, kind, key="pattern")] == []
    rules = [rule for kind, schema in specs for _, rule in texts(schema, kind, key="rule")]
    assert any(rule.startswith("self.matches(r") for rule in rules)


def test_nothing_in_a_schema_is_null() -> None:
    """The API server refuses a default with null in it, and so the upgrade of the chart."""

    def nulls(node: Any, path: str) -> Iterator[str]:
        if node is None:
            yield path
        children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        for name, child in children:
            yield from nulls(child, f"{path}.{name}")

    assert [place for kind, schema in CRDS.items() for place in nulls(schema, kind)] == []
