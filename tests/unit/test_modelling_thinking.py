"""Thoughts before an answer: trained as the template writes them, told apart from the answer, or refused."""

import shutil
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import pytest
import trl
from tokenizers import AddedToken
from transformers import AutoTokenizer

from finetune_api.reasons import Reason
from finetune_api.training import Loss
from finetune_jobs.artifacts.artifact import Marks
from finetune_jobs.base.errors import StageError
from finetune_jobs.modelling import chat
from finetune_jobs.modelling.control_tokens import ControlTokens
from finetune_jobs.modelling.encoding import encode_conversation
from finetune_jobs.modelling.token_files import Conversation
from finetune_jobs.modelling.tokenizer import stop_token, write_served_template
from tests.support.reasoning import ASKED_TO_THINK, DEEPSEEK_R1, QWEN3, QWEN3_THINKING
from tests.support.sentences import assert_says, unsaid
from tests.support.tiny_model import CHAT_TEMPLATE, build_tiny_llama, edit_json

pytestmark = [pytest.mark.unit, pytest.mark.slow]

ASKED: Final = {"role": "user", "content": "why?"}
PLAIN: Final[dict[str, Any]] = {"role": "assistant", "content": "because"}
THOUGHT: Final[dict[str, Any]] = PLAIN | {"reasoning_content": "let me see"}
CALL: Final[dict[str, Any]] = THOUGHT | {
    "content": "",
    "tool_calls": [{"type": "function", "function": {"name": "balance", "arguments": {"account": 7}}}],
}
TURN: Final = "<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_llama(tmp_path_factory.mktemp("thinking") / "base")


def tokenizer_of(base: Path, template: str, *special: str) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = template
    tokenizer.add_tokens([AddedToken(token, special=True) for token in special], special_tokens=True)
    return tokenizer


def prompt_and_target(tokenizer: Any, answer: dict[str, Any], *, thoughts: bool) -> tuple[str, str]:
    """What a server renders, and what the model learns after it."""
    encoded = chat.encode(tokenizer, [ASKED, answer], tokenizer.eos_token_id, thoughts=thoughts)
    prompt = chat.prompt_ids(tokenizer, [ASKED], thoughts=thoughts)
    assert encoded.input_ids[: len(prompt)] == prompt
    assert encoded.labels[: len(prompt)] == [chat.IGNORED] * len(prompt)
    assert encoded.labels[len(prompt) :] == encoded.input_ids[len(prompt) :]
    assert encoded.longest_answer == len(encoded.input_ids) - len(prompt)
    end = tokenizer.decode(prompt).partition("<|im_end|>\n")[2].removeprefix(TURN)
    return end, tokenizer.decode(encoded.input_ids[len(prompt) :])


@pytest.mark.parametrize(
    ("template", "answer", "thoughts", "end", "learnt"),
    [
        (QWEN3, THOUGHT, True, "", "<think>\nlet me see\n</think>\n\nbecause<|im_end|>"),
        (QWEN3, PLAIN, True, "", "<think>\n\n</think>\n\nbecause<|im_end|>"),
        (QWEN3, PLAIN, False, "<think>\n\n</think>\n\n", "because<|im_end|>"),
        (QWEN3_THINKING, THOUGHT, True, "<think>\n", "let me see\n</think>\n\nbecause<|im_end|>"),
        (QWEN3_THINKING, PLAIN, True, "<think>\n", "\n</think>\n\nbecause<|im_end|>"),
        (ASKED_TO_THINK, THOUGHT, True, "<think>", "let me see</think>because<|im_end|>"),
        (ASKED_TO_THINK, PLAIN, False, "</think>", "because<|im_end|>"),
        (CHAT_TEMPLATE, PLAIN, False, "", "because<|im_end|>"),
    ],
)
def test_thoughts_and_answer_are_learnt_as_the_template_writes_them(
    base: Path, template: str, answer: dict[str, Any], thoughts: bool, end: str, learnt: str
) -> None:
    tokenizer = tokenizer_of(base, template)
    assert prompt_and_target(tokenizer, answer, thoughts=thoughts) == (end, learnt)
    marks = chat.rendering(tokenizer, thoughts=thoughts).marks
    assert (marks is not None) == thoughts
    if marks:
        assert marks.answer_in(learnt).strip() == "because<|im_end|>"


