"""The load of the benchmarks of rollouts: what counts as an answer, what as lost or wrong, and what is read of it."""

from __future__ import annotations

import http.client
import json
import select
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from hack.benchmarks.load import ClientAnswers, read
from hack.benchmarks.load_client import (
    FRESH,
    KEPT,
    STREAM,
    WRONG,
    Client,
    ClientTally,
    Plan,
    WrongAnswerError,
    revision_of,
    streamed_text,
    whole_text,
)
from hack.benchmarks.rollout_under_load import FIRST, MOVES, SECOND, moves
from hack.cluster.console import ClusterError
from tests.support.closed_port import closed_port

pytestmark = pytest.mark.unit

ANSWERS = {
    "first": {FRESH: "one", KEPT: "one", STREAM: "one and more"},
    "second": dict.fromkeys([FRESH, KEPT, STREAM], "two"),
}


def chat(text: str) -> str:
    return json.dumps({"choices": [{"message": {"content": text}}]})


def event(text: str, finish: str | None = None) -> str:
    return "data: " + json.dumps({"choices": [{"delta": {"content": text}, "finish_reason": finish}]})


WHOLE = "\n\n".join([event("one"), event(" and more"), event("", "length"), "data: [DONE]"])


def test_a_stream_is_its_text_once_it_has_ended() -> None:
    assert streamed_text(WHOLE) == "one and more"


@pytest.mark.parametrize(
    "body",
    [
        "",
        event("one"),
        "\n".join([event("one"), "data: [DONE]"]),
        "\n".join([event("one"), 'data: {"error": "overloaded"}', event("", "stop"), "data: [DONE]"]),
        "\n".join([event("one", "stop"), "data: {no json", "data: [DONE]"]),
    ],
    ids=["nothing", "cut", "no reason", "an error inside", "no JSON"],
)
def test_a_stream_that_breaks_is_none(body: str) -> None:
    with pytest.raises(WrongAnswerError):
        streamed_text(body)


@pytest.mark.parametrize("body", ["", "busy", "[]", '{"choices": []}', '{"error": "no"}'])
def test_what_is_no_answer_is_none(body: str) -> None:
    with pytest.raises(WrongAnswerError):
        whole_text(body)


def test_an_answer_belongs_to_a_revision_or_is_wrong() -> None:
    plan = Plan("demo", 80, {}, (), {}, ANSWERS, beginnings=(STREAM,))
    assert revision_of(whole_text(chat("two")), plan, FRESH) == "second"
    assert revision_of("one\N{REPLACEMENT CHARACTER}", plan, FRESH) == "first"
    assert revision_of("two and whatever", plan, STREAM) == "second"
    for text, kind in (("three", FRESH), ("two and whatever", FRESH), ("one and", STREAM), ("", STREAM)):
        with pytest.raises(WrongAnswerError):
            revision_of(text, plan, kind)


def test_faults_of_the_same_kind_count_together() -> None:
    said = (
        f"after 0.31 s: WrongAnswerError: {WRONG}: 'a: b'",
        f"after 1.20 s: WrongAnswerError: {WRONG}: 'c\\n'",
        'after 0.01 s: WrongAnswerError: status 500: {"error": "after 3 s: no"}',
        "after 9.00 s: WrongAnswerError: a stream without its end, after 3 events",
        "after 60.00 s: TimeoutError: timed out",
    )
    assert ClientAnswers(faults=tuple({"fault": each, "kind": KEPT} for each in said)).kinds_of_faults == {
        f"kept: WrongAnswerError: {WRONG}": 2,
        "kept: WrongAnswerError: status 500": 1,
        "kept: WrongAnswerError: a stream without its end": 1,
        "kept: TimeoutError: timed out": 1,
    }


def reply(body: str, status: str = "200 OK", *, cut: int = 0) -> bytes:
    sent = body.encode()
    return f"HTTP/1.1 {status}\r\ncontent-length: {len(sent)}\r\n\r\n".encode() + sent[: len(sent) - cut]


def read_request(connection: socket.socket) -> None:
    """All of it, its body too: a socket that is closed with bytes unread resets the connection instead of ending it."""
    with connection.makefile("rb") as request:
        headers = http.client.parse_headers(request) if request.readline() else None
        if headers is not None:
            request.read(int(headers["content-length"]))


