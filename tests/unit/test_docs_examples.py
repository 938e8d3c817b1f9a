"""What the pages show: outputs that could come out like that, examples that would work."""

from __future__ import annotations

import ast
import re
from dataclasses import replace

import pytest

from finetune_api.finetunejob import FineTuneJob
from finetune_api.readiness import BASELINE, Readiness
from finetune_jobs.readiness.checklist import check
from hack.cluster.layout import REPOSITORY
from tests.support.pages import PAGES, blocks
from tests.support.readiness import GOOD
from tests.unit.test_examples import EXAMPLES, document
from tests.unit.test_transactions_generator import generator

pytestmark = pytest.mark.unit


def test_every_summary_of_a_checklist_has_all_items() -> None:
    """Before the evaluation the item baseline always warns; with the base model's score it is settled."""
    summary = re.compile(r"(\d+ passed, \d+ warnings?(?: \([a-z, ]+\))?, \d+ failed(?: \([a-z, ]+\))?)(; base model)?")
    shown = [(page.name, *found) for page in PAGES for found in summary.findall(page.read_text(encoding="utf-8"))]
    assert len(shown) >= 4
    items = {len(check(facts)) for facts in (GOOD, replace(GOOD, labels={}))}
    for page, text, completed in shown:
        readiness = Readiness.parse(text)
        assert readiness is not None, (page, text)
        assert readiness.passed + len(readiness.warned) + len(readiness.failed) in items, (page, text)
        assert (BASELINE in readiness.warned) is not bool(completed), (page, text)


def test_the_client_asks_as_the_model_was_trained() -> None:
    (program,) = blocks(REPOSITORY / "docs" / "how-to" / "serve.md", "python")
    said = {node.value for node in ast.walk(ast.parse(program)) if isinstance(node, ast.Constant)}
    spec = FineTuneJob.model_validate(document(EXAMPLES / "transactions" / "finetunejob.yaml")).spec
    assert spec.dataset.instruction in said
    rows, _ = generator.generate(40, 7)
    asked = [row for row in rows if row.description in said]
    assert [row.category in program.partition("rules say")[2] for row in asked] == [True]


@pytest.mark.parametrize("name", ["finetunejobs", "adapterdeployments"])
def test_no_description_of_a_field_has_the_marks_of_another_language(name: str) -> None:
    """kubectl explain shows them as they stand: no double backticks, no roles."""
    crd = (REPOSITORY / "crds" / f"finetune.dev_{name}.yaml").read_text(encoding="utf-8")
    assert re.findall(r"``|:(?:class|func|mod):", crd) == []
