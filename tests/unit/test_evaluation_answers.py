"""Answers are those of each prompt alone, however prompts are put together."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import (
    DynamicCache,
    Lfm2Config,
    Lfm2ForCausalLM,
    LlamaConfig,
    MiniMaxConfig,
    MiniMaxForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MptConfig,
    MptForCausalLM,
)
from transformers.models.minimax.modeling_minimax import MiniMaxCache

from finetune_jobs.evaluation.batches import PromptBatch, Prompts, Room, common_beginning, left_padded, token_bytes
from finetune_jobs.evaluation.behaviour.likelihood import Given, answer_losses
from finetune_jobs.evaluation.generate import SPARE_TOKENS, Questions, answer_limit, generate
from finetune_jobs.evaluation.passages import Passage, log_probs
from finetune_jobs.evaluation.shots import with_shots
from finetune_jobs.modelling.chat import prompt_ids
from finetune_jobs.modelling.loading import load_base
from finetune_jobs.modelling.token_files import Conversation, read_split
from finetune_jobs.modelling.tokenizer import load_tokenizer
from hack.benchmarks.evaluate_throughput import answer_plainly
from tests.support.evaluating import ask
from tests.support.training import LABELS, row, rows

pytestmark = [pytest.mark.unit, pytest.mark.slow]


def test_how_likely_an_answer_is(model_folder: Path) -> None:
    """As the model finds it when it is given, also where others in the batch go on."""
    model, tokenizer = load_base(model_folder / "base").float(), load_tokenizer(model_folder / "base")
    prompts = [row(f"{n} {text}", "x")["messages"][:-1] for n, text in enumerate(["refund", "the fox jumps"] * 4)]
    questions = Questions(prompts, limit=10, batch_size=8)
    said = generate(model, tokenizer, questions, lambda _done, _total: None, weighed=True)
    assert [each.text for each in said] == ask(model, model_folder / "base", prompts, 8)
    for each, asked in zip(said, prompts, strict=True):
        prompt = prompt_ids(tokenizer, asked)
        alone = log_probs(model, Passage("", [*prompt, *each.tokens]))[len(prompt) - 1 :]
        assert each.log_probability == pytest.approx(sum(alone), abs=1e-2)
        assert each.log_probability < 0


@pytest.mark.parametrize("kind", ["base", "window", "recurrent"])
def test_answers_are_those_of_each_prompt_alone(kind: str, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts of different length together, padded, their beginning computed once where padding behind it does no
    harm, and without the answers that have ended. In float32: in 16 bits rounding may decide a tie."""
    tokenizer = load_tokenizer(model_folder / "base")
    texts = [f"{n} {text}" for n, text in enumerate(["refund", "what is", "the fox jumps", "parcel " * 9] * 3)]
    prompts = [row(text, "x")["messages"][:-1] for text in texts]
    encoded = [prompt_ids(tokenizer, prompt) for prompt in prompts]
    torch.manual_seed(3)
    size = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "initializer_range": 0.5,
    }
    longest = max(map(len, encoded))
    model = {
        "base": lambda: load_base(model_folder / "base").float(),
        "window": lambda: MistralForCausalLM(MistralConfig(**size, sliding_window=longest - 4)).eval(),
        "recurrent": lambda: Lfm2ForCausalLM(Lfm2Config(**size, layer_types=["conv", "full_attention"])).eval(),
    }[kind]()
    assert (common_beginning(model, encoded) is not None) is (kind == "base")
    model.generation_config.eos_token_id = None
    unended = [answer_plainly(model, tokenizer, prompt, 10) for prompt in prompts]
    written = {token for answer in unended for token in answer}
    places = {token: [[*answer, token].index(token) for answer in unended] for token in written}
    end = max(written, key=lambda token: len(set(places[token])))
    model.generation_config.eos_token_id = [end]
    alone = [answer[:place] for answer, place in zip(unended, places[end], strict=True)]
    assert len(set(map(len, alone))) > 1, "some end before others"

    def asked(which: list[Any]) -> list[list[int]]:
        found = generate(model, tokenizer, Questions(which, 10, 5), lambda _done, _total: None)
        return [list(each.tokens) for each in found]

    assert asked(prompts) == alone
    monkeypatch.setattr("finetune_jobs.evaluation.batches.TOKENS", 0)
    assert asked(prompts[::-1]) == alone[::-1]


