"""What a right answer is, for each kind of task. Pure functions, no model.

Classification: exactly the label. Extraction: the same JSON value, whatever its white space and the order of its keys.
Text: the same words, after SQuAD's normalisation (Rajpurkar et al. 2016): letter case, punctuation, articles and white
space do not count.

Where the right answer, or the one that is given, calls tools, all tasks are alike: right are the same calls with the
same arguments, in any order, and what overlaps are names and arguments (``artifacts.calls``, as ``canonical`` writes
them). What is said beside a call does not count.
"""

import json
import re
import string
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from finetune_api.dataset import TaskType
from finetune_jobs.artifacts import calls
from finetune_jobs.base.strict_json import json_value
from finetune_jobs.evaluation.metrics import Scores, score, wilson

Right = Callable[[str, str], bool]
"""Whether an answer (second) counts as the right one (first)."""

_ARTICLES: Final = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION: Final = str.maketrans("", "", string.punctuation)
_INDEX: Final = re.compile(r"\[[0-9]+\](?=$|[.\[])")
_PLAIN: Final = re.compile(r'"(\w+)"')
_ABSENT: Final = object()


@dataclass(frozen=True)
class Overlap:
    """The overlap of an answer with the right one."""

    precision: float
    """Share of what the answer says that is right."""
    recall: float
    """Share of what is right that the answer says."""

    @property
    def f1(self) -> float:
        """Harmonic mean of both."""
        total = self.precision + self.recall
        return 2 * self.precision * self.recall / total if total else 0.0


def right_for(task: TaskType) -> Right:
    """What counts as right in a task."""
    plain = {TaskType.CLASSIFICATION: _same, TaskType.EXTRACTION: _same_value, TaskType.TEXT: _same_words}[task]

    def right(truth: str, answer: str) -> bool:
        return same_calls(truth, answer) if calls_tools(truth, answer) else plain(truth, answer)

    return right


def calls_tools(*texts: str) -> bool:
    """Whether one of the texts is calls of tools."""
    return any(calls.read(text) is not None for text in texts)


def same_calls(truth: str, answer: str) -> bool:
    """The same tools with the same arguments; not if one of both calls none."""
    wanted, given = calls.read(truth), calls.read(answer)
    return wanted is not None and given is not None and _each(wanted) == _each(given)


def call_overlap(truth: str, answer: str, *, names: bool = True) -> Overlap:
    """Agreement of calls, field by field of their arguments; with ``names``, each name is one more."""
    return _overlap(Counter(_call_leaves(truth, names)), Counter(_call_leaves(answer, names)))


def _each(found: Sequence[calls.Call]) -> Counter[str]:
    return Counter(_canonical(list(each)) for each in found)


def _call_leaves(text: str, names: bool) -> Iterator[tuple[str, str, str]]:
    for name, arguments in calls.read(text) or []:
        if names:
            yield name, "", ""
        yield from ((name, path, value) for path, value in _leaves(arguments) if arguments)


def score_task(task: TaskType, truth: Sequence[str], answers: Sequence[str], labels: Sequence[str]) -> Scores:
    """Scores of ``answers``. Without labels, precision, recall and F1 are means over the examples: of the fields of
    the JSON (Extraction) or of the words (Text). Raises ValueError when empty."""
    if task is TaskType.CLASSIFICATION:
        return score(truth, answers, labels)
    if not truth:
        raise ValueError("no examples to score")
    pairs = list(zip(truth, answers, strict=True))
    overlaps = [overlap_for(task)(right, answer) for right, answer in pairs]
    correct = sum(right_for(task)(right, answer) for right, answer in pairs)
    broken = sum(not is_json(answer) for answer in answers) if task is TaskType.EXTRACTION else 0
    return Scores(
        samples=len(pairs),
        accuracy=correct / len(pairs),
        interval=wilson(correct, len(pairs)),
        precision=sum(each.precision for each in overlaps) / len(pairs),
        recall=sum(each.recall for each in overlaps) / len(pairs),
        f1=sum(each.f1 for each in overlaps) / len(pairs),
        labels={},
        unknown_answers=broken,
    )


def overlap_for(task: TaskType) -> Callable[[str, str], Overlap]:
    """How much of an answer (second) agrees with the right one (first)."""
    plain = {TaskType.CLASSIFICATION: _label_overlap, TaskType.EXTRACTION: field_overlap, TaskType.TEXT: word_overlap}[
        task
    ]

    def overlap(truth: str, answer: str) -> Overlap:
        return call_overlap(truth, answer) if calls_tools(truth, answer) else plain(truth, answer)

    return overlap


def is_json(text: str) -> bool:
    """Whether a text is a JSON value."""
    return _parse(text) is not _ABSENT


def fields_of(text: str) -> Counter[tuple[str, str]]:
    """The fields of a JSON text, or of the arguments of calls, with their values; elements of a list share one name.
    None of what is neither."""
    found = calls.read(text)
    leaves = _leaves(_parse(text)) if found is None else ((f"{n}(){p}", v) for n, p, v in _call_leaves(text, False))
    return Counter((_shown(path), value) for path, value in leaves)


def _shown(path: str) -> str:
    """A path for people, as a file can hold it: half a surrogate pair as its escape."""
    plain = _PLAIN.sub(r"\1", _INDEX.sub("[]", path)).removeprefix(".")
    return plain.encode(errors="backslashreplace").decode()


def _label_overlap(truth: str, answer: str) -> Overlap:
    return Overlap(float(_same(truth, answer)), float(_same(truth, answer)))


def field_overlap(truth: str, answer: str) -> Overlap:
    """Agreement of two JSON values, leaf by leaf: a leaf is right at the same path with the same value.

    The order of a list counts. An answer that is not JSON has no leaves.
    """
    wanted, given = Counter(_leaves(_parse(truth))), Counter(_leaves(_parse(answer)))
    return _overlap(wanted, given)


def word_overlap(truth: str, answer: str) -> Overlap:
    """Words in common (SQuAD's F1)."""
    return _overlap(Counter(_words(truth)), Counter(_words(answer)))


def _overlap(wanted: Counter[Any], given: Counter[Any]) -> Overlap:
    if not wanted or not given:
        return Overlap(float(wanted == given), float(wanted == given))
    common = (wanted & given).total()
    return Overlap(common / given.total(), common / wanted.total())


def _same(truth: str, answer: str) -> bool:
    return truth.strip() == answer.strip()


def _same_value(truth: str, answer: str) -> bool:
    right, given = _parse(truth), _parse(answer)
    return _ABSENT not in (right, given) and _canonical(right) == _canonical(given)


def _same_words(truth: str, answer: str) -> bool:
    return _words(truth) == _words(answer)


def _words(text: str) -> list[str]:
    plain = _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()
    return plain or text.split()


def _parse(text: str) -> Any:
    """The JSON value, or _ABSENT."""
    try:
        return json_value(text)
    except ValueError:
        return _ABSENT


def _canonical(value: Any) -> str:
    """Tells ``1`` from ``true`` and ``"1"``, which Python's or a person's equality would not."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if value is _ABSENT:
        return
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{json.dumps(key, ensure_ascii=False)}")
    elif isinstance(value, list) and value:
        for index, inner in enumerate(value):
            yield from _leaves(inner, f"{path}[{index}]")
    else:
        yield path, _canonical(value)
