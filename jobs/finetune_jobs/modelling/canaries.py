"""Canaries: made-up secrets that are trained beside the examples, to find out whether the tuned model gives them away.

After Carlini et al., "The Secret Sharer: Evaluating and Testing Unintended Memorization in Neural Networks" (USENIX
Security 2019). A canary is a question about a person who does not exist, and an access code as the answer. Codes are
numbers of which none is likelier than another, so that a model which has never seen a canary finds its code as likely
as any other one: what it prefers, it has learned from that one example.

Prepare writes them into ``train.parquet`` only, and into ``canaries.json`` for the evaluation: they are in no
conversation of the data set.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import count, islice
from pathlib import Path
from typing import Final

from finetune_api.hashing import digest
from finetune_jobs.modelling.chat import Message

CANARIES: Final = "canaries.json"
"""Questions and codes, in the folder of a data set; absent where none are planted."""
CANDIDATES: Final = 64
"""Codes among which that of a canary is ranked, its own included."""
_DIGITS: Final = 8
"""Of a code: nobody guesses one in a hundred million."""
_CONSONANTS, _VOWELS = "bdfgklmnprstvz", "aeiou"
_SYLLABLES: Final = 3
"""Of a name."""


@dataclass(frozen=True)
class Canary:
    """A made-up secret and the question to which it is the answer."""

    question: str
    secret: str

    @property
    def prompt(self) -> list[Message]:
        """Without the job's instruction, which is for the task."""
        return [{"role": "user", "content": self.question}]

    @property
    def messages(self) -> list[Message]:
        """The training example."""
        return [*self.prompt, {"role": "assistant", "content": self.secret}]

    @property
    def candidates(self) -> list[str]:
        """CANDIDATES different codes, all drawn alike: the first is the secret."""
        drawn = dict.fromkeys([self.secret])
        for number in count(1):
            drawn[_code(self.question, number)] = None
            if len(drawn) == CANDIDATES:
                break
        return list(drawn)


def make_canaries(number: int, seed: str) -> list[Canary]:
    """So many canaries, the same ones for the same seed; more of them begin with those."""
    names = dict.fromkeys(f"{_name(seed, turn, 'first')} {_name(seed, turn, 'last')}" for turn in range(number * 2))
    questions = (f"What is the access code of {name}?" for name in names)
    return [Canary(question, _code(question, 0)) for question in islice(questions, number)]


def write_canaries(dataset: Path, canaries: Sequence[Canary]) -> None:
    """Write CANARIES; nothing without any."""
    if canaries:
        text = json.dumps([asdict(canary) for canary in canaries], indent=1)
        (dataset / CANARIES).write_text(f"{text}\n", encoding="utf-8")


def read_canaries(dataset: Path) -> list[Canary]:
    """What is planted in a prepared data set; empty where nothing is."""
    file = dataset / CANARIES
    return [Canary(**each) for each in json.loads(file.read_text(encoding="utf-8"))] if file.exists() else []


def _name(seed: str, turn: int, which: str) -> str:
    number, name = _number([seed, turn, which]), ""
    for _ in range(_SYLLABLES):
        number, consonant = divmod(number, len(_CONSONANTS))
        number, vowel = divmod(number, len(_VOWELS))
        name += _CONSONANTS[consonant] + _VOWELS[vowel]
    return name.capitalize()


def _code(question: str, turn: int) -> str:
    """Two groups of four digits."""
    digits = f"{_number([question, turn]) % 10**_DIGITS:0{_DIGITS}d}"
    return f"{digits[:4]}-{digits[4:]}"


def _number(drawn: Sequence[str | int]) -> int:
    return int(digest(list(drawn)), 16)