def test_a_beginning_is_shared_where_the_window_holds_prompt_and_answer() -> None:
    size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1}
    model = MistralForCausalLM(MistralConfig(vocab_size=9, intermediate_size=8, sliding_window=8, **size))
    prompts = [[1, 2, 3, 4, 5], [1, 2, 3, 6]]
    found = common_beginning(model, prompts, answer=3)
    assert found is not None
    assert found.length == 3
    assert common_beginning(model, prompts, answer=4) is None


def test_a_common_beginning_is_computed_once_and_changes_no_answer(model_folder: Path) -> None:
    """Of all batches together: each then computes only what follows."""
    model, tokenizer = load_base(model_folder / "base").float(), load_tokenizer(model_folder / "base")
    shots = [Conversation(each["messages"]) for each in rows(4)]
    texts = [f"{n} {text}" for n, text in enumerate(["refund", "what is", "the fox jumps", "parcel " * 9] * 3)]
    prompts = [with_shots(row(text, "x")["messages"][:-1], shots) for text in texts]
    plain = [answer_plainly(model, tokenizer, prompt, 10) for prompt in prompts]
    expected = [text.strip() for text in tokenizer.batch_decode(plain, skip_special_tokens=True)]
    computed, forward = list[int](), model.forward

    def counted(*args: Any, **inputs: Any) -> Any:
        computed.append(inputs["input_ids"].numel())
        return forward(*args, **inputs)

    model.forward = counted
    assert ask(model, model_folder / "base", prompts, 5) == expected
    assert len(set(expected)) > 2  # they do tell the prompts apart
    whole = sum(len(prompt_ids(tokenizer, each)) for each in prompts)
    assert sum(computed) < whole / 2


def test_prompts_that_the_gpus_memory_does_not_hold_are_asked_fewer_at_a_time(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None twice, and each as it would have been; one that is too much alone is an error."""
    model, sizes = load_base(model_folder / "base").float(), list[int]()
    prompts = [row(f"{n} refund", "x")["messages"][:-1] for n in range(12)]
    expected, forward, most = ask(model, model_folder / "base", prompts, 8), model.forward, 3
    monkeypatch.setattr("finetune_jobs.evaluation.batches.TOKENS", 0)

    def limited(**inputs: Any) -> Any:
        if {"attention_mask", "logits_to_keep"} <= set(inputs):  # no common beginning, no step of an answer
            sizes.append(len(inputs["input_ids"]))
        if len(inputs["input_ids"]) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return forward(**inputs)

    model.forward = limited
    assert ask(model, model_folder / "base", prompts, 8) == expected
    assert sizes == [8, 4, 2, 2, 2, 2, 2, 2]
    most = 0
    assert common_beginning(model, [[4, 5, 6], [4, 5, 7]]) is None
    with pytest.raises(torch.OutOfMemoryError):
        ask(model, model_folder / "base", prompts, 8)


@pytest.mark.parametrize(
    ("config", "dtype", "size"),
    [
        # Llama 3.1 8B, Llama 2 7B and Gemma 3 1B
        (
            {"num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8},
            2,
            131072,
        ),
        ({"num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32}, 2, 524288),
        (
            {
                "num_hidden_layers": 26,
                "hidden_size": 1152,
                "num_attention_heads": 4,
                "num_key_value_heads": 1,
                "head_dim": 256,
            },
            4,
            53248,
        ),
        ({"num_hidden_layers": 2, "hidden_size": 8, "num_attention_heads": [2, 4]}, 2, None),
        ({}, 2, None),
    ],
)
def test_bytes_of_a_tokens_keys_and_values(config: dict[str, Any], dtype: int, size: int | None) -> None:
    kind = {2: torch.bfloat16, 4: torch.float32}[dtype]
    assert token_bytes(SimpleNamespace(**config), kind) == size


def test_a_batch_grows_as_long_as_its_tokens_fit() -> None:
    prompts = Prompts([[1] * 30] * 100, pad=0, answer=2, least=4)
    sizes = [len(prompts.together(range(100), 100, Room(tokens))) for tokens in (0, 320, 8192)]
    assert sizes == [4, 10, 64]


@pytest.mark.parametrize(
    ("where", "length", "sizes"),
    [
        # Llama 3.1 8B in 16 bits: 0.28 MB a token, and 3 bytes a pair
        ("cpu", 100, [16, 16]),
        ("cpu", 1000, [3, 3]),
        ("cpu", 30000, [1, 1]),
        ("cuda", 30000, [16, 16]),
    ],
)
def test_a_cpu_takes_fewer_long_prompts_at_a_time(where: str, length: int, sizes: list[int]) -> None:
    """It cannot try again with fewer: its pod is killed for the memory that it takes."""
    config = LlamaConfig(hidden_size=4096, num_hidden_layers=32, num_key_value_heads=8, intermediate_size=14336)
    model = SimpleNamespace(config=config, dtype=torch.bfloat16, device=torch.device(where))
    prompts = Prompts([[1] * length] * 16, pad=0, answer=2, least=16)
    room = Room.of(model)
    assert [len(prompts.together(range(16), 16, room)), room.bearable([length] * 16, 16)] == sizes


def test_how_unlikely_long_answers_are_is_asked_in_small_batches_on_a_cpu(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, sizes = load_base(model_folder / "base").float(), list[int]()
    given = [Given([4, 5, *range(6, 6 + n)], [7]) for n in range(8)]
    expected, forward = answer_losses(model, 0, given, lambda _done, _total: None), model.forward

    def counted(**inputs: Any) -> Any:
        sizes.append(len(inputs["input_ids"]))
        return forward(**inputs)

    model.forward = counted
    assert answer_losses(model, 0, given, lambda _done, _total: None) == pytest.approx(expected)
    monkeypatch.setattr("finetune_jobs.evaluation.batches.BYTES", 1)
    assert answer_losses(model, 0, given, lambda _done, _total: None) == pytest.approx(expected, abs=1e-3)
    assert sizes == [8] + [1] * 8


@pytest.mark.parametrize("kind", ["positions", "cache"])
def test_no_beginning_is_shared_where_padding_behind_it_is_not_hidden(kind: str) -> None:
    """ALiBi without positions counts padding; a cache of an architecture's own holds a recurrent state."""
    size = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 8, "vocab_size": 9}
    made = {
        "positions": lambda: MptForCausalLM(MptConfig(d_model=8, n_heads=2, n_layers=1, vocab_size=9)),
        "cache": lambda: MiniMaxForCausalLM(
            MiniMaxConfig(**size, intermediate_size=8, num_key_value_heads=1, head_dim=4, num_local_experts=2)
        ),
    }
    assert common_beginning(made[kind]().eval(), [[1, 2, 3, 4, 5], [1, 2, 3, 6]]) is None


