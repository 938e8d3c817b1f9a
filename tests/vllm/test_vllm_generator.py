"""The real vLLM, built for CPUs, answers in an evaluation as transformers does (`make test-vllm`).

Base and adapter in one engine, with bfloat16 weights; what both are asked, and how near their probabilities are.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from finetune_api.reasons import Reason
from finetune_api.training import Method, Training
from finetune_jobs.base.errors import StageError
from finetune_jobs.evaluation.behaviour.likelihood import Given, encode
from finetune_jobs.evaluation.generate import Questions
from finetune_jobs.evaluation.generators.on_transformers import TransformersGenerator
from finetune_jobs.evaluation.generators.on_vllm import VllmGenerators
from finetune_jobs.evaluation.generators.protocol import Generator
from finetune_jobs.evaluation.passages import Passage
from finetune_jobs.exporting.adapter import write_base
from finetune_jobs.exporting.offload import load_artifact
from finetune_jobs.modelling import chat
from finetune_jobs.modelling.loading import load_adapter, load_base
from finetune_jobs.modelling.tokenizer import load_tokenizer, stop_token
from finetune_jobs.modelling.tuning import Tuning
from hack.cluster.layout import cache_directory
from hack.models import ensure_smollm2
from tests.support import vllm_process
from tests.support.sentences import assert_says

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1800)]

LABELS = ("travel", "food", "food delivery", "rent", "salary")
ASKED = ("a train to Lyon", "two pizzas", "the flat in May", "wages of March", "soup", "a taxi at night")
NEAR = 0.15
"""Nats a token between two programs that compute in bfloat16 and float32: the mean over a text."""
TIE = 0.5
"""Nats between two tokens of which rounding decides which one is the likeliest."""


def quiet(_done: int, _total: int) -> None:
    """No progress."""


def generators(base: Path, tuned: Path, work: Path, longest: int = 256) -> VllmGenerators:
    tuning = Tuning.of(Training(method=Method.LORA))
    return VllmGenerators(base, tuned, tuning, longest, work, write_base, load_artifact)


@dataclass(frozen=True)
class Said:
    """What one model said to everything."""

    texts: list[str]
    ended: list[bool]
    likely: list[float]
    chosen: list[str]
    losses: list[float]
    codes: list[float]
    passage: list[float]
    prompts: list[list[int]]

    @classmethod
    def of(cls, generator: Generator, base: Path) -> Said:
        tokenizer = load_tokenizer(base)
        stop = stop_token(base, tokenizer)
        prompts = [[{"role": "user", "content": f"Name the category of: {each}"}] for each in ASKED]
        questions = Questions(prompts, limit=16, batch_size=8)
        given = [encode(tokenizer, prompt, LABELS[2], stop) for prompt in prompts]
        codes = [[*chat.answer_ids(tokenizer, label), stop] for label in LABELS]
        written = generator.write(questions, quiet, weighed=True)
        again, chosen = generator.write_and_choose(questions, LABELS, stop, quiet)
        assert [each.text for each in again] == [each.text for each in written]
        return cls(
            [each.text for each in written],
            [each.ended for each in written],
            [each.log_probability for each in written],
            chosen,
            generator.losses(given, quiet),
            generator.weigh(given[0].prompt, codes),
            generator.log_probs(Passage("", [*given[0].prompt, *given[0].answer])),
            [list(each.prompt) for each in given],
        )


@pytest.fixture(scope="module")
def base() -> Path:
    return ensure_smollm2(cache_directory())


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that changes every answer a little."""
    torch.manual_seed(3)
    model = get_peft_model(load_base(base), LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    for name, tensor in model.named_parameters():
        if "lora_B" in name:
            tensor.data *= 0.2
    folder = tmp_path_factory.mktemp("adapter")
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def said(base: Path, adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Said]]:
    """Of base and adapter: by vLLM, by transformers."""
    found: dict[str, list[Said]] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FINETUNE_VLLM_PYTHON", str(vllm_process.python()))
        with generators(base, adapter, tmp_path_factory.mktemp("vllm")) as models:
            found["base"] = [Said.of(models.base(), base)]
            found["tuned"] = [Said.of(models.tuned(), base)]
            assert models.program.startswith("vLLM 0.")
    model, tokenizer = load_base(base), load_tokenizer(base)
    found["base"].append(Said.of(TransformersGenerator(model, tokenizer), base))
    found["tuned"].append(Said.of(TransformersGenerator(load_adapter(model, adapter), tokenizer), base))
    for name, (ours, theirs) in found.items():
        print(f"{name}: {ours}\n{'':{len(name)}}  {theirs}", flush=True)
    return found


