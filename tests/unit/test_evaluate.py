"""Answers and reports, with tiny models."""

import json
import math
import random
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from transformers import (
    DynamicCache,
    GenerationConfig,
    Lfm2Config,
    Lfm2ForCausalLM,
    MiniMaxConfig,
    MiniMaxForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MptConfig,
    MptForCausalLM,
    PreTrainedConfig,
)
from transformers.models.minimax.modeling_minimax import MiniMaxCache

from finetune_api.dataset import TaskType
from finetune_api.finetunejob import Coverage, Evaluation
from finetune_api.goals import PRECISIONS
from finetune_api.layout import EVALUATION_PAGE, REVIEW_PAGE
from finetune_api.stages import Stage, StageInput, Upstream
from finetune_api.training import Method, Quantization, Training
from finetune_jobs.artifacts.artifact import (
    ANSWERS,
    BEHAVIOUR,
    METRICS,
    REFERENCE,
    REVIEW,
    Marks,
    Metrics,
    read_answers,
)
from finetune_jobs.base.documents import read_json
from finetune_jobs.base.errors import StageError
from finetune_jobs.base.progress import Progress
from finetune_jobs.evaluate import About, EvaluationFiles, Exported, Setting, evaluate_models, write_review
from finetune_jobs.evaluation.asking import Paper, expected_losses, set_paper
from finetune_jobs.evaluation.batches import PromptBatch, Prompts, common_beginning, left_padded, token_bytes
from finetune_jobs.evaluation.behaviour.items import sets_for
from finetune_jobs.evaluation.choices import Choices, choosing, likeliest
from finetune_jobs.evaluation.generate import (
    ROOM,
    SPARE_TOKENS,
    Questions,
    answer_limit,
    ask_each,
    generate,
    generate_answers,
    thoughts_limit,
)
from finetune_jobs.evaluation.page import identify
from finetune_jobs.evaluation.reference import Passage, log_probs
from finetune_jobs.evaluation.review.sheet import ReviewSheet
from finetune_jobs.evaluation.shots import SHOTS, choose_shots, with_shots
from finetune_jobs.evaluation.texts import LARGEST
from finetune_jobs.exporting.offload import device_for_16_bits, keep_rounded
from finetune_jobs.modelling.canaries import make_canaries, write_canaries
from finetune_jobs.modelling.chat import answer_ids, prompt_ids
from finetune_jobs.modelling.device import precision
from finetune_jobs.modelling.loading import load_base, load_checkpoint, unpacked
from finetune_jobs.modelling.token_files import Conversation, read_split
from finetune_jobs.modelling.tokenizer import load_tokenizer, stop_token
from finetune_jobs.modelling.tuning import Tuning
from hack.benchmarks.evaluate_throughput import answer_plainly
from tests.support.readiness import parsed_page
from tests.support.reasoning import QWEN3, QWEN3_THINKING
from tests.support.stages import RUN
from tests.support.tiny_model import build_tiny_int8, build_tiny_llama, build_tiny_lora, edit_json
from tests.support.training import LABELS, row, rows, write_dataset

pytestmark = [pytest.mark.unit, pytest.mark.slow]

