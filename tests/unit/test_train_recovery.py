"""Work that is never lost: memory that runs out, pods that are stopped in the middle of a step, attempts that meet."""

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from finetune_api.reasons import Reason
from finetune_api.training import Method, Quantization, Training
from finetune_jobs.base.errors import StageError, StoppedError
from finetune_jobs.base.progress import Measurement, Progress
from finetune_jobs.fit.recipe import Batch
from finetune_jobs.store.s3 import Store
from finetune_jobs.training.callbacks import Checkpointing
from finetune_jobs.training.checkpoints import Checkpoints
from finetune_jobs.training.context import TrainingContext
from finetune_jobs.training.label_loss import LabelLossTrainer
from finetune_jobs.training.ownership import STATE, RunState
from finetune_jobs.training.time_budget import TimeBudget
from finetune_jobs.training.trainer import Trained
from tests.support.seaweedfs import SeaweedFS
from tests.support.sentences import assert_says
from tests.support.tiny_model import build_tiny_llama
from tests.support.training import LABELS, rows, run_training, settings, write_dataset

pytestmark = [pytest.mark.unit, pytest.mark.slow]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_llama(tmp_path_factory.mktemp("recovery") / "base")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("recovery") / "dataset")


def assert_same_weights(one: Path, other: Path) -> None:
    (found,), (expected,) = ((folder / "adapter").glob("*.safetensors") for folder in (one, other))
    wanted = load_file(expected)
    for name, tensor in load_file(found).items():
        assert torch.equal(tensor, wanted[name]), name


