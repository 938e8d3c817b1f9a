"""Examples side by side in one row compute what each computes alone, or they are not put there."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AttentionInterface,
    AutoModelForCausalLM,
    Gemma2Config,
    GptOssConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen3Config,
    Qwen3NextConfig,
)

from finetune_api.training import Method, Packing
from finetune_jobs.fit.recipe import Batch
from finetune_jobs.modelling import chat
from finetune_jobs.modelling.tokenizer import load_tokenizer
from finetune_jobs.training import packing
from finetune_jobs.training.build import PLAIN_ATTENTION_TOKENS, Examples, build_trainer, suit_attention
from finetune_jobs.training.collator import Collator
from finetune_jobs.training.team import Team
from tests.support.tiny_model import build_tiny_llama
from tests.support.training import load_for_training, read_examples, settings, write_dataset

pytestmark = [pytest.mark.unit, pytest.mark.slow]

SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
LENGTHS = (9, 1, 30, 2, 17)
METHODS = pytest.mark.parametrize("method", [Method.QLORA, Method.FULL])


def model_of(config: PreTrainedConfig) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


def examples() -> list[dict[str, list[int]]]:
    draw = torch.Generator().manual_seed(1)
    tokens = [torch.randint(64, (length,), generator=draw).tolist() for length in LENGTHS]
    return [{"input_ids": each, "labels": each} for each in tokens]


def loss_of(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    given = {name: each for name, each in batch.items() if name not in ("labels", "positions", "targets")}
    labels = batch["labels"][0, 1:]
    logits = model(**given, use_cache=False).logits[0, :-1]
    return torch.nn.functional.cross_entropy(logits, labels, reduction="sum", ignore_index=chat.IGNORED)


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(**SMALL),
        Qwen3Config(**SMALL),
        MistralConfig(**SMALL, sliding_window=4),
        Qwen3Config(**SMALL, use_sliding_window=True, sliding_window=4, max_window_layers=1),
    ],
    ids=["llama", "qwen3", "window", "window in one layer"],
)
def test_loss_and_gradients_are_those_of_the_examples_alone(config: PreTrainedConfig) -> None:
    model = model_of(config)
    assert packing.use_packing(model)
    packed = loss_of(model, Collator(0, padding_free=True)(examples()))
    packed.backward()
    gradients = {name: each.grad.clone() for name, each in model.named_parameters()}

    model.zero_grad()
    model.set_attn_implementation("eager")
    alone = sum(loss_of(model, {name: torch.tensor([row]) for name, row in each.items()}) for each in examples())
    alone.backward()

    assert packed.item() == pytest.approx(alone.item(), rel=1e-5)
    for name, each in model.named_parameters():
        torch.testing.assert_close(gradients[name], each.grad, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize(
    "config",
    [
        MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=4),
        Qwen3NextConfig(**SMALL, num_experts=2, layer_types=["linear_attention", "full_attention"]),
        Gemma2Config(**SMALL, attn_logit_softcapping=50.0),
        GptOssConfig(**SMALL, num_local_experts=2),
    ],
    ids=["state space", "linear attention", "capped logits", "sinks"],
)
def test_a_model_that_needs_more_is_left_as_it_was(config: PreTrainedConfig, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    model = model_of(config)
    usual = model.config._attn_implementation
    assert not packing.use_packing(model)
    assert not packing.is_used(model)
    assert model.config._attn_implementation == usual
    assert "examples are padded" in caplog.text


def test_attention_computes_as_autocast_says() -> None:
    """A whole model is in float32, and its rotations leave queries in float32 too: FlashAttention would take none."""
    query, key, value = (torch.randn(1, 2, 5, 8) for _ in range(3))
    ends = torch.tensor([0, 2, 5], dtype=torch.int32)
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = packing.packed_attention(model_of(LlamaConfig(**SMALL)), query, key, value, None, cu_seq_lens_q=ends)
    assert found.dtype is torch.bfloat16
    plain, _ = packing.packed_attention(model_of(LlamaConfig(**SMALL)), query, key, value, None, cu_seq_lens_q=ends)
    assert plain.dtype is torch.float32


def test_a_model_that_mixes_examples_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here by attention that does not care where an example ends."""
    model = model_of(LlamaConfig(**SMALL))
    whole = packing.packed_attention
    monkeypatch.setitem(
        AttentionInterface._global_mapping,
        packing.PACKED,
        lambda *given, cu_seq_lens_q, max_length_q, **others: whole(*given, **others),
    )
    assert not packing.use_packing(model)


