"""Judgements over losses as tables; and the watchdog of hung steps against steps that really hang."""

import random
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from finetune_api.meta import ExitCode
from finetune_api.reasons import Reason
from finetune_jobs.base.errors import StageError
from finetune_jobs.base.progress import Progress
from finetune_jobs.training.callbacks import Reporting
from finetune_jobs.training.stall import StallWatch
from finetune_jobs.training.watchdogs import diverged, ending, not_finite, overfits
from tests.support.sentences import assert_says

pytestmark = [pytest.mark.unit, pytest.mark.slow]

FALLING = [2.0, 1.5, 1.1, 0.8, 0.6, 0.5, 0.4, 0.3]
FLAT = [2.0, 1.0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]


def history(train: list[float], validation: list[float], every: int = 10) -> list[dict[str, float]]:
    """A log with ``every`` steps before each validation."""
    entries: list[dict[str, float]] = []
    for place, (loss, eval_loss) in enumerate(zip(train, validation, strict=False)):
        steps = range(place * every + 1, (place + 1) * every + 1)
        entries += [{"loss": loss, "grad_norm": 1.0, "step": step} for step in steps]
        entries.append({"eval_loss": eval_loss, "step": (place + 1) * every})
    return entries


@pytest.mark.parametrize(
    ("logs", "name"),
    [
        ({"loss": 1.0, "grad_norm": 2.0}, ""),
        ({"loss": float("nan"), "grad_norm": 2.0}, "loss"),
        ({"loss": 1.0, "grad_norm": float("inf")}, "grad_norm"),
        ({"eval_loss": float("nan")}, "eval_loss"),
        ({"learning_rate": 1e-4}, ""),
    ],
)
def test_what_is_no_number_is_named(logs: dict[str, float], name: str) -> None:
    assert not_finite(logs) == name


@pytest.mark.parametrize(
    ("losses", "found"),
    [
        ([2.0] * 10 + [3.5] * 10, True),
        ([2.0] * 10 + [1.0] * 50 + [3.1] * 10, True),
        ([2.0] * 10 + [2.9] * 10, False),
        ([2.0] * 19 + [50.0], False),  # one odd batch
        ([2.0] * 10 + [9.0] * 9, False),  # too early to say
        ([0.01] * 10 + [0.4] * 10, False),  # known by heart before, and noisy
        ([2.0] * 10 + [5.0] * 3 + [1.0] * 17, False),  # it has recovered
    ],
)
def test_divergence_is_a_loss_far_above_the_beginning(losses: list[float], found: bool) -> None:
    assert diverged(losses) is found


def test_a_noisy_training_that_gets_nowhere_has_not_diverged() -> None:
    noise = random.Random(3)
    losses = [max(0.0, noise.gauss(2.0, 0.6)) for _ in range(2000)]
    assert not any(diverged(losses[:steps]) for steps in range(2000))


@pytest.mark.parametrize(
    ("train", "validation", "found"),
    [
        (FALLING, [1.0, 0.8, 0.7, 0.75, 0.8], True),
        (FALLING, [1.0, 0.8, 0.7, 0.75], False),  # once is no trend
        (FALLING, [1.0, 0.8, 0.7, 0.702, 0.703], False),  # noise
        (FALLING, [1.0, 0.8, 0.7, 0.9, 0.69], False),
        (FALLING, [0.7, 0.8, 0.9], True),
        (FLAT, [1.0, 0.6, 0.5, 0.6, 0.7], False),  # not learnt by heart: it gets worse everywhere
        (FALLING, [0.7, 0.8], False),
        ([], [], False),
    ],
)
def test_overfitting_is_a_validation_that_rises_while_the_training_falls(
    train: list[float], validation: list[float], found: bool
) -> None:
    assert overfits(history(train, validation)) is found


