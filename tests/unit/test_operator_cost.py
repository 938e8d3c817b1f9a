"""What a run's GPUs cost: spent and forecast by where the run stands, and the budget's end of it."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from finetune_api.budget import Basis, Budget, CostStatus, FitStatus, HardwareFacts, OnExceeded, Verdict
from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.job_status import Phase, StageState
from finetune_api.reasons import Reason
from finetune_api.stages import PIPELINE, Found, Stage, StageInput
from finetune_operator.finetunejob.hardware import hardware_facts, other_facts
from finetune_operator.finetunejob.observe import ObservedJob, StageJob
from finetune_operator.finetunejob.plan import current_run, plan
from finetune_operator.finetunejob.progress import Sample
from finetune_operator.framework.actions import Create, Delete
from finetune_operator.framework.conditions import timestamp
from finetune_operator.framework.objects import JOBS
from finetune_operator.outcome.job import State
from finetune_operator.outcome.job import Verdict as JobVerdict
from finetune_operator.settings import Engine, Gpu, PodShape, Profile, Runtime, Settings
from finetune_operator.tenancy.rules import Tenancy
from tests.support.runs import IDENTITY, SETTINGS, SPEC, done, job, observed, started, told
from tests.support.sentences import assert_says

pytestmark = pytest.mark.unit

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
L4 = Gpu(name="NVIDIA L4", count=1, memory_gib=22, peak_tflops=121, usd_per_hour=3.6)
"""It costs a dollar in 1,000 seconds."""
SHAPE = PodShape(limits={"cpu": "8", "memory": "28Gi", "nvidia.com/gpu": "1"})
PROFILES = {
    "small": Profile(accelerator=SHAPE, gpu=L4),
    "cpu": Profile(accelerator=PodShape(limits={"cpu": "500m", "memory": "2Gi"})),
    "unlimited": Profile(),
}
PRICED = Settings(
    images=SETTINGS.images,
    profiles=PROFILES,
    runtimes={"tgi": Runtime(engine=Engine.TGI, image="tgi:3.3.7")},
    tenancy=Tenancy(open=True),
)
FIT = {
    "fitVerdict": "Fits",
    "fitGib": "7.90",
    "fitAvailableGib": "22.00",
    "fitTokensPerSecond": "100.0",
    "fitLoadSeconds": "100",
}
RESOLVED = done(Stage.RESOLVE, scalars=IDENTITY | FIT)
PREPARED = done(Stage.PREPARE, scalars={"rowsTrain": "1000", "tokens": "50000"})
"""Three epochs of it are 150,000 tokens, or 1,500 seconds."""
AFTER = 2 * 100 + 3 * 200 * 512 / 100
VALIDATED = 200_000
"""Tokens of a validation at most; a run of few steps has four."""
"""Seconds of export and evaluation: two loads, three answers to 200 examples of 512 tokens."""


def seen(*jobs: StageJob, spec: FineTuneJobSpec = SPEC, **more: Any) -> ObservedJob:
    """What is observed on a platform with prices."""
    return replace(observed(spec, jobs=jobs, **more), settings=PRICED)


def running(stage: Stage, seconds: float) -> StageJob:
    """A Job whose pod has run for so long."""
    begin = timestamp(NOW - timedelta(seconds=seconds))
    return job(stage, verdict=JobVerdict(State.RUNNING, Reason.STAGE_STARTED, attempts=1, started_at=begin))


def ended(stage: Stage, seconds: float) -> StageJob:
    """A Job that took so long."""
    whole = done(stage)
    begin = timestamp(NOW - timedelta(seconds=seconds))
    return replace(whole, verdict=replace(whole.verdict, started_at=begin, finished_at=timestamp(NOW)))


def cost(*jobs: StageJob, **more: Any) -> CostStatus | None:
    """The cost that is told."""
    return plan(seen(*jobs, **more), NOW).status.cost


def limited(amount: str, how: OnExceeded, **training: Any) -> FineTuneJobSpec:
    """A spec with a budget."""
    changed = SPEC.training.model_copy(update=training)
    return SPEC.model_copy(update={"budget": Budget(max_cost=amount, on_exceeded=how), "training": changed})


def own(spec: FineTuneJobSpec, jobs: tuple[StageJob, ...]) -> tuple[StageJob, ...]:
    """The same Jobs, of the run that works on this spec."""
    return tuple(replace(each, run=current_run(observed(spec), NOW).id) for each in jobs)


def test_facts_of_a_profile() -> None:
    """A GPU's own memory, or the pod's limit where there is none; unlimited is unknown."""
    assert hardware_facts("small", PROFILES["small"]) == HardwareFacts(
        profile="small",
        name="NVIDIA L4",
        count=1,
        memory_gib=22,
        peak_tflops=121,
        usd_per_hour=3.6,
        cpus=8,
        pod_memory_gib=28,
        scratch_gib=20,
    )
    cpu = HardwareFacts(profile="cpu", memory_gib=2, cpus=0.5, scratch_gib=20)
    assert hardware_facts("cpu", PROFILES["cpu"]) == cpu
    assert hardware_facts("x", PROFILES["unlimited"]) == HardwareFacts(profile="x", scratch_gib=20)
    for limit, scratch in (("8Gi", 8), ("100Gi", 60)):
        shape = PodShape(limits={"ephemeral-storage": limit}, scratch_size="60Gi")
        assert hardware_facts("x", Profile(accelerator=shape)).scratch_gib == scratch
    assert [each.profile for each in other_facts(PRICED, "small")] == ["cpu", "unlimited"]
    assert HardwareFacts(count=2, usd_per_hour=1.8).usd_per_gpu_second == pytest.approx(0.0005)
    assert HardwareFacts(usd_per_hour=1.8).usd_per_gpu_second == 0, "CPUs have no price"


def test_resolve_is_told_the_hardware_and_no_key_changes() -> None:
    """Facts and prices go to resolve and the stages with a model; the keys of what is made do not depend on them."""
    given = started(plan(seen(), NOW))[0]
    assert given.hardware == hardware_facts("small", PROFILES["small"])
    assert len(given.alternatives) == 2
    assert [each.name for each in given.runtimes] == ["tgi"]
    dear = {**PROFILES, "small": Profile(accelerator=SHAPE, gpu=L4.model_copy(update={"usd_per_hour": 99}))}
    keys = []
    for profiles in (PROFILES, dear):
        there = replace(seen(RESOLVED), settings=PRICED.model_copy(update={"profiles": profiles}))
        prepare = started(plan(there, NOW))[0]
        assert (prepare.hardware, prepare.alternatives, prepare.runtimes) == (None, [], [])
        keys.append((prepare.input_key, prepare))
        train = started(plan(replace(there, jobs=(RESOLVED, PREPARED)), NOW))[0]
        assert train.hardware == hardware_facts("small", profiles["small"]), "a pod without its GPU must not go on"
    assert keys[0] == keys[1]


def test_an_older_operators_input_is_read() -> None:
    """It says nothing of hardware."""
    written = started(plan(seen(), NOW))[0].model_dump(mode="json", by_alias=True)
    older = {name: value for name, value in written.items() if name not in ("hardware", "alternatives", "runtimes")}
    older.pop("timeBudgetSeconds")
    older.pop("maxCost")
    read = StageInput.model_validate(older)
    assert read.runtimes == []
    assert (read.hardware, read.alternatives, read.time_budget_seconds, read.max_cost) == (None, [], None, "")


def test_an_older_operators_time_budget_is_read() -> None:
    """It had another name."""
    written = started(plan(seen(), NOW))[0].model_dump(mode="json", by_alias=True)
    written.pop("timeBudgetSeconds")
    assert StageInput.model_validate({**written, "allowanceSeconds": 1600}).time_budget_seconds == 1600
    assert StageInput.model_validate({**written, "allowanceSeconds": None}).time_budget_seconds is None


def test_the_fit_is_told() -> None:
    """What resolve found out goes to the status and stays there; what is no number is left out."""
    status = plan(seen(RESOLVED, job(Stage.PREPARE)), NOW).status
    assert status.fit == FitStatus(
        verdict=Verdict.FITS,
        memory_gib="7.90",
        available_gib="22.00",
        tokens_per_second="100.0",
        load_seconds="100",
    )
    assert plan(seen(job(Stage.PREPARE), status=status), NOW).status.fit == status.fit
    odd = done(Stage.RESOLVE, scalars=IDENTITY | {"fitVerdict": "Unknown", "fitGib": "NaN", "fitLoadSeconds": "-1"})
    assert plan(seen(odd, job(Stage.PREPARE)), NOW).status.fit == FitStatus()
    assert plan(seen(done(Stage.RESOLVE), job(Stage.PREPARE)), NOW).status.fit is None


TRAINED = ended(Stage.TRAIN, 1000)
STEPS = SPEC.model_copy(update={"training": SPEC.training.model_copy(update={"max_steps": 10})})
SAMPLE = Sample("train", 50, eta_seconds=400)
FORECASTS = {
    "before the data, without a limit": (SPEC, (RESOLVED, job(Stage.PREPARE)), None, None, 0.0, None),
    "before the data": (
        STEPS,
        (RESOLVED, job(Stage.PREPARE)),
        None,
        Basis.LIMITS,
        0.0,
        100 + (10 * 16 * 512 + 4 * VALIDATED / 3) / 100 + AFTER,
    ),
    "tokens unknown": (
        SPEC,
        (RESOLVED, done(Stage.PREPARE, scalars={"rowsTrain": "1000"})),
        None,
        Basis.LIMITS,
        0.0,
        100 + (3 * 1000 * 512 + 4 * VALIDATED / 3) / 100 + AFTER,
    ),
    "prepared": (SPEC, (RESOLVED, PREPARED), None, Basis.TOKENS, 0.0, 100 + 1500 + AFTER),
    "training": (
        SPEC,
        (RESOLVED, PREPARED, running(Stage.TRAIN, 600)),
        SAMPLE,
        Basis.SPEED,
        600.0,
        600 + 400 + AFTER,
    ),
    "trained": (SPEC, (RESOLVED, PREPARED, TRAINED, job(Stage.EXPORT)), None, Basis.SPEED, None, None),
    "published": (
        SPEC,
        (RESOLVED, PREPARED, TRAINED, ended(Stage.EXPORT, 50), ended(Stage.EVALUATE, 150), done(Stage.PUBLISH)),
        None,
        Basis.FINISHED,
        1200.0,
        1200.0,
    ),
}


@pytest.mark.parametrize("case", FORECASTS.values(), ids=FORECASTS.keys())
def test_forecast(case: tuple[FineTuneJobSpec, tuple[StageJob, ...], Sample | None, Any, Any, Any]) -> None:
    """Seconds times a tenth of a cent."""
    spec, jobs, sample, basis, spent, whole = case
    found = cost(*own(spec, jobs), spec=spec, sample=sample)
    assert found is not None
    assert found.basis is basis
    if spent is not None:
        assert float(found.spent) == pytest.approx(spent / 1000, abs=0.006)
    if whole is not None:
        assert float(found.forecast) == pytest.approx(whole / 1000, abs=0.006)
    else:
        assert bool(found.forecast) == (basis is not None)


def test_every_stage_has_its_time_in_the_forecast() -> None:
    """A pass's least time, validations, answers and transfers: each once for the stages that have it."""
    asked = {"fitAnswerSeconds": "1.5", "fitBesideSeconds": "25.0"}
    exact = FIT | asked | {"fitPassSeconds": "3", "fitTransferSeconds": "40"}
    resolved = done(Stage.RESOLVE, scalars=IDENTITY | exact)
    prepared = done(Stage.PREPARE, scalars={"rowsTrain": "1000", "rowsValidation": "120", "tokens": "50000"})
    found = cost(resolved, prepared)
    assert found is not None
    a_pass = math.hypot(3, 8 * 50 / 100)  # 5 s for eight examples
    validations = 4 * 120 / 8 * a_pass / 3  # four: for more, 189 steps are too few
    training = 3 * 1000 / 8 * a_pass + validations
    after = (100 + 40) + (100 + 40 + 200 * 1.5 + 25)
    assert float(found.forecast) == pytest.approx((100 + training + after) / 1000, abs=0.006)
    exported = cost(resolved, prepared, ended(Stage.TRAIN, 1000), ended(Stage.EXPORT, 50))
    assert exported is not None
    assert float(exported.forecast) == pytest.approx((1050 + 100 + 40 + 300 + 25) / 1000, abs=0.006)
    resolved = done(Stage.RESOLVE, scalars=IDENTITY | exact | {"fitEvaluationGpus": "4"})
    shared = cost(resolved, prepared, ended(Stage.TRAIN, 1000), ended(Stage.EXPORT, 50))
    assert shared is not None
    assert float(shared.forecast) == pytest.approx((1050 + 4 * (100 + 40 + 300 + 25)) / 1000, abs=0.006)


