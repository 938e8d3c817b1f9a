"""Training itself: real models, real bitsandbytes, real S3 for checkpoints; the model is tiny."""

import json
import math
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pytest
import torch
from accelerate import PartialState
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import TrainingArguments

from finetune_api.reasons import Reason
from finetune_api.training import Method, Training
from finetune_jobs.base.errors import StageError, StoppedError
from finetune_jobs.base.progress import Measurement, Progress
from finetune_jobs.evaluation.generate import Questions, generate_answers
from finetune_jobs.fit.recipe import Batch
from finetune_jobs.modelling import chat
from finetune_jobs.modelling.token_files import read_split
from finetune_jobs.modelling.tokenizer import load_tokenizer
from finetune_jobs.store.s3 import Store
from finetune_jobs.training import tiled_loss
from finetune_jobs.training.build import Examples, build_trainer
from finetune_jobs.training.checkpoints import Checkpoints
from finetune_jobs.training.label_loss import LabelLossTrainer
from finetune_jobs.training.ownership import STATE
from finetune_jobs.training.trainer import Trained
from tests.support.seaweedfs import ADMIN, SeaweedFS
from tests.support.tiny_model import LORA_TARGETS, build_tiny_llama
from tests.support.training import (
    load_for_training,
    load_tuned,
    read_examples,
    rows,
    run_training,
    settings,
    write_dataset,
)

pytestmark = [pytest.mark.unit, pytest.mark.slow]

METHODS = pytest.mark.parametrize("method", list(Method))
ADAPTERS = pytest.mark.parametrize("method", [Method.QLORA, Method.LORA])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_llama(tmp_path_factory.mktemp("train") / "base")


def weights(tuned: Path) -> dict[str, torch.Tensor]:
    (file,) = tuned.glob("*.safetensors")
    loaded: dict[str, torch.Tensor] = load_file(file)
    return loaded


def log_of(adapter: Path, key: str) -> list[float]:
    entries = [json.loads(line) for line in (adapter / "train_log.jsonl").read_text().splitlines()]
    return [entry[key] for entry in entries if key in entry]


class StopAfter(Progress):
    """Tells the training to stop once a number of steps are done."""

    def __init__(self, steps: int, stopping: threading.Event) -> None:
        super().__init__("train")
        self._steps, self._stopping = steps, stopping

    def record(self, measurement: Measurement) -> None:
        super().record(measurement)
        self._steps -= measurement.loss is not None
        if self._steps == 0:
            self._stopping.set()


@pytest.mark.parametrize(("method", "epochs"), [(Method.QLORA, 14), (Method.LORA, 14), (Method.FULL, 8)])
def test_a_few_rows_are_learnt_by_heart(method: Method, epochs: int, base: Path, store: Store, tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "dataset")

    trained = run_training(base, dataset, tmp_path, settings(method, epochs=epochs), store)

    adapter = tmp_path / "adapter"
    tokenizer = load_tokenizer(base)
    examples = read_split(dataset, "train")
    questions = Questions([example.prompt for example in examples], limit=12, batch_size=6)
    tuned = load_tuned(base, adapter, method)
    assert generate_answers(tuned, tokenizer, questions, lambda _done, _total: None) == [e.label for e in examples]
    assert trained.steps == 3 * epochs
    assert trained.validation_loss == min(log_of(adapter, "eval_loss")) < 0.2
    assert trained.train_loss == pytest.approx(sum(log_of(adapter, "loss")[-20:]) / 20)
    tokens = sum(map(len, read_examples(base, dataset, "train")["input_ids"]))
    assert trained.tokens == epochs * tokens
    assert trained.trainable_parameters == sum(tensor.numel() for tensor in weights(adapter).values())


