"""Streams of a chat as servers send them, whole and broken."""

import json
import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest

from finetune_api.dataset import TaskType
from finetune_api.reasons import Reason
from finetune_jobs.artifacts.artifact import Answer
from finetune_jobs.base.errors import StageError
from finetune_jobs.verification import connection, observation, pace
from finetune_jobs.verification.connection import Connection
from finetune_jobs.verification.engine import Limits, Reply, Streamed
from finetune_jobs.verification.observation import Promise, observe
from finetune_jobs.verification.pace import Pace, request_seconds
from finetune_jobs.verification.stream import read_stream
from finetune_jobs.verification.tgi import TgiServer
from finetune_jobs.verify import Limit

pytestmark = pytest.mark.unit


def event(reason: str | None = None, **delta: Any) -> bytes:
    return f"data: {json.dumps({'choices': [{'index': 0, 'delta': delta, 'finish_reason': reason}]})}\n\n".encode()


HELLO, REST, LAST = event(role="assistant", content="Hel"), event(content="lo"), event("stop", content="")
USAGE, DONE = b'data: {"choices":[],"usage":{"completion_tokens":3}}\n\n', b"data: [DONE]\n\n"
SEPARATED = 'data: {"choices":[{"delta":{"content":"a\u2028b"},"finish_reason":"stop"}]}\n'.encode()
"""Raw in JSON what ends a line in other texts."""
OVERLOADED = b'data: {"error":{"message":"Model is overloaded","http_status_code":429}}\n\n'
COMPLETION = b'data: {"choices":[{"index":0,"text":"Hel","finish_reason":""}]}\n\n'
ENDED = b'data: {"choices":[{"index":0,"text":"<|im_end|>","finish_reason":"eos_token"}]}\n\n'
"""TGI's last event of a completion has the text of the token that ends it."""
CUT_SHORT = b'data: {"choices":[{"index":0,"text":"lo","finish_reason":"length"}]}\n\n'
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
        ([COMPLETION, ENDED, DONE], "Hel", ""),
        ([COMPLETION, CUT_SHORT, DONE], "Hello", ""),
        ([HELLO, REST], "Hello", "ends without [DONE]"),
        ([HELLO, LAST], "Hel", "ends without [DONE]"),
        ([], "", "ends without [DONE]"),
        ([b'{"choices": []}'], "", "ends without [DONE]"),
        ([HELLO, REST, DONE], "Hello", "no finish reason"),
        ([HELLO, OVERLOADED, DONE], "Hel", "error in a stream: Model is overloaded"),
        ([HELLO, FAILED], "Hel", "error in a stream: Request failed"),
        ([HELLO, b"data: {\n\n", DONE], "Hel", "is not a chat completion chunk (JSONDecodeError)"),
        ([b"data: []\n\n"], "", "is not a chat completion chunk (TypeError)"),
        ([b'data: {"choices":[{"delta":{"content":7}}]}\n\n'], "", "is not a chat completion chunk"),
        ([b"data: \xff\n\n"], "", "is not a chat completion chunk"),
    ],
)
def test_an_answer_is_what_came_until_the_fault(body: list[bytes], content: str, fault: str) -> None:
    found = read_stream(body, count().__next__)
    assert found.content == content
    assert fault in found.fault
    assert bool(found.fault) == bool(fault)
    assert found.failed == ("finish reason" in fault or "error in a stream" in fault)


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


def call(number: Any, **function: Any) -> bytes:
    return event(tool_calls=[{"index": number, "function": function}])


@pytest.mark.parametrize(
    ("parts", "functions", "fault"),
    [
        (
            [call(0, name="f", arguments=""), call(0, arguments='{"a'), call(1, name="g"), call(0, arguments='": 1}')],
            {0: {"name": "f", "arguments": '{"a": 1}'}, 1: {"name": "g", "arguments": ""}},
            "",
        ),
        # Clients add up names too: a server that repeats one gives them a tool that there is not.
        ([call(0, name="f", arguments="{}"), call(0, name="f")], {0: {"name": "ff", "arguments": "{}"}}, ""),
        ([call(0, name="f"), event(tool_calls=None)], {0: {"name": "f", "arguments": ""}}, ""),
        ([event(tool_calls=[{"function": {"name": "f"}}])], {}, "is not a chat completion chunk (KeyError)"),
        ([call(0, name="f", arguments={"a": 1})], {0: {"name": "f", "arguments": ""}}, "chunk (TypeError)"),
    ],
)
def test_calls_are_joined_by_their_numbers(parts: list[bytes], functions: dict[int, Any], fault: str) -> None:
    found = read_stream([HELLO, *parts, event("tool_calls"), DONE], count().__next__)
    assert found.functions == functions
    assert fault in found.fault
    assert bool(found.fault) == bool(fault)


