"""Payment card numbers: issuer ranges and lengths of the networks, and the check digit (ISO/IEC 7812-1)."""

import re
from collections.abc import Iterator
from typing import Final

from finetune_jobs.text.pii.findings import Finding, NearbyWords, Recognizer, has_long_number
from finetune_jobs.text.pii.text import Text

_NETWORKS: Final = re.compile(
    r"""
      4(?:\d{12}|\d{15}|\d{18})                                                      # Visa: 13, 16, 19 digits
    | (?:5[1-5]\d\d|222[1-9]|22[3-9]\d|2[3-6]\d\d|27[01]\d|2720)\d{12}               # Mastercard: 16
    | 3[47]\d{13}                                                                    # American Express: 15
    | 36\d{12,17} | 3(?:0[0-5]|095|[89])\d{11,16}                                    # Diners Club: 14 to 19
    | 35(?:2[89]|[3-8]\d)\d{12,15} | (?:1800|2131)\d{11}                             # JCB: 16 to 19, once 15
    | (?:6011|64[4-9]\d|65\d\d)\d{12,15}                                             # Discover: 16 to 19
    | (?:62|81)\d{14,17}                                                             # UnionPay: 16 to 19
    | 220[0-4]\d{12,15} | 8[12]\d{14} | 9792\d{12}                                   # Mir, RuPay, Troy
    | (?:5[06-8]|6\d)\d{10,17}                                                       # Maestro: 12 to 19
    """,
    re.VERBOSE,
)
_SHORT: Final = 13
"""From this length on numbers that are no cards seldom pass; Maestro's 12 digits are also those of many an order."""
_RUN: Final = re.compile(r"(?<![\w.+-])\d(?:[ -]?\d){11,}(?!\w)(?![.-]\d)")
_GROUP: Final = re.compile(r"\d+")
_GROUPINGS: Final = frozenset({(4, 6, 5), (4, 6, 4), (4, 4, 5), (4, 4, 4, 4), (4, 4, 4, 4, 3), (4, 4, 4, 1)})
"""How cards print their digits."""
_MOST_GROUPS: Final = 5
_CONTEXT: Final = NearbyWords(
    *("cards?", "cc", "pan", "visa", "master ?card", "maestro", "amex", "american express", "discover", "diners"),
    *("jcb", "union ?pay", "kreditkarte", "karte", "carte", "tarjeta", "carta", "cartão"),
)


def _cards(text: Text) -> Iterator[Finding]:
    """Cards in every run of digits, which may hold more than one, or a card and the month in which it ends."""
    for run in text.in_numbers(_RUN):
        groups = [(run.start() + match.start(), run.start() + match.end()) for match in _GROUP.finditer(run.group())]
        place = 0
        while place < len(groups):
            for count in range(min(_MOST_GROUPS, len(groups) - place), 0, -1):
                window = groups[place : place + count]
                score = _score(text.whole, window) if _is_printed_so(window, is_all=count == len(groups)) else 0.0
                if score:
                    yield Finding(window[0][0], window[-1][1], "CREDIT_CARD", score)
                    place += count - 1
                    break
            place += 1


def _is_printed_so(window: list[tuple[int, int]], *, is_all: bool) -> bool:
    """Whether cards group their digits like this. Among other digits only whole, usual groups count."""
    lengths = tuple(end - start for start, end in window)
    if is_all and min(lengths) >= 3:
        return True
    return sum(lengths) >= _SHORT and (len(lengths) == 1 or lengths in _GROUPINGS)


def _score(text: str, window: list[tuple[int, int]]) -> float:
    """0 for what is no card. A mistyped card is still one where a word of cards stands by it."""
    digits = "".join(text[start:end] for start, end in window)
    if not _NETWORKS.fullmatch(digits):
        return 0.0
    named = _CONTEXT.near(text, window[0][0], window[-1][1])
    if passes_luhn(digits):
        return 1.0 if named else 0.8 if len(digits) >= _SHORT else 0.4
    return 0.4 if named and len(digits) >= _SHORT else 0.0


def passes_luhn(digits: str) -> bool:
    """Whether the last digit is the check digit of the others (ISO/IEC 7812-1, annex B)."""
    doubled = [2 * int(digit) for digit in digits[-2::-2]]
    return (sum(int(digit) for digit in digits[-1::-2]) + sum(d - 9 if d > 9 else d for d in doubled)) % 10 == 0


CARDS: Final = Recognizer("CREDIT_CARD", has_long_number, _cards)