class Passes:
    """Watches every forward pass of a training, and may end one as a GPU without memory does."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        """Examples of each pass."""
        self.most = 1_000
        """Examples that the memory holds, once ``from_pass`` passes are done."""
        self.from_pass = 0
        self.error: RuntimeError = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        """By which a pass ends that does not fit."""
        self.keeps = True
        """Whether it also holds the activations."""
        self.after: Callable[[int], None] = lambda _count: None
        """Told the number of passes after each."""

    def seen(self, size: int, *, checkpointing: bool) -> None:
        self.sizes.append(size)
        fits = size <= self.most and (self.keeps or checkpointing)
        if not fits and len(self.sizes) > self.from_pass:
            raise self.error
        self.after(len(self.sizes))


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Passes:
    watched, original = Passes(), LabelLossTrainer.compute_loss

    def compute_loss(self: Any, model: Any, inputs: dict[str, Any], *rest: Any, **options: Any) -> Any:
        if model.training:
            ends = inputs.get("cu_seq_lens_q")
            size = len(inputs["input_ids"]) if ends is None else len(ends) - 1
            watched.seen(size, checkpointing=self.model.is_activation_checkpointing)
        return original(self, model, inputs, *rest, **options)

    monkeypatch.setattr(LabelLossTrainer, "compute_loss", compute_loss)
    return watched


class AtStep(Progress):
    """Does something once a step is done."""

    def __init__(self, step: int, act: Callable[[], object]) -> None:
        super().__init__("train")
        self._step, self._act = step, act

    def record(self, measurement: Measurement) -> None:
        super().record(measurement)
        if measurement.loss is not None and measurement.step == self._step:
            self._act()


def state_of(store: Store) -> RunState:
    return RunState.model_validate_json(store.get(STATE) or b"")


def test_a_batch_that_memory_does_not_hold_is_halved_and_the_training_goes_on(
    passes: Passes, base: Path, dataset: Path, store: Store, tmp_path: Path
) -> None:
    """The memory runs out in the fourth pass, the first of the second epoch, after the checkpoint of step 2 (four steps
    of four examples)."""
    training = settings(max_steps=4, checkpoint_steps=2, dropout="0", learning_rate="1e-3")
    whole = run_training(base, dataset, tmp_path / "whole", training, store.below("whole"))
    assert passes.sizes == [4] * 4

    passes.sizes.clear()
    passes.most, passes.from_pass = 1, 3
    halved = run_training(base, dataset, tmp_path / "halved", training, store.below("halved"))

    assert passes.sizes == [4] * 4 + [4, 2] + [1] * 8
    assert (whole.batch, halved.batch) == (Batch(4, 1), Batch(1, 4))
    assert (halved.steps, halved.tokens) == (whole.steps, whole.tokens)
    # The same examples a step and the same mean over their tokens; only rounding differs.
    assert halved.validation_loss == pytest.approx(whole.validation_loss, rel=0.02)
    state = state_of(store.below("halved"))
    assert (state.batch_size, state.gradient_accumulation) == (1, 4)


@pytest.mark.parametrize("method", [Method.QLORA, Method.FULL])
def test_activations_are_given_up_before_passes_get_smaller(
    method: Method, passes: Passes, base: Path, dataset: Path, store: Store, tmp_path: Path
) -> None:
    """From the fourth pass on, after the checkpoint of step 2, by an error that is not PyTorch's own. It is the same
    training bit for bit, dropout and all, and the next pod does not try again."""
    training = settings(method, max_steps=4, checkpoint_steps=2, dropout="0.1")
    whole = run_training(base, dataset, tmp_path / "whole", training, store.below("whole"))
    passes.sizes.clear()
    passes.keeps, passes.from_pass = False, 3
    passes.error = torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be reported later.")

    sparing = run_training(base, dataset, tmp_path / "sparing", training, store.below("sparing"))

    assert passes.sizes == [4] * 4 + [4] * 2
    assert sparing == replace(whole, step=whole.step.with_least())
    assert_same_weights(tmp_path / "sparing", tmp_path / "whole")
    assert state_of(store.below("sparing")).checkpointing
    passes.sizes.clear()
    passes.from_pass = 0
    run_training(base, dataset, tmp_path / "next", training, store.below("sparing"))
    assert passes.sizes == []


def test_of_several_processes_any_may_say_that_activations_do_not_fit(store: Store) -> None:
    kept = Checkpoints(store)
    assert not kept.checkpointing(False)
    assert kept.checkpointing(True)
    kept.remember_too_large()
    kept.remember_too_large(Batch(4, 1))
    later = Checkpoints(store)
    assert later.checkpointing(False)
    assert later.batch(Batch(4, 1)) == Batch(2, 2)


def test_the_next_pod_begins_with_the_batch_that_fits(
    passes: Passes, base: Path, dataset: Path, store: Store, tmp_path: Path
) -> None:
    Checkpoints(store).remember_batch(Batch(2, 2))
    run_training(base, dataset, tmp_path, settings(max_steps=2), store)
    assert passes.sizes == [2] * 4


def test_one_example_that_memory_does_not_hold_is_an_error(
    passes: Passes, base: Path, dataset: Path, store: Store, tmp_path: Path
) -> None:
    passes.most = 0
    with pytest.raises(
        StageError, match=r"GPU's memory .* one example of up to 512 tokens, with method QLoRA"
    ) as raised:
        run_training(base, dataset, tmp_path, settings(max_steps=2), store)
    assert raised.value.reason is Reason.CUDA_OUT_OF_MEMORY
    assert not raised.value.retriable
    assert passes.sizes == [4, 4, 2, 1]


def in_five_steps(method: Method) -> Training:
    """Five steps of two passes, three an epoch, with dropout."""
    return settings(method, batch_size=2, gradient_accumulation=2, max_steps=5, checkpoint_steps=3, dropout="0.1")


@pytest.fixture(scope="module")
def undisturbed(
    base: Path, dataset: Path, s3: SeaweedFS, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Method], tuple[Trained, Path]]:
    """Five steps that nothing disturbs, made once for each method: what was told of them, and their folder."""

    @cache
    def run(method: Method) -> tuple[Trained, Path]:
        folder = tmp_path_factory.mktemp("undisturbed")
        store = Store.connect(s3.storage, f"s3://data/undisturbed-{method}")
        return run_training(base, dataset, folder, in_five_steps(method), store), folder

    return run


@pytest.mark.parametrize(
    ("method", "stop_in", "saved"),
    [
        (Method.LORA, 3, 1),  # in the middle of a step
        (Method.LORA, 4, 2),  # in its last pass: the step is finished
        (Method.LORA, 7, 3),  # in the first step of the second epoch, just after a checkpoint
        (Method.FULL, 9, 4),
    ],
)
def test_a_step_that_was_given_up_is_repeated_exactly(
    method: Method,
    stop_in: int,
    saved: int,
    undisturbed: Callable[[Method], tuple[Trained, Path]],
    passes: Passes,
    base: Path,
    dataset: Path,
    store: Store,
    tmp_path: Path,
) -> None:
    """Dropout draws in each pass, so the next pod needs the random states of the step's beginning: the same weights bit
    for bit."""
    training, stopping = in_five_steps(method), threading.Event()
    whole, folder = undisturbed(method)
    passes.sizes.clear()
    passes.after = lambda count: stopping.set() if count == stop_in else None

    with pytest.raises(StoppedError, match=f"step {saved} of 5 is saved"):
        run_training(base, dataset, tmp_path / "first", training, store.below("stopped"), stopping=stopping)
    assert len(passes.sizes) == stop_in
    passes.after = lambda _count: None
    resumed = run_training(base, dataset, tmp_path / "second", training, store.below("stopped"))

    assert resumed == whole
    assert_same_weights(tmp_path / "second", folder)


def test_a_pod_that_is_stopped_before_its_first_step_has_nothing_to_save(
    passes: Passes, base: Path, dataset: Path, store: Store, tmp_path: Path
) -> None:
    stopping = threading.Event()
    passes.after = lambda _count: stopping.set()
    training = settings(batch_size=1, gradient_accumulation=4, max_steps=4, epochs=2)
    with pytest.raises(StoppedError, match="step 0 of 4 is saved"):
        run_training(base, dataset, tmp_path, training, store, stopping=stopping)
    assert [entry.key for entry in store.list()] == [STATE]


def test_an_attempt_that_was_replaced_stops_without_writing(
    base: Path, dataset: Path, store: Store, tmp_path: Path
) -> None:
    taking_over = AtStep(3, lambda: Checkpoints(store))
    training = settings(epochs=40, checkpoint_steps=2)
    with pytest.raises(StageError, match=r"newer attempt .* writes nothing more") as raised:
        run_training(base, dataset, tmp_path, training, store, progress=taking_over)
    assert raised.value.reason is Reason.SUPERSEDED
    state = state_of(store)
    assert state.attempt == 2
    assert {place.rpartition("/")[2] for place in state.checkpoints} <= {"checkpoint-2"}
    assert all(place.startswith("attempt-1-") for place in state.checkpoints)
    assert not (tmp_path / "adapter").exists()


def test_slow_steps_are_saved_by_the_clock(store: Store, tmp_path: Path) -> None:
    """Four minutes a step and no validation for long: every third step is saved."""
    now = [0.0]
    context = TrainingContext(Checkpoints(store), Progress("train"), threading.Event())
    checkpointing = Checkpointing(context, tmp_path, minutes=10, save=lambda: None, clock=lambda: now[0])
    due = []
    for step in range(1, 7):
        now[0] += 240.0
        control = SimpleNamespace(should_save=False)
        state = SimpleNamespace(global_step=step, max_steps=100)
        checkpointing.on_step_end(None, state, control)
        due.append(control.should_save)
        if control.should_save:
            checkpointing.on_save(None, state, control)
    assert due == [False, False, True, False, False, True]


def test_checkpoints_that_take_long_are_made_less_often(store: Store, tmp_path: Path) -> None:
    """Five minutes to write one: by Young's rule for four hours, sqrt(2 × 300 × 14,400) = 2,939 s lie between them."""
    now = [0.0]
    context = TrainingContext(Checkpoints(store), Progress("train"), threading.Event())
    checkpointing = Checkpointing(context, tmp_path, minutes=10, save=lambda: None, clock=lambda: now[0])
    due = []
    for step in range(1, 18):
        now[0] += 240.0
        control, state = SimpleNamespace(should_save=False), SimpleNamespace(global_step=step, max_steps=100)
        checkpointing.on_step_end(None, state, control)
        due.append(control.should_save)
        if control.should_save:
            now[0] += 300.0
            checkpointing.on_save(None, state, control)
    assert [step for step, late in enumerate(due, 1) if late] == [3, 16]