@pytest.fixture(scope="module")
def trainings(s3: SeaweedFS) -> Iterator[Store]:
    """A place for trainings of which several tests look at what they left."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ADMIN.environment().items():
            patch.setenv(name, value)
        yield Store.connect(s3.storage, f"s3://data/{uuid.uuid4().hex}")


@dataclass(frozen=True)
class Finished:
    """One of them."""

    folder: Path
    store: Store
    trained: Trained
    progress: Progress

    @classmethod
    def of(cls, base: Path, dataset: Path, folder: Path, training: Training, store: Store) -> Self:
        """Train below ``folder``."""
        progress = Progress("train")
        return cls(folder, store, run_training(base, dataset, folder, training, store, progress=progress), progress)


@pytest.fixture(scope="module")
def six_steps(base: Path, trainings: Store, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A checkpoint after each second one."""
    folder, training = tmp_path_factory.mktemp("six-steps"), settings(max_steps=6, checkpoint_steps=2)
    return Finished.of(base, write_dataset(folder / "dataset"), folder, training, trainings.below("six-steps"))


def test_the_adapter_names_its_base_and_nothing_of_this_machine(six_steps: Finished, base: Path) -> None:
    adapter = six_steps.folder / "adapter"
    assert {file.name for file in adapter.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "train_log.jsonl",
        "tuning.json",
    }
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "s3://data/model"
    assert config["target_modules"] == sorted(config["target_modules"])
    assert {name.rpartition(".")[2] for name in config["target_modules"]} == set(LORA_TARGETS)
    assert (adapter / "tokenizer_config.json").read_bytes() == (base / "tokenizer_config.json").read_bytes()
    assert {tensor.dtype for tensor in weights(adapter).values()} == {torch.float32}
    assert not any(str(six_steps.folder) in file.read_text() for file in adapter.glob("*.json*"))


@METHODS
def test_the_loss_is_that_of_the_whole_model(method: Method, base: Path, tmp_path: Path) -> None:
    """Against cross entropy over all logits of the model's own forward, in value and gradient."""
    trainer, batch = trainer_and_batch(method, base, tmp_path)

    loss = trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=torch.tensor(40))
    gradients = gradients_of(trainer, loss)

    with trainer.accelerator.autocast():
        logits = trainer.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.float()
    targets = batch["labels"][:, 1:].flatten()
    plain = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), targets, reduction="sum") / 40
    assert loss.item() == pytest.approx(plain.item(), rel=1e-3)
    for name, expected in gradients_of(trainer, plain).items():
        torch.testing.assert_close(gradients[name], expected, rtol=0.05, atol=0.02 * float(expected.abs().max()))


def trainer_and_batch(method: Method, base: Path, folder: Path) -> tuple[LabelLossTrainer, Any]:
    tokenizer = load_tokenizer(base)
    training = settings(method, dropout="0")
    model = load_for_training(base, training)
    dataset = write_dataset(folder / "dataset")
    examples = read_examples(base, dataset, "train")
    trainer = build_trainer(
        model, Examples(examples, examples, tokenizer), training, folder / "work", Batch.of(training)
    )
    return trainer, trainer._prepare_inputs(trainer.data_collator(examples.select(range(3)).to_list()))