@pytest.mark.parametrize(
    ("train", "validation", "planned", "reason", "says"),
    [
        (FALLING, [0.9, 0.7, 0.6, 0.5], 40, Reason.TRAINING_COMPLETED, "All 40 steps … weights of step 40"),
        (FALLING, [0.9, 0.7, 0.7, 0.7, 0.7], 90, Reason.PLATEAU, "step 50 of 90; … weights of step 20"),
        (
            FALLING,
            [0.9, 0.7, 0.8, 0.9, 1.0],
            90,
            Reason.OVERFITTING,
            "step 20 … validation loss rose to 1.0000",
        ),
        (FALLING, [0.9, 0.7, 0.8, 0.9, 1.0], 50, Reason.OVERFITTING, "(validation loss 0.7000)"),
    ],
)
def test_a_training_says_how_it_ended(
    train: list[float], validation: list[float], planned: int, reason: Reason, says: str
) -> None:
    best = min(validation)
    kept = (10 * (validation.index(best) + 1), best)
    found = ending(history(train, validation), 10 * len(validation), planned, kept)
    assert found.reason is reason
    assert_says(found.message, *says.split(" … "))


def test_the_time_left_after_a_restart_follows_from_the_steps_of_this_pod() -> None:
    """It has loaded for a minute, and goes on at step 800 with 5 s a step."""
    now = [0.0]
    progress = Progress("train", clock=lambda: now[0])
    reporting = Reporting(progress)
    state = SimpleNamespace(global_step=800, max_steps=1000, log_history=[], best_metric=None)
    progress.report(0.0, "loading the base model")
    now[0] = 60.0
    reporting.on_train_begin(None, state, None)
    assert progress.eta_seconds is None
    for _ in range(2):
        now[0] += 5.0
        state.global_step += 1
        reporting.on_log(SimpleNamespace(learning_rate=1e-4), state, None, {"loss": 1.0})
        left = 5 * (1000 - state.global_step)
        assert left <= (progress.eta_seconds or 0) <= 1.3 * left, "the stage's last twentieth is counted too"


def alive(watch: StallWatch, step: int) -> None:
    watch.on_step_end(None, SimpleNamespace(global_step=step), None)


def test_a_step_that_hangs_in_python_ends_with_its_reason() -> None:
    ended: list[int] = []
    watch = StallWatch(at_least=0.2, last_chance=5.0, end_process=ended.append)
    begin = time.monotonic()

    def hang() -> None:
        with watch:
            alive(watch, 7)
            threading.Event().wait(30)  # a lock that nobody opens

    with pytest.raises(StageError, match=r"After step 7 .* no sign of life") as raised:
        hang()
    assert raised.value.reason is Reason.STEP_HUNG
    assert raised.value.retriable
    assert time.monotonic() - begin < 25, "not until the lock gives up"
    assert not ended


def test_a_step_that_hangs_outside_python_ends_the_process() -> None:
    """The training's thread never gets to Python's signal handler: stood in for by one that ignores the exception."""
    ended = threading.Event()
    codes: list[int] = []

    def end(code: int) -> None:
        codes.append(code)
        ended.set()

    watch = StallWatch(at_least=0.2, last_chance=0.2, end_process=end)
    with watch:
        for _ in range(2):
            try:
                ended.wait(10)
            except StageError:
                continue
    assert codes == [ExitCode.RETRIABLE]


def test_slow_steps_that_are_alive_are_left_alone() -> None:
    """By a clock on which a step takes no longer because the machine is busy."""
    now = [0.0]
    watch = StallWatch(at_least=0.3, end_process=lambda code: pytest.fail(f"ended with {code}"), clock=lambda: now[0])
    with watch:
        for step in range(6):
            time.sleep(0.1)
            now[0] += 0.1
            alive(watch, step)


def test_the_limit_grows_with_the_usual_distance() -> None:
    now = [0.0]
    watch = StallWatch(at_least=900, clock=lambda: now[0])
    assert watch.limit == 900
    for step in range(9):
        now[0] += 120.0
        alive(watch, step)
    assert watch.limit == 2400


def test_validation_and_passes_are_signs_of_life() -> None:
    now = [0.0]
    watch = StallWatch(clock=lambda: now[0])
    for sign in (watch.on_substep_end, watch.on_prediction_step, watch.on_save):
        now[0] += 60.0
        sign(None, SimpleNamespace(global_step=1), None)
    distances: Any = watch._distances
    assert list(distances) == [60.0] * 3
