"""What the pages show: outputs that could come out like that, examples that would work."""

from __future__ import annotations

import ast
import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from finetune_api.adapterdeployment import AdapterDeployment
from finetune_api.finetunejob import FineTuneJob
from finetune_api.readiness import BASELINE, Readiness
from finetune_jobs.readiness.checklist import check
from finetune_operator.adapterdeployment.route_claims import route_claims
from finetune_operator.tenancy.rules import Tenancy
from finetune_operator.tenancy.verdict import tenancy_violation
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


def rules_on(page: Path) -> list[Tenancy]:
    """The tenancy of the chart's values that a page shows."""
    shown = [block for block in blocks(page, "yaml") if re.search(r"^tenancy:\n", block, re.MULTILINE)]
    return [Tenancy.model_validate(yaml.safe_load(block)["tenancy"]) for block in shown]


def test_every_rule_that_a_page_shows_limits_money() -> None:
    """Rules are alternatives: one without a limit, copied beside another, would open what that one closes."""
    shown = [(page.name, rule) for page in PAGES for tenancy in rules_on(page) for rule in tenancy.rules]
    assert len(shown) >= 5
    assert [found for found in shown if found[1].max_usd_per_run is None] == []


@pytest.mark.parametrize("name", ["httproute", "ingress"])
def test_the_rules_for_routes_allow_the_examples(name: str) -> None:
    (tenancy,) = rules_on(REPOSITORY / "docs" / "how-to" / "open-to-the-outside.md")
    content = document(EXAMPLES / "transactions" / "variants" / f"{name}.yaml")
    access = AdapterDeployment.model_validate(content).spec.access
    assert access is not None
    claims = list(route_claims("team-a", access.route))
    assert len(claims) >= 2
    assert tenancy_violation(tenancy, (), "team-a", claims) == ""


@pytest.mark.parametrize("name", ["finetunejobs", "adapterdeployments"])
def test_no_description_of_a_field_has_the_marks_of_another_language(name: str) -> None:
    """kubectl explain shows them as they stand: no double backticks, no roles."""
    crd = (REPOSITORY / "crds" / f"finetune.dev_{name}.yaml").read_text(encoding="utf-8")
    assert re.findall(r"``|:(?:class|func|mod):", crd) == []
