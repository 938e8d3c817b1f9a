"""The forms in which rows hold examples, each turned into chat messages that end with the answer (pure).

``columns``                       mapped columns, or a template over them
``messages``                      chat as OpenAI's and Hugging Face's APIs have it, tool calls included
``prompt`` and ``completion``     two texts
``instruction``, ``input``, ``output``   Alpaca's form
``conversations``                 raw dialogues (``from``/``value``): turns are joined and trimmed to an example
"""

import json
import math
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final

from finetune_api.dataset import PLACEHOLDER, Columns
from finetune_jobs.base.wording import did_you_mean
from finetune_jobs.modelling.thinking import REASONING
from finetune_jobs.reading.rows import Fault, Row, quoted

Message = dict[str, Any]
"""``role`` and ``content``; of an assistant also ``reasoning_content`` and ``tool_calls``, of a tool ``tool_call_id``
and ``name``."""

ROLES: Final = ("system", "user", "assistant", "tool")
_KEYS: Final = {
    "system": {"role", "content"},
    "user": {"role", "content", "name"},
    "assistant": {"role", "content", "name", "tool_calls", REASONING},
    "tool": {"role", "content", "name", "tool_call_id"},
}
_SPEAKERS: Final = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "bot": "assistant",
}
"""Names of speakers in raw dialogues (ShareGPT's, and plain ones)."""
_BLANK_LINES: Final = re.compile(r"\A(?:[^\S\n]*\n)+")
"""Those before a text."""
_LEVELS: Final = 64
"""Objects and lists within each other in what tools are called with: JSON schemas have a dozen."""


@dataclass(frozen=True)
class Shaped:
    """A conversation and the tools that it may call (JSON schemas as the chat template takes them)."""

    messages: list[Message]
    tools: list[dict[str, Any]] = field(default_factory=list)


def shape(row: Row, columns: Columns | None) -> Shaped | Fault:
    """The conversation that a row holds, or what is wrong with it."""
    fields = row.fields
    if columns is not None:
        return _mapped(row, columns)
    if "messages" not in fields:
        if {"prompt", "completion"} <= fields.keys():
            return _pair(row, "prompt", "completion")
        if {"instruction", "output"} <= fields.keys():
            return _instruction(row)
        if "conversations" in fields:
            return _dialogue(row)
    return _chat(row)


def _mapped(row: Row, columns: Columns) -> Shaped | Fault:
    values: dict[str, str] = {}
    for name in columns.names:
        if name not in row.fields:
            problem, hint = f"is missing; the row has {_keys(row)}", did_you_mean(name, row.fields)
            return Fault(row.line, name, "missingColumn", problem, hint=hint)
        value = row.fields[name]
        if name != columns.input and isinstance(value, int | float) and not isinstance(value, bool):
            if isinstance(value, float) and not math.isfinite(value):
                return Fault(row.line, name, "notText", f"is {json.dumps(value)}, must be text or a finite number")
            value = json.dumps(value)
        made = text_or_fault(row.line, name, value, answer=columns.label == name != columns.input)
        if isinstance(made, Fault):
            return made
        values[name] = made
    prompt = values[columns.input] if columns.input else fill(columns.template or "", values)
    return _two(prompt, values[columns.label])


def _keys(row: Row) -> str:
    """What a row has, for messages."""
    return _quoted(tuple(row.fields)) or "nothing"


@lru_cache(maxsize=8)
def _quoted(keys: tuple[str, ...]) -> str:
    """Where the keys of one row are wrong, those of all rows are, and to look for personal data takes time."""
    return quoted(keys)


def fill(template: str, values: Mapping[str, str]) -> str:
    """``template`` with each ``{column}`` replaced; what stands in a value is never taken for a placeholder."""
    return PLACEHOLDER.sub(lambda found: values.get(found[1], found[0]), template)


def _pair(row: Row, first: str, second: str) -> Shaped | Fault:
    texts = [text_or_fault(row.line, name, row.fields[name], answer=name == second) for name in (first, second)]
    for each in texts:
        if isinstance(each, Fault):
            return each
    return _two(str(texts[0]), str(texts[1]))


def _instruction(row: Row) -> Shaped | Fault:
    made = _pair(row, "instruction", "output")
    context = row.fields.get("input")
    if isinstance(made, Fault) or _is_blank(context):
        return made
    text = text_or_fault(row.line, "input", context)
    if isinstance(text, Fault):
        return text
    return _two(f"{made.messages[0]['content']}\n\n{text}", made.messages[1]["content"])