@pytest.mark.parametrize("within", [True, False], ids=["within a step", "after a step"])
def test_a_checkpoint_that_would_take_too_long_is_not_begun_at_the_end(
    within: bool, store: Store, tmp_path: Path
) -> None:
    """The last one took 50 s to write, and a pod that is told to stop has 40: the newest that is stored counts."""
    now, begun = [0.0], []
    (tmp_path / "checkpoint-3").mkdir()
    (tmp_path / "checkpoint-3/trainer_state.json").write_text("{}")
    context = TrainingContext(Checkpoints(store), Progress("train"), threading.Event())
    checkpointing = Checkpointing(
        context, tmp_path, minutes=10, save=lambda: begun.append(now[0]), clock=lambda: now[0]
    )
    control, state = SimpleNamespace(should_save=False), SimpleNamespace(global_step=3, max_steps=100)
    now[0] = 50.0
    checkpointing.on_save(None, state, control)
    state.global_step = 5
    context.stopping.set()
    ending = checkpointing.on_substep_end if within else checkpointing.on_step_end

    with pytest.raises(StoppedError, match=r"step 5 could not be saved in time; the newest saved step is 3\."):
        ending(None, state, control)

    assert not begun
    assert not control.should_save


@pytest.mark.parametrize(
    "changes",
    [
        {"quantization": Quantization.INT8},
        {"adapter": "DoRA"},
        {"method": Method.LORA, "adapter": "DoRA", "scaling": "RootOfRank"},
    ],
    ids=["int8", "qdora", "dora+rslora"],
)
def test_each_kind_of_adapter_resumes_exactly(
    changes: dict[str, Any], base: Path, dataset: Path, store: Store, tmp_path: Path
) -> None:
    fast: dict[str, Any] = {"epochs": 2, "checkpoint_steps": 2, "dropout": "0.1"}
    training = settings(**fast | changes)
    whole = run_training(base, dataset, tmp_path / "whole", training, store.below("whole"))
    stopping = threading.Event()

    with pytest.raises(StoppedError):
        run_training(
            base,
            dataset,
            tmp_path / "first",
            training,
            store.below("stopped"),
            progress=AtStep(2, stopping.set),
            stopping=stopping,
        )
    resumed = run_training(base, dataset, tmp_path / "second", training, store.below("stopped"))

    assert resumed == whole
    assert_same_weights(tmp_path / "second", tmp_path / "whole")