@pytest.mark.parametrize("thoughts", [False, True])
@pytest.mark.parametrize("template", [QWEN3, ASKED_TO_THINK])
def test_a_server_renders_what_was_trained_without_any_variable(
    base: Path, tmp_path: Path, template: str, thoughts: bool
) -> None:
    shutil.copytree(base, tmp_path / "served")
    edit_json(tmp_path / "served" / "tokenizer_config.json", chat_template=template)
    trained = chat.prompt_ids(tokenizer_of(base, template), [ASKED], thoughts=thoughts)
    write_served_template(tmp_path / "served", thoughts=thoughts)
    served = AutoTokenizer.from_pretrained(tmp_path / "served")
    assert trained == served.apply_chat_template([ASKED], add_generation_prompt=True, return_dict=False)
    assert trained == chat.prompt_ids(served, [ASKED], thoughts=thoughts)
    assert chat.rendering(served, thoughts=thoughts).closed == (not thoughts)


def test_a_call_is_learnt_with_the_thoughts_before_it(base: Path) -> None:
    tokenizer = tokenizer_of(base, QWEN3)
    _, learnt = prompt_and_target(tokenizer, CALL, thoughts=True)
    assert learnt.startswith('<think>\nlet me see\n</think>\n\n<tool_call>\n{"name": "balance"')
    right = chat.answer_text(tokenizer, [ASKED, CALL], tokenizer.eos_token_id, thoughts=True)
    assert right.startswith('<tool_call>\n{"name": "balance"')
    assert right.endswith("</tool_call>")


def test_with_all_answers_each_one_is_learnt_with_its_thoughts(base: Path) -> None:
    tokenizer = tokenizer_of(base, QWEN3)
    talk = Conversation([ASKED, THOUGHT, {"role": "user", "content": "and?"}, THOUGHT | {"content": "so"}])
    parts = encode_conversation(tokenizer, talk, tokenizer.eos_token_id, Loss.ALL_ANSWERS, thoughts=True)
    learnt = [tokenizer.decode([label for label in part.labels if label != chat.IGNORED]) for part in parts]
    before = "<think>\nlet me see\n</think>\n\n"
    assert learnt == [f"{before}because<|im_end|>", f"{before}so<|im_end|>"]
    assert "let me see" not in tokenizer.decode(parts[1].input_ids).partition("and?")[0]  # as a server renders it


PUBLISHED: Final = Path(trl.__file__).parent / "chat_templates"
"""Templates as models are published with them."""


@pytest.mark.parametrize(
    ("name", "closing", "opening", "marks"),
    [
        ("qwen3", {"enable_thinking": False}, {}, Marks(begin="<think>", end="</think>")),
        ("glm4moe", {"enable_thinking": False}, {}, Marks(begin="<think>", end="</think>")),
        ("qwen3_5_think", {"enable_thinking": False}, {}, Marks(end="</think>")),
        ("qwen3_5_nothink", {}, {"enable_thinking": True}, Marks(end="</think>")),
        ("nemotron_3_nano", {"enable_thinking": False}, {}, Marks(end="</think>")),
        ("deepseek_r1_distill", None, None, None),
        ("qwen3_instruct_2507", {}, None, None),
        ("llama3_2", {}, None, None),
    ],
)
def test_published_templates(
    base: Path, name: str, closing: dict[str, bool] | None, opening: dict[str, bool] | None, marks: Marks | None
) -> None:
    tokenizer = tokenizer_of(base, (PUBLISHED / f"{name}.jinja").read_text())
    for thoughts, variables in ((False, closing), (True, opening)):
        if variables is None:
            with pytest.raises(StageError):
                chat.rendering(tokenizer, thoughts=thoughts)
        else:
            found = chat.rendering(tokenizer, thoughts=thoughts)
            assert (found.variables, found.marks) == (variables, marks if thoughts else None)


