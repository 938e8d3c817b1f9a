"""A chat, or a completion, that comes as a stream, read as clients of OpenAI's API read it. Pure.

Server-sent events: each is a line ``data:`` with a JSON object that holds the next part of the answer; the last one is
``[DONE]``. An error comes as an event, too: the status was 200 already.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from finetune_jobs.base.wording import shorten

_DATA: Final = b"data:"
_DONE: Final = b"[DONE]"
_ENDED: Final = "eos_token"
"""TGI's finish reason of a completion that the model has ended."""


@dataclass
class Stream:
    """What has come of an answer, by the names of a message's fields."""

    content: str = ""
    reasoning: str = ""
    """Thoughts, of a server that keeps them apart."""
    functions: dict[int, dict[str, str]] = field(default_factory=dict)
    """Calls of tools by their numbers: of each the name and the arguments, as text."""
    finish_reason: str = ""
    fault: str = ""
    """Why it did not end as it has to; empty if it did."""
    failed: bool = False
    """Whether that is a failure of the server to answer, which may pass: its own error, or an end without a reason,
    which is all that TGI shows of some errors."""
    first_at: float | None = None
    """When the first part of the answer came, by the clock."""
    last_at: float = 0.0
    """When the last part came; that may be only the news that the answer is over."""
    tokens: int = 0
    """As the server counted them, with the one that ends the answer; as many as there were parts if it did not."""

    @property
    def output_token(self) -> float | None:
        """Time between two tokens, on average; None: no two came one after the other."""
        if self.first_at is None or self.first_at == self.last_at or self.tokens < 2:
            return None
        return (self.last_at - self.first_at) / (self.tokens - 1)


def read_stream(body: Iterable[bytes], clock: Callable[[], float]) -> Stream:
    """The answer in a response's body, as far as it comes without a fault. ``clock``: the time now."""
    found = Stream()
    for line in _lines(body):
        data = line.removeprefix(_DATA).strip()
        if data == _DONE:
            found.failed = not found.finish_reason
            found.fault = "a stream has no finish reason" if found.failed else ""
            return found
        try:
            _add(found, json.loads(data), clock())
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            found.fault = f"an event is not a chat completion chunk ({type(error).__name__})"
        if found.fault:
            return found
    found.fault = "a stream ends without [DONE]"
    return found


def error_text(error: Any) -> str:
    """A server's words in the ``error`` of an answer: TGI's is a text, OpenAI's an object."""
    return shorten(str(error["message"] if isinstance(error, dict) else error), 200)


def _add(found: Stream, event: dict[str, Any], now: float) -> None:
    """An event's part of the answer. The one that counts the tokens has none; vLLM's first one is empty."""
    if "error" in event:
        found.fault, found.failed = f"an error in a stream: {error_text(event['error'])}", True
        return
    for choice in event["choices"]:
        part = choice.get("delta") or _of_completion(choice)
        content, thoughts = part.get("content") or "", part.get("reasoning_content") or part.get("reasoning") or ""
        calls = part.get("tool_calls") or []
        found.content += content
        found.reasoning += thoughts
        for call in calls:
            _add_call(found, call)
        found.finish_reason = choice.get("finish_reason") or found.finish_reason
        found.last_at = now
        if content or thoughts or calls or found.finish_reason:
            found.first_at = now if found.first_at is None else found.first_at
            found.tokens += 1
    if usage := event.get("usage"):
        found.tokens = int(usage["completion_tokens"])


def _add_call(found: Stream, part: dict[str, Any]) -> None:
    """Clients join the parts of a call by its number: its name comes at once, its arguments in pieces."""
    known = found.functions.setdefault(int(part["index"]), {"name": "", "arguments": ""})
    given = part.get("function") or {}
    for name in known:
        known[name] += given.get(name) or ""


def _of_completion(choice: dict[str, Any]) -> dict[str, Any]:
    """The part of a choice that is of no chat. TGI's last one is the text of the token that ends the answer."""
    return {} if choice.get("finish_reason") == _ENDED else {"content": choice.get("text")}


def _lines(body: Iterable[bytes]) -> Iterator[bytes]:
    """The lines with data. They end with a line feed: JSON may hold other characters that end lines of text."""
    rest = b""
    for piece in body:
        *whole, rest = (rest + piece).split(b"\n")
        yield from (line for line in whole if line.startswith(_DATA))
    if rest.startswith(_DATA):
        yield rest