CANARIES = make_canaries(8, "data")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, an adapter, another model as full tuning leaves one, an INT8 artifact (of the base) and a data set."""
    root = tmp_path_factory.mktemp("evaluate")
    base = build_tiny_llama(root / "base")
    build_tiny_lora(root / "adapter", base)
    build_tiny_llama(root / "whole", seed=5)
    build_tiny_int8(root / "artifact", base)
    write_dataset(root / "dataset", test=rows(30, first=100))
    write_canaries(root / "dataset", CANARIES)
    return root


def ask(model: Any, base: Path, prompts: list[Any], batch_size: int) -> list[str]:
    questions = Questions(prompts, limit=10, batch_size=batch_size)
    return generate_answers(model, load_tokenizer(base), questions, lambda _done, _total: None)


def choose_labels(model: Any, tokenizer: Any, questions: Questions, labels: Sequence[str], stop: int) -> list[str]:
    return ask_each(model, tokenizer, questions, choosing(tokenizer, labels, stop), lambda _done, _total: None)


def test_how_likely_an_answer_is(folder: Path) -> None:
    """As the model finds it when it is given, also where others in the batch go on."""
    model, tokenizer = load_base(folder / "base").float(), load_tokenizer(folder / "base")
    prompts = [row(f"{n} {text}", "x")["messages"][:-1] for n, text in enumerate(["refund", "the fox jumps"] * 4)]
    questions = Questions(prompts, limit=10, batch_size=8)
    said = generate(model, tokenizer, questions, lambda _done, _total: None, weighed=True)
    assert [each.text for each in said] == ask(model, folder / "base", prompts, 8)
    for each, asked in zip(said, prompts, strict=True):
        prompt = prompt_ids(tokenizer, asked)
        alone = log_probs(model, Passage("", [*prompt, *each.tokens]))[len(prompt) - 1 :]
        assert each.log_probability == pytest.approx(sum(alone), abs=1e-2)
        assert each.log_probability < 0


def test_how_unlikely_the_expected_answers_are(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of texts only: as the model finds each when it is given, with the token that ends it; in small batches too."""
    model = load_base(folder / "base").float()
    tuning = Tuning.of(Training(method=Method.LORA))
    asked = Evaluation(max_samples=10, general=Coverage.OFF, adversarial=Coverage.OFF)

    def paper(task: TaskType) -> Paper:
        return set_paper(folder / "base", folder / "dataset", tuning, task, asked)

    texts, progress = paper(TaskType.TEXT), Progress("evaluate")
    alone = [
        -sum(log_probs(model, Passage("", [*each.prompt, *each.answer]))[len(each.prompt) - 1 :])
        for each in texts.expected
    ]
    assert [each.answer[-1] for each in texts.expected] == [texts.stop] * 10
    assert expected_losses(model, texts, progress, 0.0, 1.0) == pytest.approx(alone, abs=1e-2)
    monkeypatch.setattr("finetune_jobs.evaluation.behaviour.likelihood.MOST_TOKENS", 8)
    assert expected_losses(model, texts, progress, 0.0, 1.0) == pytest.approx(alone, abs=1e-2)
    assert expected_losses(model, paper(TaskType.CLASSIFICATION), progress, 0.0, 1.0) == []


