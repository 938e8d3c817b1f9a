"""Goals about what an evaluation of this data set will not measure, or of which its test part is too small to show what
is asked: refused before anything is trained. Only the prepared data say it; what the spec alone says is in
``applicable``. No model."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from finetune_api.dataset import TaskType
from finetune_api.gates import Gates, OnInconclusive
from finetune_api.goals import OF_ADVERSARIAL, OF_CALLS, OF_GENERAL, Baseline, Goal, Metric
from finetune_api.reasons import Reason
from finetune_jobs.base.errors import StageError
from finetune_jobs.base.wording import shorten
from finetune_jobs.evaluation.applicable import OF_JSON, bounds_below, flawless_answers
from finetune_jobs.evaluation.clusters import Groups
from finetune_jobs.evaluation.sample import sample
from finetune_jobs.evaluation.shots import PLAIN, choose_shots
from finetune_jobs.evaluation.texts import FEWEST
from finetune_jobs.modelling import chat
from finetune_jobs.modelling.calls import find_format
from finetune_jobs.modelling.token_files import Conversation, iterate_split, read_split

_ENOUGH: Final = 1_000_000
"""Of a data set of which nothing is known: enough for every goal."""
_OTHER_BASELINE: Final = "Set baseline to ZeroShot, or use atLeast"


@dataclass(frozen=True)
class DataFacts:
    """What the prepared data allow to be asked."""

    thoughts: bool = False
    """The model thinks before it answers."""
    must_think: bool = False
    """Its chat template allows nothing else."""
    has_shots: bool = True
    """Some training example is one question with a text as its answer."""
    is_plain: bool = True
    """No test example has tools or thoughts."""
    tested: int = _ENOUGH
    """Test examples that are asked."""
    left_out: int = 0
    """Further ones, of which there are more than are asked."""
    groups: int = 0
    """Groups of alike ones to which those belong that are asked; 0: each stands for itself."""
    of_class: Mapping[str, int] = field(default_factory=dict)
    """Test examples that are asked, by the label of a classification; empty: answers are no classes."""
    validated: int = 1
    """Validation examples."""
    calling: int = _ENOUGH // 2
    """Test examples that are asked and whose right answer calls tools."""
    reads_calls: bool = True
    """The chat template writes calls in a form that is read."""

    @classmethod
    def of(
        cls, dataset: Path, task: TaskType, max_samples: int, tokenizer: Any, stop: int, *, thoughts: bool
    ) -> "DataFacts":
        """Of a prepared data set. ``tokenizer``: the base model's, ``stop``: its token that ends an answer;
        ``thoughts``: whether the data teach to think."""
        known = read_split(dataset, "test")
        tests = sample(known, max_samples, task)
        groups = Groups.of([each.group for each in tests])
        calling = sum(1 for each in tests if each.messages[-1].get("tool_calls"))
        return cls(
            thoughts=thoughts,
            must_think=chat.must_think(tokenizer),
            has_shots=bool(choose_shots(iterate_split(dataset, "train"), task)),
            is_plain=_all_plain(tests),
            tested=len(tests),
            left_out=len(known) - len(tests),
            groups=groups.count if groups else 0,
            of_class=Counter(each.label for each in tests) if task is TaskType.CLASSIFICATION else {},
            validated=sum(1 for _ in iterate_split(dataset, "validation")),
            calling=calling,
            reads_calls=not calling or find_format(tokenizer, stop, thoughts=thoughts) is not None,
        )


def require_measurable(gates: Gates, asked: DataFacts) -> None:
    """Raises StageError (SpecInvalid) for a goal about a figure that no evaluation of this data set will have."""
    for number, goal in enumerate(gates.goals):
        for problem in _problems(f"spec.evaluation.goals[{number}]", goal, asked):
            raise StageError(Reason.SPEC_INVALID, problem)


def require_enough_tests(gates: Gates, asked: DataFacts) -> None:
    """Raises StageError (SpecInvalid) for a goal that not even a faultless model reaches with this test part, if what
    is inconclusive blocks. For before the training: after it, an evaluation is worth having all the same."""
    if gates.on_inconclusive is not OnInconclusive.BLOCK:
        return
    for number, goal in enumerate(gates.goals):
        for problem in _beyond_the_test(f"spec.evaluation.goals[{number}]", goal, asked):
            raise StageError(Reason.SPEC_INVALID, problem)


def _all_plain(tests: Iterable[Conversation]) -> bool:
    return not any(each.tools or any(turn.keys() - PLAIN for turn in each.prompt) for each in tests)


def _beyond_the_test(place: str, goal: Goal, asked: DataFacts) -> Iterator[str]:
    """A gate reads the interval, which has a width even where every answer is right."""
    there, what = _support(goal, asked)
    for bound, wanted in bounds_below(goal):
        if (needed := flawless_answers(goal, bound, float(wanted))) > there:
            more = "spec.evaluation.maxSamples" if asked.left_out else "spec.dataset.split.testPercent"
            yield (
                f"{place}.{bound} asks for {wanted}, but it takes {needed:,} flawless answers to show that, and of "
                f"{what} there are {there:,}: raise {more}, add a source with part Test, ask for less, or set "
                "onInconclusive to Warn."
            )


def _support(goal: Goal, asked: DataFacts) -> tuple[int, str]:
    """How many test examples tell something of a goal's figure that the others do not, and what these are."""
    if goal.class_name is not None:
        there = asked.of_class.get(goal.class_name, 0) if asked.of_class else asked.tested
        return there, f"the test examples of class {shorten(goal.class_name)!r} that are asked"
    if goal.metric in OF_CALLS:
        return asked.calling, "the test examples that are answered by calling a tool"
    if goal.metric in OF_JSON:
        return asked.tested - asked.calling, "the test examples that are answered by JSON"
    if asked.groups:
        return asked.groups, "the groups of alike test examples that are asked"
    return asked.tested, "the test examples that are asked"


