"""``python -m finetune_proxy``: start HAProxy, tell it the keys as they change, and when the pod is about to stop.

Without a key at its start it ends, and says why in its termination message: the server behind it would start for
nobody. Later, a Secret that has lost its keys lets nobody in; the pod is not ready then, until there is a key again.

SIGUSR1, from the pod's preStop hook: each answer is the last one of its connection. SIGTERM comes when the server has
ended.
"""

import argparse
import json
import logging
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Final

from finetune_api.api_keys import REMEDY, ApiKeys, read_api_keys
from finetune_api.meta import CLIENT_PORT, INNER_PORT, SERVING_PORT, ExitCode
from finetune_proxy.config import DRAINING, HAS_KEYS, Files, Proxied, haproxy_config, key_hash
from finetune_proxy.haproxy import HaproxyError, set_list

_POLL_SECONDS: Final = 1.0
"""How often the Secret is looked at. The kubelet brings its changes within about a minute."""
_STOP_SECONDS: Final = 5
log = logging.getLogger("finetune_proxy")


@dataclass(frozen=True)
class Options:
    """What the container is told."""

    keys: Path
    """Where the Secret is mounted."""
    secret: str
    """Its name, for messages."""
    folder: Path
    """For HAProxy's files."""
    told: Proxied
    message: Path = Path("/dev/termination-log")
    program: str = "haproxy"


def parse(argv: Sequence[str]) -> Options:
    """The options of a command line."""
    parser = argparse.ArgumentParser(prog="finetune_proxy")
    parser.add_argument("--keys", type=Path, required=True, help="folder with a file for each key")
    parser.add_argument("--secret", required=True, help="name of the Secret that they are from")
    parser.add_argument("--folder", type=Path, required=True, help="writable folder for HAProxy's files")
    parser.add_argument("--drain-seconds", type=int, required=True, help="how long a stopping pod waits")
    parser.add_argument("--read", action="append", default=[], help="a path that clients may GET")
    parser.add_argument("--write", action="append", default=[], help="a path to which they may POST")
    given = parser.parse_args(argv)
    paths = (tuple(given.read), tuple(given.write))
    told = Proxied(CLIENT_PORT, INNER_PORT, SERVING_PORT, *paths, given.drain_seconds, socket.has_dualstack_ipv6())
    return Options(given.keys, given.secret, given.folder, told)


def run(options: Options, stop: threading.Event, drain: threading.Event) -> ExitCode:
    """Run until told to stop."""
    keys = read_api_keys(options.keys)
    if not keys.accepted:
        said = nobody(options.secret, keys)
        log.error(said)
        options.message.write_text(failure(said))
        return ExitCode.RETRIABLE
    files = Files(options.folder)
    files.config.write_text(haproxy_config(options.told, files))
    files.keys.write_text("".join(f"{key_hash(key)}\n" for key in keys.accepted))
    files.state.write_text(f"{HAS_KEYS}\n")
    report(keys)
    server = subprocess.Popen([options.program, "-db", "-f", files.config])
    try:
        code = _follow(options, files, keys, server, stop, drain)
    finally:
        server.terminate()
        server.wait(_STOP_SECONDS)
    return code


def _follow(
    options: Options,
    files: Files,
    known: ApiKeys,
    server: "subprocess.Popen[bytes]",
    stop: threading.Event,
    drain: threading.Event,
) -> ExitCode:
    """Tell HAProxy what changes, until it ends or is to end. What it did not take is told again."""
    told = _words(known, drain)
    while not stop.wait(_POLL_SECONDS):
        if server.poll() is not None:
            log.error("HAProxy ended with code %d", server.returncode)
            return ExitCode.RETRIABLE
        try:
            if (keys := read_api_keys(options.keys)) != known:
                set_list(files.socket, files.keys, [key_hash(key) for key in keys.accepted])
                known = keys
                report(keys)
            if (words := _words(known, drain)) != told:
                set_list(files.socket, files.state, words)
                told = words
        except (OSError, HaproxyError) as error:
            log.warning("the keys stay as they are for now: %s", error)
    return ExitCode.OK


def _words(keys: ApiKeys, drain: threading.Event) -> list[str]:
    """The words for a state."""
    return [*([HAS_KEYS] if keys.accepted else []), *([DRAINING] if drain.is_set() else [])]


def report(keys: ApiKeys) -> None:
    """How many keys there are, and which entries are none."""
    log.info("%d keys are accepted", len(keys.accepted))
    for each in keys.refused:
        log.warning("%s, and lets nobody in: %s", each, REMEDY)


def nobody(secret: str, keys: ApiKeys) -> str:
    """That there is no key, and why."""
    why = "; ".join(keys.refused) or "it does not exist, or is empty"
    return f"Secret {secret!r} has no key with which a client could get in: {why}."[:1000]


def failure(message: str) -> str:
    """A ``StageResult``, which the operator reads; its model is not in this image."""
    result = {"stage": "verify", "outcome": "Failed", "reason": "ApiKeysMissing", "message": message}
    return json.dumps(result)


def main(argv: Sequence[str]) -> int:
    """Returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stdout)
    stop, drain = threading.Event(), threading.Event()

    def heard(number: int, _frame: FrameType | None) -> None:
        (drain if number == signal.SIGUSR1 else stop).set()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, heard)
    return run(parse(argv), stop, drain)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
