"""E-mail addresses, URLs and names of domains, IP addresses.

Hosts are labels of letters, digits and hyphens (RFC 1123; RFC 5890 for other scripts) below a public suffix. The list
of suffixes is the copy inside tldextract: nothing is fetched, and nothing is written to a cache.
"""

import ipaddress
import re
from collections.abc import Iterator
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Final

from finetune_jobs.text.pii.findings import Finding, NearbyWords, Recognizer, matches
from finetune_jobs.text.pii.text import Text

if TYPE_CHECKING:
    from tldextract import TLDExtract

_LABEL: Final = r"[^\W_](?:[\w-]{0,61}[^\W_])?"
_HOST: Final = rf"{_LABEL}(?:\.{_LABEL})*\.[^\W\d_](?:[\w-]{{0,61}}[^\W_])"
_LOCAL: Final = r"\w[\w.!#$%&'*+^{|}~-]{0,63}"
"""The part before the @, 64 characters at most (RFC 5321, 4.5.3.1.1), without what programs write around addresses."""

_EMAIL: Final = re.compile(rf"(?<!\w)({_LOCAL})@({_HOST})(?![\w@])")
_AT: Final = re.compile("@")
_SPELLED_AT: Final = re.compile(r"[\[(] ?at ?[\])]", re.IGNORECASE)
_SPELLED: Final = re.compile(
    rf"(?<!\w)({_LOCAL}) ?[\[(] ?at ?[\])] ?({_LABEL}(?:(?:\.| ?[\[(] ?dot ?[\])] ?){_LABEL})+)(?!\w)", re.IGNORECASE
)


def _may_have_email(text: Text) -> bool:
    return _AT.search(text.whole, text.begin) is not None or _has_spelled_at(text)


def _has_spelled_at(text: Text) -> bool:
    return ("(" in text.whole or "[" in text.whole) and _SPELLED_AT.search(text.whole, text.begin) is not None


def _emails(text: Text) -> Iterator[Finding]:
    for match in text.in_words(_EMAIL, _AT):
        yield Finding(*match.span(), "EMAIL_ADDRESS", 1.0 if _suffix(match[2]) else 0.6)
    if _has_spelled_at(text):
        for match in _SPELLED.finditer(text.whole):
            yield Finding(*match.span(), "EMAIL_ADDRESS", 0.6)


_URL: Final = re.compile(
    rf"(?<![\w@.-])((?:https?|ftp)://(?:[^\s/@<>\"']{{1,64}}@)?|www\d{{0,3}}\.(?=\w))?({_HOST})(?![\w@-])(:\d{{1,5}})?"
    r"([/?#](?:[^\s<>\"'`|{}]*[^\s<>\"'`|{}.,;:!?)\]])?)?",
    re.IGNORECASE,
)
_DOT: Final = re.compile(r"\.(?<=\w\.)[^\W\d_]")
"""What every name of a host has."""
_ALONE: Final = re.compile(r"com|net|org|edu|gov|mil|int|info|biz|[a-z]{2}|xn--[a-z0-9-]+|[^\x00-\x7f]+", re.IGNORECASE)
"""Top-level names that make a host without any word beside it: the old ones and those of countries."""
_ENDINGS: Final = frozenset(["cc", "id", "md", "ml", "mo", "pl", "pm", "ps", "py", "rs", "sh", "so", "tf"])
"""Of those, the ones that end names of files or parts of programs more often than hosts."""
_SITE: Final = NearbyWords(
    *("web ?sites?", "sites?", "url", "links?", "domains?", "visit", "browse", "www", "https?", "web ?pages?", "blog"),
    *("webseite", "homepage", "online", "hosted", "server", "host ?names?"),
)
_LONGEST_NAME: Final = 253
"""Characters of a name of a host at most (RFC 1035, 2.3.4). What is longer is not kept in memory."""
_JUST_BEFORE: Final = 25
"""Characters before a host in which such a word says that it is one."""


def _urls(text: Text) -> Iterator[Finding]:
    for match in text.in_words(_URL, _DOT):
        if score := _url_score(text.whole, match):
            yield Finding(*match.span(), "URL", score)


def _url_score(text: str, match: re.Match[str]) -> float:
    """0 for what is no host; below the usual threshold for what may as well be a file or a word after a full stop."""
    host = match[2]
    top = host.rpartition(".")[2]
    if not _suffix(host):
        return 0.0
    if match[1]:
        return 0.6
    if text[match.end() : match.end() + 1] in ("(", "[", "=") or not (top.islower() or host.isupper()):
        return 0.0
    if match[4] and match[4].startswith("/"):
        return 0.5
    if _ALONE.fullmatch(top) and top.lower() not in _ENDINGS and any(c.isalpha() for c in host[: -len(top)]):
        return 0.5
    return 0.5 if _SITE.within(text[max(0, match.start() - _JUST_BEFORE) : match.start()]) else 0.3


@cache
def _extractor() -> "TLDExtract":
    from tldextract import TLDExtract

    return TLDExtract(suffix_list_urls=(), cache_dir=None)


def _suffix(host: str) -> str:
    """The public suffix of a host that is below one, else an empty string."""
    return _suffix_of_name(host) if len(host) <= _LONGEST_NAME else _suffix_of_name.__wrapped__(host)


@lru_cache(maxsize=1 << 14)
def _suffix_of_name(host: str) -> str:
    found = _extractor().extract_str(host)
    return found.suffix if found.domain else ""


_IP: Final = re.compile(
    r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?:/\d{1,2})?(?![\w/])(?!\.\d)"
    r"|(?<![\w:.])(?=[0-9A-Fa-f:]*:[0-9A-Fa-f]*:)[0-9A-Fa-f:]{2,39}(?:(?<=:)(?:\d{1,3}\.){3}\d{1,3})?(?:/\d{1,3})?(?![\w:])(?!\.\d)"
)
_LONG_GROUP: Final = re.compile(r"(?=[A-Fa-f]*\d)[0-9A-Fa-f]{3}")
_VERSION: Final = re.compile(r"(?:version|release|build|firmware|ver\.?|v\.?)\s*:?\s*$", re.IGNORECASE)


def _ips(text: Text) -> Iterator[Finding]:
    for match in _IP.finditer(text.whole):
        is_version = _VERSION.search(text.whole[max(0, match.start() - 12) : match.start()])
        if not is_version and _is_of_a_machine(match.group()):
            yield Finding(*match.span(), "IP_ADDRESS", 0.6)


def _is_of_a_machine(value: str) -> bool:
    """Whether a text is an address of some other machine: not this one's, no slice of a list, no name of C++."""
    try:
        address = ipaddress.ip_interface(value).ip
    except ValueError:
        return False
    if address.is_loopback or address.is_unspecified:
        return False
    return address.version == 4 or _LONG_GROUP.search(value) is not None


EMAILS: Final = Recognizer("EMAIL_ADDRESS", _may_have_email, _emails)
URLS: Final = Recognizer("URL", matches(_DOT.pattern), _urls)
IPS: Final = Recognizer("IP_ADDRESS", matches(r"\.(?<=\d\.)\d{1,3}\.\d", r":[0-9A-Fa-f]{0,4}:"), _ips)
