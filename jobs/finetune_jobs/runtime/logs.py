"""Logs of a stage: JSON lines where a machine reads them, plain lines on a terminal; their end outlives the pod."""

import io
import logging
import os
import re
import socket
import sys
import threading
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from finetune_api.json_lines import JsonLines
from finetune_api.layout import run_folder
from finetune_api.meta import POD_VARIABLE
from finetune_api.references import SECRET_PREFIX
from finetune_api.stages import RunRef
from finetune_jobs.base.background import Repeating
from finetune_jobs.store.s3 import Store

TAIL_BYTES: Final = 256 * 1024
"""How much of a log's end is kept."""
KEEP_SECONDS: Final = 15.0
"""Time between two copies of a log's end; what a killed process (SIGKILL, a lost node) wrote after the last is gone."""

_SECRET_NAME: Final = re.compile(r"(KEY|SECRET|TOKEN|PASSWORD|CREDENTIAL)S?(_ID)?$")
_SHORTEST_SECRET: Final = 6
"""A shorter value would black out words of ordinary messages."""
_IN_A_URL: Final = re.compile(
    r"(?<=://)[^/\s@]+(?=@)"
    r"|(?i:(?<=signature=)|(?<=security-token=)|(?<=[?&]sig=)|(?<=[?&]_state=))[^&\s\"']+"
)
"""User and password before a host; what makes a presigned URL work (SigV2, SigV4, Azure's SAS), and an upload to an OCI
registry (``_state``, of the distribution project)."""
_BLACK: Final = "***"
_TALKATIVE: Final = {
    **dict.fromkeys(("botocore", "boto3", "s3transfer", "urllib3", "httpx", "httpx2", "filelock"), logging.WARNING),
    "bitsandbytes.autograd._functions": logging.ERROR,
}
"""Libraries whose information is about each request, and one that warns in each layer of each pass: LLM.int8 casts its
inputs to float16 before it rounds them."""


class Redaction:
    """Removes from a text what no log or status may show: secret values of the environment, passwords in URLs."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        # Secrets made from files end in a line break, which their users strip.
        named = (name for name in environment if name.startswith(SECRET_PREFIX) or _SECRET_NAME.search(name))
        secrets = {environment[name].strip() for name in named}
        secrets |= {repr(secret)[1:-1] for secret in secrets}  # how errors quote one with line breaks
        longest_first = sorted((s for s in secrets if len(s) >= _SHORTEST_SECRET), key=len, reverse=True)
        self._secrets = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def __call__(self, text: str) -> str:
        """The text with ``***`` in their place."""
        return _IN_A_URL.sub(_BLACK, self._secrets.sub(_BLACK, text))


def without_secrets(text: str) -> str:
    """The text without the secrets of this process's environment. Whoever shortens a text calls this first: a part of a
    secret is not recognised."""
    return Redaction(os.environ)(text)


class PlainLines(logging.Formatter):
    """Level and message, for people at a terminal."""

    def __init__(self, redaction: Redaction) -> None:
        super().__init__("%(levelname)s %(message)s")
        self._redaction = redaction

    def format(self, record: logging.LogRecord) -> str:
        """The record as lines for people."""
        return self._redaction(super().format(record))


class Tail(logging.Handler):
    """Holds the newest lines of a log in memory, at most ``limit`` bytes of them."""

    def __init__(self, formatter: logging.Formatter, limit: int = TAIL_BYTES) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self._limit = limit
        self._lines: deque[bytes] = deque()
        self._size = 0
        self._written = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Append a record (logging calls this under the handler's lock) and drop the oldest lines beyond the limit."""
        line = (self.format(record) + "\n").encode(errors="replace")
        self._written += 1
        self._lines.append(line)
        self._size += len(line)
        while self._size > self._limit:
            self._size -= len(self._lines.popleft())

    def content(self) -> tuple[bytes, int]:
        """The lines, and how many were ever written: the same number means the same lines."""
        self.acquire()
        try:
            return b"".join(self._lines), self._written
        finally:
            self.release()


