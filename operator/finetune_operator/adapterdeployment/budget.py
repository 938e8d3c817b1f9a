"""The PodDisruptionBudget of the pods that serve. It is never in the way of anything else. Pure."""

import re
from collections.abc import Iterator, Sequence
from typing import Final

from finetune_api.base import Condition
from finetune_operator.adapterdeployment.observe import ObservedDeployment
from finetune_operator.framework.actions import Action, Delete, Event
from finetune_operator.framework.events import advice_events
from finetune_operator.framework.objects import DISRUPTION_BUDGETS
from finetune_operator.resources.disruption_budget import FEWEST, disruption_budget
from finetune_operator.resources.drift import ensure

BUDGET: Final = "budget"
"""The word for its actions, which are optional."""
_CANNOT: Final = "The PodDisruptionBudget {name} cannot be {done}: {said}. {then}"
_DELETED: Final = "Delete it yourself"
_WRITTEN: Final = "The endpoint still serves"
_SAID: Final = re.compile(rf"(PodDisruptionBudget \S+ cannot be \w+: ).*(?=\. (?:{_DELETED}|{_WRITTEN}))", re.DOTALL)


def has_budget(observed: ObservedDeployment) -> bool:
    """Whether the admin wants budgets, and so many pods serve that a drain of nodes can leave some."""
    return observed.settings.disruption_budgets and observed.resource.spec.replicas >= FEWEST


def budget_actions(observed: ObservedDeployment, revision: str) -> tuple[Action, ...]:
    """Make or restore the budget of the revision that serves, if one does; or delete what is not wanted any more."""
    if not has_budget(observed):
        return tuple(
            Delete(DISRUPTION_BUDGETS, name, child["metadata"]["uid"])
            for name, child in observed.children.get(DISRUPTION_BUDGETS, {}).items()
            if "deletionTimestamp" not in child["metadata"]
        )
    if not revision:
        return ()
    budget = disruption_budget(observed.owner, revision)
    return ensure(DISRUPTION_BUDGETS, budget, observed.child(DISRUPTION_BUDGETS, budget["metadata"]["name"]))


def budget_advice(observed: ObservedDeployment) -> str:
    """What became of a budget that could not be written, and what to do; empty if all is well."""
    if not (said := observed.unmet.get(BUDGET, "").rstrip(".")):
        return ""
    name = observed.owner.name
    if not has_budget(observed):
        then = f"{_DELETED}; otherwise the operator deletes it as soon as nothing prevents that."
        return _CANNOT.format(name=name, done="deleted", said=said, then=then)
    then = (
        f"{_WRITTEN}, but a node drain may evict all its pods at once. Remove the cause; the operator tries again "
        "within minutes. Or ask the platform's admin to set operator.disruptionBudgets: false in the chart's values."
    )
    return _CANNOT.format(name=name, done="written", said=said, then=then)


def budget_news(before: Sequence[Condition], after: Sequence[Condition]) -> Iterator[Event]:
    """Warnings about what has become discouraged. The API server's words about a budget are no news: a webhook may have
    other ones each time."""
    told = {_without_cause(each.message) for each in before}
    for each in after:
        if _without_cause(each.message) not in told:
            yield from advice_events(before, [each])


def _without_cause(message: str) -> str:
    return _SAID.sub(r"\1", message)