def _problems(place: str, goal: Goal, asked: DataFacts) -> Iterator[str]:
    compared = goal.improve_over_base is not None
    if compared and goal.baseline in (Baseline.FEW_SHOT, Baseline.PROMPTED) and asked.thoughts:
        yield (
            f"{place}.baseline is {goal.baseline}, but the rows have reasoning_content: a base model that thinks "
            f"before it answers is asked in no other way than the artifact. {_OTHER_BASELINE}."
        )
    if compared and goal.baseline is Baseline.FEW_SHOT and not asked.has_shots:
        yield (
            f"{place}.baseline is {goal.baseline}, but no training example is one question with a text as its answer, "
            "short enough to be shown. Set baseline to Prompted or ZeroShot, or use atLeast."
        )
    if compared and goal.baseline is Baseline.ENDPOINT and not asked.is_plain:
        yield (
            f"{place}.baseline is {goal.baseline}, but test examples have tools or thoughts, which servers write in "
            f"forms of their own, so that the other model is not asked. {_OTHER_BASELINE}."
        )
    if goal.metric is Metric.AUTOMATION and asked.thoughts:
        yield (
            f"{place} is about {goal.metric}, but the rows have reasoning_content: if a model thinks before it "
            "answers, the probability of its answer is not known. Set metric to accuracy or f1."
        )
    if goal.metric is Metric.AUTOMATION and not asked.validated:
        yield (
            f"{place} is about {goal.metric}, but there are no validation examples on which to choose its "
            "threshold. Raise spec.dataset.split.validationPercent, or add a source with part Validation."
        )
    if goal.metric in (*OF_GENERAL, *OF_ADVERSARIAL) and asked.must_think:
        yield (
            f"{place} is about {goal.metric}, but the base model's chat template lets it answer only after thoughts, "
            "and such a model is asked nothing outside its task. Remove the goal, or choose another base model."
        )
    if goal.metric is Metric.PERPLEXITY and asked.tested < FEWEST:
        yield (
            f"{place} is about {goal.metric}, which needs at least {FEWEST} test examples, and there are "
            f"{asked.tested}. Raise spec.dataset.split.testPercent, or set metric to chrf."
        )
    if goal.metric in OF_CALLS and not asked.calling:
        yield (
            f"{place} is about {goal.metric}, but none of the {asked.tested:,} test examples of the evaluation "
            "expects a tool call. Remove the goal, or raise spec.dataset.split.testPercent."
        )
    elif goal.metric in OF_CALLS and not asked.reads_calls:
        yield (
            f"{place} is about {goal.metric}, but the base model's chat template does not write tool calls as "
            "JSON, so they cannot be read. Remove the goal, or choose another base model."
        )
    if goal.metric in OF_JSON and asked.reads_calls and asked.calling == asked.tested:
        yield (
            f"{place} is about {goal.metric}, but every test example of the evaluation expects a tool call, not "
            "JSON. Set metric to toolArguments or toolFields, or add rows whose answer is JSON."
        )