def _dialogue(row: Row) -> Shaped | Fault:
    """A raw dialogue: turns of one speaker in a row become one, greetings before the first question and words after
    the last answer are dropped: neither belongs to an answer."""
    turns = row.fields["conversations"]
    if not isinstance(turns, list) or not turns:
        return Fault(row.line, "conversations", "missingMessages", "must be a list of turns with from and value")
    made: list[Message] = []
    for index, turn in enumerate(turns):
        place = f"conversations[{index}]"
        if not isinstance(turn, dict):
            return Fault(row.line, place, "notAMessage", "is not an object with from and value")
        role = _SPEAKERS.get(str(turn.get("from")))
        if role is None:
            allowed = ", ".join(_SPEAKERS)
            return Fault(row.line, f"{place}.from", "unknownRole", f"must be one of {allowed}", str(turn.get("from")))
        text = text_or_fault(row.line, f"{place}.value", turn.get("value"), answer=role == "assistant")
        if isinstance(text, Fault):
            return text
        if made and made[-1]["role"] == role:
            made[-1]["content"] += f"\n{text}"
        else:
            made.append({"role": role, "content": text})
    system = made[:1] if made[0]["role"] == "system" else []
    rest = made[len(system) :]
    while rest and rest[0]["role"] != "user":
        rest = rest[1:]
    while rest and rest[-1]["role"] != "assistant":
        rest = rest[:-1]
    if not rest:
        return Fault(row.line, "conversations", "noAnswer", "contains no assistant answer to a user")
    return _ordered(row.line, "conversations", Shaped([*system, *rest]))


def _chat(row: Row) -> Shaped | Fault:
    messages = row.fields.get("messages")
    if not isinstance(messages, list) or not messages:
        problem = f"is missing; the row has {_keys(row)}: set spec.dataset.columns for rows without messages"
        if "messages" in row.fields:
            problem = "must be a non-empty list of messages"
        return Fault(row.line, "messages", "missingMessages", problem)
    made: list[Message] = []
    for index, message in enumerate(messages):
        checked = _message(row.line, f"messages[{index}]", message)
        if isinstance(checked, Fault):
            return checked
        made.append(checked)
    tools = row.fields.get("tools") or []
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        return Fault(row.line, "tools", "notTools", "must be a list of objects, one per function")
    if problem := _json_problem(tools):
        return Fault(row.line, "tools", "notTools", problem)
    return _ordered(row.line, "messages", Shaped(made, tools))


def _message(line: int, place: str, message: Any) -> Message | Fault:
    if not isinstance(message, dict):
        return Fault(line, place, "notAMessage", "is not an object with role and content")
    role = message.get("role")
    if role not in ROLES:
        return Fault(line, f"{place}.role", "unknownRole", f"must be one of {', '.join(ROLES)}", str(role))
    given = {key: value for key, value in message.items() if value is not None}
    if unknown := sorted(set(given) - _KEYS[role]):
        return Fault(line, place, "unknownKey", f"has an unsupported key for role {role}", unknown[0])
    calls = given.pop("tool_calls", [])
    if calls:
        checked = _tool_calls(line, f"{place}.tool_calls", calls)
        if isinstance(checked, Fault):
            return checked
        given["tool_calls"] = checked
    if REASONING in given:
        thoughts = _thoughts(line, f"{place}.{REASONING}", given.pop(REASONING))
        if isinstance(thoughts, Fault):
            return thoughts
        given |= {REASONING: thoughts} if thoughts else {}
    for key in ("name", "tool_call_id"):
        if given.get(key) and isinstance(wrong := text_or_fault(line, f"{place}.{key}", given[key]), Fault):
            return wrong
    if calls and _is_blank(given.get("content")):
        given["content"] = ""
        return given
    content = text_or_fault(line, f"{place}.content", given.get("content"), answer=role == "assistant")
    return content if isinstance(content, Fault) else given | {"content": content}


def _thoughts(line: int, place: str, value: Any) -> str | Fault:
    """The thoughts before an answer; empty where a row says that there are none."""
    return "" if isinstance(value, str) and not value.strip() else text_or_fault(line, place, value)


