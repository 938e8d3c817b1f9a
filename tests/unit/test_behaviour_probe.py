"""Tiny models answer the sets: the likelihoods are those of the model, and padding changes nothing."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import log_softmax

from finetune_api.evaluation import Coverage, Evaluation
from finetune_jobs.base.progress import Progress
from finetune_jobs.evaluation.behaviour.comparison import compare_behaviour
from finetune_jobs.evaluation.behaviour.items import Sets, adversarial_set, general_set, sets_for, subset, swap_set
from finetune_jobs.evaluation.behaviour.likelihood import Given, answer_losses, encode
from finetune_jobs.evaluation.behaviour.probe import ANSWER_TOKENS, MUST_THINK, Probe, probe_for
from finetune_jobs.evaluation.generators.on_transformers import TransformersGenerator
from finetune_jobs.modelling.loading import load_adapter, load_base
from finetune_jobs.modelling.tokenizer import load_tokenizer, stop_token
from tests.support.reasoning import QWEN3, QWEN3_THINKING
from tests.support.tiny_model import build_tiny_llama, build_tiny_lora

pytestmark = [pytest.mark.unit, pytest.mark.slow]

NO_SYSTEM_ROLE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("behaviour")
    base = build_tiny_llama(root / "base")
    build_tiny_lora(root / "adapter", base)
    return root


def probe_of(folder: Path, sets: Sets) -> Probe:
    tokenizer = load_tokenizer(folder / "base")
    return probe_for(tokenizer, stop_token(folder / "base", tokenizer), sets)


def generator(model: Any, folder: Path) -> TransformersGenerator:
    return TransformersGenerator(model, load_tokenizer(folder / "base"))


def alone(model: Any, given: Given) -> float:
    """The mean negative log-likelihood, computed token by token without padding."""
    ids = torch.tensor([[*given.prompt, *given.answer]])
    with torch.inference_mode():
        logs = log_softmax(model(input_ids=ids).logits[0].float(), dim=-1)
    first = len(given.prompt)
    found = [logs[first + n - 1, token] for n, token in enumerate(given.answer)]
    return -float(torch.stack(found).mean())


def test_losses_do_not_depend_on_the_batch(folder: Path) -> None:
    """Conversations and answers of different length together, padded, as each alone; in float32."""
    model, tokenizer = load_base(folder / "base").float(), load_tokenizer(folder / "base")
    stop = stop_token(folder / "base", tokenizer)
    given = [
        encode(tokenizer, [{"role": "user", "content": "the fox " * n}], "refund " * (20 - n), stop)
        for n in range(1, 20)
    ]
    done: list[int] = []
    found = answer_losses(model, tokenizer.pad_token_id, given, lambda now, _total: done.append(now))
    assert found == pytest.approx([alone(model, each) for each in given], abs=1e-4)
    assert done == [16, 19]


def test_a_long_answers_logits_are_never_in_memory_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is read piece by piece, and found as likely as at once."""
    model, pieces = load_base(folder / "base").float(), list[int]()
    given = [Given([4, 5, 6, 7], [8, 9, 3]), Given([4, 5, 6, 7], [*range(8, 58), 3])]
    expected, forward = answer_losses(model, 0, given, lambda *_: None), model.forward
    monkeypatch.setattr("finetune_jobs.evaluation.behaviour.likelihood.MOST_TOKENS", 16)
    monkeypatch.setattr("finetune_jobs.evaluation.passages._CHUNK", 16)

    def counted(**inputs: Any) -> Any:
        output = forward(**inputs)
        pieces.append(output.logits.shape[0] * output.logits.shape[1])
        return output

    model.forward = counted
    assert answer_losses(model, 0, given, lambda *_: None) == pytest.approx(expected, abs=1e-4)
    assert max(pieces) <= 16
    assert expected == pytest.approx([alone(model, each) for each in given], abs=1e-4)


