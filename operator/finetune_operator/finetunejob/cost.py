"""What a run's GPUs cost: spent, forecast, and what follows when the budget is not enough. Pure.

Spent is the time in which stages with a model had a pod, times the profile's price; all times here are those of pods,
so that a training in several counts several times. The forecast adds what the stages to come will take: from the spec's
limits before the data are known, from the data set's tokens after prepare, and from the measured speed while the
training runs.
"""

from datetime import datetime
from typing import Final

from finetune_api.budget import (
    Basis,
    CostStatus,
    HardwareFacts,
    OnExceeded,
    dollars,
    most_tokens,
    remaining_seconds,
    trained_tokens,
)
from finetune_api.finetunejob import FineTuneJobSpec, FineTuneJobStatus, StageState, StageStatus
from finetune_api.reasons import Reason
from finetune_api.stages import Stage
from finetune_operator.finetunejob.hardware import hardware_facts
from finetune_operator.finetunejob.ledger import RunLedger
from finetune_operator.finetunejob.observe import ObservedJob
from finetune_operator.finetunejob.pipeline import Fail, Start, Step, Watch
from finetune_operator.framework.conditions import parse_timestamp

PRICED: Final = (Stage.TRAIN, Stage.EXPORT, Stage.EVALUATE)
"""The stages that run on a profile's GPUs."""
SHORTEST_TRAINING: Final = 60.0
"""Seconds of training below which there is no checkpoint to keep."""
STEADY_SHARE: Final = 0.01
"""Share of the forecast by which the money spent must grow before the status says so."""


def cost_status(observed: ObservedJob, ledger: RunLedger, now: datetime, *, ended: bool) -> CostStatus | None:
    """The run's money for the status; None for a profile without a price. Once it has ended, the sum is final."""
    before = observed.status.cost if _same_run(observed.status, ledger) else None
    final = before is not None and before.basis is Basis.FINISHED
    spec, price = observed.spec, _price(observed)
    if spec is None or price is None or (ended and final):
        return before
    spent = _spent_seconds(observed, ledger, now) * price
    basis, left = (Basis.FINISHED, 0.0) if ended else _left_seconds(observed, spec, ledger)
    fresh = CostStatus(
        spent=dollars(spent),
        forecast="" if left is None else dollars(spent + left * price),
        basis=basis,
        max_cost=spec.budget.max_cost if spec.budget else "",
    )
    return before if before is not None and _steady(before, fresh, ledger) else fresh


def ending_budget(observed: ObservedJob, spec: FineTuneJobSpec) -> str:
    """The spec.budget.maxCost that ends a training in time and keeps its best weights; empty where none does."""
    if spec.budget is None or spec.budget.on_exceeded is not OnExceeded.CHECKPOINT or not _price(observed):
        return ""
    return spec.budget.max_cost


def allowance_seconds(observed: ObservedJob, spec: FineTuneJobSpec, ledger: RunLedger) -> int | None:
    """How long training may take so that export and evaluation are still paid for; None without such a limit."""
    limit, price = ending_budget(observed, spec), _price(observed)
    if not limit or not price:
        return None
    reserve = _after_training(observed, spec, ledger) or 0.0
    left = float(limit) / price - reserve
    return max(0, int(round(left / _pods(observed, Stage.TRAIN), 3)))  # 27.9999… are 28


def within_budget(observed: ObservedJob, spec: FineTuneJobSpec, ledger: RunLedger, step: Step, now: datetime) -> Step:
    """The step, or the run's end (BudgetExceeded) where it would cost more than it may."""
    price = _price(observed)
    if spec.budget is None or not price:
        return step
    match step:
        case Start(Stage.TRAIN, ""):
            problem = _too_dear(observed, spec, ledger, price)
        case Watch(stage, _) if stage in PRICED and spec.budget.on_exceeded is OnExceeded.FAIL:
            problem = _overspent(observed, spec, ledger, price, now)
        case _:
            return step
    if not problem:
        return step
    stage = step.stage
    ledger.close(stage, StageState.FAILED, problem)
    return Fail(stage, Reason.BUDGET_EXCEEDED, problem)


def _too_dear(observed: ObservedJob, spec: FineTuneJobSpec, ledger: RunLedger, price: float) -> str:
    """Why a training is not begun; empty where it is."""
    allowance = allowance_seconds(observed, spec, ledger)
    limit = spec.budget.max_cost if spec.budget else ""
    if allowance is not None:
        if allowance >= SHORTEST_TRAINING:
            return ""
        return f"spec.budget.maxCost {limit} USD leaves {allowance} s for training beside export and evaluation."
    basis, left = _left_seconds(observed, spec, ledger)
    if basis is not Basis.TOKENS or left is None or left * price <= float(limit):
        return ""
    return f"The forecast is {dollars(left * price)} USD ({left / 3600:.1f} h), spec.budget.maxCost is {limit} USD."


def _overspent(observed: ObservedJob, spec: FineTuneJobSpec, ledger: RunLedger, price: float, now: datetime) -> str:
    limit = spec.budget.max_cost if spec.budget else ""
    spent = _spent_seconds(observed, ledger, now) * price
    return f"The run has cost {dollars(spent)} USD, spec.budget.maxCost is {limit} USD." if spent > float(limit) else ""


