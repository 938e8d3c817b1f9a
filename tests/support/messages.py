"""Messages for people are pinned by what they must name (place, value, remedy), so that their wording may change."""

from __future__ import annotations

import re


def reads(message: str, parts: str) -> bool:
    """Whether the parts, which are separated by `` … ``, stand in a message in this order."""
    return re.search(".*".join(map(re.escape, parts.split(" … "))), message, re.DOTALL) is not None