@pytest.mark.parametrize("kind", ["base", "window", "recurrent"])
def test_answers_are_those_of_each_prompt_alone(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts of different length together, padded, their beginning computed once where padding behind it does no
    harm, and without the answers that have ended. In float32: in 16 bits rounding may decide a tie."""
    tokenizer = load_tokenizer(folder / "base")
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
        "base": lambda: load_base(folder / "base").float(),
        "window": lambda: MistralForCausalLM(MistralConfig(**size, sliding_window=longest - 4)).eval(),
        "recurrent": lambda: Lfm2ForCausalLM(Lfm2Config(**size, layer_types=["conv", "full_attention"])).eval(),
    }[kind]()
    assert (common_beginning(model, encoded) is not None) is (kind == "base")
    unended = [answer_plainly(model, tokenizer, prompt, 10) for prompt in prompts]
    written = {token for answer in unended for token in answer}
    places = {token: [[*answer, token].index(token) for answer in unended] for token in written}
    model.generation_config.eos_token_id = [max(written, key=lambda token: len(set(places[token])))]
    alone = [answer_plainly(model, tokenizer, prompt, 10) for prompt in prompts]
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


def test_a_common_beginning_is_computed_once_and_changes_no_answer(folder: Path) -> None:
    """Of all batches together: each then computes only what follows."""
    model, tokenizer = load_base(folder / "base").float(), load_tokenizer(folder / "base")
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
    assert ask(model, folder / "base", prompts, 5) == expected
    assert len(set(expected)) > 2  # they do tell the prompts apart
    whole = sum(len(prompt_ids(tokenizer, each)) for each in prompts)
    assert sum(computed) < whole / 2


def test_the_label_that_a_model_must_choose_is_the_likeliest_answer(folder: Path) -> None:
    """As each alone after each prompt, with the token that ends it: labels share a beginning, and prompts do."""
    model, tokenizer = load_base(folder / "base").float(), load_tokenizer(folder / "base")
    stop = stop_token(folder / "base", tokenizer)
    labels = ["refund", "refund my parcel", "question", "other fox", "the", "capital"]
    prompts = [row(f"{n} {text}", "x")["messages"][:-1] for n, text in enumerate(["refund", "what", "parcel " * 9])]
    expected = dict[tuple[str, str], list[str]]()
    for pair in combinations(labels, 2):
        for ids in [prompt_ids(tokenizer, prompt) for prompt in prompts]:
            whole = [Passage("", [*ids, *answer_ids(tokenizer, label), stop]) for label in pair]
            sums = [sum(log_probs(model, passage)[len(ids) - 1 :]) for passage in whole]
            expected.setdefault(pair, []).append(pair[sums.index(max(sums))])
    questions = Questions(prompts, limit=10, batch_size=4)
    for pair, best in expected.items():
        assert choose_labels(model, tokenizer, questions, pair, stop) == best
    chosen = choose_labels(model, tokenizer, questions, labels, stop)
    assert all(best[n] == label for n, label in enumerate(chosen) for pair, best in expected.items() if label in pair)

    forward, most = model.forward, 2

    def limited(**inputs: Any) -> Any:
        if len(inputs["input_ids"]) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return forward(**inputs)

    model.forward = limited
    assert choose_labels(model, tokenizer, questions, labels, stop) == chosen
    most = 0
    with pytest.raises(torch.OutOfMemoryError):
        choose_labels(model, tokenizer, questions, labels, stop)


class Foretells:
    """A batch of prompts to each of which a model that knows no words answers as a random table says."""

    def __init__(self, rows: Sequence[int], sharpness: float) -> None:
        self.rows, self.sharpness, self.given = rows, sharpness, list[int]()
        self.mask = torch.ones(len(rows), 1, dtype=torch.long)
        self.logits = torch.stack([self.after(row, ()) for row in rows])

    def after(self, row: int, tokens: Sequence[int]) -> torch.Tensor:
        """Logits of the token that follows."""
        chosen = torch.Generator().manual_seed(hash((row, *tokens)) % 2**31)
        return torch.randn(6, generator=chosen) * self.sharpness

    def copied(self, rows: Sequence[int]) -> "Foretells":
        """Of these prompts."""
        self.given += rows
        return Foretells([self.rows[row] for row in rows], self.sharpness)

    def read(self, tokens: torch.Tensor) -> torch.Tensor:
        """The logits after each of the tokens."""
        return torch.stack(
            [
                torch.stack([self.after(row, given[: n + 1]) for n in range(len(given))])
                for row, given in zip(self.rows, tokens.tolist(), strict=True)
            ]
        )


@pytest.mark.parametrize("sharpness", [0.1, 1.0, 8.0])
def test_a_choice_is_the_likeliest_of_all_though_not_all_are_read(sharpness: float) -> None:
    """Sequences of random tokens, with common beginnings and of one token only; 0 ends each."""
    chosen = random.Random(1)
    lengths = (0, 1, 1, 2, 2, 3, 3, 4)
    tokens = [[*(chosen.randint(1, 3) for _ in range(length)), 0] for length in lengths]
    batch = Foretells(range(40), sharpness)

    def likelihood(prompt: int, choice: Sequence[int]) -> float:
        steps = [torch.log_softmax(batch.after(prompt, choice[:n]), dim=-1)[token] for n, token in enumerate(choice)]
        return float(sum(steps))

    found = likeliest(batch, Choices.of(tokens))  # type: ignore[arg-type]
    for prompt, choice in enumerate(found):
        every = [likelihood(prompt, each) for each in tokens]
        assert every[choice] == pytest.approx(max(every), abs=1e-4)
    unlike = {tuple(each) for each in tokens if len(each) > 1}
    assert 0 < len(batch.given) < 40 * len(unlike)


def test_prompts_that_the_gpus_memory_does_not_hold_are_asked_fewer_at_a_time(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None twice, and each as it would have been; one that is too much alone is an error."""
    model, sizes = load_base(folder / "base").float(), list[int]()
    prompts = [row(f"{n} refund", "x")["messages"][:-1] for n in range(12)]
    expected, forward, most = ask(model, folder / "base", prompts, 8), model.forward, 3
    monkeypatch.setattr("finetune_jobs.evaluation.batches.TOKENS", 0)

    def limited(**inputs: Any) -> Any:
        if {"attention_mask", "logits_to_keep"} <= set(inputs):  # no common beginning, no step of an answer
            sizes.append(len(inputs["input_ids"]))
        if len(inputs["input_ids"]) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return forward(**inputs)

    model.forward = limited
    assert ask(model, folder / "base", prompts, 8) == expected
    assert sizes == [8, 4, 2, 2, 2, 2, 2, 2]
    most = 0
    assert common_beginning(model, [[4, 5, 6], [4, 5, 7]]) is None
    with pytest.raises(torch.OutOfMemoryError):
        ask(model, folder / "base", prompts, 8)


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
    sizes = [len(prompts.together(range(100), 100, tokens)) for tokens in (0, 320, 8192)]
    assert sizes == [4, 10, 64]


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


def test_generation_settings_of_a_checkpoint_are_not_used(folder: Path, tmp_path: Path) -> None:
    base, other = folder / "base", tmp_path / "other"
    shutil.copytree(base, other)
    settings = json.loads((base / "generation_config.json").read_text())
    settings |= {"do_sample": True, "temperature": 5.0, "repetition_penalty": 3.0, "max_new_tokens": 1}
    (other / "generation_config.json").write_text(json.dumps(settings))
    prompts = [example.prompt for example in read_split(folder / "dataset", "test")]

    answers = [ask(load_base(checkpoint), base, prompts, 8) for checkpoint in (base, other)]

    assert answers[0] == answers[1]


def test_an_answer_may_be_a_little_longer_than_the_longest_label(folder: Path) -> None:
    tokenizer = load_tokenizer(folder / "base")
    longest = max(len(tokenizer(label)["input_ids"]) for label in LABELS)
    assert answer_limit(tokenizer, LABELS) == longest + 1 + SPARE_TOKENS


@pytest.mark.parametrize("method", list(Method))
def test_all_three_models_are_asked_the_same(method: Method, folder: Path, tmp_path: Path) -> None:
    progress = Progress("evaluate")
    files = EvaluationFiles(
        base=folder / "base",
        tuned=folder / ("whole" if method is Method.FULL else "adapter"),
        exported=[Exported("INT8", "e" * 64, folder / "artifact")],
        dataset=folder / "dataset",
        out=tmp_path / "out",
    )
    sets = Coverage.OFF if method is Method.QLORA else Coverage.SAMPLE  # once with an adapter, once without
    evaluation = Evaluation(max_samples=12, golden_prompts=3, general=sets, adversarial=sets)
    tuning = Tuning.of(Training(method=method))
    evaluated = evaluate_models(files, tuning, Setting(TaskType.CLASSIFICATION, evaluation), progress)

    written = {file.name for file in (tmp_path / "out").iterdir()}
    assert written == {ANSWERS, REFERENCE, METRICS, BEHAVIOUR, EVALUATION_PAGE}
    answers = read_answers((tmp_path / "out" / ANSWERS).read_text().splitlines(), ANSWERS)
    assert len(answers) == 12
    limit = answer_limit(load_tokenizer(folder / "base"), LABELS)
    asked = [answer.messages for answer in answers]
    for name, model in {
        "base": load_base(folder / "base", Training(method=method).base_quantization),
        "artifact": load_checkpoint(folder / "artifact"),
    }.items():
        questions = Questions(asked, limit, 16)
        expected = generate_answers(model, load_tokenizer(folder / "base"), questions, lambda _done, _total: None)
        assert [getattr(answer, name) for answer in answers] == expected
    assert all(answer.tuned != answer.base for answer in answers)
    assert {answer.max_tokens for answer in answers} == {limit}
    tokenizer = load_tokenizer(folder / "artifact")
    assert [answer.prompt_tokens for answer in answers] == [len(prompt_ids(tokenizer, each)) for each in asked]
    assert [answer.label for answer in answers] == evaluated.truth
    behaviour = json.loads((tmp_path / "out" / BEHAVIOUR).read_text())
    beside, is_asked = sets_for(evaluation), sets is not Coverage.OFF
    assert len(behaviour["items"]) == len([*beside.general, *beside.adversarial, *beside.swaps])
    assert any(each["base"] != each["tuned"] for each in behaviour["items"] if "base" in each) is is_asked
    page = (tmp_path / "out" / EVALUATION_PAGE).read_text()
    assert ("Did tuning cost safety?" in page) is is_asked
    metrics = json.loads((tmp_path / "out" / METRICS).read_text())
    assert metrics["goldenPrompts"] == 3
    assert metrics["scalars"] == evaluated.scalars()
    assert metrics["models"]["artifact"]["samples"] == 12
    known = {each["metric"]: each["cases"] for each in metrics["measurements"]["measured"]}
    assert (known["canaryLeaks"], known["memorisation"]) == (8, 8)
    assert "Does the model give away its training data?" in page
    assert [len(behaviour["canaries"][model]["ranks"]) for model in ("base", "tuned")] == [8, 8]
    files = [file.read_text() for file in (tmp_path / "out").iterdir()]
    assert not any(canary.secret in file for canary in CANARIES for file in files)
    automation = metrics["measurements"]["automation"]
    assert [each["precision"] for each in automation] == [float(precision) for precision in PRECISIONS]
    assert {each["chosenOn"] for each in automation} == {len(read_split(folder / "dataset", "validation"))}
    assert all(answer.log_probability is not None and answer.log_probability < 0 for answer in answers)
    shots = choose_shots(read_split(folder / "dataset", "train"), TaskType.CLASSIFICATION)
    assert len(shots) == SHOTS
    shown = [with_shots(each, shots) for each in asked]
    base = load_base(folder / "base", Training(method=method).base_quantization)
    questions = Questions(shown, limit, 16)
    expected = generate_answers(base, load_tokenizer(folder / "base"), questions, lambda _done, _total: None)
    assert [answer.few_shot for answer in answers] == expected
    said = generate_answers(base, tokenizer, Questions(asked, limit + ROOM, 16), lambda _done, _total: None)
    assert [answer.verbose for answer in answers] == said
    stop = stop_token(folder / "base", tokenizer)
    chosen = choose_labels(base, tokenizer, Questions(asked, limit, 16), LABELS, stop)
    assert [answer.constrained for answer in answers] == chosen
    assert {"verbose", "constrained"} <= metrics["models"].keys()
    assert shots[0].prompt[-1]["content"] in (tmp_path / "out" / EVALUATION_PAGE).read_text()
    write_review(tmp_path / "out", RUN, [])
    sheet = read_json(tmp_path / "out" / REVIEW, ReviewSheet)
    assert (sheet.baseline, len(sheet.pairs)) == ("fewShot", 12)
    of_artifact = {(pair.question, pair.left if pair.artifact_left else pair.right) for pair in sheet.pairs}
    assert of_artifact == {(answer.messages[-1]["content"], answer.artifact) for answer in answers}
    assert sheet.address in (tmp_path / "out" / REVIEW_PAGE).read_text()
    sample = next(s for m in progress.collect() for s in m.samples if s.name == "finetune_stage_progress_ratio")
    assert sample.value == pytest.approx(0.9)


@dataclass
class Step:
    """How much of a text has been recited, in place of a cache."""

    number: int = 0
    layers: tuple[()] = ()

    def batch_select_indices(self, _rows: torch.Tensor) -> None:
        """All are equally far."""


class Recites:
    """A model that writes the same text after every prompt, and its last token again and again."""

    device, dtype, config = "cpu", torch.float32, PreTrainedConfig()
    generation_config = GenerationConfig()

    def __init__(self, tokenizer: Any, text: str) -> None:
        self.tokenizer, self.text, self.asked = tokenizer, tokenizer(text)["input_ids"], list[str]()

    def __call__(
        self, input_ids: torch.Tensor, cache: Step | None = None, logits_to_keep: int = 0, **_: Any
    ) -> SimpleNamespace:
        """It is all but sure of what it writes. Of a prompt only the last logits are asked for."""
        step = 0 if logits_to_keep or cache is None else cache.number
        if logits_to_keep:
            self.asked += self.tokenizer.batch_decode(input_ids)
        logits = torch.zeros(*input_ids.shape, len(self.tokenizer))
        logits[..., self.text[min(step, len(self.text) - 1)]] = 30
        return SimpleNamespace(logits=logits, cache=Step(step + 1))

    forward = __call__

    def modules(self) -> list[torch.nn.Module]:
        """It has no layers."""
        return []

    def named_buffers(self) -> list[tuple[str, torch.Tensor]]:
        """It has no positions."""
        return []


@pytest.mark.parametrize(
    ("template", "thoughts", "end", "text", "answer"),
    [
        (QWEN3, True, "assistant\n", "<think>\nwell\n</think>\n\nrefund<|im_end|>", "refund"),
        (QWEN3, True, "assistant\n", "<think>\nwell, if", ""),
        (QWEN3, True, "assistant\n", "refund<|im_end|>", "refund"),
        (QWEN3, False, "assistant\n<think>\n\n</think>\n\n", "refund<|im_end|>", "refund"),
        (QWEN3_THINKING, True, "assistant\n<think>\n", "well\n</think>\n\nrefund<|im_end|>", "refund"),
        (QWEN3_THINKING, True, "assistant\n<think>\n", "well, if", ""),
    ],
)
def test_the_answer_is_what_follows_the_thoughts(
    folder: Path, template: str, thoughts: bool, end: str, text: str, answer: str
) -> None:
    tokenizer = load_tokenizer(folder / "base")
    tokenizer.chat_template = template
    model, prompts = Recites(tokenizer, text), [row(f"{n} refund", "x")["messages"][:-1] for n in range(3)]
    questions = Questions(prompts, limit=50, batch_size=2, thoughts=thoughts)
    assert generate_answers(model, tokenizer, questions, lambda _done, _total: None) == [answer] * 3
    assert all(prompt.endswith(end) for prompt in model.asked)
    ended, written = "<|im_end|>" in text, generate(model, tokenizer, questions, lambda _done, _total: None)
    assert {len(each.tokens) for each in written} == {len(model.text) - 1 if ended else 50}


def test_models_that_think_are_scored_by_their_answers_and_have_time_to_think(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, dataset = tmp_path / "base", tmp_path / "dataset"
    shutil.copytree(folder / "base", base)
    edit_json(base / "tokenizer_config.json", chat_template=QWEN3_THINKING)
    write_dataset(dataset, test=rows(6))
    (dataset / "report.json").write_text(json.dumps({"reasoning": {"longestAnswer": 80}}))
    model = Recites(load_tokenizer(base), "well\n</think>\n\nrefund<|im_end|>")
    for load in ("load_base", "load_adapter", "load_artifact"):
        monkeypatch.setattr(f"finetune_jobs.evaluate.{load}", lambda *_, **__: model)
    files = EvaluationFiles(
        base=base, tuned=base, exported=[Exported("INT8", "", base)], dataset=dataset, out=tmp_path / "out"
    )
    tuning = Tuning.of(Training(method=Method.LORA), thoughts=True)
    asked = Evaluation(max_samples=10, golden_prompts=3)
    evaluated = evaluate_models(files, tuning, Setting(TaskType.CLASSIFICATION, asked), Progress("evaluate"))
    assert evaluated.scores["artifact"].accuracy == pytest.approx(1 / 3)
    answers = read_answers((tmp_path / "out" / ANSWERS).read_text().splitlines(), ANSWERS)
    assert {answer.artifact for answer in answers} == {"refund"}
    assert all(answer.thoughts == Marks(end="</think>") for answer in answers)
    assert {answer.max_tokens for answer in answers} == {thoughts_limit(80)}
    metrics = json.loads((tmp_path / "out" / METRICS).read_text())
    assert (metrics["thoughts"], metrics["closed"]) == ({"begin": "", "end": "</think>"}, False)
    assert metrics["measurements"]["automation"] == [], "what it thinks may go either way"
    assert {answer.log_probability for answer in answers} == {None}


def test_another_format_is_the_artifact_where_the_first_lost_what_was_trained(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the same examples; its answers are the artifact's, and the ledger has both."""
    tokenizer = load_tokenizer(folder / "base")
    said = {"base": "fox", "adapter": "refund", "INT4": "parcel", "Merged": "refund"}
    models = {name: Recites(tokenizer, f"{text}<|im_end|>") for name, text in said.items()}
    monkeypatch.setattr("finetune_jobs.evaluate.load_base", lambda *_: models["base"])
    monkeypatch.setattr("finetune_jobs.evaluate.load_adapter", lambda *_: models["adapter"])
    monkeypatch.setattr("finetune_jobs.evaluate.load_artifact", lambda path: models[path.name])
    monkeypatch.setattr("finetune_jobs.evaluate.load_tokenizer", lambda _path: tokenizer)
    test = [row(f"refund {n}", "refund") for n in range(20)]
    dataset = write_dataset(tmp_path / "dataset", train=[], test=test)  # nothing to show the base model
    exported = [Exported(name, name[0] * 64, tmp_path / name) for name in ("INT4", "Merged")]
    for each in exported:
        each.folder.mkdir()
        shutil.copy(folder / "base" / "config.json", each.folder)
    evaluation = Evaluation(max_samples=20, general=Coverage.OFF, adversarial=Coverage.OFF)

    given = StageInput(
        stage=Stage.EVALUATE,
        run=RUN,
        base_model_uri="s3://models/tiny",
        upstream=Upstream(dataset="d" * 64, adapter="a" * 64, export=exported[0].digest),
    )

    def answered(out: Path, *, fall_back: bool) -> tuple[set[str], list[tuple[str, bool]], set[str]]:
        files = EvaluationFiles(folder / "base", folder / "adapter", exported, dataset, out)
        setting = Setting(TaskType.TEXT, evaluation, fall_back=fall_back)
        about = About(identify(given))
        evaluate_models(files, Tuning.of(Training(method=Method.LORA)), setting, Progress("evaluate"), about)
        metrics = Metrics.model_validate_json((out / METRICS).read_text())
        assert metrics.measurements is not None
        perplexity = metrics.measurements.of("perplexity")
        assert perplexity is not None, "it is a text"
        found = {model: it.value for model, it in perplexity.models.items()}  # each is all but sure of one token only
        assert found == pytest.approx(dict.fromkeys(("base", "tuned", "artifact"), math.exp(LARGEST)))
        answers = read_answers((out / ANSWERS).read_text().splitlines(), ANSWERS)
        named = set(re.findall(r"models/([A-Z])\1{63}", parsed_page((out / EVALUATION_PAGE).read_text()).text))
        return {each.artifact for each in answers}, [(each.format, each.served) for each in metrics.formats], named

    assert answered(tmp_path / "a", fall_back=True) == ({"refund"}, [("Merged", True), ("INT4", False)], {"M"})
    assert answered(tmp_path / "b", fall_back=False) == ({"parcel"}, [("INT4", True), ("Merged", False)], {"I"})


def test_an_artifact_of_other_positions_is_refused_before_anything_is_asked(folder: Path, tmp_path: Path) -> None:
    """Its answers to short questions would hardly differ."""
    other = shutil.copytree(folder / "artifact", tmp_path / "other")
    edit_json(other / "config.json", rope_theta=1000.0)
    exported = [Exported(name, "", place) for name, place in (("INT8", folder / "artifact"), ("Merged", other))]
    files = EvaluationFiles(folder / "base", folder / "adapter", exported, folder / "dataset", tmp_path / "out")
    setting = Setting(TaskType.CLASSIFICATION, Evaluation(max_samples=10))
    with pytest.raises(StageError, match="has rope_theta 1000, that of its base model has 10000"):
        evaluate_models(files, Tuning.of(Training(method=Method.LORA)), setting, Progress("evaluate"))
    assert not files.out.exists()


def test_weights_that_are_unpacked_once_compute_the_same(folder: Path) -> None:
    tokens, packed = torch.arange(4, 60)[None], load_base(folder / "base", Quantization.NF4)
    with torch.inference_mode():
        expected = packed(input_ids=tokens).logits
        made = unpacked(packed)
        assert torch.equal(made(input_ids=tokens).logits, expected)
    assert not [module for module in made.modules() if isinstance(module, Linear4bit)]
    plain = load_base(folder / "base")
    assert unpacked(plain) is plain


def test_weights_that_stay_rounded_compute_the_same(folder: Path) -> None:
    """One layer after the other is unpacked, and none for longer than it computes; in every pass."""
    tokens = torch.arange(4, 60)[None]
    unpacked, kept = load_checkpoint(folder / "artifact"), load_checkpoint(folder / "artifact")
    keep_rounded(kept)
    for _ in range(2):
        assert torch.equal(kept(input_ids=tokens).logits, unpacked(input_ids=tokens).logits)
    for model, dtype in ((kept, torch.int8), (unpacked, precision())):
        found = {p.dtype for name, p in model.named_parameters() if name.endswith("_proj.weight")}
        assert found == {dtype}
    prompts = [example.prompt for example in read_split(folder / "dataset", "test")][:4]
    assert ask(kept, folder / "base", prompts, 4) == ask(unpacked, folder / "base", prompts, 4)


@pytest.mark.parametrize(("gib", "place"), [(1.3, "cpu"), (2.0, None)])
def test_what_a_gpu_does_not_hold_in_16_bits_goes_to_the_pods_own_memory(
    gib: float, place: str | None, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the GPU's size, which is that of CUDA's own things here: the model is tiny."""
    assert device_for_16_bits(folder / "base") is None, "without a GPU there is no other place"
    properties = SimpleNamespace(total_memory=int(gib * 2**30))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _device: properties)
    assert device_for_16_bits(folder / "base") == place


def test_the_artifact_is_computed_in_its_own_quantisation(folder: Path) -> None:
    """Loaded exactly: INT8 weights change the logits a little, and never by as much as another model would."""
    tokens = torch.arange(4, 60)[None]
    exact = load_base(folder / "base")(input_ids=tokens).logits
    quantised = load_checkpoint(folder / "artifact")(input_ids=tokens).logits
    difference = (quantised - exact).abs().mean() / exact.abs().mean()
    assert 0 < difference < 0.2
