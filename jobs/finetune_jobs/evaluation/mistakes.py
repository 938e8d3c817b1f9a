"""Which wrong answers a person should see first. Pure functions, no model."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from finetune_api.dataset import TaskType
from finetune_jobs.evaluation.tasks import overlap_for, right_for


@dataclass(frozen=True)
class Said:
    """What a model answered to one example."""

    text: str
    right: bool
    f1: float
    """Of its fields or words; 0 or 1 for a label."""


@dataclass(frozen=True)
class Mistake:
    """A test example that the artifact answered wrong."""

    question: str
    truth: str
    said: Mapping[str, Said]
    """By model."""


def worst(
    task: TaskType, questions: Sequence[str], truth: Sequence[str], answers: Mapping[str, Sequence[str]], most: int
) -> list[Mistake]:
    """The artifact's worst answers, at most ``most``: those with the least in common with the right one come first. Of
    equally bad ones each kind of mistake comes once before any comes twice, the frequent kinds first."""
    right, overlap, served = right_for(task), overlap_for(task), answers["artifact"]
    wrong = [i for i, (t, a) in enumerate(zip(truth, served, strict=True)) if not right(t, a)]
    kinds = Counter((truth[i], served[i]) for i in wrong)
    seen: Counter[tuple[str, str]] = Counter()
    ranked: list[tuple[float, int, int, int]] = []
    for i in wrong:
        kind = (truth[i], served[i])
        ranked.append((overlap(*kind).f1, seen[kind], -kinds[kind], i))
        seen[kind] += 1
    return [
        Mistake(
            questions[i],
            truth[i],
            {
                model: Said(given[i], right(truth[i], given[i]), overlap(truth[i], given[i]).f1)
                for model, given in answers.items()
            },
        )
        for *_, i in sorted(ranked)[:most]
    ]