def gaps(judge: Generator, tokenizer: Any, vllm: Said, transformers: Said) -> list[float]:
    """Where two texts part: how much likelier transformers finds its own token than vLLM's, in nats."""
    found = []
    for prompt, one, other in zip(vllm.prompts, vllm.texts, transformers.texts, strict=True):
        both = [chat.answer_ids(tokenizer, text) for text in (one, other)]
        parted = next((at for at, (a, b) in enumerate(zip(*both, strict=False)) if a != b), None)
        if parted is not None:
            before = [*prompt, *both[0][:parted]]
            of_vllm, own = judge.losses([Given(before, [ids[parted]]) for ids in both], quiet)
            found.append(of_vllm - own)
    return found


def mean_distance(one: list[float], other: list[float]) -> float:
    return sum(abs(a - b) for a, b in zip(one, other, strict=True)) / len(one)


@pytest.mark.parametrize("model", ["base", "tuned"])
def test_both_programs_say_nearly_the_same(said: dict[str, list[Said]], model: str) -> None:
    vllm, transformers = said[model]
    assert sum(a == b for a, b in zip(vllm.chosen, transformers.chosen, strict=True)) >= len(ASKED) - 1
    assert mean_distance(vllm.losses, transformers.losses) < NEAR
    assert mean_distance(vllm.passage, transformers.passage) < NEAR
    pairs = zip(vllm.texts, transformers.texts, vllm.likely, transformers.likely, strict=True)
    assert all(abs(a - b) < 16 * NEAR for one, other, a, b in pairs if one == other)
    assert vllm.texts[0] == transformers.texts[0]
    order = sorted(range(len(LABELS)), key=vllm.codes.__getitem__)
    assert order[-1] == max(range(len(LABELS)), key=transformers.codes.__getitem__)


def test_greedy_texts_part_at_near_ties_only(said: dict[str, list[Said]], base: Path, adapter: Path) -> None:
    """Of a model that was not trained for the question there are many."""
    model, tokenizer = load_base(base), load_tokenizer(base)
    found = gaps(TransformersGenerator(model, tokenizer), tokenizer, *said["base"])
    found += gaps(TransformersGenerator(load_adapter(model, adapter), tokenizer), tokenizer, *said["tuned"])
    print(f"gaps: {found}")
    assert max(map(abs, found), default=0.0) < TIE, found


@pytest.mark.parametrize("model", ["base", "tuned"])
def test_the_search_finds_the_label_that_is_likeliest_when_all_are_weighed(
    said: dict[str, list[Said]], model: str
) -> None:
    """Of the first question, for which both are known."""
    vllm, _ = said[model]
    assert vllm.chosen[0] == LABELS[max(range(len(LABELS)), key=vllm.codes.__getitem__)]


def test_the_adapter_is_another_model_in_the_same_engine(said: dict[str, list[Said]]) -> None:
    base, tuned = (found[0] for found in said.values())
    apart = mean_distance(base.passage, tuned.passage)
    assert apart > mean_distance(tuned.passage, said["tuned"][1].passage)


def test_an_answer_says_what_ended_it(said: dict[str, list[Said]]) -> None:
    """Sixteen tokens are enough for some of a small model's answers at most; the tokens say which."""
    for vllm, transformers in said.values():
        ended = [
            pair
            for one, other, *pair in zip(vllm.texts, transformers.texts, vllm.ended, transformers.ended, strict=True)
            if one == other
        ]
        assert all(a == b for a, b in ended)


def test_what_vllm_cannot_load_ends_with_its_own_words(
    base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More tokens than the model takes."""
    monkeypatch.setenv("FINETUNE_VLLM_PYTHON", str(vllm_process.python()))
    with generators(base, adapter, tmp_path, longest=10**6) as models, pytest.raises(StageError) as error:
        models.base()
    assert error.value.reason is Reason.GENERATOR_FAILED
    assert_says(error.value.message, "the base model", "could not load it", "1000000", "Transformers")