@pytest.mark.parametrize(
    ("rows", "asked"),
    [
        ({}, 200),
        ({"rowsTest": "40"}, 40),
        ({"rowsTest": "40", "rowsValidation": "70"}, 70),
        ({"rowsTest": "900", "rowsValidation": "0"}, 200),
    ],
)
def test_no_more_examples_are_asked_than_there_are(rows: dict[str, str], asked: int) -> None:
    """Of the larger part, since the exported model answers both; ``maxSamples`` where they were not counted."""
    told = {"fitAnswerSeconds": "1.5", "fitBesideSeconds": "25.0"}
    resolved = done(Stage.RESOLVE, scalars=IDENTITY | FIT | told)
    prepared = done(Stage.PREPARE, scalars={"rowsTrain": "1000", "tokens": "50000"} | rows)
    found = cost(resolved, prepared, ended(Stage.TRAIN, 1000), ended(Stage.EXPORT, 50))
    assert found is not None
    assert float(found.forecast) == pytest.approx((1050 + 100 + 1.5 * asked + 25) / 1000, abs=0.006)


def test_no_price_no_cost() -> None:
    """CPUs cost nothing here, and a budget does not stand in their way."""
    spec = limited("0.01", OnExceeded.FAIL).model_copy(update={"profile": "cpu"})
    result = plan(seen(*own(spec, (RESOLVED, PREPARED)), spec=spec), NOW)
    assert result.status.cost is None
    assert [given.stage for given in started(result)] == [Stage.TRAIN]
    assert started(result)[0].time_budget_seconds is None


