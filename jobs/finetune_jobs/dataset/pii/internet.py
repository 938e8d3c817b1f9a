"""E-mail addresses, URLs and names of domains, IP addresses.

Hosts are labels of letters, digits and hyphens (RFC 1123; RFC 5890 for other scripts) below a public suffix. The list
of suffixes is the copy inside tldextract: nothing is fetched, and nothing is written to a cache.
"""

import ipaddress
import re
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Final

from finetune_jobs.dataset.pii.findings import Context, Finding, Recognizer

if TYPE_CHECKING:
    from tldextract import TLDExtract

_LABEL: Final = r"[^\W_](?:[\w-]{0,61}[^\W_])?"
_HOST: Final = rf"{_LABEL}(?:\.{_LABEL})*\.[^\W\d_](?:[\w-]{{0,61}}[^\W_])"
_LOCAL: Final = r"\w[\w.!#$%&'*+^{|}~-]{0,63}"
"""The part before the @, 64 characters at most (RFC 5321, 4.5.3.1.1), without what programs write around addresses."""

_EMAIL: Final = re.compile(rf"(?<!\w)({_LOCAL})@({_HOST})(?![\w@])")
_SPELLED_AT: Final = re.compile(r"[\[(] ?at ?[\])]", re.IGNORECASE)
_SPELLED: Final = re.compile(
    rf"(?<!\w)({_LOCAL}) ?[\[(] ?at ?[\])] ?({_LABEL}(?:(?:\.| ?[\[(] ?dot ?[\])] ?){_LABEL})+)(?!\w)", re.IGNORECASE
)


def _emails(text: str) -> Iterator[Finding]:
    for match in _EMAIL.finditer(text):
        yield Finding(*match.span(), "EMAIL_ADDRESS", 1.0 if _suffix(match[2]) else 0.6)
    if _SPELLED_AT.search(text):
        for match in _SPELLED.finditer(text):
            yield Finding(*match.span(), "EMAIL_ADDRESS", 0.6)


_URL: Final = re.compile(
    rf"(?<![\w@.-])((?:https?|ftp)://(?:[^\s/@<>\"']{{1,64}}@)?|www\d{{0,3}}\.(?=\w))?({_HOST})(?![\w@-])(:\d{{1,5}})?"
    r"([/?#](?:[^\s<>\"'`|{}]*[^\s<>\"'`|{}.,;:!?)\]])?)?",
    re.IGNORECASE,
)
_ALONE: Final = re.compile(r"com|net|org|edu|gov|mil|int|info|biz|[a-z]{2}|xn--[a-z0-9-]+|[^\x00-\x7f]+", re.IGNORECASE)
"""Top-level names that make a host without any word beside it: the old ones and those of countries."""
_ENDINGS: Final = frozenset(["cc", "id", "md", "ml", "mo", "pl", "pm", "ps", "py", "rs", "sh", "so", "tf"])
"""Of those, the ones that end names of files or parts of programs more often than hosts."""
_SITE: Final = Context(
    *("web ?sites?", "sites?", "url", "links?", "domains?", "visit", "browse", "www", "https?", "web ?pages?", "blog"),
    *("webseite", "homepage", "online", "hosted", "server", "host ?names?"),
)
_JUST_BEFORE: Final = 25
"""Characters before a host in which such a word says that it is one."""


def _urls(text: str) -> Iterator[Finding]:
    for match in _URL.finditer(text):
        if score := _url_score(text, match):
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
    found = _extractor().extract_str(host)
    return found.suffix if found.domain else ""


_IP: Final = re.compile(
    r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?:/\d{1,2})?(?![\w/])(?!\.\d)"
    r"|(?<![\w:.])(?=[0-9A-Fa-f:]*:[0-9A-Fa-f]*:)[0-9A-Fa-f:]{2,39}(?:(?<=:)(?:\d{1,3}\.){3}\d{1,3})?(?:/\d{1,3})?(?![\w:])(?!\.\d)"
)
_LONG_GROUP: Final = re.compile(r"(?=[A-Fa-f]*\d)[0-9A-Fa-f]{3}")
_VERSION: Final = re.compile(r"(?:version|release|build|firmware|ver\.?|v\.?)\s*:?\s*$", re.IGNORECASE)


def _ips(text: str) -> Iterator[Finding]:
    for match in _IP.finditer(text):
        is_version = _VERSION.search(text[max(0, match.start() - 12) : match.start()])
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


EMAILS: Final = Recognizer("EMAIL_ADDRESS", re.compile(r"@|[\[(] ?at ?[\])]", re.IGNORECASE), _emails)
URLS: Final = Recognizer("URL", re.compile(r"\w\.[^\W\d_]"), _urls)
IPS: Final = Recognizer("IP_ADDRESS", re.compile(r"\d\.\d{1,3}\.\d|:[0-9A-Fa-f]{0,4}:"), _ips)
