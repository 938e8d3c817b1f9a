"""Words of messages: values cut short, sizes, and what may have been meant (pure)."""

import difflib
from collections.abc import Iterable


def shorten(value: str, limit: int = 40) -> str:
    """At most ``limit`` characters of a value, on one line."""
    line = " ".join(value.split())
    return line if len(line) <= limit else f"{line[: limit - 1]}…"


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """The known name that is closest to a wrong one, as a question, or nothing."""
    close = difflib.get_close_matches(name, list(names), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def sized(count: int) -> str:
    """A number of bytes with binary prefixes (IEC 80000-13)."""
    size, units = float(count), iter(("KiB", "MiB", "GiB", "TiB"))
    unit = "bytes"
    while size >= 1024 and (larger := next(units, "")):
        size, unit = size / 1024, larger
    return f"{count} bytes" if unit == "bytes" else f"{size:.1f} {unit}"


def ended(text: str) -> str:
    """A text with a full stop, unless it ends with a question."""
    return text if text.endswith("?") else f"{text}."
