"""Pseudonyms in place of personal data: the same value is the same pseudonym within one conversation (pure)."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable
from itertools import count
from typing import Any, Final

from finetune_jobs.text.escapes import unescaped
from finetune_jobs.text.pii.findings import Finding
from finetune_jobs.text.placeholders import placeholder

_PREFIX: Final = re.compile(r"^(?:00|011)(?=[1-9]\d{8})|^0+")
_EXTENSION: Final = re.compile(r"[^\d\s()+./-].*", re.DOTALL)
_SAME_ENDING: Final = 8
"""Digits that the national and the international form of a telephone number have in common at least."""


class Pseudonyms:
    """The pseudonyms of one conversation: ``<EMAIL_ADDRESS_1>`` is the first e-mail address that it mentions."""

    def __init__(self, taken: Collection[str] = ()) -> None:
        """``taken``: placeholders that it holds already, e.g. of a prompt that was masked before it was answered: they
        stand for values that nobody knows any more, so no other value gets one of them."""
        self._taken = frozenset(taken)
        self._numbers: dict[str, dict[str, int]] = {}
        self._phones: dict[str, list[str]] = defaultdict(list)
        """Telephone numbers by their ending, so that a text with thousands of them takes no time."""

    def mask(self, text: str, findings: Iterable[Finding]) -> str:
        """The text with every finding replaced. The findings must not overlap (``Recognition.find`` gives such)."""
        parts, end = [], 0
        for finding in sorted(findings, key=lambda f: f.start):
            number = self._number(finding.entity, text[finding.start : finding.end])
            parts += [text[end : finding.start], placeholder(finding.entity, number)]
            end = finding.end
        return "".join(parts) + text[end:]

    def _number(self, entity: str, value: str) -> int:
        numbers = self._numbers.setdefault(entity, {})
        key = _normalised(entity, value)
        if entity == "PHONE_NUMBER" and key not in numbers:
            alike = self._phones[key[-_SAME_ENDING:]]
            if known := next((known for known in alike if _is_same_phone(known, key)), ""):
                return numbers[known]
            alike.append(key)
        if key not in numbers:
            newest = next(reversed(numbers.values()), 0)
            numbers[key] = next(n for n in count(newest + 1) if placeholder(entity, n) not in self._taken)
        return numbers[key]


def _normalised(entity: str, value: str) -> str:
    """A value without what people and programs write differently: escapes, letter case, separators, a trunk prefix."""
    value = unescaped(value)
    if entity == "PHONE_NUMBER":
        return _PREFIX.sub("", re.sub(r"\D", "", _EXTENSION.sub("", value.replace("(0)", ""))))
    if entity in ("PERSON", "LOCATION", "ORGANIZATION", "NRP", "EMAIL_ADDRESS", "URL"):
        return " ".join(value.casefold().split())
    return "".join(character for character in value.casefold() if character.isalnum())


def _is_same_phone(first: str, second: str) -> bool:
    short, long = sorted((first, second), key=len)
    return len(short) >= _SAME_ENDING and long.endswith(short) and len(long) - len(short) <= 3


def map_texts(value: Any, change: Callable[[str, str], str], key: str = "") -> Any:
    """A JSON value with every text in it changed, the keys of objects too; its structure stays.

    ``change`` is given a text and the key under which it stands: in {"ssn": "…"} the key says what the value is. A
    number is changed as a text is, and stays a number where that changes nothing.
    """
    if isinstance(value, str):
        return change(value, key)
    if isinstance(value, list):
        return [map_texts(item, change, key) for item in value]
    if isinstance(value, dict):
        return {change(name, key): map_texts(item, change, name) for name, item in value.items()}
    if value is None or isinstance(value, bool):
        return value
    text = str(int(value)) if value == int(value) else str(value)  # tables have whole numbers as 4111.0
    changed = change(text, key)
    return value if changed == text else changed


def counts(findings: Iterable[Finding]) -> Counter[str]:
    """How often each entity was found: all that a report may say about personal data."""
    return Counter(finding.entity for finding in findings)