@dataclass(frozen=True)
class Pair(Team):
    """Two processes, of which this one is told what the other says."""

    size: int = 2
    other: bool = False

    def any(self, *flags: bool) -> tuple[bool, ...]:
        return tuple(flag or self.other for flag in flags)


@pytest.mark.parametrize("other", [False, True])
def test_all_processes_pack_or_none_does(other: bool) -> None:
    """Padded examples come in another order, by which each process takes its own: some would be seen twice."""
    model = model_of(LlamaConfig(**SMALL))
    usual = model.config._attn_implementation
    assert packing.use_packing(model, Pair(other=other)) is not other
    assert (model.config._attn_implementation == usual) is other


def test_a_kernel_that_does_not_run_here_is_done_without(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """On a card for which it was not compiled; one whose memory is too small gets smaller passes instead."""
    caplog.set_level("INFO")
    said = "CUDA error: no kernel image is available for execution on the device\nCompile with …"

    def missing(*_: object, **__: object) -> None:
        raise RuntimeError(said)

    monkeypatch.setattr(packing, "_alone", missing)
    model = model_of(LlamaConfig(**SMALL))
    assert not packing.use_packing(model)
    assert not packing.is_used(model)
    assert (
        "examples are padded to the longest of their pass: attention fails, CUDA error: no kernel image" in caplog.text
    )
    said = "CUDA out of memory."
    with pytest.raises(RuntimeError, match="out of memory"):
        packing.use_packing(model)


def test_a_model_is_asked_in_the_precision_of_its_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole model is in float32, which a GPU's kernel for packed examples never sees: autocast rounds to 16 bits."""
    seen, original = set[torch.dtype](), packing._alone

    def alone(query: torch.Tensor, *others: torch.Tensor, **how: Any) -> torch.Tensor:
        seen.add(query.dtype)
        return original(query, *others, **how)

    monkeypatch.setattr(packing, "_alone", alone)
    monkeypatch.setattr(packing, "precision", lambda: torch.bfloat16)
    assert packing.use_packing(model_of(LlamaConfig(**SMALL)))
    assert seen == {torch.bfloat16}


def test_short_examples_are_padded_on_a_cpu() -> None:
    """Plain attention takes them all at once there, which is faster than one after the other."""
    model = model_of(LlamaConfig(**SMALL))
    suit_attention(model, settings(), PLAIN_ATTENTION_TOKENS)
    assert not packing.is_used(model)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_llama(tmp_path_factory.mktemp("base"))


@METHODS
@pytest.mark.usefixtures("without_bfloat16")
def test_the_training_is_the_same(method: Method, base: Path, tmp_path: Path) -> None:
    """Step by step, and in the validation loss, which counts each token of the split once."""
    dataset, tokenizer = write_dataset(tmp_path / "dataset"), load_tokenizer(base)
    split = read_examples(base, dataset, "train")
    found = {}
    for kind in Packing:
        training = settings(method, packing=kind, dropout="0", max_steps=6, batch_size=3, gradient_accumulation=2)
        model = load_for_training(base, training)
        suit_attention(model, training, PLAIN_ATTENTION_TOKENS + 1)
        assert packing.is_used(model) == (kind is Packing.AUTO)
        work, batch = tmp_path / kind, Batch.of(training)
        trainer = build_trainer(model, Examples(split, split.select(range(8)), tokenizer), training, work, batch)
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        found[kind] = [*losses, trainer.evaluate()["eval_loss"], trainer.state.num_input_tokens_seen]
    assert len(found[Packing.AUTO]) == 8
    assert found[Packing.AUTO] == pytest.approx(found[Packing.OFF], rel=5e-3)
    assert found[Packing.AUTO][-1] == found[Packing.OFF][-1]
