"""Keys, tokens and passwords in texts (pure): what a model learns, it may tell.

Tokens of services are known by the prefixes that their makers gave them for this purpose. Anything else is a secret
only where it is assigned to a name that says so, and looks drawn at random: hashes and UUIDs in prose are none.

Why not detect-secrets: docs/decisions/0016-which-parts-are-our-own.md.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from finetune_jobs.text.pii.findings import Finding, without_overlaps


@dataclass(frozen=True)
class _Kind:
    """One kind of secret. The finding is the pattern's group ``secret``."""

    name: str
    hints: tuple[str, ...]
    """Lower-case texts of which one is in every text that the pattern matches: a fast test."""
    pattern: re.Pattern[str]
    is_long: bool = True
    """Whether a secret of this kind is in ``_LONG`` or more characters without any of ``_ENDS``."""


def _token(name: str, hints: str, pattern: str) -> _Kind:
    return _Kind(name, tuple(hints.split()), re.compile(rf"(?<![A-Za-z0-9])(?P<secret>{pattern})(?![A-Za-z0-9])"))


_TOKENS: Final = (
    _token("AWS_ACCESS_KEY", "akia asia abia acca", r"(?:AKIA|ASIA|ABIA|ACCA)[A-Z2-7]{16}"),
    _token(
        "GITHUB_TOKEN", "ghp_ gho_ ghu_ ghs_ ghr_ github_pat_", r"gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_\w{22,255}"
    ),
    _token("GITLAB_TOKEN", "glpat- gldt- glrt- glptt-", r"gl(?:pat|dt|rt|ptt)-[\w-]{20,300}"),
    _token(
        "SLACK_TOKEN",
        "xox xapp- hooks.slack.com",
        r"xox[abeoprs]-[\w-]{10,300}|xapp-\d-[\w-]{10,300}|https://hooks\.slack\.com/(?:services|workflows)/[\w/]{20,200}",
    ),
    _token(
        "STRIPE_KEY", "k_live_ k_test_ whsec_", r"[rs]k_(?:live|test)_[A-Za-z0-9]{16,250}|whsec_[A-Za-z0-9+/]{24,250}=*"
    ),
    _token("OPENAI_KEY", "sk-", r"sk-(?!ant-)(?=[\w-]{0,249}\d)(?=[\w-]{0,249}[A-Z])[\w-]{32,250}"),
    _token("ANTHROPIC_KEY", "sk-ant-", r"sk-ant-[\w-]{20,250}"),
    _token("GOOGLE_KEY", "aiza ya29. gocspx-", r"AIza[\w-]{35}|ya29\.[\w-]{20,500}|GOCSPX-[\w-]{28}"),
    _token("HUGGING_FACE_TOKEN", "hf_", r"hf_[A-Za-z0-9]{30,60}"),
    _token("NPM_TOKEN", "npm_", r"npm_[A-Za-z0-9]{36}"),
    _token("PYPI_TOKEN", "pypi-", r"pypi-AgE[\w-]{50,1000}"),
    _token("SENDGRID_KEY", "sg.", r"SG\.[\w-]{16,32}\.[\w-]{32,64}"),
    _token("DIGITALOCEAN_TOKEN", "_v1_", r"do[opr]_v1_[0-9a-f]{64}"),
    _token("DATABRICKS_TOKEN", "dapi", r"dapi[0-9a-f]{32}(?:-\d)?"),
    _token("TELEGRAM_TOKEN", ":aa", r"\d{8,10}:AA[\w-]{33}"),
    _token("JWT", "eyj", r"eyJ[\w-]{8,4000}\.eyJ[\w-]{8,8000}\.[\w-]{16,2000}"),
    _Kind(
        "PRIVATE_KEY",
        ("private key",),
        re.compile(
            r"(?P<secret>-----BEGIN (?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----(?:[^-]|-(?!----))*+"
            r"(?:-----END [A-Z0-9 ]{1,60}-----)?)"
        ),
        is_long=False,
    ),
)

