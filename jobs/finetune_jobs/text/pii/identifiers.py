"""Numbers that authorities and banks give to people. Most of them only a word nearby tells from other numbers."""

import re
from collections.abc import Iterator
from functools import partial
from typing import Final

from finetune_jobs.text.pii.findings import Finding, NearbyWords, Recognizer, has_long_number
from finetune_jobs.text.pii.text import Text


def _whole(pattern: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![\w-])(?<!\d\.)(?:{pattern})(?![\w-])(?!\.\d)", re.VERBOSE | re.IGNORECASE)


def _find_number(
    entity: str, grouped: re.Pattern[str] | None, pattern: re.Pattern[str], context: NearbyWords, text: Text
) -> Iterator[Finding]:
    """What is ``grouped`` proves itself; what has the ``pattern`` needs a word of the context nearby."""
    if grouped is not None:
        for match in text.in_numbers(grouped):
            yield Finding(*match.span(), entity, 0.8 if context.near(text.whole, *match.span()) else 0.6)
    if context.hinted(text):
        found = [match.span() for match in text.in_numbers(pattern) if context.near(text.whole, *match.span())]
        if found and context.anywhere(text):
            yield from (Finding(*span, entity, 0.6) for span in found)


def _find_named(entity: str, pattern: re.Pattern[str], context: NearbyWords, text: Text) -> Iterator[Finding]:
    if context.anywhere(text):
        for match in pattern.finditer(text.whole):
            if context.near(text.whole, *match.span()):
                yield Finding(*match.span(), entity, 0.6)


def _number(entity: str, pattern: str, context: NearbyWords, *, grouped: str | None = None) -> Recognizer:
    """Finds long numbers, for which the patterns are as ``Text.in_numbers`` needs them."""
    known = _whole(grouped) if grouped else None
    return Recognizer(entity, has_long_number, partial(_find_number, entity, known, _whole(pattern), context))


def _named(entity: str, pattern: str, context: NearbyWords) -> Recognizer:
    """Finds what is of any form, by words of the context."""
    return Recognizer(entity, context.hinted, partial(_find_named, entity, _whole(pattern), context))


# Area 001 to 899 without 666, group 01 to 99, serial 0001 to 9999 (SSA: Social Security Number Randomization, 2011).
_SSN: Final = _number(
    "US_SSN",
    r"(?!000|666|9)\d{3}[- ]?(?!00)\d\d[- ]?(?!0000)\d{4}",
    NearbyWords("ssns?", r"ss ?(?:no|number|\#)", "social", "social ?sec(?:urity)?", "soc sec", hints=("ss", "soc")),
    grouped=r"(?!000|666|9)\d{3}([-.\ ])(?!00)\d\d\1(?!0000)\d{4}",
)
# Area 900 to 999 and the groups that the tax office uses (IRS: Internal Revenue Manual 3.21.263).
_ITIN: Final = _number(
    "US_ITIN",
    r"9\d\d[- ]?(?:5\d|6[0-5]|7\d|8[0-8]|9[0-24-9])[- ]?\d{4}",
    NearbyWords("itin", "tin", "tax ?payers?", "tax ?ids?", "tax (?:identification )?number", hints=("tin", "tax")),
    grouped=r"9\d\d([-\ ])(?:5\d|6[0-5]|7\d|8[0-8]|9[0-24-9])\1\d{4}",
)
# The forms of the states, letters and digits joined, and as the cards of some states group them.
_DRIVER_LICENSE: Final = _named(
    "US_DRIVER_LICENSE",
    "|".join(
        (
            r"[A-Z]\d{4,14}|[A-Z]\d{18}|[A-Z]{2}\d{4,7}[A-Z]?|[A-Z]{3}\d{6}|\d{6,14}|\d{16}",  # most states
            r"\d{7,9}[A-Z]{1,2}|\d{2}[A-Z]{3}\d{5,6}|\d{3}[A-Z]{2}\d{4}|[A-Z]\d{6}R",  # IA, VT; NH; MO
            r"[A-Z]\d{2,4}(?:[- ]\d{2,4}){1,4}(?:-\d)?|\d{2,3}(?:[- ]\d{2,3}){2,3}",  # FL, IL, WI; NY, PA
        )
    ),
    NearbyWords(
        *(
            "driver['’]?s?['’]? ?(?:licen[cs]es?|permits?|ids?)",
            "driving (?:licen[cs]es?|permits?)",
            "dl",
            "dln",
            "cdl",
        ),
        *(r"(?:my|your|his|her|their) licen[cs]e", r"licen[cs]e ?(?:\#|numbers?|no)"),
        *("führerschein(?:nummer)?", "permis de conduire"),
        hints=("driv", "dl", "licen", "hrerschein", "permis"),
    ),
)
# Nine digits, or a letter and eight digits since 2021 (U.S. Department of State: Next Generation Passport).
_PASSPORT: Final = _number(
    "US_PASSPORT", r"[A-Z]?\d{8}|\d{9}", NearbyWords("passports?", "reisepass", "passeport", hints=("pass",))
)
# Four to seventeen digits (Nacha Operating Rules); fewer than seven are too often something else.
_BANK_NUMBER: Final = _number(
    "US_BANK_NUMBER",
    r"\d{7,17}|(?=(?:\d[- ]?){7})\d{2,6}(?:[- ]\d{2,6}){1,3}",
    NearbyWords(
        *("(?:bank|checking|savings?|current|deposit) accounts?", r"accounts? ?(?:\#|numbers?|nos?)", "acct", "acc no"),
        *("routing(?: number)?", "sort code", "kontonummer", "direct deposit"),
        hints=("acc", "routing", "sort", "konto", "deposit"),
    ),
)
_MONTH: Final = r"(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]{0,6}\.?"
_BIRTH: Final = _named(
    "DATE_OF_BIRTH",
    rf"""(?:19|20)\d\d[-/.]\d?\d[-/.]\d?\d | \d?\d[-/.]\d?\d[-/.](?:(?:19|20)\d\d|\d\d)
      | \d?\d(?:st|nd|rd|th)?\ (?:of\ )?{_MONTH},?\ (?:19|20)\d\d | {_MONTH}\ \d?\d(?:st|nd|rd|th)?,?\ (?:19|20)\d\d""",
    NearbyWords(
        *("dob", r"d\.o\.b", "date of birth", "birth ?dates?", "birth ?days?", "born", "geboren", "geburtsdatum"),
        hints=("dob", "d.o.b", "birth", "born", "geb"),
    ),
)
NUMBERS: Final = (_SSN, _ITIN, _PASSPORT, _BANK_NUMBER)
IDENTIFIERS: Final = (*NUMBERS, _DRIVER_LICENSE, _BIRTH)