def test_losses_that_the_gpus_memory_does_not_hold_are_computed_fewer_at_a_time(folder: Path) -> None:
    model, tokenizer = load_base(folder / "base").float(), load_tokenizer(folder / "base")
    given = [encode(tokenizer, [{"role": "user", "content": f"{n}"}], "refund", 3) for n in range(8)]
    expected, forward, most = answer_losses(model, 0, given, lambda *_: None), model.forward, 3

    def limited(**inputs: Any) -> Any:
        if len(inputs["input_ids"]) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return forward(**inputs)

    model.forward = limited
    assert answer_losses(model, 0, given, lambda *_: None) == pytest.approx(expected, abs=1e-4)
    most = 0
    with pytest.raises(torch.OutOfMemoryError):
        answer_losses(model, 0, given, lambda *_: None)


def test_base_and_tuned_model_answer_a_sample(folder: Path) -> None:
    sets = sets_for(Evaluation())
    probe, progress = probe_of(folder, sets), Progress("evaluate")
    model = load_base(folder / "base")
    base = probe.ask(generator(model, folder), progress, 0.0, 0.5, "base model")
    tuned = probe.ask(generator(load_adapter(model, folder / "adapter"), folder), progress, 0.5, 1.0, "tuned model")

    found = compare_behaviour(sets, base, tuned)

    assert found.forgetting is not None
    assert found.forgetting.samples == len(sets.general)
    assert found.safety is not None
    assert found.safety.samples == len(sets.adversarial)
    assert found.loss is not None
    assert abs(found.loss.difference) > 0.01
    assert found.bias is not None
    assert found.bias.samples == len(sets.swaps)
    assert json.loads(json.dumps(found.document()))["items"][0]["base"] == base.answers[sets.general[0].id]
    assert base == probe.ask(generator(load_base(folder / "base"), folder), progress, 0.0, 1.0, "base model")


def test_off_asks_nothing_and_full_asks_everything(folder: Path) -> None:
    assert sets_for(Evaluation(general=Coverage.OFF, adversarial=Coverage.OFF)) == Sets()
    full = sets_for(Evaluation(general=Coverage.FULL, adversarial=Coverage.FULL))
    assert full == Sets(general_set(), adversarial_set(), swap_set())
    asked = generator(load_base(folder / "base"), folder)
    observed = probe_of(folder, Sets()).ask(asked, Progress("evaluate"), 0.0, 1.0, "base model")
    assert (observed.answers, observed.losses, observed.swap_losses) == ({}, {}, {})


def test_every_reference_fits_the_limit_of_tokens_with_real_words() -> None:
    """Words of common tokenizers have 1.5 tokens at most on average; the longest reference needs room for them."""
    longest = max(len(item.reference.split()) for item in (*general_set(), *adversarial_set()))
    assert longest * 1.5 < ANSWER_TOKENS


@pytest.mark.parametrize(
    ("template", "system_role"), [(NO_SYSTEM_ROLE, False), (QWEN3, True)], ids=["no system role", "closed thoughts"]
)
def test_templates_that_are_asked(folder: Path, template: str, system_role: bool) -> None:
    tokenizer = load_tokenizer(folder / "base")
    stop, tokenizer.chat_template = stop_token(folder / "base", tokenizer), template
    items = subset(adversarial_set(), 1)
    probe = probe_for(tokenizer, stop, Sets(adversarial=items))
    assert probe.system_role is system_role
    asked = TransformersGenerator(load_base(folder / "base"), tokenizer)
    observed = probe.ask(asked, Progress("evaluate"), 0.0, 1.0, "base model")
    assert observed.answers.keys() == {item.id for item in items}


def test_a_template_that_must_think_is_not_asked_and_says_so(folder: Path) -> None:
    tokenizer = load_tokenizer(folder / "base")
    stop, tokenizer.chat_template = stop_token(folder / "base", tokenizer), QWEN3_THINKING
    probe = probe_for(tokenizer, stop, sets_for(Evaluation()))
    assert probe.sets == Sets()
    observed = probe.ask(TransformersGenerator(None, tokenizer), Progress("evaluate"), 0.0, 1.0, "base model")
    assert compare_behaviour(probe.sets, observed, observed, probe.note).document()["note"] == MUST_THINK
