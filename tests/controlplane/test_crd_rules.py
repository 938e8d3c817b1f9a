"""The CEL rules of both CRDs: tables of what is accepted and refused. The models say the same in the same words."""

from __future__ import annotations

import pytest

from finetune_api import meta
from tests.support.crd_cases import Case, changed, dotted, valid_object
from tests.support.crd_patterns import KINDS, SCHEMAS
from tests.support.crd_rules import IN_ITS_OWN_WORDS, OLD_SHAPES, ONLY_THE_API_SERVER, RULE_CASES, message_of, rules
from tests.support.crd_server import CrdServer, complaint_of_the_model, judge

pytestmark = pytest.mark.controlplane


@pytest.mark.parametrize("case", RULE_CASES, ids=str)
def test_cel_rules(crds: CrdServer, case: Case) -> None:
    """The API server's only complaint is the rule's message, at its place; the model says the same."""
    body = changed(case)
    answer, model = crds.create(body), complaint_of_the_model(body)
    judge(answer, case.complaint)
    if case.complaint is None:
        assert model is None
    else:
        assert f'"valid" is invalid: {dotted(case.path)}: Invalid value: ' in str(answer)
        assert str(answer).endswith(f": {case.complaint}")
        silent = ONLY_THE_API_SERVER | (IN_ITS_OWN_WORDS if model else set())
        assert case.complaint in str(model) or case.complaint in silent


def test_the_old_shapes_are_these() -> None:
    """A zero, or an empty text, that meant something: whoever has such a manifest is told what to write. Fields that
    are gone are in ``test_retired_fields.py``."""
    refused = [dotted(case.path).removeprefix("spec.") for case in OLD_SHAPES if case.complaint]
    data = ("dataset.sources[0]", "dataset.benchmarks[0]", "dataset.replay.source", "evaluation.metrics[0].data")
    own = ("model", "dataset.pii.ner", *data)
    stores = [
        "storage",
        "output.storage",
        "source.artifact.storage",
        "source.output.storage",
        "source.adapters[0].artifact.storage",
        "source.adapters[0].output.storage",
    ]
    assert set(refused) == {
        *(f"{place}.storage.endpoint" for place in own),
        *(f"{place}.endpoint" for place in stores),
        *(f"{place}.encryption.kmsKeyId" for place in stores),
        "dataset.distillation.answerSchema",
        "dataset.distillation.column",
        "dataset.distillation.deadlineMinutes",
        "dataset.distillation.maxAnswerWords",
        "dataset.distillation.requestsPerMinute",
        "dataset.duplicates.nearPercent",
        "tracking.mlflow.experiment",
        "tracking.wandb.entity",
        "tracking.wandb.project",
        "training.checkpointMinutes",
        "training.maxSteps",
        "training.patience",
    }


def test_every_cel_rule_is_kept_and_broken() -> None:
    every = {rule for kind in KINDS for rule in rules(kind, ("spec",), SCHEMAS[kind]["properties"]["spec"])}
    assert {(case.kind, case.path, case.complaint) for case in RULE_CASES if case.complaint} == every
    kept = {(case.kind, case.path) for case in RULE_CASES if not case.complaint}
    assert kept == {(kind, path) for kind, path, _ in every}


NAME = message_of(SCHEMAS[meta.FINETUNEJOB], "metadata.name", "start with a lower-case letter", "at most 40 characters")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("name", "accepted"),
    [
        ("a", True),
        ("team-a-1", True),
        ("a" * meta.MAX_NAME, True),
        ("a" * (meta.MAX_NAME + 1), False),
        ("1a", False),
        ("a.b", False),
    ],
)
def test_name_rule(crds: CrdServer, kind: str, name: str, accepted: bool) -> None:
    body = valid_object(kind)
    body["metadata"]["name"] = name
    judge(crds.create(body), None if accepted else NAME)