def _tool_calls(line: int, place: str, calls: Any) -> list[dict[str, Any]] | Fault:
    """Calls with their arguments as an object, which is what chat templates render (the API has them as text)."""
    made = []
    for index, call in enumerate(calls if isinstance(calls, list) else [calls]):
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
            return Fault(line, f"{place}[{index}]", "wrongToolCall", "needs function.name and function.arguments")
        arguments = function.get("arguments", {})
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments)
            except (ValueError, RecursionError):
                arguments = None
        if not isinstance(arguments, dict):
            return Fault(line, f"{place}[{index}].function.arguments", "wrongToolCall", "is not a JSON object")
        if problem := _json_problem([call, arguments]):
            return Fault(line, f"{place}[{index}]", "wrongToolCall", problem)
        known = {"id": call["id"]} if call.get("id") is not None else {}  # nothing else of it is rendered or scanned
        made.append(known | {"type": "function", "function": {"name": function["name"], "arguments": arguments}})
    return made


def _ordered(line: int, place: str, shaped: Shaped) -> Shaped | Fault:
    problem = _order_problem(shaped.messages)
    return Fault(line, place, "wrongOrder", problem) if problem else shaped


def _order_problem(messages: Sequence[Message]) -> str:
    rest = messages[1:] if messages[0]["role"] == "system" else messages
    if not rest or rest[-1]["role"] != "assistant":
        return "must end with the assistant's answer"
    expected: tuple[str, ...] = ("user",)
    for message in rest:
        if message["role"] not in expected:
            return (
                "must alternate between user and assistant, starting with user; tool messages follow an assistant's "
                "tool_calls"
            )
        if message["role"] == "user":
            expected = ("assistant",)
        elif message["role"] == "tool":
            expected = ("tool", "assistant")
        else:
            expected = ("tool",) if message.get("tool_calls") else ("user",)
    return ""


def _two(prompt: str, answer: str) -> Shaped:
    return Shaped([{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}])


def text_or_fault(line: int, place: str, value: Any, *, answer: bool = False) -> str | Fault:
    """A text without surrounding white space, in Unicode NFC; an ``answer`` keeps what its first line is indented by,
    which code needs."""
    if not isinstance(value, str):
        parts = ": join its text parts into one string" if isinstance(value, list) else ""
        return Fault(line, place, "notText", f"is {kind_of(value)}, must be text{parts}")
    text = unicodedata.normalize("NFC", value).rstrip()
    text = _BLANK_LINES.sub("", text, count=1) if answer else text.lstrip()
    if not text:
        return Fault(line, place, "empty", "is empty")
    kind, problem = _character_problem(text)
    return Fault(line, place, kind, problem) if problem else text


def _is_blank(value: Any) -> bool:
    """Whether there is no value, or nothing but white space."""
    return not value or (isinstance(value, str) and not value.strip())


def kind_of(value: Any) -> str:
    """What a value is, in the words of JSON; of what only Parquet has, the name of its type."""
    match value:
        case None:
            return "missing or null"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case list():
            return "a list"
        case dict():
            return "an object"
        case _:
            return type(value).__name__


def texts(message: Mapping[str, Any]) -> list[str]:
    """What a message says, in the order in which a model reads it: thoughts, then the answer."""
    return [message[part] for part in (REASONING, "content") if message.get(part)]


def strings(value: Any) -> Iterator[str]:
    """Every text in a JSON value; the keys of objects are none."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from strings(inner)


def _character_problem(text: str) -> tuple[str, str]:
    """Kind of fault and problem of a text that holds what no text may hold; two empty strings for another one."""
    if "\0" in text:
        return "nulByte", f"contains a NUL byte at character {text.index(chr(0)) + 1}"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "loneSurrogate", "contains an unpaired surrogate, which is not valid text"
    return "", ""


def _json_problem(value: Any, levels: int = _LEVELS) -> str:
    """Why a value cannot be written as JSON (RFC 8259) and given to a model, or an empty string.

    Rows of JSON may hold NaN and half surrogate pairs, those of Parquet dates and bytes.
    """
    if isinstance(value, str):
        return _character_problem(value)[1]
    if isinstance(value, dict | list):
        if not levels:
            return f"is nested more than {_LEVELS} levels deep"
        inner = [*value, *value.values()] if isinstance(value, dict) else value
        return next((problem for each in inner if (problem := _json_problem(each, levels - 1))), "")
    if value is None or isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return ""
    return f"holds {json.dumps(value) if isinstance(value, float) else type(value).__name__}, which is not valid JSON"
