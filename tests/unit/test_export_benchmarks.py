"""The benchmarks of the export run, and their figures mean what they say."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from finetune_api.reasons import Reason
from finetune_api.training import Method, Quantization
from finetune_jobs.base.errors import StageError
from hack.benchmarks import spoiled, tuned
from hack.benchmarks.artifact_ledger import Reading, compared, read, read_once
from hack.benchmarks.gated import EXPORT, GOALS, PREPARE, REFUSED, SAFE, SECRETS, WRITTEN
from hack.benchmarks.planted_models import plants
from hack.benchmarks.tuned import BATCH, tune
from tests.support.tiny_model import build_tiny_llama
from tests.support.training import rows, write_dataset

pytestmark = [pytest.mark.unit, pytest.mark.slow]


def test_what_a_format_adds_to_the_loss_has_an_interval() -> None:
    """Twenty rows of two tokens, each 0.1 nats worse in all: 0.05 a token, and nothing to doubt."""
    adapter = Reading([0.2] * 20, [2] * 20, [True] * 20)
    worse = Reading([0.3] * 20, [2] * 20, [True] * 15 + [False] * 5)
    found = compared(worse, adapter)
    assert (found["increase"], found["low"], found["high"]) == (0.05, 0.05, 0.05)
    assert (found["loss"], found["accuracy"], found["adapterAccuracy"]) == (0.15, 0.75, 1.0)
    mixed = compared(Reading([0.0, 0.6] * 10, [2] * 20, [True] * 20), adapter)
    assert mixed["low"] < 0.05 == mixed["increase"] < mixed["high"]
    assert compared(adapter, adapter)["increase"] == 0


def test_the_loss_is_that_of_the_answer(tmp_path: Path) -> None:
    """The same as transformers computes from labels."""
    import torch

    from finetune_jobs.modelling import chat
    from finetune_jobs.modelling.loading import load_checkpoint
    from finetune_jobs.modelling.token_files import read_split
    from finetune_jobs.modelling.tokenizer import load_tokenizer

    base = build_tiny_llama(tmp_path / "base")
    examples = read_split(write_dataset(tmp_path / "dataset", test=rows(2)), "test")
    model, tokenizer = load_checkpoint(base), load_tokenizer(base)
    found = read(model, base, examples)
    for example, loss, tokens in zip(examples, found.losses, found.tokens, strict=True):
        encoded = chat.encode(tokenizer, example.messages, tokenizer.eos_token_id)
        given = {"input_ids": torch.tensor([encoded.input_ids]), "labels": torch.tensor([encoded.labels])}
        assert loss / tokens == pytest.approx(model(**given).loss.item(), rel=1e-3)


@pytest.mark.parametrize("quantization", [None, Quantization.NF4])
def test_an_adapter_learns_and_goes_on_learning(tmp_path: Path, quantization: Quantization | None) -> None:
    """Without examples it adds nothing; then the loss falls, and falls on from where it was."""
    from finetune_jobs.modelling.loading import load_adapter, load_base
    from finetune_jobs.modelling.token_files import read_split
    from finetune_jobs.modelling.tuning import Tuning, read_tuning

    base = build_tiny_llama(tmp_path / "base")
    examples = read_split(write_dataset(tmp_path / "dataset", train=rows(2 * BATCH)), "train")
    tuning = Tuning(method=Method.QLORA if quantization else Method.LORA, quantization=quantization)
    tune(base, [], tmp_path / "none", tuning)
    tune(base, examples, tmp_path / "some", tuning, rank=4, seed=1)
    tune(base, examples, tmp_path / "more", tuning, start=tmp_path / "some")
    found = [read(load_base(base, quantization), base, examples).loss]
    for name in ("none", "some", "more"):
        assert read_tuning(tmp_path / name, Method.FULL) == tuning
        found.append(read(load_adapter(load_base(base, quantization), tmp_path / name), base, examples).loss)
    assert found[0] == pytest.approx(found[1])
    assert found[1] > found[2] + 0.01
    assert found[2] > found[3] + 0.01


def test_a_training_that_was_stopped_comes_to_the_same_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.torch import load_file

    from finetune_jobs.modelling.token_files import read_split
    from finetune_jobs.modelling.tuning import Tuning

    base = build_tiny_llama(tmp_path / "base")
    examples = read_split(write_dataset(tmp_path / "dataset", train=rows(5 * BATCH)), "train")
    tuning, steps = Tuning(method=Method.LORA, quantization=None), list[int]()
    monkeypatch.setattr(tuned, "KEPT_EVERY", 2)
    loss = tuned._loss

    def stopping(*given: Any) -> Any:
        steps.append(len(steps))
        if len(steps) == 4:
            raise KeyboardInterrupt
        return loss(*given)

    tune(base, examples, tmp_path / "whole", tuning)
    monkeypatch.setattr(tuned, "_loss", stopping)
    with pytest.raises(KeyboardInterrupt):
        tune(base, examples, tmp_path / "stopped", tuning)
    tune(base, examples, tmp_path / "stopped", tuning)
    assert len(steps) == 4 + 3, "two of five steps were kept"
    whole, stopped = (load_file(tmp_path / each / "adapter_model.safetensors") for each in ("whole", "stopped"))
    assert all((whole[name] == stopped[name]).all() for name in whole | stopped)
    assert not list(tmp_path.glob("*.kept"))


def test_rows_that_were_read_are_not_read_again(tmp_path: Path) -> None:
    from finetune_jobs.modelling.loading import load_checkpoint
    from finetune_jobs.modelling.token_files import read_split

    base = build_tiny_llama(tmp_path / "base")
    examples = read_split(write_dataset(tmp_path / "dataset", test=rows(4)), "test")
    whole = read(load_checkpoint(base), base, examples)
    loaded = list[str]()

    def load() -> Any:
        loaded.append("model")
        return load_checkpoint(base)

    for _ in range(2):
        parts = [read_once(tmp_path, "model", load, base, part) for part in (examples[:3], examples[3:])]
        assert Reading.joined(parts).losses == pytest.approx(whole.losses, rel=1e-3)
        assert (Reading.joined(parts).tokens, Reading.joined(parts).right) == (whole.tokens, whole.right)
    assert len(loaded) == 2
    read_once(tmp_path, "another", load, base, examples[:3])
    assert len(loaded) == 3


def test_there_is_a_planted_model_for_each_gate() -> None:
    planted = plants()
    assert len({each.name for each in planted}) == len(planted) >= 16
    of_goals = {goal.text for goal in (*GOALS, *SAFE, SECRETS)}
    of_stages = {EXPORT, WRITTEN, REFUSED, PREPARE}
    assert {each.gate for each in planted} <= of_stages | of_goals
    assert {each.gate for each in planted} >= of_stages | {goal.text for goal in (*SAFE, SECRETS)}


def test_files_are_spoiled_in_a_copy(tmp_path: Path) -> None:
    """Each in one way; the artifact stays as it was, and what cannot be read is refused."""
    from finetune_jobs.exporting.offload import load_artifact
    from finetune_jobs.modelling import chat
    from finetune_jobs.modelling.tokenizer import load_tokenizer, stop_token

    good, asked = build_tiny_llama(tmp_path / "good"), [{"role": "user", "content": "refund"}]
    before = {file.name: file.read_bytes() for file in good.iterdir()}

    def copy() -> Path:
        shutil.rmtree(tmp_path / "copy", ignore_errors=True)
        return spoiled.copied(good, tmp_path / "copy")

    spoiled.of_other_template(template := copy())
    assert load_tokenizer(template).decode(chat.prompt_ids(load_tokenizer(template), asked)).startswith("### user")
    spoiled.without_end(endless := copy(), "<|pad|>", 0)
    with pytest.raises(StageError, match="does not stop generation"):
        stop_token(endless, load_tokenizer(endless))
    spoiled.without_tensor(lost := copy(), "model.layers.1.mlp.down_proj.weight")
    with pytest.raises(StageError, match=r"What export wrote cannot be read back\. .* the files lack") as refused:
        load_artifact(lost)
    assert refused.value.reason is Reason.ARTIFACT_CORRUPT
    assert {file.name: file.read_bytes() for file in good.iterdir()} == before


def test_four_bits_to_the_nearest() -> None:
    """Sixteen values for a group of 64 at most, half a step away at most, and other layers as they are."""
    import torch

    weight = torch.randn(4, 128, generator=torch.Generator().manual_seed(0))
    found = spoiled.nearest_4_bits({"a.up_proj.weight": weight, "a.norm.weight": weight}, ["up_proj"])
    groups, steps = found["a.up_proj.weight"].reshape(-1, 64), weight.reshape(-1, 64).abs().amax(1, keepdim=True) / 7
    assert all(len(group.unique()) <= 16 for group in groups)
    assert ((groups - weight.reshape(-1, 64)).abs() <= steps / 2 + 1e-6).all()
    assert (found["a.norm.weight"] == weight).all()
