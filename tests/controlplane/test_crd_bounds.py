"""What the API server itself refuses: every bound, enum and pattern of both CRDs.

They are walked from the generated schema (tests/support/crd_cases.py), so that a new field is covered the day it comes.
What the API server refuses of a spec, the models refuse too, and they take what it takes: the operator reads every
object that was let in, and the jobs run outside a cluster.
"""

from __future__ import annotations

from collections import Counter

import pytest

from tests.support.crd_cases import (
    SPEC_CASES,
    STATUS_CASES,
    Case,
    changed,
    valid_object,
)
from tests.support.crd_patterns import KINDS, PATTERNS, SCHEMAS, Object
from tests.support.crd_server import CrdServer, complaint_of_the_model, judge

pytestmark = pytest.mark.controlplane


PARTS = ("spec", "status")


def test_every_pattern_is_tried_once_with_all_its_texts_and_at_every_field_that_has_it() -> None:
    tried = [case for case in SPEC_CASES + STATUS_CASES if case.complaint and case.complaint.startswith("should match")]
    for pattern, texts in PATTERNS.items():
        refused = Counter(case.value for case in tried if case.complaint == f"should match '{pattern}'")
        assert set(refused) == set(texts.refused)
        fields = sum(fields_with(SCHEMAS[kind]["properties"][part], pattern) for kind in KINDS for part in PARTS)
        assert sorted(refused.values(), reverse=True) == [fields, *[1] * (len(texts.refused) - 1)], pattern


def fields_with(schema: Object, pattern: str) -> int:
    """Fields of the spec and the status with this pattern, items of lists included."""
    below = [*schema.get("properties", {}).values(), *([schema["items"]] if "items" in schema else [])]
    return (schema.get("pattern") == pattern) + sum(fields_with(each, pattern) for each in below)


@pytest.mark.parametrize("case", SPEC_CASES, ids=str)
def test_bounds_of_the_spec(crds: CrdServer, case: Case) -> None:
    body = changed(case)
    judge(crds.create(body), case.complaint)
    assert (complaint_of_the_model(body) is None) == (case.complaint is None)


@pytest.fixture(scope="module")
def stored(crds: CrdServer) -> dict[str, Object]:
    return {kind: crds.fresh(valid_object(kind)) for kind in KINDS}


@pytest.mark.parametrize("case", STATUS_CASES, ids=str)
def test_bounds_of_the_status(crds: CrdServer, stored: dict[str, Object], case: Case) -> None:
    body = stored[case.kind] | {"status": changed(case)["status"]}
    judge(crds.replace_status(body, dry_run=True), case.complaint)
