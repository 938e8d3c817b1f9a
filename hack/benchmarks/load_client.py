"""Asks an endpoint all the time, as several kinds of clients, and prints what it hears, one JSON object a line.

It runs in a pod as ``python -c``, whose image has Python and nothing of this project: the standard library only, and no
part of the project. Its argument is a ``Plan`` as JSON. Lines are of three kinds:

- ``{"heard": {kind: {revision: answers}}, "connections": {kind: opened}, "slowest": {kind: seconds}}``, all so far
- ``{"switch": revision, "kind": kind, "client": number, "at": time}``, when a client hears another revision than before
- ``{"fault": text, "sent": time, "kind": kind, "client": number, "at": time}``, for a request that was lost or answered
  wrongly: when it was sent, and when that was known
"""

from __future__ import annotations

import http.client
import json
import select
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

FRESH, KEPT, STREAM = "fresh", "kept", "stream"
"""A connection for each request; one connection for as long as it stays open; the same, with answers as streams."""

WRONG = "an answer of no revision"
"""What a fault says of a whole answer that is none of the plan's."""
_BROKEN = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True)
class Plan:
    """What is asked, by whom, and which answers are right."""

    host: str
    """The endpoint's name, which is also that of its model."""
    port: int
    clients: Mapping[str, int]
    """Number of clients of each kind."""
    messages: Sequence[Mapping[str, str]]
    tokens: Mapping[str, int]
    """Tokens of an answer, by kind of client."""
    answers: Mapping[str, Mapping[str, str]]
    """Each revision's answer, by kind of client."""
    pause: float = 0.2
    """Seconds of a client between two requests."""
    timeout: float = 60.0
    """Seconds after which a connection that is silent counts as lost."""
    key: str = ""
    """The API key that every request carries, if any."""
    beginnings: Sequence[str] = ()
    """The kinds of clients for which it is enough that an answer begins like their revision's."""


class WrongAnswerError(Exception):
    """The server answered, and not as it should."""


@dataclass
class ClientTally:
    """What all clients have heard so far."""

    heard: dict[str, dict[str, int]] = field(default_factory=dict)
    connections: dict[str, int] = field(default_factory=dict)
    slowest: dict[str, float] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, kind: str, revision: str, seconds: float) -> None:
        """An answer of a revision."""
        with self.lock:
            found = self.heard.setdefault(kind, {})
            found[revision] = found.get(revision, 0) + 1
            self.slowest[kind] = round(max(self.slowest.get(kind, 0.0), seconds), 3)

    def opened(self, kind: str) -> None:
        """A new connection."""
        with self.lock:
            self.connections[kind] = self.connections.get(kind, 0) + 1

    def line(self) -> str:
        """All so far."""
        with self.lock:
            return json.dumps({"heard": self.heard, "connections": self.connections, "slowest": self.slowest})