QUESTION = Answer(messages=[{"role": "user", "content": "?"}], label="a", base="b", tuned="a", artifact="a")


@contextmanager
def served(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """URL of a server."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=[0.05], daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def silent() -> Iterator[str]:
    """URL of a server that reads every request and never answers."""
    over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            over.wait()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as the base class names it
            pass

    with served(Handler) as endpoint:
        try:
            yield endpoint
        finally:
            over.set()


@pytest.fixture
def hung() -> Iterator[str]:
    """URL of a server that keeps every stream open with comments, as TGI does before a shard that hangs."""
    over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(HELLO)
            while not over.wait(0.05):
                self.wfile.write(b": keep-alive\n\n")

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as the base class names it
            pass

    with served(Handler) as endpoint:
        try:
            yield endpoint
        finally:
            over.set()


@pytest.mark.slow
def test_comments_do_not_lengthen_the_time_of_a_stream(hung: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten seconds pass between two looks at the clock, so that the real ones never do."""
    monkeypatch.setattr(connection, "time", SimpleNamespace(perf_counter=count(0, 10).__next__))
    asked = QUESTION.model_copy(update={"max_tokens": 100, "prompt_tokens": 50})
    with pytest.raises(StageError, match=r"did not end its answer within 165 s to .*, as a stream") as error:
        Connection(hung, 422, re.compile("too long")).stream(asked)
    assert (error.value.reason, error.value.retriable) == (Reason.CANDIDATE_FAILED, True)


@pytest.mark.slow
def test_a_verification_ends_at_its_own_time_while_streams_run(hung: str) -> None:
    """Their time is not over by then."""
    started, late = time.monotonic(), StageError(Reason.VERIFICATION_FAILED, "too slow")

    def before(_number: int, _total: int) -> None:
        if time.monotonic() - started > 0.5:
            raise late

    with pytest.raises(StageError) as error:
        observe(TgiServer(hung), Promise([QUESTION], [], [], TaskType.TEXT, "INT8"), Limits(), before)
    assert error.value is late
    assert time.monotonic() - started < 10, "not until the limit of a request"


@pytest.mark.slow
def test_a_verification_ends_at_its_own_time_while_a_whole_answer_is_waited_for(silent: str) -> None:
    started, late = time.monotonic(), StageError(Reason.VERIFICATION_FAILED, "too slow")

    def before(_number: int, _total: int) -> None:
        if time.monotonic() - started > 0.5:
            raise late

    promise = Promise([QUESTION], [], [], TaskType.TEXT, "INT8", as_clients=False)
    with pytest.raises(StageError) as error:
        observe(TgiServer(silent), promise, Limits(), before)
    assert error.value is late
    assert time.monotonic() - started < 10, "not until the limit of a request"


@pytest.mark.slow
def test_streams_that_bring_nothing_are_given_up_long_before_their_time(
    hung: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Comments are no part of an answer."""
    monkeypatch.setattr(observation, "SILENT_SECONDS", 0.3)
    started, asked = time.monotonic(), QUESTION.model_copy(update={"max_tokens": 4000})
    with pytest.raises(StageError, match=r"hangs: .* sent nothing to any client") as error:
        observe(TgiServer(hung), Promise([asked] * 4, [], [], TaskType.TEXT, "INT8"), Limits(), lambda *_: None)
    assert (error.value.reason, error.value.retriable) == (Reason.CANDIDATE_FAILED, True)
    assert time.monotonic() - started < 30


@pytest.mark.slow
def test_a_server_that_answers_one_after_the_other_does_not_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last client gets its first token long after the others, which show that the server goes on."""
    silence = 2.5
    monkeypatch.setattr(observation, "SILENT_SECONDS", silence)
    monkeypatch.setattr(observation, "_POLL_SECONDS", 0.05)
    turn = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if not asked.get("stream"):
                self._whole()
                return
            self.send_response(200)
            self.end_headers()
            with turn:
                for part in (event(content="a"), event(), event("stop"), b"data: [DONE]\n\n"):
                    time.sleep(0.3)
                    self.wfile.write(part)

        def _whole(self) -> None:
            choice = {"index": 0, "message": {"role": "assistant", "content": "a"}, "finish_reason": "stop"}
            body = json.dumps({"id": "", "created": 0, "model": "", "choices": [choice]}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as the base class names it
            pass

    with served(Handler) as endpoint:
        promise = Promise([QUESTION] * 4, [], [], TaskType.TEXT, "INT8")
        found = observe(TgiServer(endpoint), promise, Limits(), lambda *_: None)
    assert [each.fault for each in found.streams] == [""] * 4
    late = max(each.first_token or 0.0 for each in found.streams)
    assert late > silence


@pytest.mark.parametrize(
    ("prompt", "answer", "seconds"), [(0, 1, 61), (0, 100, 160), (200, 100, 180), (4000, 4096, 4556)]
)
def test_what_a_request_may_take(prompt: int, answer: int, seconds: float) -> None:
    assert request_seconds(prompt, answer) == seconds


@pytest.mark.parametrize(("tokens", "streamed", "more"), [(20, True, 0), (100, True, 6 * 40), (100, False, 3 * 40)])
def test_the_whole_verification_may_take_longer_for_long_answers(tokens: int, streamed: bool, more: float) -> None:
    """Half a second for each token over 20. All three are asked for alone, and as streams."""
    asked = QUESTION.model_copy(update={"max_tokens": tokens})
    promise = Promise([asked], [asked, asked], [], TaskType.TEXT, "INT8", as_clients=streamed)
    limit = Limit(600, 10.0).for_answers([promise, promise])
    assert limit.seconds == 600 + 2 * more
    assert limit.deadline == 10.0 + limit.seconds


@pytest.mark.slow
def test_a_whole_answer_that_takes_too_long(silent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is waited for by its tokens, and the message says for how long."""
    monkeypatch.setattr(pace, "REQUEST_SECONDS", 0.1)
    asked = QUESTION.model_copy(update={"max_tokens": 1})
    started = time.monotonic()
    with pytest.raises(StageError, match=r"did not answer within 1.1 s to a golden prompt") as error:
        Connection(silent, 422, re.compile("too long")).chat(asked)
    assert (error.value.reason, error.value.retriable) == (Reason.CANDIDATE_FAILED, True)
    assert 1.0 < time.monotonic() - started < 30


class TestPace:
    """Whether streams go on, by a clock that stands."""

    def test_nothing_is_expected_without_a_stream(self) -> None:
        now = [0.0]
        pace = Pace(lambda: now[0])
        now[0] = 100.0
        assert pace.silent_seconds() == 0.0
        with pace.stream():
            now[0] = 130.0
            assert pace.silent_seconds() == 30.0
        assert pace.silent_seconds() == 0.0

    def test_a_part_of_any_counts_for_all(self) -> None:
        now = [0.0]
        pace = Pace(lambda: now[0])
        with pace.stream() as first, pace.stream() as second:
            now[0] = 50.0
            assert first() == 50.0
            now[0] = 90.0
            assert pace.silent_seconds() == 40.0
            assert second() == 90.0
            assert pace.silent_seconds() == 0.0

    def test_one_that_breaks_off_is_open_no_longer(self) -> None:
        now = [0.0]
        pace = Pace(lambda: now[0])
        with pytest.raises(ValueError, match="broken"), pace.stream():
            raise ValueError("broken")
        now[0] = 100.0
        assert pace.silent_seconds() == 0.0


class Faulty(TgiServer):
    """Its first streams are given, and it answers nothing else itself."""

    def __init__(self, *streams: Streamed) -> None:
        super().__init__("http://candidate")
        self.given = iter(streams)

    def stream(self, asked: Answer) -> Streamed:
        return next(self.given)

    def answer(self, asked: Answer) -> Reply:
        return Reply(asked.artifact)


WHOLE, OVERLOAD, CUT = Streamed("a"), Streamed("", "Model is overloaded", failed=True), Streamed("a", "no [DONE]")


@pytest.mark.parametrize(
    ("streams", "seen"),
    [
        ([WHOLE], [WHOLE]),
        ([OVERLOAD, WHOLE], [WHOLE]),
        ([CUT, WHOLE], [WHOLE]),
        # Twice what is none of OpenAI's API is a matter of the check.
        ([CUT, CUT], [CUT]),
    ],
)
def test_a_stream_with_a_fault_is_asked_for_once_more(streams: Sequence[Streamed], seen: Sequence[Streamed]) -> None:
    numbers: list[tuple[int, int]] = []

    def before(number: int, total: int) -> None:
        numbers.append((number, total))

    promise = Promise([QUESTION], [], [], TaskType.TEXT, "INT8")
    assert observe(Faulty(*streams), promise, Limits(), before).streams == seen
    assert all(number <= total for number, total in numbers)


@pytest.mark.parametrize("first", [OVERLOAD, CUT])
def test_a_server_that_fails_twice_is_tried_again_later(first: Streamed) -> None:
    promise = Promise([QUESTION], [], [], TaskType.TEXT, "INT8")
    with pytest.raises(StageError, match=r"second attempt.*: Model is overloaded") as error:
        observe(Faulty(first, OVERLOAD), promise, Limits(), lambda *_: None)
    assert (error.value.reason, error.value.retriable) == (Reason.CANDIDATE_FAILED, True)
