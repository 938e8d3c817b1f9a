"""A teacher and a judge without a model: they implement OpenAI's chat API.

    python teacher.py PORT

The teacher, MODEL, answers from the manual in its instruction. It picks the section (``## name`` and its text) that
shares the most distinctive words with the question, and quotes its first sentences; three times in ten it picks the
wrong one.

The judge, JUDGE, compares two answers by RUBRIC, and can count: which names and numbers of the expected answer each
has, less those that it made up. It knows nothing of style, nor whether a sentence is true.

Standard library only: on the cluster this file runs from a ConfigMap, in an existing image.
"""

import json
import math
import re
import sys
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

MODEL: Final = "manual-reader"
"""Name of the teacher's model."""
JUDGE: Final = "names-counter"
"""Name of the judge's."""
RUBRIC: Final = (
    "The better answer names more of the headers, codes, paths, fields and numbers that the expected answer names. One "
    "that it does not name counts against an answer. Of two equal ones neither is better."
)
_SENTENCES: Final = 2
_HEADING: Final = re.compile(r"^## +(.+)$", re.MULTILINE)
_STEM: Final = re.compile(r"\b[a-z0-9_]{3,4}")
"""The first letters of a word: labels and labelled count as equal."""
_END: Final = re.compile(r"(?<=[.?!])\s+(?=[A-Z0-9`])")

_TOLD: Final = re.compile(r"<<<(expected answer|answer A|answer B) (\w+)>>>\n(.*?)\n<<<end \2>>>", re.DOTALL)
"""The texts that a judge is to compare, between their marks."""
_NAME: Final = re.compile(r"`([^`\n]+)`|\b(\d[\d:]*)\b")
"""What a developer would copy: all that stands between backticks, and numbers."""


def sections(instruction: str) -> dict[str, str]:
    """The manual's sections by name, each on one line."""
    _, *parts = _HEADING.split(instruction)
    return {name.strip(): " ".join(text.split()) for name, text in zip(parts[::2], parts[1::2], strict=True)}


def answer(instruction: str, question: str) -> str:
    """The first sentences of the best matching section; an apology if the manual has no sections."""
    manual = sections(instruction)
    if not manual:
        return "The manual does not say."
    words = {name: Counter(_STEM.findall(f"{name} {name} {text}".lower())) for name, text in manual.items()}
    known = Counter(word for counts in words.values() for word in counts)
    asked = set(_STEM.findall(question.lower()))

    def fit(name: str) -> float:
        """Score of the shared words, weighted by rarity (inverse document frequency)."""
        return sum(math.log(1 + len(manual) / known[word]) for word in asked & words[name].keys())

    best = max(sorted(manual), key=fit)
    return " ".join(_END.split(manual[best])[:_SENTENCES])


def names(text: str) -> set[str]:
    """What a text names."""
    return {quoted or number for quoted, number in _NAME.findall(text)}


def verdict(told: str) -> str:
    """What the judge says of two answers, as the JSON that it is asked for. Raises KeyError for another question."""
    parts = {name: text for name, _, text in _TOLD.findall(told)}
    expected = names(parts["expected answer"])

    def worth(said: str) -> int:
        return len(names(said) & expected) - len(names(said) - expected)

    first, second = worth(parts["answer A"]), worth(parts["answer B"])
    better = "tie" if first == second else "A" if first > second else "B"
    return json.dumps({"reason": f"A names {first}, B {second} of {len(expected)}.", "verdict": better})


def completion(request: dict[str, Any]) -> dict[str, Any]:
    """The response to a chat completion request. Raises KeyError or TypeError for anything else."""
    texts = {message["role"]: str(message["content"]) for message in request["messages"]}
    judges = request["model"] == JUDGE
    said = verdict(texts["user"]) if judges else answer(texts.get("system", ""), texts["user"])
    read, written = (sum(len(text.split()) for text in each) for each in (texts.values(), [said]))
    return {
        "id": "answer",
        "object": "chat.completion",
        "created": 0,
        "model": JUDGE if judges else MODEL,
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": said}}],
        "usage": {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written},
    }


class Handler(BaseHTTPRequestHandler):
    """POST /v1/chat/completions, and GET on any path for probes."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer a probe."""
        self._send(200, {"status": "ok"})

    def do_POST(self) -> None:
        """Answer a request; 404 and 400 as in OpenAI's API."""
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path != "/v1/chat/completions":
            self._send(404, {"error": {"message": f"no such path: {self.path}"}})
            return
        try:
            self._send(200, completion(json.loads(content)))
        except (ValueError, KeyError, TypeError) as error:
            self._send(400, {"error": {"message": f"not a chat completion request: {error}"}})

    def _send(self, status: int, body: dict[str, Any]) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as the base class names it
        """Log nothing: prompts do not belong in logs."""


if __name__ == "__main__":
    ThreadingHTTPServer(("", int(sys.argv[1])), Handler).serve_forever()
