"""Questions about the Parcelbird API, which does not exist (MANUAL.md): prompts for a teacher, without answers.

    python3 examples/support/generate.py --rows 600 --seed 7 --out build/support.jsonl

The same rows and seed give the same bytes on every machine and Python version: all randomness comes from
``random.Random.random``, the one method whose sequence Python guarantees.
"""

import argparse
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final, TypeVar

T = TypeVar("T")

REPEATED_PER_MILLE: Final = 20
"""Rows per thousand that repeat an earlier prompt, as real questions do: the teacher is asked once."""

QUESTIONS: Final[dict[str, tuple[str, ...]]] = {
    "keys": (
        "we get 401 key_invalid although the key worked yesterday",
        "how do I rotate our key without an outage?",
        "can I find out from a key whether it costs money?",
    ),
    "scopes": (
        "buying a label fails with 403 scope_missing",
        "do I need a new key to be allowed to void labels?",
        "our key is valid, yet we get a 403. What is missing?",
    ),
    "limits": (
        "the nightly import ends with lots of 429 answers",
        "how many requests a minute may we send?",
        "how long should we wait after a 429?",
    ),
    "once": (
        "a POST timed out and now I fear that we bought two labels",
        "how do I repeat a request without doing things twice?",
        "for how long does Parcelbird-Once protect us?",
    ),
    "pages": (
        "the list of parcels stops after 50 entries",
        "how do I get the second page?",
        "our cursor was refused after the lunch break",
    ),
    "labels": (
        "our label printer cannot read the PDF",
        "POST /v2/labels answers 422 weight_missing",
        "can we give back a label that was never used?",
    ),
    "balance": (
        "what does 402 balance_low mean, was anything bought?",
        "labels failed over the weekend because there was no money left",
        "how do we top up automatically?",
    ),
    "tracking": (
        "a parcel has been held for two days. Why?",
        "in which order do the events of a parcel come?",
        "the state is hours behind the carrier's web site",
    ),
    "webhooks": (
        "the signature of our webhook never matches",
        "we receive the same event again and again",
        "what happens to events while our server is down?",
    ),
    "addresses": (
        "422 address_unknown, but the customer insists that the address is right",
        "can I check an address before I buy a label?",
        "what are we to do with the list in similar?",
    ),
    "locked": (
        "changing the address gives 409 parcel_locked",
        "how can I call back a parcel that was sent by mistake?",
        "what does it cost to bring a parcel back?",
    ),
    "sandbox": (
        "how can I test a parcel that comes back?",
        "all our test parcels are gone since Monday",
        "does the sandbox take our live key?",
    ),
}
"""Questions about each section of the manual."""

OPENINGS: Final = ("", "Hi, ", "Hello support, ", "Quick question: ", "Urgent: ", "Sorry if this is obvious: ")
SETTINGS: Final = (
    "",
    " We use Python and requests.",
    " This is a Node.js service.",
    " Our client is written in Go.",
    " We call the API from a PHP shop.",
    " It runs as a Java batch.",
)
ENDINGS: Final = ("", " Thanks!", " What should we do?", " Please be brief.")


class Draw:
    """Random choices, from ``random.Random.random`` alone."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed).random  # noqa: S311 # no secrets here

    def pick(self, items: Sequence[T]) -> T:
        """One of ``items``."""
        return items[int(self._random() * len(items))]


def prompts(draw: Draw, count: int) -> list[dict[str, str]]:
    """``count`` different prompts, each with the section of the manual it is about."""
    made: dict[str, str] = {}
    topics = list(QUESTIONS)
    while len(made) < count:
        topic = topics[len(made) % len(topics)]
        text = draw.pick(OPENINGS) + _sentence(draw.pick(QUESTIONS[topic])) + draw.pick(SETTINGS) + draw.pick(ENDINGS)
        made.setdefault(text[0].upper() + text[1:], topic)
    return [{"prompt": text, "topic": topic} for text, topic in made.items()]


def _sentence(text: str) -> str:
    return text if text.endswith("?") else f"{text}."


def generate(rows: int, seed: int) -> list[dict[str, str]]:
    """Exactly ``rows`` prompts; a few repeat an earlier one."""
    draw = Draw(seed)
    repeated = rows * REPEATED_PER_MILLE // 1000
    made = prompts(draw, rows - repeated)
    return made + [draw.pick(made) for _ in range(repeated)]


MOST: Final = sum(len(each) for each in QUESTIONS.values()) * len(OPENINGS) * len(SETTINGS) * len(ENDINGS) // 2
"""Maximum rows: half of all different prompts, so that drawing new ones stays fast."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Make prompts for the example of distillation as JSONL.")
    parser.add_argument("--rows", type=int, default=600, help="rows in the file (default: 600)")
    parser.add_argument("--seed", type=int, default=7, help="another seed gives other rows (default: 7)")
    parser.add_argument("--out", type=Path, required=True, help="the file to write")
    given = parser.parse_args(arguments)
    if not 1 <= given.rows <= MOST:
        parser.error(f"--rows {given.rows}: must be 1 to {MOST}")
    given.out.parent.mkdir(parents=True, exist_ok=True)
    with given.out.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in generate(given.rows, given.seed))
    return 0


if __name__ == "__main__":
    sys.exit(main())
