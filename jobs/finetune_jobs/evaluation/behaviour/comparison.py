"""What tuning did to a model beside its task: the tuned model, and what is served of it, against its base, on the same
items. Pure, no model.

A harmful request and its wrappers are forms of one: where items stand in such groups, intervals are over these, as they
are of test examples that are alike (``grouped``).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import isfinite
from statistics import fmean
from typing import Any, Final

from finetune_api.goals import Metric
from finetune_jobs.artifacts.measurements import (
    FORGETTING,
    SAFETY,
    Difference,
    Figure,
    MeasuredMetric,
    Measurements,
)
from finetune_jobs.evaluation.behaviour.exposure import Exposure
from finetune_jobs.evaluation.behaviour.items import RATES, SetItem, Sets
from finetune_jobs.evaluation.behaviour.paired import Interval, mean_difference, share_difference
from finetune_jobs.evaluation.behaviour.probe import Responses
from finetune_jobs.evaluation.clusters import Groups, mean, mean_gain
from finetune_jobs.evaluation.grouped import widened
from finetune_jobs.evaluation.metrics import mcnemar, wilson

ALL: Final = "all"
"""Name of the row over all categories of a set."""


@dataclass(frozen=True)
class Shares:
    """Items of one category that the base model and another one answered: the tuned model, or the artifact."""

    category: str
    samples: int
    base: float
    """Share of items whose check accepts the base model's answer."""
    base_interval: Interval
    """Wilson's, 95 %."""
    tuned: float
    """The same of the other model."""
    tuned_interval: Interval
    wins: int
    """Items that only the other model answers right."""
    losses: int
    """Items that only the base model answers right."""
    interval: Interval
    """Of tuned minus base, 95 %, paired."""
    p_value: float | None
    """McNemar's exact test; None where items stand in groups: it takes each for itself."""
    groups: int = 0
    """Groups of items that are forms of one, over which the intervals are; 0: each stands for itself."""

    @property
    def difference(self) -> float:
        """Tuned minus base."""
        return (self.wins - self.losses) / self.samples

    def rest(self, share: float, interval: Interval) -> Figure:
        """What the share of a model leaves: its answers that are not as they should be."""
        value = round((1 - share) * self.samples) / self.samples
        return Figure(value=value, low=min(value, 1 - interval[1]), high=max(value, 1 - interval[0]))

    def compared(self, metric: str, model: str) -> Difference:
        """The difference, by the name of the metric and of the other model."""
        estimate = _estimate(self.difference, self.interval)
        return Difference(metric=metric, model=model, against="base", estimate=estimate, p_value=self.p_value)


@dataclass(frozen=True)
class Means:
    """A figure of each item, as a mean for each model."""

    category: str
    samples: int
    base: float
    base_interval: Interval
    """Student's, 95 %."""
    tuned: float
    tuned_interval: Interval
    interval: Interval
    """Of tuned minus base, 95 %, paired."""

    @property
    def difference(self) -> float:
        """Tuned minus base."""
        return self.tuned - self.base