def test_reused_stages_cost_nothing() -> None:
    """What was found is not paid for again, and only what is left is forecast."""
    found = [Found(stage=stage, output_digest="7" * 64) for stage in PIPELINE[:2]]
    resolved = done(Stage.RESOLVE, scalars=IDENTITY | FIT, found=found)
    told_cost = cost(resolved)
    assert told_cost is not None
    assert told_cost.spent == "0.00"
    assert float(told_cost.forecast) == pytest.approx(AFTER / 1000, abs=0.006)


def test_a_training_costs_what_it_took_though_its_pod_was_lost_at_the_end() -> None:
    """The lost pod had its result in the store, where the next one found it: the run's own, and nobody else's gift."""
    trained = ended(Stage.TRAIN, 1000)
    found = done(Stage.TRAIN, reused=True).verdict.result
    told_cost = cost(RESOLVED, PREPARED, replace(trained, verdict=replace(trained.verdict, result=found)))
    assert told_cost is not None
    assert told_cost.spent == "1.00"


def test_a_training_that_would_cost_too_much_is_not_begun() -> None:
    """onExceeded Fail: the forecast from the counted tokens is above the budget."""
    spec = limited("4.00", OnExceeded.FAIL)
    result = plan(seen(*own(spec, (RESOLVED, PREPARED)), spec=spec), NOW)
    assert started(result) == []
    assert told(result) == (Phase.FAILED, Reason.BUDGET_EXCEEDED)
    assert result.status.run is not None
    assert_says(result.status.run.message, "train:", "4.87 USD (1.4 GPU hours)", "spec.budget.maxCost", "4.00 USD")
    row = next(row for row in result.status.stages if row.name == "train")
    assert (row.state, row.started_at) == (StageState.FAILED, None)
    assert result.status.cost == CostStatus(spent="0.00", forecast="0.00", basis=Basis.FINISHED, max_cost="4.00")


