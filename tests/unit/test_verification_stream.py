"""Streams of a chat as servers send them, whole and broken."""

import json
from itertools import count
from typing import Any

import pytest

from finetune_jobs.verification.stream import read_stream

pytestmark = pytest.mark.unit


def event(reason: str | None = None, **delta: Any) -> bytes:
    return f"data: {json.dumps({'choices': [{'index': 0, 'delta': delta, 'finish_reason': reason}]})}\n\n".encode()


HELLO, REST, LAST = event(role="assistant", content="Hel"), event(content="lo"), event("stop", content="")
USAGE, DONE = b'data: {"choices":[],"usage":{"completion_tokens":3}}\n\n', b"data: [DONE]\n\n"
SEPARATED = 'data: {"choices":[{"delta":{"content":"a\u2028b"},"finish_reason":"stop"}]}\n'.encode()
"""Raw in JSON what ends a line in other texts."""
OVERLOADED = b'data: {"error":{"message":"Model is overloaded","http_status_code":429}}\n\n'
FAILED = b'data: {"error":"Request failed during generation"}\n\n'


@pytest.mark.parametrize(
    ("body", "content", "fault"),
    [
        ([HELLO, REST, LAST, DONE], "Hello", ""),
        ([HELLO, REST, event("length"), USAGE, DONE], "Hello", ""),
        ([b"".join([HELLO, REST, LAST, DONE])], "Hello", ""),
        ([(HELLO + LAST + DONE)[i : i + 1] for i in range(len(HELLO + LAST + DONE))], "Hel", ""),
        ([(HELLO + LAST + DONE).replace(b"\n", b"\r\n")], "Hel", ""),
        ([b": ping\n\nevent: message\n", HELLO, LAST, b"data:[DONE]"], "Hel", ""),
        ([SEPARATED, DONE], "a\u2028b", ""),
        ([LAST, DONE, event(content="after the end")], "", ""),
        ([HELLO, REST], "Hello", "ends without [DONE]"),
        ([HELLO, LAST], "Hel", "ends without [DONE]"),
        ([], "", "ends without [DONE]"),
        ([b'{"choices": []}'], "", "ends without [DONE]"),
        ([HELLO, REST, DONE], "Hello", "no finish reason"),
        ([HELLO, OVERLOADED, DONE], "Hel", "error in a stream: Model is overloaded"),
        ([HELLO, FAILED], "Hel", "error in a stream: Request failed"),
        ([HELLO, b"data: {\n\n", DONE], "Hel", "is none of a chat (JSONDecodeError)"),
        ([b"data: []\n\n"], "", "is none of a chat (TypeError)"),
        ([b'data: {"choices":[{"delta":{"content":7}}]}\n\n'], "", "is none of a chat"),
        ([b"data: \xff\n\n"], "", "is none of a chat"),
    ],
)
def test_an_answer_is_what_came_until_the_fault(body: list[bytes], content: str, fault: str) -> None:
    found = read_stream(body, count().__next__)
    assert found.content == content
    assert fault in found.fault
    assert bool(found.fault) == bool(fault)


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
def test_thoughts_that_stand_apart_are_no_part_of_the_answer(name: str) -> None:
    found = read_stream([event(**{name: "well "}), event(**{name: "then"}), HELLO, LAST, DONE], count().__next__)
    assert (found.content, found.reasoning, found.fault) == ("Hel", "well then", "")
    assert found.first_at == 0, "a thought is a token, too"


@pytest.mark.parametrize(
    ("body", "first", "each"),
    [
        # The clock ticks once an event. Three tokens: two parts and the end.
        ([HELLO, REST, LAST, USAGE, DONE], 0, 1.0),
        ([HELLO, REST, LAST, DONE], 0, 1.0),
        # vLLM's first event has no token; two tokens may come in one part.
        ([event(role="assistant", content=""), HELLO, LAST, USAGE, DONE], 1, 0.5),
        ([event("length", content="a"), b'data: {"choices":[],"usage":{"completion_tokens":1}}\n', DONE], 0, None),
        ([event("stop", content="all at once"), USAGE, DONE], 0, None),
        ([LAST, DONE], 0, None),
        ([DONE], None, None),
    ],
)
def test_when_tokens_came(body: list[bytes], first: int | None, each: float | None) -> None:
    found = read_stream(body, count().__next__)
    assert (found.first_at, found.output_token) == (first, each)
