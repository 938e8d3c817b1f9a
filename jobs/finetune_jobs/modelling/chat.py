"""Prompts and training targets, rendered with the model's own chat template.

Training uses exactly the tokens that a server will give the model: the prompt as the template renders it for
generation, then the answer, then the token that ends the turn. So no second "training" template is needed, only the
answer and the stop token carry loss, and a padding token that equals the stop token does no harm.

``thoughts`` says everywhere how a model is trained and asked: to think before it answers, or to answer at once
(``modelling.thinking``).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from typing import Any, Final

from jinja2.exceptions import TemplateError

from finetune_api.reasons import Reason
from finetune_jobs.base.errors import StageError
from finetune_jobs.modelling import thinking
from finetune_jobs.modelling.thinking import REASONING, Rendering

IGNORED: Final = -100
"""Label of a token that carries no loss (PyTorch's ``cross_entropy`` and all of transformers)."""

Message = dict[str, Any]
"""``role`` and ``content``; of an assistant also ``tool_calls`` and ``reasoning_content``."""

Tools = Sequence[Mapping[str, Any]]
"""Functions that a conversation may call, as JSON schemas."""


@dataclass(frozen=True)
class Encoded:
    """One training example as tokens."""

    input_ids: list[int]
    labels: list[int]
    """Equal to ``input_ids`` where the model must learn, IGNORED elsewhere."""

    @property
    def longest_answer(self) -> int:
        """Tokens of the longest answer to learn, with its thoughts."""
        runs = groupby(self.labels, lambda label: label != IGNORED)
        return max((sum(1 for _ in run) for learnt, run in runs if learnt), default=0)


def prompt_ids(tokenizer: Any, messages: Sequence[Message], tools: Tools = (), *, thoughts: bool = False) -> list[int]:
    """Tokens that a server gives the model for ``messages``, which end with the turn of a user or a tool."""
    return _ids(tokenizer, _render(tokenizer, messages, tools, generation=True, thoughts=thoughts))


def as_sent(tokenizer: Any, ids: Sequence[int]) -> tuple[str, list[int]]:
    """Tokens as a server is sent them: as text, which it encodes with special tokens before it; and what it gets."""
    text = str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))
    if tokenizer.bos_token and tokenizer(tokenizer.bos_token)["input_ids"].count(tokenizer.bos_token_id) > 1:
        text = text.removeprefix(tokenizer.bos_token)  # the tokenizer adds the one that the template writes
    return text, list(tokenizer(text)["input_ids"])


def answer_ids(tokenizer: Any, answer: str) -> list[int]:
    """Tokens of an answer as the model must generate them, without the stop token."""
    return _ids(tokenizer, answer)


def stop_ids(tokenizer: Any, generation_config: Any) -> frozenset[int]:
    """Tokens at which generation stops: the tokenizer's and those of ``generation_config.json``."""
    configured = generation_config.eos_token_id
    ids = configured if isinstance(configured, list) else [configured]
    return frozenset(i for i in [*ids, tokenizer.eos_token_id] if i is not None)


def end_of_turn(tokenizer: Any, stops: frozenset[int]) -> int:
    """The token with which the template ends an assistant's turn.

    Raises StageError(ModelUnsupported) if that is not one of ``stops``: the model would learn never to stop.
    """
    answer = "an answer"
    messages = [{"role": "user", "content": "a question"}, {"role": "assistant", "content": answer}]
    rendered = _apply(tokenizer, messages, generation=False)
    closing = _ids(tokenizer, rendered.rpartition(answer)[2])
    first = next((i for i in closing if tokenizer.decode([i]).strip()), None)
    if first is None or first not in stops:
        found = "nothing" if first is None else repr(tokenizer.decode([first]))
        expected = ", ".join(repr(tokenizer.decode([i])) for i in sorted(stops)) or "none"
        raise StageError(
            Reason.MODEL_UNSUPPORTED,
            f"The base model's chat template ends an answer with {found}, which does not stop generation (stop tokens: "
            f"{expected}): correct eos_token_id in its generation_config.json, or use an instruction-tuned model.",
        )
    return first


def encode(
    tokenizer: Any, messages: Sequence[Message], stop: int, tools: Tools = (), *, thoughts: bool = False
) -> Encoded:
    """A conversation that ends with the assistant's answer; only that, with its thoughts, and ``stop`` are learnt.

    Raises StageError(ModelUnsupported) if the chat template does not support the conversation.
    """
    prompt = prompt_ids(tokenizer, messages[:-1], tools, thoughts=thoughts)
    written = thoughts or messages[-1].get("tool_calls")
    target = _written_ids(tokenizer, messages, stop, tools, thoughts) if written else _said_ids(tokenizer, messages)
    return Encoded([*prompt, *target, stop], [IGNORED] * len(prompt) + [*target, stop])


