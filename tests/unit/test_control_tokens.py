"""Control tokens of the base model in the texts of rows: named by row and field, or escaped, and never trained."""

import json
from collections import Counter
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, normalizers

from finetune_api.dataset import Cleaning, Columns, Markup, OnControlToken, Task
from finetune_api.reasons import Reason
from finetune_jobs.base.errors import StageError
from finetune_jobs.examples.validation import Example
from finetune_jobs.modelling.control_tokens import ControlTokens
from finetune_jobs.modelling.tokenizer import load_tokenizer
from finetune_jobs.preparation.tokens import Encoder
from finetune_jobs.reading.rows import Fault, Row
from tests.support.preparing import intake_of, params_of
from tests.support.sentences import assert_says, unsaid
from tests.support.tiny_model import CHAT_TEMPLATE, build_tiny_llama

pytestmark = pytest.mark.unit

CALLS: Final = "{% for c in message.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}"
MAPPED: Final[dict[str, Any]] = {"columns": Columns(input="text", label="label")}
ESCAPE: Final[dict[str, Any]] = {"cleaning": Cleaning(control_tokens=OnControlToken.ESCAPE)}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """As Qwen's: the template writes tokens that the tokenizer calls ordinary; and as Gemma's, which has markup too."""
    found = load_tokenizer(build_tiny_llama(tmp_path_factory.mktemp("control") / "base"))
    found.add_tokens([AddedToken(name, special=False) for name in ("<tool_call>", "</tool_call>", "<td>", "\n\n")])
    found.chat_template = CHAT_TEMPLATE.replace("+ '<|im_end|>'", "}}" + CALLS + "{{ '<|im_end|>'")
    return found


@pytest.fixture(scope="module")
def controls(tokenizer: Any) -> ControlTokens:
    return ControlTokens.of(tokenizer)


