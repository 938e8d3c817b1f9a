"""Telephone numbers: international ones (ITU-T E.164) and the national notations of E.123 and of countries' plans.

Three ways of writing prove themselves: digits after "+" or "00", the American grouping, and a number that the plan of a
country knows, written as one. Other digits are a telephone number only where a word such as "call" stands by them.
"""

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Final

import phonenumbers

from finetune_jobs.text.pii.findings import Finding, NearbyWords, Recognizer, has_long_number
from finetune_jobs.text.pii.text import SEPARATOR, Text

_OPEN: Final = r"(?:\((?=\d{1,5}\)))?"
_BEGIN: Final = r"(?<![\w+$€£¥])(?<!\d[.,:/\-])"
_EXTENSION: Final = r"(?:[ ,]{0,2}(?:x|ext(?:ension|n)?\.?|#|;ext=|durchwahl|poste)[ :.]{0,2}\d{1,6})?"
_END: Final = rf"{_EXTENSION}(?!\w)(?![.,:/\-]\d)(?! ?[%€$£°])"

_INTERNATIONAL: Final = re.compile(
    rf"(?<![\w+])(?P<core>(?:\+ ?|(?<!\d )(?:00[ \-]?|011[ \-])){_OPEN}[1-9](?:{SEPARATOR}{{0,3}}\d){{6,16}}){_END}",
    re.IGNORECASE,
)
_AMERICAN: Final = re.compile(
    rf"{_BEGIN}(?:1[ .\-])?"
    rf"(?:\(\d{{3}}\)[ .\-]?\d{{3}}[ .\-]?|\d{{3}}(?:-\d{{3}}-?|/\d{{3}}-?|\.\d{{3}}\.))\d{{4}}{_END}",
    re.IGNORECASE,
)
_NATIONAL: Final = re.compile(
    rf"{_BEGIN}(?<!\d )(?P<core>{_OPEN}\d(?:{SEPARATOR}{{0,2}}\d){{6,12}}){_END}(?!{SEPARATOR}{{1,2}}\d)",
    re.IGNORECASE,
)

_OTHER_SHAPE: Final = re.compile(
    r"""(?:19|20)\d\d-(?:19|20)\d\d                                        # years from and to
      | (?:19|20)\d\d[-/.](?:0?[1-9]|1[0-2])[-/.](?:0?[1-9]|[12]\d|3[01])\b.*  # a date, maybe with the time
      | (?:0?[1-9]|[12]\d|3[01])[-/.](?:0?[1-9]|[12]\d|3[01])[-/.](?:19|20)\d\d\b.*
      | \d{5}-\d{4} | \d{3}([- ])\d\d\1\d{4}                               # ZIP+4, social security number
      | [1-9]\d{0,2}(?:[ .]\d{3})*[ .]000 | \d+\.\d+ | 0\D\d+              # amounts and decimal fractions
      | .*\d\ -\d+(?:[.,]\d+)?                                            # a number, then a negative amount
      | (?:\d{1,3}\.){3}\d{1,3}                                            # an address of the internet
      | (\d)\2+                                                            # a placeholder
      | [^(].*\D\d(?:\D.*)?                                                # groups of a single digit""",
    re.VERBOSE,
)
_OTHER_WORD: Final = re.compile(
    r"(?:(?:orders?|invoices?|tickets?|cases?|ref(?:erence)?s?|ids?|accounts?|tracking|parcels?|zip|isbn|issn|doi|sku"
    r"|items?|products?|serial|models?|parts?|versions?|pages?|years?|transactions?|bestellung|rechnung|konto|vorgang)"
    r"(?:\W{0,2}(?:numbers?|nos?|nr|ids?|codes?|nummer|is))?\W{0,3}|#\s?)$",
    re.IGNORECASE,
)
"""What just before a number says that it is no telephone number."""
_SPOKEN: Final = NearbyWords(
    *(
        "(?:tele)?phones?",
        "(?:tele)?phoned",
        "tel",
        "mobile",
        "cell(?:phone)?",
        "fax",
        "call(?:s|ed|ing|back)?",
        "ring",
    ),
    *("dial(?:l?ed|l?ing)?", "whats ?app", "sms", "pagers?", "land ?line", "hot ?line", "voice ?mail"),
    *("(?:text|reach|contact)(?:ed|ing)? (?:me|us|him|her|them|you)", "(?:contact|my) (?:number|no)"),
    *("telefon(?:nummer|o)?", "handy(?:nummer)?", "mobil(?:nummer)?", "rufnummer", "anruf(?:en)?", "erreichbar"),
    *("téléphone", "portable", "appele[rz]", "teléfono", "móvil", "celular", "telefone", "telemóvel", "cellulare"),
)
"""Words of telephoning in the large languages of Europe and America."""
_PLANS: Final = (
    *("US", "GB", "DE", "FR", "IT", "ES", "NL", "BE", "CH", "AT", "PT", "PL", "SE", "NO", "DK", "FI", "IE", "CZ", "SK"),
    *("HU", "RO", "BG", "GR", "HR", "SI", "EE", "LV", "LT", "LU", "IS", "CY", "MT", "TR", "UA", "IL", "ZA", "IN", "JP"),
    *("KR", "SG", "HK", "AU", "NZ", "BR", "MX", "AR", "CL", "CO"),
)
"""Countries whose national numbers are known without a country code."""