@dataclass(frozen=True)
class Behaviour:
    """Both sets; what was not asked is empty."""

    general: Sequence[Shares] = ()
    """Share of right answers by category, and over ALL."""
    losses: Sequence[Means] = ()
    """Negative log-likelihood of the reference answers, nats per token: lower is better. Without the categories for
    which a model computes no numbers."""
    adversarial: Sequence[Shares] = ()
    """Share of answers that are as they should be, by category, and over ALL."""
    artifact: Sequence[Shares] = ()
    """The same of the artifact, as it is served: rounding weights may cost what tuning kept."""
    rates: Mapping[Metric, Shares] = field(default_factory=dict)
    """The same by RATES, whose categories may hold forms of one request."""
    served_rates: Mapping[Metric, Shares] = field(default_factory=dict)
    """Those of the artifact."""
    bias: Means | None = None
    """How far apart a model is about two persons who should make no difference: the distance between the negative
    log-likelihoods of the same answer, nats per token."""
    items: Sequence[dict[str, Any]] = ()
    """Every item with both answers."""
    note: str = ""
    """Why nothing was asked, if that is not what the spec says."""
    exposure: Exposure | None = None
    """Of the canaries; None: none were planted."""

    @property
    def forgetting(self) -> Shares | None:
        """The general set as a whole: negative where tuning cost general ability."""
        return _whole(self.general)

    @property
    def safety(self) -> Shares | None:
        """The adversarial set as a whole: negative where tuning cost safety."""
        return _whole(self.adversarial)

    @property
    def served_safety(self) -> Shares | None:
        """The adversarial set as a whole, as the artifact answers it; None where it was not asked."""
        return _whole(self.artifact)

    @property
    def loss(self) -> Means | None:
        """The likelihood of the general set as a whole: positive where tuning cost general ability."""
        return next((each for each in self.losses if each.category == ALL), None)

    def added_to(self, measurements: Measurements) -> Measurements:
        """``measurements`` with what a gate can read beside the task's metrics: the shares FORGETTING and SAFETY of
        base and tuned model, and tuned minus base, which is negative where tuning cost something; RATES, the shares
        of answers that are not as they should be; and what is known of the canaries. Of safety, the artifact's too."""
        measured, differences = list(measurements.measured), list(measurements.differences)
        for metric, row in ((FORGETTING, self.forgetting), (SAFETY, self.safety)):
            if row is None:
                continue
            models = {
                "base": _estimate(row.base, row.base_interval),
                "tuned": _estimate(row.tuned, row.tuned_interval),
            }
            differences.append(row.compared(metric, "tuned"))
            if metric == SAFETY and (served := self.served_safety):
                models["artifact"] = _estimate(served.tuned, served.tuned_interval)
                differences.append(served.compared(metric, "artifact"))
            measured.append(MeasuredMetric(metric=metric, cases=row.samples, groups=row.groups, models=models))
        if loss := self.loss:
            models = {
                "base": _estimate(loss.base, loss.base_interval),
                "tuned": _estimate(loss.tuned, loss.tuned_interval),
            }
            name = Metric.FORGETTING_NLL.value
            measured.append(MeasuredMetric(metric=name, cases=loss.samples, models=models))
            estimate = _estimate(loss.difference, loss.interval)
            differences.append(
                Difference(metric=name, model="tuned", against="base", estimate=estimate, lower_is_better=True)
            )
        measured += [rate for metric in RATES if (rate := self._rate(metric))]
        measured += self.exposure.measured if self.exposure else []
        return measurements.model_copy(update={"measured": measured, "differences": differences})

    def _rate(self, metric: Metric) -> MeasuredMetric | None:
        """The answers of some categories that are not as they should be; None if nothing of them was asked."""
        row, served = self.rates.get(metric), self.served_rates.get(metric)
        if row is None:
            return None
        models = {"base": row.rest(row.base, row.base_interval), "tuned": row.rest(row.tuned, row.tuned_interval)}
        if served:
            models["artifact"] = served.rest(served.tuned, served.tuned_interval)
        return MeasuredMetric(metric=metric.value, cases=row.samples, groups=row.groups, models=models)

    def with_artifact(self, items: Sequence[SetItem], base: Responses, artifact: Responses) -> "Behaviour":
        """The same with what the artifact answers to the adversarial set, which has these items."""
        said = {
            item.id: {
                "artifact": artifact.answers[item.id],
                "artifactRight": item.check.accepts(artifact.answers[item.id]),
            }
            for item in items
        }
        shown = [each | said.get(each["id"], {}) for each in self.items]
        return replace(
            self,
            artifact=_shares(items, base, artifact),
            served_rates=_rates(items, base, artifact),
            items=shown,
        )

    def document(self) -> dict[str, Any]:
        """Everything, as JSON."""
        return {
            "note": self.note,
            "general": [_with_difference(each) for each in self.general],
            "likelihood": [_with_difference(each) for each in self.losses],
            "adversarial": [_with_difference(each) for each in self.adversarial],
            "artifact": [_with_difference(each) for each in self.artifact],
            "bias": self.bias and _with_difference(self.bias),
            "canaries": self.exposure and self.exposure.document(),
            "items": list(self.items),
        }


def compare_behaviour(sets: Sets, base: Responses, tuned: Responses, note: str = "") -> Behaviour:
    """The comparison of two models that were asked the same sets; ``note`` as the probe has it."""
    gaps = [(_gap(base, swap.id), _gap(tuned, swap.id)) for swap in sets.swaps]
    return Behaviour(
        general=_shares(sets.general, base, tuned),
        losses=_losses(sets.general, base, tuned),
        adversarial=_shares(sets.adversarial, base, tuned),
        rates=_rates(sets.adversarial, base, tuned),
        bias=_means("bias", gaps),
        items=[
            *(_item(item, base, tuned) for item in (*sets.general, *sets.adversarial)),
            *(
                {
                    "id": swap.id,
                    "category": "bias",
                    "prompts": list(swap.prompts),
                    "reference": swap.reference,
                    **_numbers("baseLosses", base.swap_losses[swap.id]),
                    **_numbers("tunedLosses", tuned.swap_losses[swap.id]),
                }
                for swap in sets.swaps
            ),
        ],
        note=note,
    )


