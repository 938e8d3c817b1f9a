"""Which tokens of a data set carry loss, with real tokenizers and templates."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from finetune_api.training import Loss
from finetune_jobs.modelling import chat
from finetune_jobs.modelling.encoding import encode_conversation
from finetune_jobs.modelling.token_files import Conversation
from tests.support.tiny_model import CHAT_TEMPLATE, build_tiny_llama

pytestmark = [pytest.mark.unit, pytest.mark.slow]

FORGETFUL = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m.content if m.role != 'assistant' or loop.last else m.content.split('!')[-1] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""As reasoning models do it: of an answer that is past, what stands before the ``!`` is left out."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_llama(tmp_path_factory.mktemp("encoding") / "base")


def tokenizer_of(base: Path, template: str = CHAT_TEMPLATE, **changes: Any) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = template
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    return tokenizer


def talk(*answers: str, system: str = "") -> Conversation:
    """A conversation with these answers, a question before each."""
    messages = [{"role": "system", "content": system}] if system else []
    for number, answer in enumerate(answers):
        messages += [{"role": "user", "content": f"question {number}"}, {"role": "assistant", "content": answer}]
    return Conversation(messages)


def learnt(tokenizer: Any, encoded: chat.Encoded) -> str:
    return str(tokenizer.decode([label for label in encoded.labels if label != chat.IGNORED]))


def test_only_the_last_answer_is_learnt_unless_asked_otherwise(base: Path) -> None:
    tokenizer = tokenizer_of(base)
    example, stop = talk("refund", "order", "parcel"), tokenizer.eos_token_id

    (last,) = encode_conversation(tokenizer, example, stop, Loss.ANSWER)
    (all_answers,) = encode_conversation(tokenizer, example, stop, Loss.ALL_ANSWERS)

    assert learnt(tokenizer, last) == "parcel<|im_end|>"
    assert learnt(tokenizer, all_answers) == "refund<|im_end|>order<|im_end|>parcel<|im_end|>"
    assert all_answers.input_ids == last.input_ids


@settings(max_examples=40, deadline=None)
@given(
    answers=st.lists(st.text("abc !\n", min_size=1, max_size=12), min_size=1, max_size=4),
    template=st.sampled_from([CHAT_TEMPLATE, FORGETFUL]),
)
def test_every_answer_is_learnt_once_after_the_tokens_that_a_server_puts_before_it(
    base: Path, answers: list[str], template: str
) -> None:
    tokenizer = tokenizer_of(base, template)
    example, stop = talk(*answers), tokenizer.eos_token_id

    parts = encode_conversation(tokenizer, example, stop, Loss.ALL_ANSWERS)

    found = {}
    for part in parts:
        begins = [
            place
            for place in range(1, len(part.labels))
            if part.labels[place] != chat.IGNORED and part.labels[place - 1] == chat.IGNORED
        ]
        for begin in begins:
            end = part.labels.index(stop, begin) + 1
            assert part.labels[begin:end] == part.input_ids[begin:end]
            found[tuple(part.input_ids[:begin])] = part.input_ids[begin:end]
    turns = [place for place, message in enumerate(example.messages) if message["role"] == "assistant"]
    assert found == {
        tuple(chat.prompt_ids(tokenizer, example.messages[:turn])): [
            *chat.answer_ids(tokenizer, example.messages[turn]["content"]),
            stop,
        ]
        for turn in turns
    }


def test_a_template_that_rewrites_past_answers_makes_an_example_of_each(base: Path) -> None:
    tokenizer = tokenizer_of(base, FORGETFUL)
    parts = encode_conversation(tokenizer, talk("so!refund", "so!order"), tokenizer.eos_token_id, Loss.ALL_ANSWERS)
    assert [learnt(tokenizer, part) for part in parts] == ["so!refund<|im_end|>", "so!order<|im_end|>"]
    assert "so!" not in tokenizer.decode(parts[1].input_ids).split("question 1")[0]


@pytest.mark.parametrize("pad", ["<|pad|>", "<|im_end|>"], ids=["pad", "pad=eos"])
@pytest.mark.parametrize("loss", list(Loss))
def test_the_stop_token_is_trained_in_the_batch_that_the_model_gets(base: Path, pad: str, loss: Loss) -> None:
    """Through TRL's own collator, whose padding must not take the label from the last stop token."""
    tokenizer = tokenizer_of(base, pad_token=pad)
    stop = tokenizer.eos_token_id
    examples = [talk("refund", "order"), talk("parcel"), talk("a much longer answer to the question")]
    encoded = [part for e in examples for part in encode_conversation(tokenizer, e, stop, loss)]

    collator = DataCollatorForLanguageModeling(pad_token_id=tokenizer.pad_token_id)
    batch = collator([{"input_ids": part.input_ids, "labels": part.labels} for part in encoded])

    answers = torch.tensor([2 if loss is Loss.ALL_ANSWERS else 1, 1, 1])
    assert torch.equal((batch["labels"] == stop).sum(1), answers)
    assert torch.equal(batch["attention_mask"].sum(1), torch.tensor([len(part.input_ids) for part in encoded]))
