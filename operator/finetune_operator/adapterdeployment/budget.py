"""The PodDisruptionBudget of the pods that serve. It is never in the way of anything else. Pure."""

from typing import Final

from finetune_operator.adapterdeployment.observe import ObservedDeployment
from finetune_operator.framework.actions import Action, Delete
from finetune_operator.framework.objects import DISRUPTION_BUDGETS
from finetune_operator.resources.disruption_budget import FEWEST, disruption_budget
from finetune_operator.resources.drift import ensure

BUDGET: Final = "budget"
"""The word for its actions, which are optional."""


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
    name = f"PodDisruptionBudget {observed.owner.name}"
    if not has_budget(observed):
        return (
            f"The {name} cannot be deleted: {said}. Delete it yourself; otherwise the operator deletes it as soon as "
            "nothing prevents that."
        )
    return (
        f"The {name} cannot be written: {said}. The endpoint still serves, but a node drain may evict all its "
        "pods at once. Remove the cause; the operator tries again within minutes. Or ask the platform's "
        "admin to set operator.disruptionBudgets: false in the chart's values."
    )