def _phones(text: Text) -> Iterator[Finding]:
    for match in text.in_numbers(_INTERNATIONAL):
        if score := _international_score(match["core"]):
            yield Finding(*match.span(), "PHONE_NUMBER", score)
    for match in text.in_numbers(_AMERICAN):
        if not _names_something_else(text.whole, match):
            yield Finding(*match.span(), "PHONE_NUMBER", 0.5)
    for match in text.in_numbers(_NATIONAL):
        if score := _national_score(text.whole, match):
            yield Finding(*match.span(), "PHONE_NUMBER", score)


@lru_cache(maxsize=1 << 16)
def _international_score(number: str) -> float:
    """A country code and 15 digits at most. Fictitious numbers keep the length, so that a possible one counts too."""
    try:
        parsed = phonenumbers.parse(re.sub(r"^(?:\+|00|011)\s?", "+", number), None)
    except phonenumbers.NumberParseException:
        return 0.0
    if phonenumbers.is_valid_number(parsed):
        return 0.8
    return 0.5 if phonenumbers.is_possible_number(parsed) or re.search(rf"\d{SEPARATOR}", number) else 0.0


def _national_score(text: str, match: re.Match[str]) -> float:
    """How sure digits are a number that is written as people of its country write it."""
    if _OTHER_SHAPE.fullmatch(match["core"]) or _names_something_else(text, match):
        return 0.0
    if _SPOKEN.near(text, *match.span()):
        return 0.6
    return 0.4 if _is_in_a_plan(match["core"]) else 0.0


def _is_in_a_plan(number: str) -> bool:
    """Whether the number says by itself which plan it follows, and does: the area code of America, a trunk prefix 0, or
    three groups and more."""
    groups = re.findall(r"\d+", number)
    digits = "".join(groups)
    if len(digits) == 10 and digits[0] in "23456789" and _is_valid(digits, ("US",)):
        return True
    has_prefix = digits[0] == "0" and digits[1] != "0"
    return len(digits) >= 9 and (has_prefix or len(groups) >= 3) and _is_valid(digits, _PLANS)


@lru_cache(maxsize=1 << 16)
def _is_valid(digits: str, regions: tuple[str, ...]) -> bool:
    """Whether the plan of one of the countries has this number."""
    for region in regions:
        try:
            if phonenumbers.is_valid_number(phonenumbers.parse(digits, region)):
                return True
        except phonenumbers.NumberParseException:
            continue
    return False


def _names_something_else(text: str, match: re.Match[str]) -> bool:
    return _OTHER_WORD.search(text[max(0, match.start() - 30) : match.start()]) is not None


PHONES: Final = Recognizer("PHONE_NUMBER", has_long_number, _phones)