@contextmanager
def answering(*replies: bytes) -> Iterator[int]:
    """A port where each connection gets one reply, and is closed; after the last one nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            for each in replies:
                connection, _ = server.accept()
                with connection:
                    read_request(connection)
                    connection.sendall(each)
            server.close()

        thread = threading.Thread(target=serve)
        thread.start()
        yield server.getsockname()[1]
        thread.join()


def asked(port: int, kind: str, times: int) -> ClientAnswers:
    """What a client of a kind makes of it that had an answer before. It asks again once the connection before is closed
    on both sides."""
    lines = [json.dumps({"switch": "before", "kind": kind, "client": 0, "at": 0.0})]
    plan = Plan("127.0.0.1", port, {kind: 1}, [], dict.fromkeys([FRESH, KEPT, STREAM], 4), ANSWERS, 0, 10)
    client = Client(plan, kind, 0, ClientTally(), lines.append)
    for _ in range(times):
        client.step()
        if client.connection is not None and client.connection.sock is not None:
            select.select([client.connection.sock], [], [], 10)
    return read("\n".join([*lines, client.tally.line()]))


@pytest.mark.slow
def test_it_counts_answers_by_revision_and_says_when_another_one_answers() -> None:
    with answering(reply(chat("one")), reply(chat("one")), reply(chat("two"))) as port:
        heard = asked(port, FRESH, 3)
    assert (heard.answers, heard.connections) == ({FRESH: {"first": 2, "second": 1}}, {FRESH: 3})
    assert [each.revision for each in heard.switches] == ["before", "first", "second"]
    assert heard.faults == ()


@pytest.mark.slow
def test_a_connection_that_the_server_has_closed_is_opened_again() -> None:
    """As maintained clients do: a pod that ends closes what nobody asks on, and loses nothing by it."""
    with answering(reply(chat("one")), reply(chat("one"))) as port:
        heard = asked(port, KEPT, 2)
    assert (heard.count, heard.connections, heard.faults) == (2, {KEPT: 2}, ())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "answer", "says"),
    [
        (FRESH, reply("busy", "503 Service Unavailable"), "status 503"),
        (FRESH, reply(chat("three")), WRONG),
        (FRESH, reply(chat("one"), cut=3), "IncompleteRead"),
        (FRESH, b"", "RemoteDisconnected"),
        (STREAM, reply(event("one")), "without its end"),
        (STREAM, reply(WHOLE.replace("more", "less")), WRONG),
    ],
)
def test_what_is_lost_or_wrong_is_a_fault(kind: str, answer: bytes, says: str) -> None:
    with answering(answer) as port:
        heard = asked(port, kind, 1)
    [fault] = heard.faults
    assert says in fault["fault"]
    assert 0 <= fault["at"] - fault["sent"] < 10
    assert heard.count == 0


@pytest.mark.slow
def test_a_refused_connection_is_a_fault() -> None:
    with answering(reply(chat("one"))) as port:
        pass_by = asked(port, FRESH, 1)
    assert pass_by.faults == ()
    with closed_port() as port:
        assert "ConnectionRefusedError" in asked(port, FRESH, 1).faults[0]["fault"]


def test_what_a_client_hears_before_it_is_let_in_is_no_fault() -> None:
    """A node's policies refuse a new pod for its first moments; each client is let in by itself."""
    lines = [
        {"fault": "refused", "kind": FRESH, "client": 0, "at": 1.0},
        {"fault": "refused", "kind": KEPT, "client": 0, "at": 1.0},
        {"switch": "first", "kind": FRESH, "client": 0, "at": 2.0},
        {"fault": "refused", "kind": KEPT, "client": 0, "at": 2.5},
        {"fault": "lost", "kind": FRESH, "client": 0, "at": 3.0},
    ]
    heard = read("\n".join(map(json.dumps, lines)))
    assert [fault["fault"] for fault in heard.faults] == ["lost"]
    assert heard.refused_first == 3


def test_only_requests_under_way_in_a_time_may_be_lost_in_it() -> None:
    times = [(1.0, 2.9), (2.5, 3.0), (4.0, 4.1), (4.9, 9.0), (5.1, 5.2), (8.0, 8.5)]
    faults = tuple({"fault": "lost", "sent": sent, "at": at} for sent, at in times)
    beside = ClientAnswers(faults=faults).faults_beside((3.0, 5.0), (8.1, 8.2))
    assert [(each["sent"], each["at"]) for each in beside] == [(1.0, 2.9), (5.1, 5.2)]


def test_a_client_that_has_crashed_is_no_silence() -> None:
    with pytest.raises(ClusterError, match="Traceback"):
        read('{"heard": {}}\nTraceback (most recent call last):')


def test_it_knows_who_has_come_over_and_what_nobody_has_heard() -> None:
    lines = [
        {"switch": "first", "kind": FRESH, "client": 0, "at": 10.0},
        {"switch": "first", "kind": KEPT, "client": 0, "at": 11.0},
        {"switch": "second", "kind": FRESH, "client": 0, "at": 20.0},
        {"heard": {FRESH: {"first": 5, "second": 1}, KEPT: {"first": 7}}, "connections": {}, "slowest": {}},
    ]
    heard = read("\n".join(map(json.dumps, lines)))
    assert (heard.on("second"), heard.on("first")) == ({(FRESH, 0)}, {(KEPT, 0)})
    assert heard.first("second", 0) == 20
    assert heard.first("second", 21) is None
    plan = Plan("", 0, {FRESH: 1, KEPT: 1}, [], {}, ANSWERS)
    assert heard.missing(plan) == ["kept clients have not heard second"]


def test_half_of_the_moves_go_back_some_of_them_to_pods_that_are_gone() -> None:
    planned = moves(MOVES)
    assert len(planned) == 20
    assert [move.to for move in planned[:4]] == [SECOND, FIRST] * 2
    assert sum(move.back for move in planned) == 10
    before = dict(zip(planned[1:], planned, strict=False))
    late = [before[move].ends_alone for move in planned if move.back]
    assert (late.count(True), late.count(False)) == (5, 5)