@pytest.mark.parametrize(
    ("prepare", "amount"),
    [(PREPARED, "5.00"), (done(Stage.PREPARE, scalars={"rowsTrain": "1000"}), "4.00")],
    ids=["enough", "only an upper bound is known"],
)
def test_a_training_that_may_be_paid_for_is_begun(prepare: StageJob, amount: str) -> None:
    """An upper bound refuses nothing: the money that is really spent does."""
    spec = limited(amount, OnExceeded.FAIL)
    result = plan(seen(*own(spec, (RESOLVED, prepare)), spec=spec), NOW)
    assert [given.stage for given in started(result)] == [Stage.TRAIN]
    assert started(result)[0].time_budget_seconds is None


def test_a_run_that_has_cost_too_much_ends() -> None:
    """onExceeded Fail: the run fails first, then its Job goes."""
    spec = limited("0.50", OnExceeded.FAIL)
    jobs = own(spec, (RESOLVED, done(Stage.PREPARE), running(Stage.TRAIN, 600)))
    result = plan(seen(*jobs, spec=spec), NOW)
    assert told(result) == (Phase.FAILED, Reason.BUDGET_EXCEEDED)
    assert result.requeue_after == 0.0
    assert not any(isinstance(action, Delete) for action in result.actions)
    assert result.status.cost is not None
    assert result.status.cost.spent == "0.60"
    later = plan(seen(*jobs, spec=spec, status=result.status), NOW + timedelta(hours=1))
    assert [action.name for action in later.actions if isinstance(action, Delete) and action.resource == JOBS] == [
        jobs[-1].name
    ]
    assert later.status.cost == result.status.cost
    cheap = plan(seen(*own(spec, (*jobs[:2], running(Stage.TRAIN, 400))), spec=spec), NOW)
    assert told(cheap)[0] is Phase.RUNNING