@dataclass
class Client:
    """One client with its connection."""

    plan: Plan
    kind: str
    number: int
    tally: ClientTally
    say: Callable[[str], None]
    connection: http.client.HTTPConnection | None = None
    revision: str = ""
    """Of the newest answer."""

    def step(self) -> None:
        """One request. Whatever keeps it from its right answer is a fault."""
        begin = time.time()
        try:
            revision = revision_of(self._ask(), self.plan, self.kind)
        except (OSError, http.client.HTTPException, WrongAnswerError) as error:
            self._close()
            text = f"after {time.time() - begin:.2f} s: {type(error).__name__}: {error}"
            self._tell({"fault": text, "sent": begin})
            return
        self.tally.count(self.kind, revision, time.time() - begin)
        if revision != self.revision:
            self.revision = revision
            self._tell({"switch": revision})
        if self.kind == FRESH:
            self._close()

    def _ask(self) -> str:
        """The answer's text."""
        connection = self._connected()
        body = {
            "model": self.plan.host,
            "messages": self.plan.messages,
            "max_tokens": self.plan.tokens[self.kind],
            "temperature": 0,
            "stream": self.kind == STREAM,
        }
        headers = {"Content-Type": "application/json"}
        if self.plan.key:
            headers["Authorization"] = f"Bearer {self.plan.key}"
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        response = connection.getresponse()
        raw = response.read()  # to its end, or http.client says that it is incomplete
        if response.status != 200:
            raise WrongAnswerError(f"status {response.status}: {raw[:200].decode(errors='replace')}")
        text = raw.decode(errors="replace")
        return streamed_text(text) if self.kind == STREAM else whole_text(text)

    def _connected(self) -> http.client.HTTPConnection:
        """A connection that the server has not closed: maintained clients look before they use one again, too."""
        if self.connection is not None and (self.connection.sock is None or is_closed(self.connection)):
            self._close()
        if self.connection is None:
            self.connection = http.client.HTTPConnection(self.plan.host, self.plan.port, timeout=self.plan.timeout)
            self.connection.connect()
            self.tally.opened(self.kind)
        return self.connection

    def _close(self) -> None:
        if self.connection is not None:
            self.connection.close()
        self.connection = None

    def _tell(self, what: dict[str, str | float]) -> None:
        self.say(json.dumps({**what, "kind": self.kind, "client": self.number, "at": time.time()}))


def is_closed(connection: http.client.HTTPConnection) -> bool:
    """Whether the other side has ended an idle connection: it can be read from, though nothing was asked."""
    return bool(select.select([connection.sock], [], [], 0)[0])


def revision_of(text: str, plan: Plan, kind: str) -> str:
    """The revision whose answer a text is; raises WrongAnswerError if it is none's. A stream that ends in the middle of
    a character, as those of a tiny model's noise do, holds that character back."""
    given = text.rstrip(_BROKEN)
    for revision, said in plan.answers.items():
        right = said[kind].rstrip(_BROKEN)
        if given == right or (kind in plan.beginnings and given.startswith(right)):
            return revision
    raise WrongAnswerError(f"{WRONG}: {text[:200]!r}")


def whole_text(body: str) -> str:
    """The text of an answer that came at once; raises WrongAnswerError if it is none."""
    try:
        found: str = json.loads(body)["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise WrongAnswerError(f"no answer of OpenAI's API: {body[:200]!r}") from error
    return found


def streamed_text(body: str) -> str:
    """The text of a stream; raises WrongAnswerError if it breaks off, or reports an error on its way."""
    text, finish = "", None
    events = [line.removeprefix("data:").strip() for line in body.splitlines() if line.startswith("data:")]
    if not events or events[-1] != "[DONE]":
        raise WrongAnswerError(f"a stream without its end, after {len(events)} events")
    for event in events[:-1]:
        text, finish = _after(event, text, finish)
    if finish is None:
        raise WrongAnswerError(f"a stream without a reason for its end, after {len(events)} events")
    return text


def _after(event: str, text: str, finish: Any) -> tuple[str, Any]:
    try:
        choices = json.loads(event)["choices"]
        for choice in choices[:1]:
            text += choice["delta"].get("content") or ""
            finish = choice.get("finish_reason") or finish
    except (ValueError, KeyError, TypeError) as error:
        raise WrongAnswerError(f"an event of a stream that is no part of an answer: {event[:200]!r}") from error
    return text, finish


def main(argument: str) -> None:
    """Ask until the pod is stopped."""
    plan, tally, lock = Plan(**json.loads(argument)), ClientTally(), threading.Lock()

    def say(line: str) -> None:
        with lock:
            print(line, flush=True)

    def go_on(client: Client) -> None:
        while True:
            client.step()
            time.sleep(plan.pause)

    for kind, count in plan.clients.items():
        for number in range(count):
            threading.Thread(target=go_on, args=[Client(plan, kind, number, tally, say)], daemon=True).start()
    while True:
        time.sleep(2)
        say(tally.line())


if __name__ == "__main__":
    main(sys.argv[1])
