"""What people are told to do next: every reason that stands for trouble has a remedy, and it fits its kind."""

import ast
import re
import types
import typing
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from finetune_api.adapterdeployment import AdapterDeploymentSpec
from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.meta import ADAPTERDEPLOYMENT, FINETUNEJOB
from finetune_api.reasons import MEANINGS, REMEDIES, SERVING_REMEDIES, Reason, remedy, with_remedy
from finetune_operator.adapterdeployment.health import HOLDS_NOTHING
from hack.cluster.layout import REPOSITORY
from hack.manifests import reasons as reference
from hack.manifests.reasons import Then

pytestmark = pytest.mark.unit

NO_TROUBLE = {
    *(Reason.WAITING, Reason.RUN_STARTED, Reason.STAGE_STARTED, Reason.STAGE_SUCCEEDED, Reason.STAGE_REUSED),
    *(Reason.STAGE_RETRIED, Reason.RUN_SUCCEEDED, Reason.SUSPENDED, Reason.QUEUED, Reason.RESUMED),
    *(Reason.SPEC_CHANGED, Reason.TRAINING_COMPLETED, Reason.OVERFITTING, Reason.PLATEAU, Reason.SETTINGS_DISCOURAGED),
    *(Reason.CANDIDATE_STARTING, Reason.VERIFYING, Reason.VERIFIED, Reason.PROMOTED, Reason.SERVING),
    *(Reason.ROLLOUT_QUEUED, Reason.ROLLED_BACK, Reason.GAP_ANNOUNCED, Reason.GAP_IN_SERVICE),
    *(Reason.CANARY_STEP, Reason.ANALYSIS_PASSED, Reason.DISRUPTION_BUDGET_REFUSED, Reason.ROUTE_ACCEPTED),
    *(Reason.MODEL_CACHE_UNUSED, Reason.ADAPTER_REMOVED),
}
"""What passes by itself or is well; messages of the condition Discouraged and of an unused cache are the advice."""
RUN_WAITS = {
    *(
        Reason.PROFILE_UNKNOWN,
        Reason.METRIC_UNKNOWN,
        Reason.GENERATOR_UNKNOWN,
        Reason.RUNNER_SERVICE_ACCOUNT_MISSING,
        Reason.SECRET_MISSING,
        Reason.QUOTA_EXCEEDED,
    ),
    *(Reason.UNSCHEDULABLE, Reason.IMAGE_PULL_FAILED, Reason.POD_REJECTED, Reason.NAME_TAKEN),
    *(Reason.OUTPUT_NAME_CONFLICT, Reason.NOT_ALLOWED, Reason.API_CALLS_FAIL, Reason.STATUS_UNREADABLE),
    *(Reason.JOB_SUSPENDED, Reason.AWAITING_REVIEW, Reason.NODE_LOST),
}
"""What a FineTuneJob waits for: the run goes on by itself."""
SPEC_CHANGES = {
    *(Reason.SPEC_INVALID, Reason.MODEL_UNSUPPORTED, Reason.FIT_REFUSED),
    *(Reason.S3_CONDITIONAL_WRITES_UNSUPPORTED, Reason.OUT_OF_MEMORY, Reason.CUDA_OUT_OF_MEMORY),
    *(Reason.LOSS_NOT_FINITE, Reason.LOSS_DIVERGED, Reason.BUDGET_EXCEEDED, Reason.GATE_FAILED),
}
"""What a change of a FineTuneJob's spec puts right; that begins a new run as it is."""
SERVING_WAITS = {
    *(Reason.SOURCE_NOT_READY, Reason.SOURCE_NOT_FOUND, Reason.RUNTIME_UNKNOWN, Reason.SERVER_UNAVAILABLE),
    *(Reason.SELF_CHECK_FAILED, Reason.ADAPTER_STAYS),
    *(Reason.ROUTE_PENDING, Reason.ROUTE_REFUSED, Reason.ROUTE_TAKEN, Reason.ROUTE_UNAVAILABLE),
    *(Reason.RUNNER_SERVICE_ACCOUNT_MISSING, Reason.NAME_TAKEN, Reason.SPEC_INVALID, Reason.NOT_ALLOWED),
    Reason.BELOW_VERIFICATION_FLOOR,
    Reason.CHANNEL_NOT_FOUND,
    Reason.OUTPUT_NAME_FOREIGN,
    *(Reason.API_CALLS_FAIL, Reason.STATUS_UNREADABLE, Reason.REVISION_UNUSABLE, Reason.ANALYSIS_INCONCLUSIVE),
    *(Reason.UNSCHEDULABLE, Reason.QUOTA_EXCEEDED, Reason.POD_REJECTED, Reason.PREEMPTED, Reason.NODE_LOST),
}
"""What an AdapterDeployment waits for as long as it takes."""
OTHER_REVISION = {
    *(Reason.OUT_OF_MEMORY, Reason.SCRATCH_FULL, Reason.MODEL_UNSUPPORTED, Reason.PROMPTS_TOO_LONG),
    *(Reason.RUNTIME_UNSUITABLE, Reason.KEY_UNUSABLE, Reason.ARTIFACT_WITHDRAWN, Reason.ADAPTERS_UNSUITABLE),
}
"""What another artifact, policy or runtime puts right: another revision, which is tried as it is."""
RERUN = "set spec.rerun to a new value"
BY_KIND = [(FINETUNEJOB, reason) for reason in REMEDIES] + [
    (ADAPTERDEPLOYMENT, reason) for reason in sorted(SERVING_REMEDIES.keys() | SERVING_WAITS)
]


