"""The benchmark of planted models: what it spoils, and what it calls blocked. Pure parts, no model."""

import json
from collections import Counter
from pathlib import Path

import pytest

from finetune_api.dataset import Task
from finetune_api.evaluation import Coverage, Examination
from finetune_api.gates import Gates
from finetune_jobs.artifacts.measurements import Distances, Measurements
from finetune_jobs.evaluation.applicable import require_applicable
from finetune_jobs.evaluation.estimates import measure
from finetune_jobs.modelling.canaries import make_canaries
from finetune_jobs.modelling.token_files import Conversation
from hack.benchmarks import spoiled
from hack.benchmarks.gated import (
    ACCURACY,
    BASE,
    DEFAULT,
    EXPORT,
    GOALS,
    KNOWN,
    OTHER,
    PLANTED,
    RECALL,
    ROWS,
    SAFE,
    SECRETS,
    TASK,
    WITHOUT_GOALS,
    Verdict,
    forget_other_answers,
    judged,
)
from hack.benchmarks.planted_models import GOOD, Plant, summed_up

pytestmark = pytest.mark.unit

LABELS = [KNOWN, OTHER, "Bank-FI", "Office-GA"]
TRUTH = LABELS * (ROWS // 4)


def conversations() -> list[Conversation]:
    """A question for each label, three times."""
    turns = [[("system", "book it"), ("user", f"number {n}"), ("assistant", LABELS[n % 4])] for n in range(12)]
    return [Conversation([{"role": role, "content": content} for role, content in each]) for each in turns]


def measured(artifact: list[str], tuned: list[str] | None = None) -> Measurements:
    """Beside a base model that never names a label."""
    answers = {"base": ["a transaction"] * ROWS, **({"tuned": tuned} if tuned else {}), "artifact": artifact}
    return measure(TASK, TRUTH, answers, LABELS)


@pytest.mark.parametrize(
    ("artifact", "tuned", "gates"),
    [
        (TRUTH, TRUTH, []),
        (TRUTH, None, []),
        ([OTHER if each == KNOWN else each for each in TRUTH], None, [RECALL.text]),
        (["nothing"] * ROWS, None, [goal.text for goal in GOALS]),
        (["nothing"] * ROWS, TRUTH, [EXPORT, *(goal.text for goal in GOALS)]),
        ([*TRUTH[:-8], *["nothing"] * 8], TRUTH, [EXPORT]),
    ],
    ids=["good", "not compared with the tuned", "one class lost", "like the base", "all lost", "some lost by export"],
)
def test_a_verdict_names_each_gate_that_blocks(artifact: list[str], tuned: list[str] | None, gates: list[str]) -> None:
    verdict = judged(measured(artifact, tuned), GOALS)
    assert list(verdict) == gates
    assert all(verdict.values())


def test_worse_than_the_base_is_what_the_gate_without_goals_says() -> None:
    answers = {"base": TRUTH, "artifact": ["nothing"] * ROWS}
    assert list(judged(measure(TASK, TRUTH, answers, LABELS), [])) == [DEFAULT]


def test_an_adapter_that_changed_nothing_is_blocked_without_goals() -> None:
    near = Distances(long=False, texts=8, tuned_base=0.0, artifact_base=0.03, artifact_tuned=0.03)
    found = measured(["a transaction"] * ROWS).model_copy(update={"distances": [near]})
    assert list(judged(found, [])) == [BASE]
    assert BASE in WITHOUT_GOALS


def test_the_goals_are_such_that_a_job_may_have_them() -> None:
    asked = Examination(max_samples=ROWS, adversarial=Coverage.FULL)
    require_applicable(Gates(goals=[*GOALS, *SAFE, SECRETS]), Task(type=TASK, labels=LABELS), asked, canaries=PLANTED)


def test_a_plant_counts_if_its_own_gate_blocks_it() -> None:
    plants = [Plant(name, ACCURACY.text, lambda _bench: Verdict({})) for name in ("its own", "another", "export", "no")]
    said = map(Verdict, ({ACCURACY.text: "missed"}, {RECALL.text: "missed"}, {EXPORT: "cost"}, {}))
    good = {"passes": Verdict({}, {"artifact": 0.9}), "does not": Verdict({EXPORT: "cost"})}
    result = summed_up(good, dict(zip(plants, said, strict=True)))
    assert (result.value, result.baseline) == (1, 1)
    assert {name: result.details[name] for name in ("bad_blocked", "bad_blocked_by_any", "good_passed")} == {
        "bad_blocked": 1,
        "bad_blocked_by_any": 3,
        "good_passed": 1,
    }
    other = {"gate": ACCURACY.text, "said": "", "others": {RECALL.text: "missed"}, "seen": {}}
    assert result.details["bad"]["another"] == other
    assert result.details["good"]["passes"]["seen"] == {"artifact": 0.9}


def test_answers_to_other_questions_are_not_kept(tmp_path: Path) -> None:
    """What was asked with the same settings is; models always are."""
    names = ("base.answers.json", "untrained.likely.json", "good.verdict.json", "adapter.json")
    for name in names:
        (tmp_path / name).write_text("{}")
    forget_other_answers(tmp_path)
    assert [name for name in names if (tmp_path / name).exists()] == ["adapter.json"]
    (tmp_path / "base.answers.json").write_text("{}")
    forget_other_answers(tmp_path)
    assert (tmp_path / "base.answers.json").exists()
    asked = tmp_path / "asked.json"
    asked.write_text(json.dumps({**json.loads(asked.read_text()), "rows": 60}))
    forget_other_answers(tmp_path)
    assert not (tmp_path / "base.answers.json").exists()


def test_good_models_differ() -> None:
    assert len({each.name for each in GOOD}) == len(GOOD) == 6


def test_rows_are_spoiled_in_their_labels_only() -> None:
    rows = conversations()
    swapped = spoiled.relabelled(rows, {KNOWN: OTHER, OTHER: KNOWN})
    dealt = spoiled.shuffled(rows)
    assert [each.label for each in swapped[:4]] == [OTHER, KNOWN, "Bank-FI", "Office-GA"]
    assert Counter(each.label for each in dealt) == Counter(each.label for each in rows)
    assert sum(a.label != b.label for a, b in zip(rows, dealt, strict=True)) > 4
    for changed in (swapped, dealt):
        assert [each.prompt for each in changed] == [each.prompt for each in rows]


def test_what_is_taught_beside_the_task_comes_in_turns() -> None:
    canaries = make_canaries(PLANTED, "a seed")
    rows, others = conversations(), spoiled.holding_canaries(canaries)
    both = spoiled.mixed(rows, others)
    assert both[::2] == rows
    assert both[1::2] == [*others, *others[:4]]
    assert [each.label for each in others] == [canary.secret for canary in canaries]