def gradients_of(trainer: LabelLossTrainer, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    trainer.model.zero_grad()
    loss.backward()
    return {
        name: parameter.grad.clone()
        for name, parameter in trainer.model.named_parameters()
        if parameter.requires_grad and "lora_A" not in name  # which has no gradient while lora_B is zero
    }


def test_only_labelled_positions_go_through_the_head(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, batch = trainer_and_batch(Method.LORA, base, tmp_path)
    seen: list[int] = []
    original = tiled_loss.tiled_loss

    def noted(hidden: torch.Tensor, *others: Any) -> torch.Tensor:
        seen.append(len(hidden))
        return original(hidden, *others)

    monkeypatch.setattr(tiled_loss, "tiled_loss", noted)

    trainer.compute_loss(trainer.model, dict(batch))

    assert seen == [int((batch["labels"] != chat.IGNORED).sum())]


class Asked(TorchDispatchMode):  # type: ignore[misc] # torch's types are not looked at
    """Notes what would make the CPU wait for a GPU: a number that Python reads, a size that depends on numbers."""

    WAITING = frozenset({"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal"})

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.name().partition(".")[0] in self.WAITING:
            self.found.append(function.name())
        return function(*args, **kwargs or {})


@METHODS
def test_no_pass_waits_for_the_gpu(method: Method, base: Path, tmp_path: Path) -> None:
    """From a batch to its gradients, and the count of its tokens: only where a step's loss is logged is one asked.

    With plain attention: the mask of padded examples for another asks whether there is padding, and the examples of a
    row are taken apart here by numbers that FlashAttention reads on the GPU.
    """
    trainer, batch = trainer_and_batch(method, base, tmp_path)
    trainer.model.set_attn_implementation("eager")
    trainer.current_gradient_accumulation_steps = 1
    with Asked() as asked:
        trainer._track_num_input_tokens(batch)
        trainer.training_step(trainer.model, dict(batch), torch.tensor(40))
    assert asked.found == []
    with Asked() as asked:
        trainer.log({})
    assert asked.found
    assert trainer.state.num_input_tokens_seen == int(batch["attention_mask"].sum())


@METHODS
def test_the_optimiser_is_fused(method: Method, base: Path, tmp_path: Path) -> None:
    trainer, _ = trainer_and_batch(method, base, tmp_path)
    assert trainer.create_optimizer().defaults["fused"]


def test_one_process_has_one_gpu_however_many_its_pod_shows(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TRL refuses to spread a model over what it sees (DataParallel)."""
    monkeypatch.setattr(TrainingArguments, "_setup_devices", property(shows_four))
    trainer, _ = trainer_and_batch(Method.LORA, base, tmp_path)
    assert (trainer.args.n_gpu, trainer.args.train_batch_size) == (1, trainer.args.per_device_train_batch_size)


def shows_four(arguments: Any) -> torch.device:
    """The device as transformers finds it, and how many it counts when it first looks."""
    if not hasattr(arguments, "_n_gpu"):
        arguments._n_gpu = 4
        arguments.distributed_state = PartialState(cpu=True)
    return torch.device("cpu")


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_the_validation_loss_is_that_per_token_whatever_the_batch(size: int, base: Path, tmp_path: Path) -> None:
    """Answers of very different length, so that a mean of means would be another number for each batch."""
    tokenizer, training = load_tokenizer(base), settings(Method.LORA, batch_size=size)
    answers = ("refund", "the quick brown fox jumps over the lazy dog", "other fox")
    dataset = write_dataset(tmp_path / "dataset", validation=rows(5, labels=answers))
    examples = read_examples(base, dataset, "validation")
    model = load_for_training(base, training)
    trainer = build_trainer(
        model, Examples(examples, examples, tokenizer), training, tmp_path / "work", Batch.of(training)
    )

    found = trainer.evaluate()["eval_loss"]

    total, tokens = 0.0, 0
    for example in examples:
        with torch.no_grad(), trainer.accelerator.autocast():
            logits = trainer.model(input_ids=torch.tensor([example["input_ids"]])).logits[0, :-1].float()
        labels = torch.tensor(example["labels"][1:])
        total += torch.nn.functional.cross_entropy(logits, labels, reduction="sum").item()
        tokens += int((labels != chat.IGNORED).sum())
    assert found == pytest.approx(total / tokens, rel=2e-3)


@ADAPTERS
def test_adapters_train_in_float32(method: Method, base: Path, tmp_path: Path) -> None:
    """In bfloat16 small updates round to nothing: with this rate most weights would not move at all."""
    dataset = write_dataset(tmp_path / "dataset")
    tokenizer = load_tokenizer(base)
    examples = read_examples(base, dataset, "train")
    training = settings(method, learning_rate="1e-5", max_steps=3)
    model = load_for_training(base, training)
    trainer = build_trainer(
        model, Examples(examples, examples, tokenizer), training, tmp_path / "work", Batch.of(training)
    )
    parameters = {n: p for n, p in trainer.model.named_parameters() if p.requires_grad and "lora_A" in n}
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}

    trainer.train()

    assert {parameter.dtype for parameter in parameters.values()} == {torch.float32}
    moved = torch.cat([(parameter.detach() != before[name]).flatten() for name, parameter in parameters.items()])
    assert moved.float().mean() > 0.99


@METHODS
def test_validation_changes_neither_the_base_nor_the_gradients(method: Method, base: Path, tmp_path: Path) -> None:
    """bitsandbytes repacks 4-bit weights in eval mode on some CPUs, with a loss and without a backward pass."""
    trainer, batch = trainer_and_batch(method, base, tmp_path)

    loss = trainer.compute_loss(trainer.model.train(), dict(batch))
    before = gradients_of(trainer, loss)
    trainer.evaluate()
    again = trainer.compute_loss(trainer.model.train(), dict(batch))

    assert torch.equal(again, loss)
    for name, gradient in gradients_of(trainer, again).items():
        assert torch.equal(gradient, before[name]), name


@METHODS
def test_a_training_that_was_stopped_ends_as_if_it_had_not_been(
    method: Method, base: Path, store: Store, tmp_path: Path
) -> None:
    """Stopped twice, each time going on in a new folder: the same weights bit for bit, on the same machine."""
    dataset = write_dataset(tmp_path / "dataset")
    training = settings(method, epochs=3, checkpoint_steps=4, dropout="0.1")
    whole = run_training(base, dataset, tmp_path / "whole", training, store.below("whole"))

    for attempt, steps in enumerate((2, 4)):
        stopping = threading.Event()
        with pytest.raises(StoppedError, match="is saved"):
            run_training(
                base,
                dataset,
                tmp_path / f"attempt{attempt}",
                training,
                store.below("stopped"),
                progress=StopAfter(steps, stopping),
                stopping=stopping,
            )
    resumed = run_training(base, dataset, tmp_path / "last", training, store.below("stopped"))

    assert resumed == whole
    assert log_of(tmp_path / "last/adapter", "loss") == log_of(tmp_path / "whole/adapter", "loss")
    expected = weights(tmp_path / "whole/adapter")
    for name, tensor in weights(tmp_path / "last/adapter").items():
        assert torch.equal(tensor, expected[name]), name


def test_only_the_best_and_the_newest_checkpoint_are_kept_and_no_pickle_of_the_settings(six_steps: Finished) -> None:
    names = [entry.key for entry in six_steps.store.list() if entry.key != STATE]
    assert {name.split("/")[1] for name in names} == {"checkpoint-4", "checkpoint-6"}
    files = {name.split("/")[2] for name in names}
    assert {"adapter_model.safetensors", "optimizer.pt", "trainer_state.json", "manifest.json"} <= files
    assert "training_args.bin" not in files
    assert not [*six_steps.folder.rglob("README.md")], "a card costs a tenth of a second each time"


def test_a_checkpoint_cut_in_half_costs_time_only(six_steps: Finished, store: Store, tmp_path: Path) -> None:
    for each in six_steps.store.list():
        store.put(each.key, six_steps.store.get(each.key) or b"")
    (weights,) = (each.key for each in store.list() if each.key.endswith("/checkpoint-6/adapter_model.safetensors"))
    whole = store.get(weights) or b""
    store.put(weights, whole[: len(whole) // 2])

    restored = Checkpoints(store).restore(tmp_path / "elsewhere")

    assert restored == tmp_path / "elsewhere/checkpoint-4"
    assert not (tmp_path / "elsewhere/checkpoint-6").exists()
    assert Checkpoints(store).restore(tmp_path / "again") == tmp_path / "again/checkpoint-4"
    assert Checkpoints(store.below("nothing")).restore(tmp_path / "nowhere") is None


UNTIL_IT_IS_WORSE = settings(epochs=10, checkpoint_steps=3)


@pytest.fixture(scope="module")
def worsening(base: Path, trainings: Store, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Labels of the validation rows contradict those that are trained on."""
    folder = tmp_path_factory.mktemp("worsening")
    contradicting = rows(6, labels=("question", "other fox", "refund"))
    dataset = write_dataset(folder / "dataset", train=rows(12), validation=contradicting)
    return Finished.of(base, dataset, folder, UNTIL_IT_IS_WORSE, trainings.below("worsening"))


def test_training_ends_when_validation_gets_worse_and_the_best_weights_are_kept(worsening: Finished) -> None:
    adapter, trained = worsening.folder / "adapter", worsening.trained
    losses = log_of(adapter, "eval_loss")
    best = losses.index(min(losses))
    assert trained.steps == 3 * (best + 4) < 30  # three more validations without a better one
    assert trained.validation_loss == losses[best]
    checkpoint = load_file(worsening.folder / f"work/checkpoint-{3 * (best + 1)}/adapter_model.safetensors")
    for name, tensor in weights(adapter).items():
        assert torch.equal(tensor, checkpoint[name]), name


def test_when_the_best_checkpoint_is_lost_what_is_told_is_what_is_kept(
    worsening: Finished, base: Path, tmp_path: Path
) -> None:
    """The best of those that are left or still come: nobody is told the loss of weights that are gone."""
    store, before = worsening.store, worsening.trained
    lost = f"/checkpoint-{before.steps - 9}/manifest.json"
    for key in [each.key for each in store.list() if each.key.endswith(lost)]:
        store.delete(key)

    dataset = worsening.folder / "dataset"
    after = run_training(base, dataset, tmp_path / "after", UNTIL_IT_IS_WORSE, store)

    left = log_of(tmp_path / "after/adapter", "eval_loss")[before.steps // 3 - 1 :]
    step = before.steps + 3 * left.index(min(left))
    assert after.validation_loss == min(left) > before.validation_loss
    assert f"the weights of step {step} are kept (validation loss {min(left):.4f})" in after.ending.message
    kept = load_file(tmp_path / f"after/work/checkpoint-{step}/adapter_model.safetensors")
    for name, tensor in weights(tmp_path / "after/adapter").items():
        assert torch.equal(tensor, kept[name]), name


def test_a_loss_that_is_no_number_ends_the_training(base: Path, store: Store, tmp_path: Path) -> None:
    training = settings(learning_rate="1e30", checkpoint_steps=50)
    with pytest.raises(StageError, match=r"At step \d+ of 60 the .* with learning rate 1e\+30") as raised:
        run_training(base, write_dataset(tmp_path / "dataset"), tmp_path, training, store)
    assert raised.value.reason is Reason.LOSS_NOT_FINITE
    assert not raised.value.retriable
    assert [entry.key for entry in store.list()] == [STATE]


def test_the_seed_decides_the_weights(base: Path, store: Store, tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "dataset")
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run_training(base, dataset, tmp_path / name, settings(Method.LORA, max_steps=1, seed=seed), store.below(name))
    first, same, other = (weights(tmp_path / name / "adapter") for name in "abc")
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first if "lora_A" in name)


def test_progress_tells_step_and_losses(six_steps: Finished) -> None:
    samples = {sample.name: sample for metric in six_steps.progress.collect() for sample in metric.samples}
    assert samples["finetune_stage_progress_ratio"].value == pytest.approx(0.95)
    assert samples["finetune_stage_info"].labels["message"].startswith("step 6/6, loss ")
    assert math.isfinite(samples["finetune_train_loss"].value)
    assert math.isfinite(samples["finetune_validation_loss"].value)
    assert samples["finetune_train_tokens_total"].value > 0