def test_every_trouble_has_a_remedy() -> None:
    assert set(Reason) - REMEDIES.keys() - SERVING_REMEDIES.keys() == NO_TROUBLE
    assert not (REMEDIES.keys() | SERVING_REMEDIES.keys()) & NO_TROUBLE


@pytest.mark.parametrize("reason", REMEDIES)
def test_a_failed_run_is_told_to_begin_again_unless_the_spec_changes(reason: Reason) -> None:
    """And one that waits is not: it would lose what it has done."""
    assert (RERUN in remedy(reason, FINETUNEJOB)) is (reason not in RUN_WAITS | SPEC_CHANGES)


@pytest.mark.parametrize("reason", sorted(SERVING_REMEDIES.keys() | SERVING_WAITS))
def test_a_failed_revision_is_told_to_begin_again_unless_another_takes_its_place(reason: Reason) -> None:
    """Those that failed never try again by themselves; those that gave their hardware back do so later."""
    text = remedy(reason, ADAPTERDEPLOYMENT)
    again = RERUN in text or "set spec.rerun of the FineTuneJob to a new value" in text
    assert again is (reason not in SERVING_WAITS | OTHER_REVISION)


@pytest.mark.parametrize("reason", sorted(HOLDS_NOTHING | {Reason.PREEMPTED, Reason.NODE_LOST}))
def test_no_start_is_promised_to_pods_that_are_gone(reason: Reason) -> None:
    """The same reason ends a gap in service, whose candidate has failed, and gives hardware back for an hour."""
    text = remedy(reason, ADAPTERDEPLOYMENT)
    promised = re.search(r"\bre?starts?\b|continues", text)
    assert promised is None or "still" in text


@pytest.mark.parametrize(("kind", "reason"), BY_KIND)
def test_a_remedy_speaks_of_fields_and_things_that_its_kind_has(kind: str, reason: Reason) -> None:
    text = remedy(reason, kind)
    model = FineTuneJobSpec if kind == FINETUNEJOB else AdapterDeploymentSpec
    for path in re.findall(r"spec((?:\.[a-zA-Z]+)+)", text):
        assert has_field(model, path.strip(".").split(".")), f"{kind} has no spec{path}"
    strange = ("runtime", "revision") if kind == FINETUNEJOB else ("profile", "the run")
    assert not [word for word in strange if re.search(rf"\b{word}\b", text)]
    assert "still serves" not in text, "whether anything serves, the message says"


def test_no_remedy_is_what_was_tried_already_or_instead_of_what_the_message_names() -> None:
    """Passes were halved down to one example; of a model that cannot be rounded the message names other formats."""
    assert "batchSize" not in remedy(Reason.CUDA_OUT_OF_MEMORY, FINETUNEJOB)
    assert remedy(Reason.MODEL_UNSUPPORTED, FINETUNEJOB).startswith("Make the change named here, or ")


@pytest.mark.parametrize(("kind", "reason"), BY_KIND)
def test_a_remedy_survives_a_long_message_and_is_said_once(kind: str, reason: Reason) -> None:
    text = remedy(reason, kind)
    long = with_remedy(reason, "x" * 2000, kind)
    assert len(long) == 1024
    assert long.endswith(f"x {text}")
    assert with_remedy(reason, long, kind) == long
    assert with_remedy(reason, f"stage: {long} Log: s3://b/l", kind).endswith(f"x {text}"), "a stage's own words"


# The page of reasons, which is made from the code