def discouraged(*jobs: StageJob, deadline: int, spec: FineTuneJobSpec = SPEC) -> list[str]:
    """What is warned of on a profile with that deadline."""
    slow = PROFILES["small"].model_copy(update={"deadline_seconds": deadline})
    there = replace(seen(*own(spec, jobs), spec=spec), settings=PRICED.model_copy(update={"profiles": {"small": slow}}))
    return [each.message for each in plan(there, NOW).status.conditions if each.type == "Discouraged"]


def test_a_training_that_ends_after_its_profiles_deadline_is_warned_of() -> None:
    """1,600 seconds with loading, known once the data are counted."""
    assert discouraged(RESOLVED, PREPARED, deadline=1700) == []
    assert discouraged(RESOLVED, deadline=1500) == []
    [warning] = discouraged(RESOLVED, PREPARED, running(Stage.TRAIN, 10), deadline=1500)
    assert_says(warning, "about 0.4 hours", "'small'", "after 0.4 (DeadlineExceeded)", "deadlineSeconds", "spec.rerun")
    assert discouraged(RESOLVED, PREPARED, ended(Stage.TRAIN, 1400), deadline=1500) == []
    spec = limited("4.50", OnExceeded.CHECKPOINT)
    assert discouraged(RESOLVED, PREPARED, spec=spec, deadline=1500) == [], "the budget ends it before"