def _price(observed: ObservedJob) -> float | None:
    """US dollars per second of a pod; None where nothing is known or nothing is charged."""
    return _hardware(observed).usd_per_second or None


def _hardware(observed: ObservedJob) -> HardwareFacts:
    profile = observed.settings.profiles.get(observed.spec.profile) if observed.spec else None
    return hardware_facts("", profile) if profile else HardwareFacts()


def _pods(observed: ObservedJob, stage: Stage) -> int:
    """Pods that a stage runs in."""
    return _hardware(observed).nodes if stage is Stage.TRAIN else 1


def _same_run(status: FineTuneJobStatus, ledger: RunLedger) -> bool:
    return status.run is not None and status.run.id == ledger.run.id


def _spent_seconds(observed: ObservedJob, ledger: RunLedger, now: datetime) -> float:
    return sum(_pod_seconds(ledger.rows[stage], now) * _pods(observed, stage) for stage in PRICED)


def _pod_seconds(row: StageStatus, now: datetime) -> float:
    gone = float(row.earlier_seconds or 0)
    if row.started_at is None or row.state is StageState.REUSED:
        return gone
    end = parse_timestamp(row.finished_at) if row.finished_at else now
    return gone + max(0.0, (end - parse_timestamp(row.started_at)).total_seconds())


def _left_seconds(observed: ObservedJob, spec: FineTuneJobSpec, ledger: RunLedger) -> tuple[Basis | None, float | None]:
    """GPU time that is still to come, and how that is known; None where it is not."""
    if all(ledger.done(stage) for stage in PRICED):
        return Basis.FINISHED, 0.0
    after, pods = _after_training(observed, spec, ledger), _pods(observed, Stage.TRAIN)
    if ledger.done(Stage.TRAIN):
        return (None, None) if after is None else (Basis.SPEED, after)
    if ledger.rows[Stage.TRAIN].state is StageState.RUNNING and (eta := _eta(observed)) is not None:
        return Basis.SPEED, eta * pods + (after or 0.0)
    tokens, basis = _tokens(spec, ledger)
    speed, load = _speed(ledger)
    if tokens is None or after is None or not speed:
        return None, None
    ahead = remaining_seconds(tokens=tokens, samples=0, max_length=0, speed=speed, load=load, stages=1)
    return basis, max(0.0, ahead * pods - _running_seconds(observed, ledger)) + after


def _running_seconds(observed: ObservedJob, ledger: RunLedger) -> float:
    """What of a training without a measured speed has passed already, as the status knew it last."""
    cost = observed.status.cost if _same_run(observed.status, ledger) else None
    price = _price(observed)
    return float(cost.spent) / price if cost and price else 0.0


def _after_training(observed: ObservedJob, spec: FineTuneJobSpec, ledger: RunLedger) -> float | None:
    """Seconds of export and evaluation, as far as they are not done; None where the model's size is unknown."""
    speed, load = _speed(ledger)
    if not speed:
        return None
    speed /= _hardware(observed).processes  # these stages use one GPU, or the CPUs of one pod
    left = [stage for stage in (Stage.EXPORT, Stage.EVALUATE) if not ledger.done(stage)]
    samples = spec.evaluation.max_samples if Stage.EVALUATE in left else 0
    length = spec.training.max_length
    return remaining_seconds(tokens=0, samples=samples, max_length=length, speed=speed, load=load, stages=len(left))


def _tokens(spec: FineTuneJobSpec, ledger: RunLedger) -> tuple[float | None, Basis]:
    """What the training will see: counted by prepare, or bounded by the spec and the number of examples."""
    dataset, training = ledger.dataset, spec.training
    if dataset is None:
        return most_tokens(training), Basis.LIMITS
    if dataset.tokens:
        return trained_tokens(training, dataset.rows.train, dataset.tokens), Basis.TOKENS
    return trained_tokens(training, dataset.rows.train, dataset.rows.train * training.max_length), Basis.LIMITS


def _speed(ledger: RunLedger) -> tuple[float, float]:
    """Tokens per second and seconds to load, as resolve estimated them; 0 where unknown."""
    fit = ledger.fit
    return (float(fit.tokens_per_second or 0), float(fit.load_seconds or 0)) if fit else (0.0, 0.0)


def _eta(observed: ObservedJob) -> float | None:
    """Time left of the running training, as measured by itself now or at the last look."""
    sample, progress = observed.sample, observed.status.progress
    if sample is not None and sample.stage == Stage.TRAIN and sample.eta_seconds is not None:
        return float(sample.eta_seconds)
    known = progress is not None and progress.stage == Stage.TRAIN and progress.eta_seconds is not None
    return float(progress.eta_seconds) if known and progress and progress.eta_seconds is not None else None


def _steady(before: CostStatus, after: CostStatus, ledger: RunLedger) -> bool:
    """Whether a new status would say nothing new: every look would write it otherwise."""
    running = any(ledger.rows[stage].state is StageState.RUNNING for stage in PRICED)
    if not running or (before.basis, before.max_cost) != (after.basis, after.max_cost):
        return False
    step = max(0.01, STEADY_SHARE * float(after.forecast or after.spent))
    pairs = ((before.spent, after.spent), (before.forecast, after.forecast))
    return all(abs(float(new or 0) - float(old or 0)) < step for old, new in pairs)