@pytest.mark.parametrize(
    ("kind", "by_what_happens", "troubles", "waits"),
    [
        (FINETUNEJOB, reference.FINETUNEJOB, REMEDIES.keys(), RUN_WAITS),
        (ADAPTERDEPLOYMENT, reference.ADAPTERDEPLOYMENT, SERVING_REMEDIES.keys() | SERVING_WAITS, SERVING_WAITS),
    ],
)
def test_the_page_has_every_reason_of_a_kind_once(
    kind: str, by_what_happens: dict[Then, tuple[Reason, ...]], troubles: set[Reason], waits: set[Reason]
) -> None:
    listed = [reason for then, some in by_what_happens.items() for reason in some if then is not Then.NEWS]
    assert sorted(listed) == sorted(troubles)
    assert set(by_what_happens[Then.NEWS]) <= NO_TROUBLE
    assert {*by_what_happens[Then.WAITS], *by_what_happens.get(Then.WAITS_FOR_PEOPLE, ())} == waits
    part = reference.page().partition(f"## {kind}\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| (.+)", part, re.MULTILINE)
    assert sorted(name for name, _ in rows) == sorted([*listed, *by_what_happens[Then.NEWS]])
    assert all(MEANINGS[Reason(name)] in row and remedy(Reason(name), kind) in row for name, row in rows)


def test_every_reason_is_on_the_page_and_has_a_meaning() -> None:
    both = (reference.FINETUNEJOB, reference.ADAPTERDEPLOYMENT)
    assert {reason for kind in both for some in kind.values() for reason in some} == set(Reason) == set(MEANINGS)


@pytest.mark.slow
def test_the_page_says_tried_again_of_what_the_stages_call_retriable() -> None:
    """Only for an unreachable hub do the meanings say it: that the hub does not have the model is final."""
    tried = {*reference.FINETUNEJOB[Then.TRIES], *reference.FINETUNEJOB[Then.TRIES_FREELY]}
    later = {*reference.ADAPTERDEPLOYMENT[Then.WAITS_A_WHILE]}
    told: dict[Reason, set[bool]] = {}
    texts = [path.read_text(encoding="utf-8") for path in sorted((REPOSITORY / "jobs").rglob("*.py"))]
    for text in texts:
        for call in ast.walk(ast.parse(text)) if "Reason." in text else ():
            for reason, ways in said(call):
                if isinstance(reason, ast.Attribute) and ast.unparse(reason.value) == "Reason":
                    told.setdefault(Reason[reason.attr], set()).update(ways)
    assert {Reason.S3_UNREACHABLE, Reason.STEP_HUNG, Reason.FIT_REFUSED} <= told.keys()
    assert [reason for reason, ways in told.items() if ways == {True} and reason not in tried | later] == []
    assert [reason for reason, ways in told.items() if ways == {False} and reason in tried] == []
    mixed = {reason for reason, ways in told.items() if len(ways) == 2}
    assert mixed == {
        Reason.GPU_UNUSABLE,  # one that computes nothing is tried again, as the meaning says
        *(Reason.MODEL_NOT_FOUND, Reason.DATASET_NOT_FOUND),  # the meaning says it
        Reason.CUDA_OUT_OF_MEMORY,  # all begin again with smaller passes, as the meaning says
        Reason.SCRATCH_FULL,  # final for a command of people, and for a model that is larger than its volume
        Reason.CANDIDATE_FAILED,  # of verify, at an AdapterDeployment
        Reason.INTERNAL_ERROR,  # what nobody expected; but an answer of the store that no retry changes is final
    }


def said(node: ast.AST) -> Iterator[tuple[ast.expr, set[bool]]]:
    """The reasons that a call gives to an error, each with whether it is retriable; ``hub_error`` may be either."""
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
        return
    if node.func.id == "StageError":
        yield node.args[0], {any(key.arg == "retriable" for key in node.keywords)}
    elif node.func.id == "hub_error":
        yield from ((key.value, {False, True} if key.arg == "missing" else {False}) for key in node.keywords)


def has_field(model: Any, path: list[str]) -> bool:
    """Whether a model, or one of a union or list of models, has a field of this path, by its names on the wire."""
    if not path:
        return True
    if typing.get_origin(model) in (typing.Union, types.UnionType, list, typing.Annotated):
        return any(has_field(part, path) for part in typing.get_args(model))
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        return False
    found = {field.alias or name: field.annotation for name, field in model.model_fields.items()}
    return path[0] in found and has_field(found[path[0]], path[1:])