_ASSIGNED: Final = r"[\"'\])*`]{0,3}\s{0,3}(?:=>|:=|==?|:|\b(?:is|was|lautet|ist)\b)\s{0,3}[\"'`*(]{0,3}"
_VALUE: Final = r"(?P<secret>[^\s\"'`,;<>(){}\[\]|]{6,512})"
_PASSWORD: Final = _Kind(
    "PASSWORD",
    ("passw", "pwd", "passphrase", "kennwort"),
    re.compile(
        rf"(?:passw(?:or)?d|passwort|kennwort|passphrase|(?<![a-z])pwd){_ASSIGNED}{_VALUE}", re.IGNORECASE | re.ASCII
    ),
    is_long=False,
)
_SECRET: Final = _Kind(
    "SECRET",
    ("secret", "token", "key", "credential"),
    re.compile(
        rf"(?:secret|token|(?:api|access|account|auth|client|encryption|private|secret|shared|signing)[ _-]?key"
        rf"|credentials?){_ASSIGNED}{_VALUE}",
        re.IGNORECASE | re.ASCII,
    ),
)
_HEADER: Final = _Kind(
    "SECRET",
    ("bearer ", "basic ", "authorization"),
    re.compile(r"\b(?:Bearer|Basic)\s{1,3}(?P<secret>[A-Za-z0-9._~+/-]{20,4000}=*)"),
)
_URL: Final = _Kind(
    "PASSWORD",
    ("://",),
    re.compile(r"(?<=://)[^\s:/@\"'<>]{0,256}:(?P<secret>[^\s/@\"'<>]{3,256})@(?=[\w\[])"),
    is_long=False,
)

_BY_NAME: Final = (_PASSWORD, _SECRET, _HEADER, _URL)

_PLACEHOLDER: Final = re.compile(
    r"(.)\1*|[$%{<\[].*|x{3,}.*|(?:your|example|dummy|placeholder|insert|enter).*|(?:my|the|some|new|old|change|secret)[\W_a-z]*"
    r"|(?:password|passwd|pass|pwd|token|test|user|none|null|true|false|undefined|redacted|hidden|required|optional)\W*"
    r"|\w+\.\w+(?:\.\w+)*|\w+\(.*|https?:.*|/[\w./-]*|[a-z]+(?:[-_ ][a-z]+)*[.!?]?",
    re.IGNORECASE,
)
"""What stands where a secret would: a word, a variable, a call, a path, a row of stars."""
_RANDOM_BITS: Final = 3.0
"""Shannon entropy in bits a character from which 16 characters look drawn at random; words and dates have less."""


def find_secrets(text: str) -> list[Finding]:
    """What must not be learnt, by place, without overlaps; the entity is the kind, e.g. GITHUB_TOKEN or PASSWORD."""
    if not _may_have_secret(text):
        return []
    lower = text.lower()
    found = [
        Finding(*match.span("secret"), kind.name)
        for kind in _hinted(_TOKENS, lower)
        for match in kind.pattern.finditer(text)
    ]
    for kind in _hinted(_BY_NAME, lower):
        found += [
            Finding(*match.span("secret"), kind.name, 0.8)
            for match in kind.pattern.finditer(text)
            if _looks_secret(kind, match["secret"])
        ]
    return without_overlaps(found)


def _hints(kinds: Iterable[_Kind]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(hint for kind in kinds for hint in kind.hints))


_LONG_HINTS: Final = _hints(kind for kind in (*_TOKENS, *_BY_NAME) if kind.is_long)
_OTHER_HINTS: Final = _hints(kind for kind in (*_TOKENS, *_BY_NAME) if not kind.is_long)
_LONG: Final = 15
_ENDS: Final = b" \t\n\r\f\v\x1c\x1d\x1e\x1f\"'`,;<>(){}[]|"
_INKED: Final = bytes(code if code in _ENDS else ord("x") for code in range(256))
"""A table for bytes.translate: "x" for every character but the _ENDS."""


def _may_have_secret(text: str) -> bool:
    """A fast test, which most texts do not pass. In ASCII texts are searched several times as fast as in others."""
    encoded = text.encode("ascii", "replace")
    lower = encoded.decode("ascii").lower()
    if any(map(lower.__contains__, _OTHER_HINTS)):
        return True
    return b"x" * _LONG in encoded.translate(_INKED) and any(map(lower.__contains__, _LONG_HINTS))


def _hinted(kinds: Iterable[_Kind], lower: str) -> Iterator[_Kind]:
    return (kind for kind in kinds if any(hint in lower for hint in kind.hints))


def _looks_secret(kind: _Kind, value: str) -> bool:
    """Passwords mix kinds of characters; keys and tokens are long and look random."""
    value = value.rstrip(".!?")
    if _PLACEHOLDER.fullmatch(value):
        return False
    if kind.name == "PASSWORD":
        return kind is _URL or any(not character.isalpha() for character in value)
    return len(value) >= 16 and any(map(str.isdigit, value)) and entropy(value) >= _RANDOM_BITS


def entropy(text: str) -> float:
    """Shannon entropy of the characters of a text in bits a character (C. E. Shannon, 1948)."""
    counts = Counter(text).values()
    return -sum(count / len(text) * math.log2(count / len(text)) for count in counts)
