"""Cleaning of texts before comparison and training, and which answers are useless for training (pure).

Cleaning never touches what carries meaning: indentation, blank lines, code. It is idempotent: a cleaned text stays.
"""

import re
import unicodedata
from html import unescape
from typing import Final

from finetune_api.dataset import Cleaning, Markup

_LINE_END: Final = re.compile(r"\r\n?|[\v\f\x85\u2028\u2029]")
_SPACE: Final = re.compile(r"[\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]")
"""Spaces of Unicode (category Zs) other than the usual one."""
_INVISIBLE: Final = re.compile(
    r"[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f"  # control characters but tab and line feed
    r"\u00ad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e"  # zero width, bidirectional
    r"\u2060-\u2064\u2066-\u206f\ufeff\ufff9-\ufffb]"
    r"|(\U0001f3f4[\U000e0020-\U000e007e]+\U000e007f)|[\U000e0000-\U000e007f]+"  # tags, but in flags such as Scotland's
)
_LATIN: Final = r"[\x00-\u036f\u1e00-\u1eff]"
_JOINERS: Final = re.compile(rf"(?:(?<={_LATIN})|\A)[\u200c\u200d]+|[\u200c\u200d]+(?={_LATIN}|\Z)")
"""Joiners beside Latin letters join nothing; other scripts and emoji need them."""
_TRAILING: Final = re.compile(r"(?<![ \t])[ \t]+$", re.MULTILINE)

_CODE: Final = re.compile(r"(```.*?(?:```|\Z)|`[^`\n]+`)", re.DOTALL)
"""Markdown code, in which markup is content."""
_MARKUP: Final = re.compile(r"<[a-zA-Z/!]|&[a-zA-Z#]")
_HIDDEN: Final = (
    (re.compile(r"<!--"), re.compile(r"-->")),
    (re.compile(r"<script\b[^<>]*>", re.IGNORECASE), re.compile(r"</script\s*>", re.IGNORECASE)),
    (re.compile(r"<style\b[^<>]*>", re.IGNORECASE), re.compile(r"</style\s*>", re.IGNORECASE)),
)
_BLOCK: Final = re.compile(
    r"address|article|aside|blockquote|br|center|dd|details|dialog|dir|div|dl|dt|fieldset|figcaption|figure|footer|form"
    r"|h[1-6]|header|hr|li|main|menu|nav|ol|p|pre|section|summary|table|tbody|tfoot|thead|tr|ul",
    re.IGNORECASE,
)
"""Elements that start a new line."""
_INLINE: Final = re.compile(
    r"a|abbr|acronym|area|audio|b|base|bdi|bdo|big|body|button|canvas|caption|cite|code|col|colgroup|data|datalist|del"
    r"|dfn|em|embed|font|frame|frameset|head|html|i|iframe|img|input|ins|kbd|label|legend|link|map|mark|meta|meter"
    r"|noscript|object|optgroup|option|output|param|picture|progress|q|rp|rt|ruby|s|samp|script|select|small|source|span"
    r"|strike|strong|style|sub|sup|svg|td|template|textarea|th|time|title|track|tt|u|var|video|wbr",
    re.IGNORECASE,
)
_TAG: Final = re.compile(
    r"</?(?P<name>[a-zA-Z][a-zA-Z0-9]*)"
    r"(?:\s+[\w:@.-]+\s*=\s*(?:\"[^\"<]*\"|'[^'<]*'|[^\s\"'<>=`]+)"
    r"|\s+(?:async|autofocus|autoplay|checked|compact|controls|defer|disabled|hidden|loop|multiple|muted|noshade|nowrap"
    r"|open|readonly|required|reversed|selected))*"
    r"\s*/?>|<!doctype[^<>]*>",
    re.IGNORECASE,
)
_ENTITY: Final = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[a-zA-Z][a-zA-Z0-9]{1,31});")
_BLANK_LINES: Final = re.compile(r"\n(?:[ \t]*\n){2,}")
_PASSES: Final = 8
"""Markup may be escaped more than once; a text that is escaped more often than this is about markup, and stays."""

_WORD: Final = re.compile(
    r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
    r"|[^\s\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]+"
)
"""What white space separates; of scripts without it (Thai to Chinese) every character."""


class Cleaner:
    """Cleans texts as the spec says."""

    def __init__(self, config: Cleaning) -> None:
        self._strip_markup = config.markup is Markup.STRIP
        self._min_answer_words = config.min_answer_words

    def text(self, value: str) -> str:
        """The text with Unicode in NFC, plain line ends and spaces, and without invisible characters.

        White space at ends of lines and blank lines around the text go; with Markup.STRIP, tags and entities of HTML
        outside of code do too.
        """
        characters = _clean_characters(value)
        return _strip_markup(characters) if self._strip_markup and _MARKUP.search(characters) else characters

    def problem(self, answer: str) -> str:
        """Why a cleaned answer teaches nothing: "answerEmpty", "answerTooShort", or an empty string."""
        if not answer.strip():
            return "answerEmpty"
        return "answerTooShort" if _has_fewer_words(answer, self._min_answer_words) else ""


def _has_fewer_words(text: str, least: int) -> bool:
    """Whether a text has fewer words; a long text is not read to its end."""
    return sum(1 for _, _ in zip(_WORD.finditer(text), range(least), strict=False)) < least


def _clean_characters(text: str) -> str:
    if _has_clean_characters(text):
        return text
    text = _INVISIBLE.sub(r"\1", _SPACE.sub(" ", _LINE_END.sub("\n", text)))
    text = _JOINERS.sub("", unicodedata.normalize("NFC", text))
    return _TRAILING.sub("", unicodedata.normalize("NFC", text)).strip("\n")


def _has_clean_characters(text: str) -> bool:
    """A fast test: cleaning the characters of a text that passes it changes nothing.

    Printable are all characters but those of the categories Other and Separator, and the usual space: none of those
    that are replaced or left out.
    """
    return (
        text.replace("\n", " ").replace("\t", " ").isprintable()
        and " \n" not in text
        and "\t\n" not in text
        and not text.startswith("\n")
        and not text.endswith((" ", "\t", "\n"))
        and unicodedata.is_normalized("NFC", text)
    )


def _strip_markup(text: str) -> str:
    """The text when another pass changes nothing more: entities may hide tags, and tags entities."""
    stripped = text
    for _ in range(_PASSES):
        before, parts = stripped, _CODE.split(stripped)
        stripped = _clean_characters("".join(p if i % 2 else _strip_once(p) for i, p in enumerate(parts)))
        if stripped == before:
            return stripped
    return text


def _strip_once(text: str) -> str:
    for opening, closing in _HIDDEN:
        text = _without(text, opening, closing)
    text = _TAG.sub(_instead_of_tag, text)
    return _ENTITY.sub(lambda match: unescape(match.group()), _BLANK_LINES.sub("\n\n", text))


def _without(text: str, opening: re.Pattern[str], closing: re.Pattern[str]) -> str:
    """The text without the parts between opening and closing; unclosed parts stay."""
    parts, place = [], 0
    while (begin := opening.search(text, place)) and (end := closing.search(text, begin.end())):
        parts.append(text[place : begin.start()])
        place = end.end()
    return "".join(parts) + text[place:]


def _instead_of_tag(match: re.Match[str]) -> str:
    """Nothing or a new line for HTML's elements; names in angle brackets that HTML does not have stay as they are."""
    name = match["name"] or "html"
    if _BLOCK.fullmatch(name):
        return "\n"
    return "" if _INLINE.fullmatch(name) else match.group()
