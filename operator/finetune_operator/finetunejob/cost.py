"""What a run's GPUs cost: spent, forecast, and what happens when the budget is too small. Pure.

Spent is the time for which stages with a model had a pod, times their GPUs, times the price of one. All times here are
GPU seconds: a second of training counts once for each GPU of its pods, a second of export or evaluation once. The
forecast adds the time of the remaining stages: from the spec's limits before the data are known, from the data set's
tokens after prepare, and from the measured speed while the training runs. The same forecast shows whether a training
would be longer than its profile allows.
"""

from datetime import datetime
from typing import Final

from finetune_api.budget import (
    Basis,
    CostStatus,
    HardwareFacts,
    OnExceeded,
    dollars,
)
from finetune_api.job_status import StageState, StageStatus
from finetune_api.reasons import Reason
from finetune_api.stages import Stage
from finetune_api.timing import Examples, Pace, evaluate_seconds, export_seconds, train_seconds
from finetune_operator.finetunejob.context import RunContext
from finetune_operator.finetunejob.hardware import gpus_alone, hardware_facts
from finetune_operator.finetunejob.pipeline import Fail, Start, Step, Watch
from finetune_operator.framework.conditions import parse_timestamp

PRICED: Final = (Stage.TRAIN, Stage.EXPORT, Stage.EVALUATE)
"""The stages that run on a profile's GPUs."""
SHORTEST_TRAINING: Final = 60.0
"""Seconds of training below which there is no checkpoint to keep."""
STEADY_SHARE: Final = 0.01
"""Share of the forecast by which the amount spent must grow before the status is updated."""


def cost_status(context: RunContext, *, ended: bool) -> CostStatus | None:
    """The run's cost for the status; None for a profile without a price. Once the run has ended, it is final."""
    before = context.observed.status.cost if _same_run(context) else None
    final = before is not None and before.basis is Basis.FINISHED
    budget, price = context.spec.budget, _price(context)
    if price is None or (ended and final):
        return before
    spent = _spent_seconds(context) * price
    basis, left = (Basis.FINISHED, 0.0) if ended else _left_seconds(context)
    fresh = CostStatus(
        spent=dollars(spent),
        forecast="" if left is None else dollars(spent + left * price),
        basis=basis,
        max_cost=budget.max_cost if budget else "",
    )
    return before if before is not None and _steady(before, fresh, context) else fresh


def ending_budget(context: RunContext) -> str:
    """The spec.budget.maxCost at which training stops early and keeps its best weights; empty without one."""
    budget = context.spec.budget
    if budget is None or budget.on_exceeded is not OnExceeded.CHECKPOINT or not _price(context):
        return ""
    return budget.max_cost


def time_budget_seconds(context: RunContext) -> int | None:
    """How long training may take so that the budget still covers export and evaluation; None without a limit."""
    limit, price = ending_budget(context), _price(context)
    if not limit or not price:
        return None
    reserve = _after_training(context) or 0.0
    left = float(limit) / price - reserve
    return max(0, int(round(left / _gpus(context, Stage.TRAIN), 3)))  # 27.9999… are 28


def deadline_warning(context: RunContext) -> str:
    """What to know of a training that would take longer than its profile allows one attempt; empty if it does not, or
    if nothing is known of its data or model."""
    profile, pace = context.observed.settings.profiles.get(context.spec.profile), _pace(context)
    examples, basis = _examples(context)
    if not profile or not pace or not examples or basis is not Basis.TOKENS or context.ledger.done(Stage.TRAIN):
        return ""
    seconds = train_seconds(context.spec.training, examples, pace, _gpus(context, Stage.TRAIN))
    paid = time_budget_seconds(context)
    if min(seconds, seconds if paid is None else paid) <= profile.deadline_seconds:
        return ""
    return (
        f"The training takes about {seconds / 3600:.1f} hours from its start, and profile {context.spec.profile!r} "
        f"ends a stage after {profile.deadline_seconds / 3600:.1f} (DeadlineExceeded): ask the admin to raise its "
        "deadlineSeconds in the chart's values. What has ended resumes from its last checkpoint with a new spec.rerun."
    )


def within_budget(context: RunContext, step: Step) -> Step:
    """The step, or the run's failure (BudgetExceeded) if it exceeds the budget."""
    budget, price = context.spec.budget, _price(context)
    if budget is None or not price:
        return step
    match step:
        case Start(Stage.TRAIN, ""):
            problem = _too_dear(context, price)
        case Watch(stage, _) if stage in PRICED and budget.on_exceeded is OnExceeded.FAIL:
            problem = _overspent(context, price)
        case _:
            return step
    if not problem:
        return step
    stage = step.stage
    context.ledger.close(stage, StageState.FAILED, problem)
    return Fail(stage, Reason.BUDGET_EXCEEDED, problem)


def _too_dear(context: RunContext, price: float) -> str:
    """Why the budget does not allow the training to start; empty if it does."""
    budget = time_budget_seconds(context)
    limit = context.spec.budget.max_cost if context.spec.budget else ""
    if budget is not None:
        if budget >= SHORTEST_TRAINING:
            return ""
        return f"spec.budget.maxCost of {limit} USD leaves {budget} s for training, next to export and evaluation."
    basis, left = _left_seconds(context)
    if basis is not Basis.TOKENS or left is None or left * price <= float(limit):
        return ""
    return (
        f"The forecast of {dollars(left * price)} USD ({left / 3600:.1f} GPU hours) exceeds spec.budget.maxCost of "
        f"{limit} USD."
    )


