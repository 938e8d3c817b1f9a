"""Logs of a stage: JSON lines where a machine reads them, plain lines on a terminal."""

import json
import logging
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


class JsonLines(logging.Formatter):
    """One JSON object per record: time (RFC 3339, UTC), level, stage, logger, message, and the traceback if any."""

    def __init__(self, stage: str) -> None:
        super().__init__()
        self._stage = stage

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "stage": self._stage,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def set_up(stage: str, *, terminal: bool) -> None:
    """Send this process's logs to stderr in the form that suits the reader."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s") if terminal else JsonLines(stage))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for name in ("botocore", "boto3", "s3transfer", "urllib3", "httpx", "filelock"):
        logging.getLogger(name).setLevel(logging.WARNING)


def process_age() -> float:
    """Seconds since this process was started: what Python and the imports took (proc(5), field 22 of ``stat``)."""
    started = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
    return float(Path("/proc/uptime").read_text().split()[0]) - started