def test_prompts_are_copied_with_all_that_is_known_of_them() -> None:
    """Also where a cache keeps more than its layers; the batch stays as it is."""
    plain, own = DynamicCache(), MiniMaxCache()
    for cache in (plain, own):
        keys = torch.arange(3.0)[:, None, None, None].expand(3, 1, 2, 4)
        cache.update(keys, keys, 0)
    own.set_linear_cache(0, [])
    own.set_linear_cache(1, torch.arange(3.0)[:, None])
    for cache in (plain, own):
        batch = PromptBatch(None, cache, torch.ones(3, 2), torch.zeros(3, 9))
        copied = batch.copied([2, 0])
        assert copied.cache.layers[0].keys[:, 0, 0, 0].tolist() == [2, 0]
        copied.keep([1])
        assert copied.cache.layers[0].keys[:, 0, 0, 0].tolist() == [0]
        assert copied.mask.shape == (1, 2)
        assert cache.layers[0].keys[:, 0, 0, 0].tolist() == [0, 1, 2]
    assert copied.cache.linear_cache[1].tolist() == [[0]]
    assert own.linear_cache[1].tolist() == [[0], [1], [2]]


def test_padding_goes_left_and_is_masked() -> None:
    inputs = left_padded([[5, 6, 7], [8]], pad=0, device="cpu")
    assert inputs["input_ids"].tolist() == [[5, 6, 7], [0, 0, 8]]
    assert inputs["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]


def test_generation_settings_of_a_checkpoint_are_not_used(model_folder: Path, tmp_path: Path) -> None:
    base, other = model_folder / "base", tmp_path / "other"
    shutil.copytree(base, other)
    settings = json.loads((base / "generation_config.json").read_text())
    settings |= {"do_sample": True, "temperature": 5.0, "repetition_penalty": 3.0, "max_new_tokens": 1}
    (other / "generation_config.json").write_text(json.dumps(settings))
    prompts = [example.prompt for example in read_split(model_folder / "dataset", "test")]

    answers = [ask(load_base(checkpoint), base, prompts, 8) for checkpoint in (base, other)]

    assert answers[0] == answers[1]


def test_an_answer_may_be_a_little_longer_than_the_longest_label(model_folder: Path) -> None:
    tokenizer = load_tokenizer(model_folder / "base")
    longest = max(len(tokenizer(label)["input_ids"]) for label in LABELS)
    assert answer_limit(tokenizer, LABELS) == longest + 1 + SPARE_TOKENS
