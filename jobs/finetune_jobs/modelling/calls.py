"""How a model's chat template writes calls of tools, found by having it write some that are known."""

import logging
from collections.abc import Mapping
from typing import Any, Final

from finetune_jobs.artifacts.calls import Call, CallFormat, learnt
from finetune_jobs.base.errors import StageError
from finetune_jobs.modelling import chat
from finetune_jobs.modelling.thinking import REASONING

log = logging.getLogger(__name__)

_FIRST: Final[Call] = ("find_place", {"place": "somewhere"})
_SECOND: Final[Call] = ("find_time", {"hour": "noon"})
_IDS: Final = ("a1b2c3d4e", "b1c2d3e4f")
"""Nine letters and digits, as Mistral's templates demand."""


def find_format(tokenizer: Any, stop: int, *, thoughts: bool = False) -> CallFormat | None:
    """The form of a template's calls, as a server's text shows it: without special tokens. None: the template writes
    none, or in a form that is no JSON (XML or Python)."""
    try:
        text = _render(tokenizer, stop, [_FIRST], thoughts=thoughts)
    except StageError:
        return None
    found = learnt(text, *_FIRST)
    if found is None:
        log.warning("the calls of the chat template cannot be read: %r", text)
        return None
    try:
        both = _render(tokenizer, stop, [_FIRST, _SECOND], thoughts=thoughts)
    except StageError:
        return found  # Llama 3 takes one call at a time
    return found if found.read(both) == [_FIRST, _SECOND] else None


def _render(tokenizer: Any, stop: int, calls: list[Call], *, thoughts: bool) -> str:
    made = [
        {"id": identity, "type": "function", "function": {"name": name, "arguments": arguments}}
        for identity, (name, arguments) in zip(_IDS, calls, strict=False)
    ]
    answer: dict[str, Any] = {"role": "assistant", "content": "", "tool_calls": made}
    if thoughts:
        answer[REASONING] = "a thought"
    messages = [{"role": "user", "content": "a question"}, answer]
    return chat.answer_text(tokenizer, messages, stop, [_tool(*each) for each in calls], thoughts=thoughts)


def _tool(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    properties = {key: {"type": "string", "description": key} for key in arguments}
    parameters = {"type": "object", "properties": properties, "required": list(arguments)}
    return {"type": "function", "function": {"name": name, "description": name, "parameters": parameters}}