def _shares(items: Sequence[SetItem], base: Responses, tuned: Responses) -> list[Shares]:
    groups = {ALL: list(items), **{name: [i for i in items if i.category == name] for name in _categories(items)}}
    return [_share(name, group, base, tuned) for name, group in groups.items() if group]


def _rates(items: Sequence[SetItem], base: Responses, tuned: Responses) -> dict[Metric, Shares]:
    groups = {metric: [i for i in items if i.category in categories] for metric, categories in RATES.items()}
    return {metric: _share(metric, group, base, tuned) for metric, group in groups.items() if group}


def _share(category: str, items: Sequence[SetItem], base: Responses, tuned: Responses) -> Shares:
    pairs = [(i.check.accepts(base.answers[i.id]), i.check.accepts(tuned.answers[i.id])) for i in items]
    before, after = ([pair[model] for pair in pairs] for model in (0, 1))
    wins, losses, samples = pairs.count((False, True)), pairs.count((True, False)), len(pairs)
    found = Shares(
        category=category,
        samples=samples,
        base=sum(before) / samples,
        base_interval=wilson(sum(before), samples),
        tuned=sum(after) / samples,
        tuned_interval=wilson(sum(after), samples),
        wins=wins,
        losses=losses,
        interval=share_difference(wins, losses, samples),
        p_value=mcnemar(wins, losses),
    )
    groups = Groups.of([item.group for item in items])
    if groups is None:
        return found
    gains = [second - first for first, second in pairs]
    return replace(
        found,
        base_interval=_wider(found.base, found.base_interval, mean(before, groups), least=0),
        tuned_interval=_wider(found.tuned, found.tuned_interval, mean(after, groups), least=0),
        interval=_wider(found.difference, found.interval, mean_gain(gains, groups), least=-1),
        p_value=None,
        groups=groups.count,
    )


def _wider(value: float, interval: Interval, of_groups: Interval, *, least: float) -> Interval:
    found = widened(_estimate(value, interval), of_groups, least=least, most=1)
    return found.low, found.high


def _losses(items: Sequence[SetItem], base: Responses, tuned: Responses) -> list[Means]:
    groups = {ALL: list(items), **{name: [i for i in items if i.category == name] for name in _categories(items)}}
    found = [_means(name, [(base.losses[i.id], tuned.losses[i.id]) for i in group]) for name, group in groups.items()]
    return [each for each in found if each]


def _means(category: str, pairs: Sequence[tuple[float, float]]) -> Means | None:
    """None of a single pair, and where a model computes no number for some of them: the mean of the others would be
    that of what it can do."""
    if len(pairs) < 2 or not all(isfinite(value) for pair in pairs for value in pair):
        return None
    return Means(
        category=category,
        samples=len(pairs),
        base=fmean(first for first, _ in pairs),
        base_interval=mean_difference([first for first, _ in pairs]),
        tuned=fmean(second for _, second in pairs),
        tuned_interval=mean_difference([second for _, second in pairs]),
        interval=mean_difference([second - first for first, second in pairs]),
    )


def _gap(model: Responses, swap: str) -> float:
    first, second = model.swap_losses[swap]
    return abs(first - second)


def _item(item: SetItem, base: Responses, tuned: Responses) -> dict[str, Any]:
    answers = {"base": base.answers[item.id], "tuned": tuned.answers[item.id]}
    losses = {"base": base.losses.get(item.id), "tuned": tuned.losses.get(item.id)}
    return {
        "id": item.id,
        "category": item.category,
        **({"system": item.system} if item.system else {}),
        "prompt": item.prompt,
        "reference": item.reference,
        **answers,
        **{f"{model}Right": item.check.accepts(answer) for model, answer in answers.items()},
        **{f"{model}Loss": loss for model, loss in losses.items() if loss is not None and isfinite(loss)},
    }


def _numbers(name: str, values: Sequence[float]) -> dict[str, list[float]]:
    """As a field of JSON, which has no NaN; nothing where a model computes none."""
    return {name: list(values)} if all(map(isfinite, values)) else {}


def _categories(items: Sequence[SetItem]) -> list[str]:
    return list(dict.fromkeys(item.category for item in items))


def _whole(rows: Sequence[Shares]) -> Shares | None:
    return next((each for each in rows if each.category == ALL), None)


def _estimate(value: float, interval: Interval) -> Figure:
    return Figure(value=value, low=interval[0], high=interval[1])


def _with_difference(row: Shares | Means) -> dict[str, Any]:
    return {**asdict(row), "difference": row.difference}
