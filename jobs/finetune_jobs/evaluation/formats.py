"""Which of the formats of a model is served: the first that is not worse than the model that was trained."""

from collections.abc import Mapping
from dataclasses import replace

from finetune_api.goals import Metric
from finetune_jobs.artifacts.formats import MeasuredFormat
from finetune_jobs.evaluation.report import Evaluated


def choose(found: Mapping[str, Evaluated], *, fall_back: bool) -> Evaluated:
    """The evaluation of the format that is the artifact, with the others beside it. ``found``: of each format, in the
    order in which they are tried. Without ``fall_back``, and where every format is worse, it is the first."""
    holding = [name for name, each in found.items() if each.holds]
    first = next(iter(found))
    served = holding[0] if fall_back and holding else first
    before = list(found)[: list(found).index(served)]
    others = {name: each for name, each in found.items() if name != served}
    return replace(found[served], format=served, beside=others, passed_over=before)


def may_serve(found: Mapping[str, Evaluated], *, fall_back: bool) -> bool:
    """Whether the last of ``found`` may be the artifact, whatever formats follow it."""
    names = list(found)
    return names[-1] in (names[0], choose(found, fall_back=fall_back).format)


def measured(evaluated: Evaluated, digests: Mapping[str, str]) -> list[MeasuredFormat]:
    """What was found of each format, the artifact first. ``digests``: of each format's folder."""
    return [
        MeasuredFormat(
            format=name,
            digest=digests[name],
            served=name == evaluated.format,
            accuracy=each.scores["artifact"].accuracy,
            f1=each.scores["artifact"].f1,
            chrf=each.value(Metric.CHRF, "artifact"),
            loss=each.export_difference,
            without_numbers=each.measurements.without_numbers,
        )
        for name, each in {evaluated.format: evaluated, **evaluated.beside}.items()
    ]