def test_a_training_gets_what_the_rest_leaves() -> None:
    """onExceeded Checkpoint: its time budget is maxCost less export and evaluation; without any, it is not begun."""
    spec = limited("4.00", OnExceeded.CHECKPOINT)
    given = started(plan(seen(*own(spec, (RESOLVED, PREPARED)), spec=spec), NOW))[0]
    assert (given.stage, given.time_budget_seconds) == (Stage.TRAIN, int(4000 - AFTER))
    spec = limited("3.30", OnExceeded.CHECKPOINT)
    poor = plan(seen(*own(spec, (RESOLVED, PREPARED)), spec=spec), NOW)
    assert told(poor) == (Phase.FAILED, Reason.BUDGET_EXCEEDED)
    assert "leaves 28 s for training" in (poor.status.run.message if poor.status.run else "")
    jobs = own(limited("0.50", OnExceeded.CHECKPOINT), (RESOLVED, PREPARED, running(Stage.TRAIN, 600)))
    assert told(plan(seen(*jobs, spec=limited("0.50", OnExceeded.CHECKPOINT)), NOW))[0] is Phase.RUNNING


@pytest.mark.parametrize(
    ("spec", "told_cost"),
    [
        (limited("4.00", OnExceeded.CHECKPOINT), "4.00"),
        (limited("9.00", OnExceeded.FAIL), ""),
        (SPEC, ""),
        (limited("4.00", OnExceeded.CHECKPOINT).model_copy(update={"profile": "cpu"}), ""),
    ],
    ids=["ends the training", "ends the run", "none", "without a price"],
)
def test_who_looks_for_results_knows_the_budget(spec: FineTuneJobSpec, told_cost: str) -> None:
    """Only one that may end a training early; a resolve that recovers a lost result is told too, other stages not."""
    asked = [
        started(plan(seen(*own(spec, jobs), spec=spec), NOW))[0] for jobs in ((), (RESOLVED,), (RESOLVED, PREPARED))
    ]
    assert [(given.stage, given.max_cost) for given in asked] == [
        (Stage.RESOLVE, told_cost),
        (Stage.PREPARE, ""),
        (Stage.TRAIN, told_cost),
    ]
    lost = job(Stage.TRAIN, verdict=JobVerdict(State.SUCCEEDED, Reason.STAGE_SUCCEEDED))
    search = started(plan(seen(*own(spec, (RESOLVED, PREPARED, lost)), spec=spec), NOW))[0]
    assert (search.stage, search.max_cost) == (Stage.RESOLVE, told_cost)


def test_a_budget_changes_no_key() -> None:
    keys = set()
    for spec in (SPEC, limited("4.00", OnExceeded.CHECKPOINT), limited("9.00", OnExceeded.FAIL)):
        keys.add(started(plan(seen(*own(spec, (RESOLVED, PREPARED)), spec=spec), NOW))[0].input_key)
    assert len(keys) == 1


def test_the_status_is_steady() -> None:
    """Cents that come by themselves are not written at every look, only a hundredth of the whole."""
    jobs = (RESOLVED, PREPARED, running(Stage.TRAIN, 600))
    first = plan(seen(*jobs, sample=SAMPLE), NOW).status
    for seconds, same in ((10, True), (200, False)):
        sample = replace(SAMPLE, eta_seconds=400 - seconds)
        again = plan(seen(*jobs, status=first, sample=sample), NOW + timedelta(seconds=seconds)).status
        assert (again.cost == first.cost) is same


