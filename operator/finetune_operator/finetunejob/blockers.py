"""What keeps a FineTuneJob from starting a stage, in the order in which it is reported. Pure."""

from typing import Final

from finetune_api.custom_metrics import offered_figures
from finetune_api.evaluation import Generator
from finetune_api.reasons import Reason
from finetune_operator.blockers import (
    Blocker,
    Check,
    account_missing,
    choice_unknown,
    name_conflict,
    refused,
    tenancy_blocker,
)
from finetune_operator.finetunejob.claims import job_violation
from finetune_operator.finetunejob.observe import ObservedJob


def not_allowed(observed: ObservedJob) -> Blocker | None:
    """The platform's tenancy does not allow what the spec asks for."""
    return tenancy_blocker(job_violation(observed.settings, observed.owner.namespace, observed.spec))


def metric_unknown(observed: ObservedJob) -> Blocker | None:
    """The spec asks for a metric container that the platform does not offer, or a goal for a figure that it has not."""
    offered, asked = observed.settings.metric_containers, observed.spec.evaluation
    for number, metric in enumerate(asked.metrics):
        if metric.name not in offered:
            known = ", ".join(sorted(offered)) or "none"
            message = f"spec.evaluation.metrics[{number}].name is {metric.name!r}; the platform offers: {known}."
            return Blocker(Reason.METRIC_UNKNOWN, message, watched=True)
    for number, goal in enumerate(asked.goals):
        name, _, figure = (goal.custom or "").partition(".")
        if goal.custom and figure not in offered[name].figures:
            known = offered_figures(offered[name].figures)
            message = f"spec.evaluation.goals[{number}].custom is {goal.custom!r}; {name} measures: {known}."
            return Blocker(Reason.METRIC_UNKNOWN, message, watched=True)
    return None


def generator_unknown(observed: ObservedJob) -> Blocker | None:
    """The spec has the models run by a program for which the platform has no image."""
    asked = observed.spec.evaluation.generator
    if asked is Generator.TRANSFORMERS or observed.settings.images.evaluate_vllm:
        return None
    message = f"spec.evaluation.generator is {asked.value}; the platform offers: {Generator.TRANSFORMERS.value}."
    return Blocker(Reason.GENERATOR_UNKNOWN, message, watched=True)


def output_conflict(observed: ObservedJob) -> Blocker | None:
    """An older FineTuneJob of the namespace publishes to the same output."""
    if not observed.conflicting_job:
        return None
    output, older = observed.spec.output, observed.conflicting_job
    message = f"The older FineTuneJob {older!r} publishes, or will publish, {output.name!r} under {output.uri}."
    return Blocker(Reason.OUTPUT_NAME_CONFLICT, message)


BLOCKERS: Final[tuple[Check[ObservedJob], ...]] = (
    choice_unknown,
    metric_unknown,
    generator_unknown,
    not_allowed,
    account_missing,
    output_conflict,
    name_conflict,
    refused,
)