def _overspent(context: RunContext, price: float) -> str:
    limit = context.spec.budget.max_cost if context.spec.budget else ""
    spent = _spent_seconds(context) * price
    return (
        f"The run has cost {dollars(spent)} USD, more than spec.budget.maxCost of {limit} USD."
        if spent > float(limit)
        else ""
    )


def _price(context: RunContext) -> float | None:
    """US dollars per GPU second; None where the price is unknown or zero."""
    return _hardware(context).usd_per_gpu_second or None


def _hardware(context: RunContext) -> HardwareFacts:
    profile = context.observed.settings.profiles.get(context.spec.profile)
    return hardware_facts("", profile) if profile else HardwareFacts()


def _gpus(context: RunContext, stage: Stage) -> int:
    """GPUs of a stage with a model."""
    if stage is Stage.TRAIN:
        return _hardware(context).processes
    return gpus_alone(stage, context.ledger.fit, context.spec.evaluation.generator)


def _same_run(context: RunContext) -> bool:
    """Whether the status is about this run."""
    recorded = context.observed.status.run
    return recorded is not None and recorded.id == context.ledger.run.id


def _spent_seconds(context: RunContext) -> float:
    return sum(_pod_seconds(context.ledger.rows[stage], context.now) * _gpus(context, stage) for stage in PRICED)


def _pod_seconds(row: StageStatus, now: datetime) -> float:
    """Also where a pod has found a result: it may be that of the lost pod before it, whose time is in here. What
    resolve has found took none."""
    gone = float(row.earlier_seconds or 0)
    if row.started_at is None:
        return gone
    end = parse_timestamp(row.finished_at) if row.finished_at else now
    return gone + max(0.0, (end - parse_timestamp(row.started_at)).total_seconds())


def _left_seconds(context: RunContext) -> tuple[Basis | None, float | None]:
    """Remaining time and what it is estimated from; None where it cannot be estimated."""
    if all(context.ledger.done(stage) for stage in PRICED):
        return Basis.FINISHED, 0.0
    after, gpus = _after_training(context), _gpus(context, Stage.TRAIN)
    if context.ledger.done(Stage.TRAIN):
        return (None, None) if after is None else (Basis.SPEED, after)
    if context.ledger.rows[Stage.TRAIN].state is StageState.RUNNING and (eta := _eta(context)) is not None:
        return Basis.SPEED, eta * gpus + (after or 0.0)
    examples, basis = _examples(context)
    pace = _pace(context)
    if examples is None or after is None or pace is None:
        return None, None
    ahead = train_seconds(context.spec.training, examples, pace, gpus)
    return basis, max(0.0, ahead * gpus - _running_seconds(context)) + after


def _running_seconds(context: RunContext) -> float:
    """Time that a training without a measured speed has run, from the status's last cost."""
    cost = context.observed.status.cost if _same_run(context) else None
    price = _price(context)
    return float(cost.spent) / price if cost and price else 0.0


def _after_training(context: RunContext) -> float | None:
    """Remaining time of export and evaluation; None where the model's speed is unknown."""
    pace = _pace(context)
    if pace is None:
        return None
    stages = {
        Stage.EXPORT: export_seconds(pace),
        Stage.EVALUATE: evaluate_seconds(pace, _asked_examples(context)),
    }
    return sum(seconds * _gpus(context, stage) for stage, seconds in stages.items() if not context.ledger.done(stage))


def _asked_examples(context: RunContext) -> int:
    """Examples that the evaluation asks, at most. Of test and validation part, which the exported model both answers,
    the larger one counts."""
    dataset, most = context.ledger.dataset, context.spec.evaluation.max_samples
    if dataset is None or not dataset.rows.test:
        return most
    return min(most, max(dataset.rows.test, dataset.rows.validation))


def _examples(context: RunContext) -> tuple[Examples | None, Basis]:
    """What is trained on: counted by prepare, or bounded by the spec and the number of examples."""
    dataset, training = context.ledger.dataset, context.spec.training
    if dataset is None:
        return Examples.at_most(training), Basis.LIMITS
    rows = dataset.rows
    if not dataset.tokens or not rows.train:
        return Examples.at_most(training, rows.train, rows.validation), Basis.LIMITS
    mean = dataset.tokens / rows.train
    longest = min(dataset.longest or training.max_length, training.max_length)
    return Examples(rows.train, mean, max(mean, longest), rows.validation), Basis.TOKENS


def _pace(context: RunContext) -> Pace | None:
    """As resolve estimated it; None where it is unknown."""
    return Pace.of(context.ledger.fit, context.spec.training, _gpus(context, Stage.TRAIN))


def _eta(context: RunContext) -> float | None:
    """Remaining seconds of the running training, as it reported them now or in the last pass."""
    sample, progress = context.observed.sample, context.observed.status.progress
    if sample is not None and sample.stage == Stage.TRAIN and sample.eta_seconds is not None:
        return float(sample.eta_seconds)
    known = progress is not None and progress.stage == Stage.TRAIN and progress.eta_seconds is not None
    return float(progress.eta_seconds) if known and progress and progress.eta_seconds is not None else None


def _steady(before: CostStatus, after: CostStatus, context: RunContext) -> bool:
    """Whether the change is too small to report: otherwise every pass would write the status."""
    running = any(context.ledger.rows[stage].state is StageState.RUNNING for stage in PRICED)
    if not running or (before.basis, before.max_cost) != (after.basis, after.max_cost):
        return False
    step = max(0.01, STEADY_SHARE * float(after.forecast or after.spent))
    pairs = ((before.spent, after.spent), (before.forecast, after.forecast))
    return all(abs(float(new or 0) - float(old or 0)) < step for old, new in pairs)