def answer_text(
    tokenizer: Any, messages: Sequence[Message], stop: int, tools: Tools = (), *, thoughts: bool = False
) -> str:
    """The right answer as a model generates it, without its thoughts: text, or tool calls in the template's format."""
    if not messages[-1].get("tool_calls"):
        return str(messages[-1]["content"])
    ids = _written_ids(tokenizer, messages, stop, tools, thoughts)
    text = str(tokenizer.decode(ids, skip_special_tokens=True))
    marks = rendering(tokenizer, thoughts=thoughts).marks
    return (marks.answer_in(text) if marks else text).strip()


def served_template(tokenizer: Any, *, thoughts: bool = False) -> str:
    """The template with which a server renders what is trained; empty: the tokenizer's own does.

    Raises StageError (ModelUnsupported) as ``rendering``.
    """
    found = rendering(tokenizer, thoughts=thoughts)
    return found.fixed_in(str(tokenizer.get_chat_template())) if found.variables else ""


def rendering(tokenizer: Any, *, thoughts: bool) -> Rendering:
    """How a tokenizer's template is rendered. Raises StageError (ModelUnsupported) as ``thinking.without_thoughts`` and
    ``thinking.with_thoughts``."""
    return _rendering(tokenizer, str(tokenizer.chat_template), thoughts)


def must_think(tokenizer: Any) -> bool:
    """Whether a template opens a block of thoughts that it cannot close, and writes the thoughts of a message into
    it."""
    return not _renders(tokenizer, thoughts=False) and _renders(tokenizer, thoughts=True)


def _renders(tokenizer: Any, *, thoughts: bool) -> bool:
    try:
        rendering(tokenizer, thoughts=thoughts)
    except StageError:
        return False
    return True


@lru_cache(maxsize=8)
def _rendering(tokenizer: Any, _template: str, thoughts: bool) -> Rendering:
    """Found once for each template."""

    def render(messages: list[Message], *, generation: bool, **variables: bool) -> str:
        return _apply(tokenizer, messages, generation=generation, variables=variables)

    if not thoughts:
        return thinking.without_thoughts(render)
    found = thinking.with_thoughts(render)
    if found.marks:
        end = _ids(tokenizer, found.marks.end)
        thinking.require_visible(found.marks, tokenizer.decode(end, skip_special_tokens=True))
    return found


def _said_ids(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    if REASONING in messages[-1]:
        raise ValueError("thoughts would be lost: encode with thoughts")
    return answer_ids(tokenizer, messages[-1]["content"])


def _written_ids(tokenizer: Any, messages: Sequence[Message], stop: int, tools: Tools, thoughts: bool) -> list[int]:
    """Tokens of an answer with its thoughts and calls, as the template writes them, up to the stop token."""
    before = _render(tokenizer, messages[:-1], tools, generation=True, thoughts=thoughts)
    whole = _render(tokenizer, messages, tools, generation=False, thoughts=thoughts)
    last, written = messages[-1], whole.removeprefix(before)
    ids = _ids(tokenizer, written)
    whole_answer = whole.startswith(before) and stop in ids
    if not (whole_answer and all(call["function"]["name"] in written for call in last.get("tool_calls", []))):
        raise _calls_unsupported() if last.get("tool_calls") else thinking.unwritten(last)
    marks = rendering(tokenizer, thoughts=thoughts).marks
    if marks and not (
        last.get(REASONING, "") in written and marks.answer_in(written).strip().startswith(last["content"].strip())
    ):
        raise thinking.unwritten(last)
    return ids[: ids.index(stop)]


def _calls_unsupported() -> StageError:
    return StageError(
        Reason.MODEL_UNSUPPORTED,
        "The base model's chat template does not support answers with tool_calls: use a model trained to call "
        "tools, or write the calls as text into content.",
    )


def _render(tokenizer: Any, messages: Sequence[Message], tools: Tools, *, generation: bool, thoughts: bool) -> str:
    variables = rendering(tokenizer, thoughts=thoughts).variables
    return _apply(tokenizer, messages, tools, generation=generation, variables=variables)


def _apply(
    tokenizer: Any,
    messages: Sequence[Message],
    tools: Tools = (),
    *,
    generation: bool,
    variables: Mapping[str, bool] | None = None,
) -> str:
    if not tokenizer.chat_template:
        raise StageError(
            Reason.MODEL_UNSUPPORTED,
            "The base model's tokenizer has no chat template: use an instruction-tuned model, or add chat_template to "
            "its tokenizer_config.json.",
        )
    try:
        return str(
            tokenizer.apply_chat_template(
                list(messages),
                tools=list(tools) or None,
                tokenize=False,
                add_generation_prompt=generation,
                **(variables or {}),
            )
        )
    except TemplateError as error:
        roles = ", ".join(m["role"] for m in messages)
        raise StageError(
            Reason.MODEL_UNSUPPORTED,
            f"The base model's chat template rejects a conversation of {roles}: {error}. Remove "
            "spec.dataset.instruction to send no system message.",
        ) from error


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