def test_pods_that_a_suspension_ended_have_cost_their_time() -> None:
    """Neither does the sum fall, nor does it grow meanwhile."""
    suspended = job(Stage.TRAIN, suspended=True, verdict=JobVerdict(State.SUSPENDED, Reason.SUSPENDED, attempts=1))
    spec = SPEC.model_copy(update={"suspend": True})
    jobs, going = (RESOLVED, PREPARED), plan(seen(RESOLVED, PREPARED, running(Stage.TRAIN, 600)), NOW).status
    for moment, spent in ((0, "0.60"), (3600, "0.60")):
        then = NOW + timedelta(seconds=moment)
        going = plan(seen(*jobs, suspended, spec=spec, status=going), then).status
        assert going.cost is not None
        assert (going.cost.spent, going.stages[2].earlier_seconds, going.stages[2].started_at) == (spent, 600, None)
    resumed = replace(running(Stage.TRAIN, 0), verdict=replace(suspended.verdict, started_at=timestamp(then)))
    going = plan(seen(*jobs, resumed, status=going), then).status
    later = plan(seen(*jobs, resumed, status=going), then + timedelta(seconds=400)).status
    assert later.cost is not None
    assert (later.cost.spent, later.stages[2].earlier_seconds) == ("1.00", 600)


def test_the_sum_of_an_ended_run_is_final() -> None:
    """A new price does not change what was spent; a new run begins at nothing."""
    jobs = FORECASTS["published"][1]
    whole = plan(seen(*jobs), NOW).status
    dear = {**PROFILES, "small": Profile(accelerator=SHAPE, gpu=L4.model_copy(update={"usd_per_hour": 99}))}
    later = replace(seen(status=whole), settings=PRICED.model_copy(update={"profiles": dear}))
    assert plan(later, NOW + timedelta(days=1)).status.cost == whole.cost
    again = SPEC.model_copy(update={"rerun": "2"})
    second = current_run(observed(again, status=whole, generation=4), NOW).id
    fresh = plan(seen(job(Stage.RESOLVE, run=second), spec=again, status=whole, generation=4), NOW).status
    assert fresh.cost == CostStatus()


def together(count: int, nodes: int) -> Settings:
    """A platform whose profile has pods with several GPUs each."""
    gpus = L4.model_copy(update={"count": count})
    shape = PodShape(limits={**SHAPE.limits, "nvidia.com/gpu": str(count)})
    return PRICED.model_copy(update={"profiles": {"small": Profile(accelerator=shape, gpu=gpus, nodes=nodes)}})


@pytest.mark.parametrize(("count", "nodes"), [(1, 3), (3, 1), (2, 3)])
def test_every_gpu_of_a_training_counts_and_one_of_the_stages_after_it(count: int, nodes: int) -> None:
    """1,000 seconds of a GPU are a dollar: 600 of training on n of them, then 300 of export on one."""
    steps = (RESOLVED, PREPARED, ended(Stage.TRAIN, 600), running(Stage.EXPORT, 300))
    told = plan(replace(seen(*steps), settings=together(count, nodes)), NOW).status.cost
    assert told is not None
    assert float(told.spent) == pytest.approx(0.6 * count * nodes + 0.3)


@pytest.mark.parametrize(("count", "nodes"), [(1, 3), (4, 1), (2, 2)])
def test_forecast_and_time_budget_count_the_same_gpus(count: int, nodes: int) -> None:
    """The speed of resolve's estimate is that of all GPUs; each alone is slower. A budget of what the forecast says
    allows the training its own part of it."""
    gpus, settings = count * nodes, together(count, nodes)
    after = 2 * 100 + 3 * 200 * 512 / (100 / gpus)
    there = replace(seen(RESOLVED, PREPARED), settings=settings)
    found = plan(there, NOW).status.cost
    assert found is not None
    assert float(found.forecast) == pytest.approx(((100 + 1500) * gpus + after) / 1000, abs=0.006)
    spec = limited(found.forecast, OnExceeded.CHECKPOINT)
    paid = replace(seen(*own(spec, (RESOLVED, PREPARED)), spec=spec), settings=settings)
    made = [action.object for action in plan(paid, NOW).actions if isinstance(action, Create)]
    given = StageInput.model_validate_json(next(each for each in made if "data" in each)["data"]["input.json"])
    assert given.stage is Stage.TRAIN
    assert given.time_budget_seconds == pytest.approx(1600, abs=6 / gpus + 1)