class KeptLog:
    """Keeps the end of a log in the store while the stage runs, so that it can be read when the pod is gone.

    Fail-open: an unavailable or refusing store costs the copy, and ``finish`` a few seconds at most.
    """

    def __init__(self, tail: Tail, pause: float = KEEP_SECONDS, name: str = "") -> None:
        self._tail, self._pause = tail, pause
        self.name = name
        """Of the program that writes it, where it does a part of a stage; empty: the stage's."""
        self._copied = 0
        self._uri = ""
        self._copying: Repeating | None = None

    def begin(self, store: Store, path: str) -> None:
        """Copy the log's end to this object, now and whenever there is more."""
        self._uri = store.uri(path)
        self._copying = Repeating(lambda: self._copy(store, path), name="saving the log", pause=self._pause)
        self._copying.soon()

    def finish(self, seconds: float) -> str:
        """Copy the log's end a last time; its URI if that succeeds within ``seconds``, else an empty text."""
        if self._copying is None:
            return ""
        self._copying.end()
        return self._uri if self._copying.wait(seconds) else ""

    def _copy(self, store: Store, path: str) -> None:
        content, written = self._tail.content()
        if written > self._copied:
            store.put(path, content)
            self._copied = written


def log_object(run: RunRef, stage: str, host: str = "") -> str:
    """Where a stage's log is kept, relative to the output URI. The host is the pod, so that attempts stay apart."""
    name = re.sub(r"[^A-Za-z0-9.-]", "-", host or os.environ.get(POD_VARIABLE) or socket.gethostname())
    return f"{run_folder(run)}/logs/{stage}-{run.id}-{name}.jsonl"


class PrintedLines(io.TextIOBase):
    """Stands in for stdout and stderr where a machine reads the log: what libraries print becomes log records.
    Each line is a record; a line that was redrawn (a progress bar) is one record, with its last state. What C code
        writes, above all at a crash, still goes to the process's real stderr.
    """

    def __init__(self, logger: logging.Logger, level: int) -> None:
        self._logger, self._level = logger, level
        self._begun = ""
        # Reentrant: a finalizer or a signal handler may print while its thread is in here.
        self._lock, self._thread = threading.RLock(), threading.local()

    def writable(self) -> bool:
        """Always."""
        return True

    def write(self, text: str) -> int:
        """Log the complete lines, and keep the rest until it is complete."""
        with self._lock:
            *lines, begun = (self._begun + text).split("\n")
            self._begun = begun[begun.rstrip("\r").rfind("\r") + 1 :]  # a bar is redrawn for hours without an end
        for line in lines:
            self._log(line)
        return len(text)

    def flush(self) -> None:
        """Nothing: an incomplete line waits for its end."""

    def close(self) -> None:
        """Log what is left."""
        with self._lock:
            rest, self._begun = self._begun, ""
        self._log(rest)
        super().close()

    def _log(self, line: str) -> None:
        drawn = line.rstrip("\r").rpartition("\r")[2].rstrip()
        if not drawn:
            return
        if getattr(self._thread, "logging", False):  # logging's own errors
            print(drawn, file=sys.__stderr__)
            return
        self._thread.logging = True
        try:
            self._logger.log(self._level, "%s", drawn)
        finally:
            self._thread.logging = False


def before_imports() -> None:
    """Set up the log of a stage that ``python -m`` starts without a terminal: libraries warn while they are imported.

    ``commandline.parse`` takes stdout and stderr back for what it has to say.
    """
    stage = next((name.rpartition(".")[2] for name in sys.orig_argv if name.startswith("finetune_jobs.")), "")
    if sys.argv[:1] == ["-m"] and not sys.stderr.isatty():
        set_up(stage, terminal=False)


def set_up(stage: str, *, terminal: bool) -> Tail:
    """Send this process's logs to stderr in the format for its reader; returns their end as JSON lines.

    Without a terminal, what libraries print and warn about goes there too, and they draw no progress bars.
    """
    take_down()
    redaction = Redaction(os.environ)
    lines = JsonLines({"stage": stage}, redaction)
    stream, tail = logging.StreamHandler(sys.stderr), Tail(lines)
    stream.setFormatter(PlainLines(redaction) if terminal else lines)
    logging.basicConfig(level=logging.INFO, handlers=[stream, tail], force=True)
    for name, level in _TALKATIVE.items():
        logging.getLogger(name).setLevel(level)
    if not terminal:
        os.environ.setdefault("TQDM_DISABLE", "1")
        logging.captureWarnings(True)
        sys.stdout = PrintedLines(logging.getLogger("stdout"), logging.INFO)
        sys.stderr = PrintedLines(logging.getLogger("stderr"), logging.WARNING)
    return tail


def take_down() -> None:
    """Restore the process's own stdout and stderr; what was printed until now is logged."""
    for name, own in (("stdout", sys.__stdout__), ("stderr", sys.__stderr__)):
        if isinstance(printed := getattr(sys, name), PrintedLines):
            printed.close()
            setattr(sys, name, own)


def process_age() -> float:
    """Seconds since this process started: the time of Python and the imports (proc(5), field 22 of ``stat``)."""
    started = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
    return float(Path("/proc/uptime").read_text().split()[0]) - started
