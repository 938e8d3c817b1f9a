"""Prompts and training targets, rendered with the model's own chat template.

Training uses exactly the tokens that a server will give the model: the prompt as the template renders it for
generation, then the answer, then the token that ends the turn. So no second "training" template is needed, only the
answer and the stop token carry loss, and a padding token that equals the stop token does no harm.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Final

from jinja2.exceptions import TemplateError

from finetune_api.reasons import Reason
from finetune_jobs.base.errors import StageError
from finetune_jobs.modelling.thinking import closing_switch, without_thoughts

IGNORED: Final = -100
"""Label of a token that carries no loss (PyTorch's ``cross_entropy`` and all of transformers)."""

Message = dict[str, Any]
"""``role`` and ``content``; of an assistant also ``tool_calls``."""

Tools = Sequence[Mapping[str, Any]]
"""Functions that a conversation may call, as JSON schemas."""


@dataclass(frozen=True)
class Encoded:
    """One training example as tokens."""

    input_ids: list[int]
    labels: list[int]
    """Equal to ``input_ids`` where the model must learn, IGNORED elsewhere."""


def prompt_ids(tokenizer: Any, messages: Sequence[Message], tools: Tools = ()) -> list[int]:
    """Tokens that a server gives the model for ``messages``, which end with the turn of a user or a tool."""
    return _ids(tokenizer, _render(tokenizer, messages, tools, generation=True))


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
    rendered = _render(
        tokenizer,
        [{"role": "user", "content": "a question"}, {"role": "assistant", "content": answer}],
        (),
        generation=False,
    )
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


def encode(tokenizer: Any, messages: Sequence[Message], stop: int, tools: Tools = ()) -> Encoded:
    """A conversation that ends with the assistant's answer; only the answer and ``stop`` are learnt.

    Raises StageError(ModelUnsupported) if the chat template does not support the conversation.
    """
    prompt = prompt_ids(tokenizer, messages[:-1], tools)
    calls = messages[-1].get("tool_calls")
    answer = _call_ids(tokenizer, messages, stop, tools) if calls else answer_ids(tokenizer, messages[-1]["content"])
    target = [*answer, stop]
    return Encoded(prompt + target, [IGNORED] * len(prompt) + target)


def answer_text(tokenizer: Any, messages: Sequence[Message], stop: int, tools: Tools = ()) -> str:
    """The right answer as a model generates it: text, or tool calls in the template's format."""
    if not messages[-1].get("tool_calls"):
        return str(messages[-1]["content"])
    return str(tokenizer.decode(_call_ids(tokenizer, messages, stop, tools), skip_special_tokens=True)).strip()


def served_template(tokenizer: Any) -> str:
    """The template with which a server renders what is trained; empty: the tokenizer's own does.

    Raises StageError (ModelUnsupported) as ``closing_switch``.
    """
    template = str(tokenizer.get_chat_template())
    switch = _switch(tokenizer, template)
    return without_thoughts(template, switch) if switch else ""


@lru_cache(maxsize=8)
def _switch(tokenizer: Any, _template: str) -> str:
    """As ``closing_switch``, once for each template."""
    return closing_switch(partial(_apply, tokenizer, [{"role": "user", "content": "a question"}], (), generation=True))


def _call_ids(tokenizer: Any, messages: Sequence[Message], stop: int, tools: Tools) -> list[int]:
    """Tokens of an answer that calls tools, as the template writes them, up to the stop token."""
    before = _render(tokenizer, messages[:-1], tools, generation=True)
    whole = _render(tokenizer, messages, tools, generation=False)
    ids = _ids(tokenizer, whole.removeprefix(before))
    called = all(call["function"]["name"] in whole[len(before) :] for call in messages[-1]["tool_calls"])
    if not whole.startswith(before) or not called or stop not in ids:
        raise StageError(
            Reason.MODEL_UNSUPPORTED,
            "The base model's chat template does not support answers with tool_calls: use a model trained to call "
            "tools, or write the calls as text into content.",
        )
    return ids[: ids.index(stop)]


def _render(tokenizer: Any, messages: Sequence[Message], tools: Tools, *, generation: bool) -> str:
    if not tokenizer.chat_template:
        raise StageError(
            Reason.MODEL_UNSUPPORTED,
            "The base model's tokenizer has no chat template: use an instruction-tuned model, or add chat_template to "
            "its tokenizer_config.json.",
        )
    switch = _switch(tokenizer, str(tokenizer.chat_template))
    return _apply(tokenizer, messages, tools, generation=generation, **({switch: False} if switch else {}))


def _apply(tokenizer: Any, messages: Sequence[Message], tools: Tools, *, generation: bool, **switches: bool) -> str:
    try:
        return str(
            tokenizer.apply_chat_template(
                list(messages), tools=list(tools) or None, tokenize=False, add_generation_prompt=generation, **switches
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