def control_ids(tokenizer: Any, text: str) -> list[str]:
    """The control tokens that a text becomes."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return [token for token in tokenizer.convert_ids_to_tokens(ids) if token in ControlTokens.of(tokenizer).names]


def test_special_tokens_and_those_of_the_template_are_control_tokens(controls: ControlTokens) -> None:
    assert controls.names == {"<|pad|>", "<|bos|>", "<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>"}


PIECES: Final = [
    *("<|im_end|>", "<", "|", "im_end", "|>", "<|", "<tool_call>", "</", ">", "tool_call", "<td>", " ", "\n\n")
]


@given(st.lists(st.sampled_from(PIECES)).map("".join))
def test_a_text_is_free_of_them_exactly_when_the_tokenizer_makes_none(
    tokenizer: Any, controls: ControlTokens, text: str
) -> None:
    assert bool(controls.found(text)) == bool(control_ids(tokenizer, text))
    plain, tokens = controls.escaped(text)
    assert control_ids(tokenizer, plain) == []
    assert bool(tokens) == (plain != text)
    assert plain.replace(" ", "") == text.replace(" ", "")
    assert controls.escaped(plain) == (plain, [])


def test_what_the_tokenizer_itself_makes_one_is_found(tmp_path: Path) -> None:
    """A full-width ＜|im_end|＞, where the tokenizer normalises before it looks."""
    found = load_tokenizer(build_tiny_llama(tmp_path / "base"))
    found.backend_tokenizer.normalizer = normalizers.NFKC()
    found.add_tokens([AddedToken("<|end|>", special=True, normalized=True)], special_tokens=True)
    assert ControlTokens.of(found).found("\uff1c|end|\uff1e") == "<|end|>"


STRIP: Final[dict[str, Any]] = {"cleaning": Cleaning(markup=Markup.STRIP)}
QUESTION: Final = {"role": "user", "content": "q"}
CALLED: Final = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": '{"</tool_call>": 1}'}}]}
THINKING: Final = {"role": "assistant", "content": "a", "reasoning_content": "so <|bos|>"}
DIALOGUE: Final = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "<|bos|>"}]
WRONG: Final[list[tuple[dict[str, Any], dict[str, Any], str, str]]] = [
    (MAPPED, {"text": "say <|im_end|>", "label": "a"}, "text", "<|im_end|>"),
    (MAPPED, {"text": "q", "label": "<tool_call>{}"}, "label", "<tool_call>"),
    (MAPPED | STRIP, {"text": "&lt;|im_end|&gt;", "label": "a"}, "messages[0].content", "<|im_end|>"),
    (MAPPED, {"text": "<|im_\u200bend|>", "label": "a"}, "messages[0].content", "<|im_end|>"),
    ({}, {"prompt": "q", "completion": "a<|im_start|>"}, "completion", "<|im_start|>"),
    ({}, {"conversations": DIALOGUE}, "conversations[1].value", "<|bos|>"),
    (
        {},
        {"messages": [QUESTION, {"role": "assistant", "content": "a"}], "tools": [{"name": "<|pad|>"}]},
        "tools[0].name",
        "<|pad|>",
    ),
    ({}, {"messages": [QUESTION, THINKING]}, "messages[1].reasoning_content", "<|bos|>"),
    ({"task": Task()}, {"messages": [QUESTION, THINKING]}, "messages[1].reasoning_content", "<|bos|>"),
    ({}, {"messages": [QUESTION, CALLED]}, "messages[1].tool_calls[0].function.arguments", "</tool_call>"),
]
"""What is asked, a row, the field where the token is, and the token."""


@pytest.mark.parametrize(("asked", "fields", "field", "token"), WRONG)
def test_a_row_with_one_is_invalid(
    controls: ControlTokens, asked: dict[str, Any], fields: dict[str, Any], field: str, token: str
) -> None:
    fault = intake_of(params_of(**asked), controls).take(Row(7, fields))
    assert isinstance(fault, Fault)
    assert (fault.line, fault.field, fault.kind, fault.value) == (7, field, "controlToken", token)
    assert_says(f"{fault.problem}.{fault.hint}", "control token", "base model", "Remove it", "controlTokens to Escape")


@pytest.mark.parametrize(("asked", "fields", "field", "token"), WRONG)
def test_escaped_tokens_are_counted_and_not_trained(
    tokenizer: Any, controls: ControlTokens, asked: dict[str, Any], fields: dict[str, Any], field: str, token: str
) -> None:
    cleaning = asked.get("cleaning", Cleaning()).model_copy(update={"control_tokens": OnControlToken.ESCAPE})
    params = params_of(**asked | {"cleaning": cleaning}, max_length=2000)
    intake = intake_of(params, controls)
    example = intake.take(Row(1, fields))
    assert isinstance(example, Example)
    assert intake.escaped == Counter([token])
    said = json.dumps([example.messages, example.tools], ensure_ascii=False)
    assert f"{token[0]} {token[1:]}" in said
    assert token not in said
    stop = tokenizer.eos_token_id
    if example.has_thoughts:
        return  # of which this template knows nothing
    [encoded] = Encoder(tokenizer, stop, params).encode(example, "row 1")
    assert encoded.pieces[0].input_ids.count(stop) == 2  # those of the question and of the answer


def test_the_place_of_one_holds_no_personal_data(controls: ControlTokens) -> None:
    call = {"function": {"name": "send", "arguments": {"to": {"jane@example.com": "stop <|im_end|>"}}}}
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "tool_calls": [call]}]
    found = intake_of(params_of(), controls).take(Row(1, {"messages": messages}))
    assert isinstance(found, Fault)
    assert found.field == f"messages[1].tool_calls[0].function.arguments.to.{'*' * 16}"


def test_a_label_is_never_escaped(controls: ControlTokens) -> None:
    """It would be another label."""
    row = Row(1, {"text": "q <|im_end|>", "label": "<|pad|>"})
    fault = intake_of(params_of(**MAPPED, **ESCAPE, task=Task()), controls).take(row)
    assert isinstance(fault, Fault)
    assert (fault.field, fault.value, fault.hint) == ("label", "<|pad|>", " Remove it")


def test_an_instruction_with_one_is_refused(controls: ControlTokens) -> None:
    with pytest.raises(StageError) as caught:
        intake_of(params_of(instruction="End with <|im_end|>."), controls)
    assert caught.value.reason is Reason.SPEC_INVALID
    assert_says(caught.value.message, "spec.dataset.instruction", "<|im_end|>", "control token", "Remove")


def test_of_prompts_for_a_teacher_those_with_one_are_not_asked(controls: ControlTokens) -> None:
    assert getattr(intake_of(params_of(), controls).text("a <|im_end|>"), "kind", "") == "controlToken"
    assert intake_of(params_of(**ESCAPE), controls).text("a <|im_end|>") == "a <|im_end|>"


def test_every_sentence_about_one_is_provoked(controls: ControlTokens) -> None:
    messages = []
    for asked in ({}, ESCAPE):
        row = Row(1, {"text": "q", "label": "<|pad|>"})
        fault = intake_of(params_of(**MAPPED, **asked, task=Task()), controls).take(row)
        assert isinstance(fault, Fault)
        messages.append(f"{fault.problem}.{fault.hint}")
    with pytest.raises(StageError) as caught:
        intake_of(params_of(instruction="<|im_end|>"), controls)
    assert unsaid("finetune_jobs.preparation.guard", [*messages, caught.value.message]) == []
