"""What the API server itself refuses: every bound, enum and pattern of both CRDs.

They are walked from the generated schema (tests/support/crd_cases.py), so that a new field is covered the day it comes.
Hundreds of them stand in one object: the API server names every place that is wrong.
What the API server refuses of a spec, the models refuse too, and they take what it takes: the operator reads every
object that was let in, and the jobs run outside a cluster.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from functools import cache

import pytest

from tests.support.crd_cases import SPEC_CASES, STATUS_CASES, Case, batches, changed, dotted, valid_object
from tests.support.crd_patterns import KINDS, PATTERNS, SCHEMAS, Object, complaint
from tests.support.crd_server import CrdServer, complaint_of_the_model

pytestmark = pytest.mark.controlplane

CASES = {"spec": SPEC_CASES, "status": STATUS_CASES}
PARTS = tuple(CASES)


def test_every_pattern_is_tried_once_with_all_its_texts_and_at_every_field_that_has_it() -> None:
    for pattern, texts in PATTERNS.items():
        fields = [
            found for kind in KINDS for part in PARTS for found in having(SCHEMAS[kind]["properties"][part], pattern)
        ]
        said = {complaint(each) for each in fields}
        refused = Counter(case.value for case in SPEC_CASES + STATUS_CASES if case.complaint in said)
        assert set(refused) == set(texts.refused)
        assert sorted(refused.values(), reverse=True) == [len(fields), *[1] * (len(texts.refused) - 1)], pattern


def having(schema: Object, pattern: str) -> Iterator[Object]:
    """Fields of the spec and the status with this pattern, items of lists included."""
    if schema.get("pattern") == pattern:
        yield schema
    for below in (*schema.get("properties", {}).values(), *([schema["items"]] if "items" in schema else [])):
        yield from having(below, pattern)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_beyond_a_bound_is_refused_at_its_place(crds: CrdServer, kind: str, part: str) -> None:
    unsaid = []
    for batch in batches(case for case in CASES[part] if case.kind == kind and case.complaint):
        complaints = crds.complaints(body_of(crds, part, batch))
        unsaid += [(str(case), said) for case in batch if not is_named(case, said := about(case, complaints))]
    assert unsaid == []


def about(case: Case, complaints: list[str]) -> list[str]:
    """Those at the place of a case, or below it."""
    return [each for each in complaints if re.match(rf"{re.escape(dotted(case.path))}[:.\[]", each)]


def is_named(case: Case, complaints: list[str]) -> bool:
    """Whether one of them is what is wrong with a case."""
    return any(str(case.complaint) in each for each in complaints)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_within_bounds_is_taken(crds: CrdServer, kind: str, part: str) -> None:
    cases = [case for case in CASES[part] if case.kind == kind and not case.complaint]
    assert [found for batch in batches(cases) for found in refused(crds, part, batch)] == []


def refused(crds: CrdServer, part: str, cases: list[Case]) -> list[tuple[str, list[str]]]:
    """Cases that are refused, with what is said; halves are tried where some are right that cannot be so together."""
    complaints = crds.complaints(body_of(crds, part, cases))
    if not complaints:
        return []
    if len(cases) == 1:
        return [(str(cases[0]), complaints)]
    half = len(cases) // 2
    return [*refused(crds, part, cases[:half]), *refused(crds, part, cases[half:])]


@cache
def stored(crds: CrdServer, kind: str) -> Object:
    """An object whose status can be changed."""
    return crds.fresh(valid_object(kind))


def body_of(crds: CrdServer, part: str, cases: list[Case]) -> Object:
    """What is sent to the API server: a new object, or one that it has, with another status."""
    body = changed(*cases)
    return body if part == "spec" else stored(crds, cases[0].kind) | {"status": body["status"]}


def test_the_models_refuse_and_take_the_same() -> None:
    differ = [case for case in SPEC_CASES if (complaint_of_the_model(changed(case)) is None) != (not case.complaint)]
    assert [str(case) for case in differ] == []
