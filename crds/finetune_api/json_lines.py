"""The form of a log that a machine reads, the same in stages and the proxy. It needs the standard library only."""

import json
import logging
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any


def _as_it_is(text: str) -> str:
    return text


class JsonLines(logging.Formatter):
    """One JSON object per record: time (RFC 3339, UTC), level, logger, message, and the traceback if any."""

    def __init__(self, about: Mapping[str, str], redact: Callable[[str], str] = _as_it_is) -> None:
        """``about``: what every line says, e.g. the stage; ``redact``: removes from a text what no log may show."""
        super().__init__()
        self._about, self._redact = dict(about), redact

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            **self._about,
            "logger": record.name,
            "message": self._redact(record.getMessage()),
        }
        if record.exc_info:
            line["traceback"] = self._redact(self.formatException(record.exc_info))
        return json.dumps(line, ensure_ascii=False)
