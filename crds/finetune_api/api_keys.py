"""Clients' keys: every value of a mounted Secret is one, and a value that can be none says why.

The proxy in front of a server reads them, and the verification, which sends one. The proxy's image has the standard
library only, so this module imports nothing else. No message holds a value.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

SHORTEST: Final = 20
"""Characters: a shorter key may be guessed. 20 of letters and digits are 119 bits."""
LONGEST: Final = 512
"""Characters: what proxies on the way take in a header without a thought."""
_USABLE: Final = frozenset(range(0x21, 0x7F)) - {ord(",")}
"""A comma ends a value in a header: HAProxy would look for the part before it."""
REMEDY: Final = f"a key is {SHORTEST} to {LONGEST} characters of ASCII without spaces, commas and line breaks"


@dataclass(frozen=True)
class ApiKeys:
    """What a folder has, one file for each entry of the Secret."""

    accepted: tuple[str, ...] = ()
    """In the order of their names."""
    refused: tuple[str, ...] = ()
    """Name of each entry that is no key, and why."""

    def __repr__(self) -> str:
        """Without the keys: tracebacks and logs show this."""
        return f"ApiKeys({len(self.accepted)} accepted, refused={self.refused})"


def read_api_keys(folder: Path) -> ApiKeys:
    """The keys in a folder. One that is missing or empty, as the kubelet leaves it without the Secret, has none.

    Raises OSError for a file that cannot be read.
    """
    # The kubelet exchanges this link first, and then one link for each entry: in between, some entries are missing.
    whole = folder / "..data"
    try:
        files = sorted((whole if whole.exists() else folder).iterdir())
    except FileNotFoundError:
        return ApiKeys()
    accepted, refused = [], []
    for each in files:
        value = each.read_bytes()
        if fault := fault_of(value):
            refused.append(f"entry {each.name!r} {fault}")
        else:
            accepted.append(value.decode("ascii"))
    return ApiKeys(tuple(accepted), tuple(refused))


def fault_of(value: bytes) -> str:
    """Why a value can be no key; empty: it can."""
    if not value:
        return "is empty"
    if value.rstrip(b"\r\n") != value:
        return "ends with a line break (write it with printf or --from-literal, not with echo)"
    if not _USABLE.issuperset(value):
        return "has a space, a comma, a line break or a character outside of ASCII"
    if len(value) < SHORTEST:
        return f"has fewer than {SHORTEST} characters"
    return f"has more than {LONGEST} characters" if len(value) > LONGEST else ""