@pytest.mark.parametrize(
    "changes",
    [{"max_steps": 4, "checkpoint_steps": 2}, {"patience": 1, "checkpoint_steps": 2}],
    ids=["in the middle of an epoch", "out of patience"],
)
def test_a_training_that_has_ended_is_not_trained_further(
    changes: dict[str, Any], base: Path, store: Store, tmp_path: Path
) -> None:
    """Its pod is lost between the last checkpoint and the result, e.g. in a part of the learning curve. The
    validation's answers are wrong, so that its loss rises at last."""
    wrong = rows(3, first=30, labels=(*LABELS[1:], LABELS[0]))
    dataset = write_dataset(tmp_path / "dataset", validation=wrong)
    whole = run_training(base, dataset, tmp_path / "first", settings(**changes), store)
    again = run_training(base, dataset, tmp_path / "second", settings(**changes), store)
    assert again == whole
    assert_same_weights(tmp_path / "second", tmp_path / "first")


def test_a_training_ends_when_its_money_does_and_keeps_the_best_weights(
    base: Path, store: Store, tmp_path: Path
) -> None:
    """What earlier pods took counts: a second one stops after its first step."""
    dataset = write_dataset(tmp_path / "dataset")
    ages = iter(range(0, 10_000, 10))  # asked once a step, and at the end

    def limit(checkpoints: Checkpoints) -> TimeBudget:
        return TimeBudget(100, checkpoints, age=lambda: float(next(ages)))

    training = settings(max_steps=50, checkpoint_steps=3, early_stopping="Never")
    first = run_training(base, dataset, tmp_path / "first", training, store, limit=limit)
    assert first.ending.reason is Reason.BUDGET_EXCEEDED
    assert_says(first.ending.message, "spec.budget.maxCost", "100 s")
    assert 6 < first.steps < 50
    assert first.validation_loss == min(
        entry["eval_loss"]
        for entry in map(json.loads, (tmp_path / "first" / "adapter" / "train_log.jsonl").read_text().splitlines())
        if "eval_loss" in entry
    )
    assert Checkpoints(store).seconds >= 100
    again = run_training(base, dataset, tmp_path / "second", training, store, limit=limit)
    assert again.steps == first.steps + 1
    unlimited = run_training(base, dataset, tmp_path / "third", settings(max_steps=3), store.below("other"))
    assert unlimited.ending.reason is Reason.TRAINING_COMPLETED


def test_a_pod_that_is_stopped_leaves_its_seconds_behind(
    passes: Passes, base: Path, dataset: Path, store: Store, tmp_path: Path
) -> None:
    """In the middle of a step, long before the first regular checkpoint; the next pod is stopped as early."""
    training = settings(batch_size=1, gradient_accumulation=4, max_steps=6, epochs=2, checkpoint_steps=6)
    for attempt in (1, 2):
        stopping = threading.Event()
        passes.sizes.clear()
        passes.after = lambda count, told=stopping: told.set() if count == 6 else None  # type: ignore[misc]
        with pytest.raises(StoppedError):
            run_training(
                base,
                dataset,
                tmp_path / f"attempt{attempt}",
                training,
                store,
                stopping=stopping,
                limit=lambda checkpoints: TimeBudget(100, checkpoints, age=lambda: 40.0),
            )
        assert state_of(store).seconds == 40.0 * attempt


def test_what_is_spent_is_noted_by_the_clock_and_a_store_that_is_away_costs_the_note(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A pod that is killed can say nothing at its end."""
    monkeypatch.setattr("finetune_jobs.training.time_budget.NOTE_SECONDS", 0.01)
    noted, twice = [], threading.Event()

    def note(seconds: float) -> None:
        noted.append(seconds)
        if len(noted) == 1:
            raise StageError(Reason.S3_UNREACHABLE, "the endpoint did not answer in time.", retriable=True)
        twice.set()

    checkpoints: Any = SimpleNamespace(seconds=5.0, remember_seconds=note)
    with TimeBudget(100, checkpoints, age=lambda: 20.0) as time_budget:
        assert twice.wait(120)
        assert time_budget.left == 75.0
    assert set(noted) == {25.0}
    assert_says(caplog.text, "recording the time spent", "the stage continues", "the endpoint did not answer")