@pytest.mark.parametrize(
    ("marks", "text", "answer"),
    [
        (Marks(begin="<think>", end="</think>"), "<think>\nwell\n</think>\n\nyes", "yes"),
        (Marks(begin="<think>", end="</think>"), "yes", "yes"),
        (Marks(begin="<think>", end="</think>"), "\n<think>\nwell, if", ""),
        (Marks(end="</think>"), "well\n</think>\n\nyes", "yes"),
        (Marks(end="</think>"), "well, if", ""),
        (Marks(end="</think>"), "a</think>b</think>c", "b</think>c"),
    ],
)
def test_what_follows_the_thoughts_is_the_answer(marks: Marks, text: str, answer: str) -> None:
    assert marks.answer_in(text).strip() == answer


def test_marks_of_thoughts_are_control_tokens_even_where_the_tokenizer_has_none(base: Path) -> None:
    assert ControlTokens.of(tokenizer_of(base, QWEN3)).found("so</think>yes") == "</think>"
    assert ControlTokens.of(tokenizer_of(base, CHAT_TEMPLATE)).found("so</think>yes") == ""


def test_thoughts_are_never_left_out_in_silence(base: Path) -> None:
    with pytest.raises(ValueError, match="thoughts"):
        chat.encode(tokenizer_of(base, QWEN3), [ASKED, THOUGHT], 3)


def test_which_templates_cannot_do_without_thoughts(base: Path) -> None:
    must = {t: chat.must_think(tokenizer_of(base, t)) for t in (QWEN3, QWEN3_THINKING, DEEPSEEK_R1, CHAT_TEMPLATE)}
    assert [template for template, thinks in must.items() if thinks] == [QWEN3_THINKING]
    stop_token(base, tokenizer_of(base, QWEN3_THINKING))  # which is known before any row is read


Case = tuple[str, dict[str, Any], bool, str]
CLOSE_IT: Final = "chat template … <think> … trained as thoughts … instruct … enable_thinking … reasoning_content"
REFUSED: Final[list[Case]] = [
    (QWEN3_THINKING, PLAIN, False, CLOSE_IT),
    (DEEPSEEK_R1, PLAIN, False, CLOSE_IT),
    (DEEPSEEK_R1, THOUGHT, True, "chat template drops reasoning_content … lost. Remove … Qwen3 … writes it"),
    (CHAT_TEMPLATE, THOUGHT, True, "chat template drops reasoning_content … Remove"),
    (QWEN3, THOUGHT | {"reasoning_content": "so</think>"}, True, "changes reasoning_content … Remove markup"),
    (QWEN3.replace("lstrip('\n')", "upper()"), THOUGHT | {"content": "yes"}, True, "drops reasoning_content"),
    (
        QWEN3.replace("'').strip(", "'').replace('E', 'e').strip("),
        THOUGHT | {"reasoning_content": "E"},
        True,
        "changes",
    ),
    (
        ASKED_TO_THINK.replace("{% endif %}</think>", "</think>{% endif %}"),
        PLAIN,
        True,
        "cannot write an answer without thoughts. Add reasoning_content … remove it from all rows",
    ),
    (
        QWEN3.replace("</think>", "<|end|>").replace("<think>", "<|begin|>"),
        THOUGHT,
        True,
        "<|end|>, a special token, … tokenizer_config.json … remove reasoning_content",
    ),
]
"""A template, an answer, whether thoughts are trained, and what is said of it."""


@cache
def said_of(number: int) -> StageError:
    template, answer, thoughts, _ = REFUSED[number]
    with TemporaryDirectory() as folder:
        tokenizer = tokenizer_of(build_tiny_llama(Path(folder)), template, "<|end|>")
    with pytest.raises(StageError) as error:
        chat.encode(tokenizer, [ASKED, answer], tokenizer.eos_token_id, thoughts=thoughts)
    return error.value


@pytest.mark.parametrize("number", range(len(REFUSED)))
def test_what_cannot_be_trained_is_refused(number: int) -> None:
    assert said_of(number).reason is Reason.MODEL_UNSUPPORTED
    assert_says(said_of(number).message, *REFUSED[number][-1].split(" … "))


PROBES: Final = ("a question", "a thought", "an answer")
"""Texts that a template is tried with."""


def test_every_sentence_about_thoughts_is_in_the_table() -> None:
    messages = [said_of(number).message for number in range(len(REFUSED))]
    assert [each for each in unsaid("finetune_jobs.modelling.thinking", messages) if each not in PROBES] == []
