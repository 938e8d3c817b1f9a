"""What HAProxy prints becomes records of this program's log, so that the container writes JSON lines only."""

import logging
import re
from typing import IO, Final

log = logging.getLogger("haproxy")

_LOGGED: Final = re.compile(r"<(?P<severity>[0-7])>(?P<message>.*)")
"""A line of its log: ``format short`` writes the severity of syslog before the message."""
_TOLD: Final = re.compile(r"\[(?P<word>[A-Z]+)\]\s*\(\d+\)\s*:\s*(?P<message>.*)")
"""A line on stderr, with the number of its process."""
_SEVERITIES: Final = (*[logging.ERROR] * 4, logging.WARNING, logging.INFO, logging.INFO, logging.DEBUG)
_WORDS: Final = {
    "EMERG": logging.ERROR,
    "ALERT": logging.ERROR,
    "WARNING": logging.WARNING,
    "DEBUG": logging.DEBUG,
}


def log_printed(output: IO[bytes]) -> None:
    """Log each line until there are no more, and close it."""
    with output:
        for line in output:
            level, message = read_line(line.decode(errors="replace"))
            if message:
                log.log(level, "%s", message)


def read_line(line: str) -> tuple[int, str]:
    """Level and message; a line in neither form is information."""
    text = line.strip()
    if found := _LOGGED.fullmatch(text):
        return _SEVERITIES[int(found["severity"])], found["message"]
    if found := _TOLD.fullmatch(text):
        return _WORDS.get(found["word"], logging.INFO), found["message"]
    return logging.INFO, text
