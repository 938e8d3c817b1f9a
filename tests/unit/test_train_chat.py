"""What a model is given and what it must learn, with real tokenizers and templates."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, GenerationConfig

from finetune_jobs.modelling import chat
from finetune_jobs.modelling.tokenizer import write_served_template
from tests.support.tiny_model import CHAT_TEMPLATE, build_tiny_llama, edit_json
from tests.support.training import row

pytestmark = [pytest.mark.unit, pytest.mark.slow]

WITH_BOS = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m['role'] }}\n\n{{ m['content'] | trim }}<|im_end|>"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n\n{% endif %}"
)
"""As Llama 3 does it: bos first, nothing between the turns."""
THINKING = CHAT_TEMPLATE.replace(
    "message['role'] + '\n' +", "message['role'] + '\n' + ('(think)\n' if message['role'] == 'assistant' else '') +"
)
"""As reasoning models do it: past answers are rendered with something that the generation prompt does not have."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_llama(tmp_path_factory.mktemp("chat") / "base")


def tokenizer_of(base: Path, template: str | None, **changes: Any) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = template
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    return tokenizer


def stop_of(tokenizer: Any) -> int:
    return chat.end_of_turn(tokenizer, chat.stop_ids(tokenizer, GenerationConfig()))


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, WITH_BOS, THINKING], ids=["chatml", "bos", "thinking"])
@pytest.mark.parametrize("pad", ["<|pad|>", "<|im_end|>"], ids=["pad", "pad=eos"])
def test_only_the_answer_and_its_stop_token_are_learnt(base: Path, template: str, pad: str) -> None:
    tokenizer = tokenizer_of(base, template, pad_token=pad)
    messages = row("where is my parcel?", "refund my order")["messages"]

    encoded = chat.encode(tokenizer, messages, stop_of(tokenizer))

    prompt = chat.prompt_ids(tokenizer, messages[:-1])
    learnt = [label for label in encoded.labels if label != chat.IGNORED]
    assert encoded.input_ids[: len(prompt)] == prompt  # exactly what a server puts before the answer
    assert encoded.labels == [chat.IGNORED] * len(prompt) + learnt
    assert tokenizer.decode(learnt) == "refund my order<|im_end|>"
    assert learnt[-1] == tokenizer.eos_token_id


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, WITH_BOS], ids=["chatml", "bos"])
def test_an_example_is_the_rendered_conversation_up_to_the_stop_token(base: Path, template: str) -> None:
    tokenizer = tokenizer_of(base, template)
    messages = row("what is the capital of France?", "question")["messages"]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False).removesuffix("\n")

    assert tokenizer.decode(chat.encode(tokenizer, messages, stop_of(tokenizer)).input_ids) == rendered


def test_any_stop_token_of_the_generation_config_will_do(base: Path) -> None:
    tokenizer = tokenizer_of(base, CHAT_TEMPLATE.replace("'<|im_end|>'", "'<|bos|>'"))
    stops = chat.stop_ids(tokenizer, GenerationConfig(eos_token_id=[tokenizer.bos_token_id, tokenizer.pad_token_id]))

    assert stops == {tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id}
    assert chat.end_of_turn(tokenizer, stops) == tokenizer.bos_token_id


OPENING = CHAT_TEMPLATE.replace(
    "{{ '<|im_start|>assistant\n' }}",
    "{{ '<|im_start|>assistant\n<think>\n' }}"
    "{% if SWITCH is defined and not SWITCH %}{{ '\n</think>\n\n' }}{% endif %}",
)
"""As thinking models do it: the prompt opens a block of thoughts, and closes it where a variable says so."""


@pytest.mark.parametrize("switch", ["enable_thinking", "thinking"])
def test_a_block_of_thoughts_is_closed_before_the_answer_wherever_it_is_rendered(
    base: Path, tmp_path: Path, switch: str
) -> None:
    tokenizer = tokenizer_of(base, OPENING.replace("SWITCH", switch))
    messages = row("what is <think> for?", "refund my order")["messages"]

    encoded = chat.encode(tokenizer, messages, stop_of(tokenizer))

    prompt = chat.prompt_ids(tokenizer, messages[:-1])
    assert tokenizer.decode(prompt).endswith("assistant\n<think>\n\n</think>\n\n")
    assert encoded.input_ids[: len(prompt)] == prompt
    assert tokenizer.decode([each for each in encoded.labels if each != chat.IGNORED]) == "refund my order<|im_end|>"
    shutil.copytree(base, tmp_path / "served")
    edit_json(tmp_path / "served" / "tokenizer_config.json", chat_template=None)
    (tmp_path / "served" / "chat_template.jinja").write_text(OPENING.replace("SWITCH", switch))
    write_served_template(tmp_path / "served")
    served = AutoTokenizer.from_pretrained(tmp_path / "served")
    plain = served.apply_chat_template(messages[:-1], tokenize=True, add_generation_prompt=True, return_dict=False)
    assert plain == prompt  # a server that knows of no variable
    assert chat.prompt_ids(served, messages[:-1]) == prompt


def test_a_template_that_opens_no_block_is_served_as_it_is(base: Path) -> None:
    tokenizer = tokenizer_of(base, CHAT_TEMPLATE)
    assert chat.served_template(tokenizer) == ""
    asked = row("what does <think> mean?", "a")["messages"][:-1]
    assert tokenizer.decode(chat.prompt_ids(tokenizer, asked)) == tokenizer.apply_chat_template(
        asked, tokenize=False, add_generation_prompt=True
    )


TOOL_TEMPLATE = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for call in m.tool_calls or [] %}<call>{{ call.function | tojson }}</call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""As models for calling tools do it (Hermes, Qwen)."""
CALLING: list[dict[str, Any]] = [
    {"role": "user", "content": "how much is there?"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": "balance", "arguments": {"account": 7}}}],
    },
]


def test_an_answer_that_calls_a_tool_is_learnt_in_the_form_of_the_template(base: Path) -> None:
    tokenizer = tokenizer_of(base, TOOL_TEMPLATE)
    stop, tools = stop_of(tokenizer), [{"type": "function", "function": {"name": "balance"}}]

    encoded = chat.encode(tokenizer, CALLING, stop, tools)

    prompt = chat.prompt_ids(tokenizer, CALLING[:-1], tools)
    assert encoded.input_ids[: len(prompt)] == prompt
    assert '"balance"' in tokenizer.decode(prompt)
    learnt = tokenizer.decode([label for label in encoded.labels if label != chat.IGNORED])
    assert learnt.startswith("<call>{")
    assert learnt.endswith("</call><|im_end|>")
    assert chat.answer_text(tokenizer, CALLING, stop, tools) == learnt.removesuffix("<|im_end|>")
    assert chat.answer_text(tokenizer, row("a", "refund my order")["messages"], stop) == "refund my order"
