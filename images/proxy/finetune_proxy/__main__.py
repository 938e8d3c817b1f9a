"""``python -m finetune_proxy``: start HAProxy, tell it keys and certificate as they change, and when clients are to
leave: the pod is about to stop, or its self-check has found its server to be wrong.

Without a key, or a certificate that clients can use, where it needs one at its start it ends, and says why in its
termination message: the server behind it would start for nobody. Later, a Secret that has lost its keys lets nobody in;
the pod is not ready then, until there is a key again. A certificate that is not replaced by another one goes on.

SIGUSR1, from the pod's preStop hook: each answer is the last one of its connection. SIGTERM comes when the server has
ended.
"""

import argparse
import http.client
import json
import logging
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Final

from finetune_api import server_tls
from finetune_api.api_keys import REMEDY, ApiKeys, read_api_keys
from finetune_api.json_lines import JsonLines
from finetune_api.meta import CLIENT_PORT, INNER_PORT, SERVING_PORT, ExitCode
from finetune_api.server_tls import Checked, ServerTls, read_server_tls
from finetune_proxy.config import DRAINING, HAS_KEYS, VALID, Files, Proxied, haproxy_config, key_hash
from finetune_proxy.haproxy import HaproxyError, set_certificate, set_entry, set_list
from finetune_proxy.printed import log_printed

_POLL_SECONDS: Final = 1.0
"""How often the Secrets are looked at. The kubelet brings their changes within about a minute."""
_ANSWER_SECONDS: Final = 1.0
"""How long the self-check may take to say whether the server has proved itself."""
_STOP_SECONDS: Final = 5
log = logging.getLogger("finetune_proxy")


@dataclass(frozen=True)
class Certificate:
    """Where the certificate is from."""

    folder: Path
    """Where its Secret is mounted."""
    secret: str
    """The Secret's name, for messages."""
    host: str
    """The name that it has to be for."""


@dataclass(frozen=True)
class Options:
    """What the container is told."""

    keys: Path | None
    """Where the Secret with clients' keys is mounted; None: they need none."""
    secret: str
    """Its name, for messages."""
    folder: Path
    """For HAProxy's files."""
    told: Proxied
    message: Path = Path("/dev/termination-log")
    program: str = "haproxy"
    certificate: Certificate | None = None
    """None: clients do not connect by TLS."""
    self_check: int = 0
    """Port of the self-check in the pod; 0: an earlier release started the pod, and nobody asks it."""


@dataclass
class _Known:
    """What HAProxy has been told."""

    keys: ApiKeys | None
    """None: clients need none."""
    words: list[str]
    tls: ServerTls
    refused: str = ""
    """What was said last of a certificate that clients cannot use."""


def parse(argv: Sequence[str]) -> Options:
    """The options of a command line."""
    parser = argparse.ArgumentParser(prog="finetune_proxy")
    parser.add_argument("--keys", type=Path, help="folder with a file for each key; without it, clients need none")
    parser.add_argument("--secret", default="", help="name of the Secret that they are from")
    parser.add_argument("--tls", type=Path, help="folder with tls.crt and tls.key; without it, no TLS")
    parser.add_argument("--tls-secret", default="", help="name of the Secret that they are from")
    parser.add_argument("--tls-host", default="", help="name that the certificate has to be for")
    parser.add_argument("--folder", type=Path, required=True, help="writable folder for HAProxy's files")
    parser.add_argument("--drain-seconds", type=int, required=True, help="how long a stopping pod waits")
    parser.add_argument("--self-check", type=int, default=0, help="port of the self-check beside it")
    parser.add_argument("--read", action="append", default=[], help="a path that clients may GET")
    parser.add_argument("--write", action="append", default=[], help="a path to which they may POST")
    given = parser.parse_args(argv)
    told = Proxied(
        CLIENT_PORT,
        INNER_PORT,
        SERVING_PORT,
        tuple(given.read),
        tuple(given.write),
        given.drain_seconds,
        socket.has_dualstack_ipv6(),
        asks_for_keys=given.keys is not None,
        speaks_tls=given.tls is not None,
    )
    certificate = Certificate(given.tls, given.tls_secret, given.tls_host) if given.tls else None
    return Options(given.keys, given.secret, given.folder, told, certificate=certificate, self_check=given.self_check)


def run(options: Options, stop: threading.Event, drain: threading.Event) -> ExitCode:
    """Run until told to stop."""
    keys = read_api_keys(options.keys) if options.keys else None
    if keys is not None and not keys.accepted:
        return _refused(options, "ApiKeysMissing", nobody(options.secret, keys))
    files, tls = Files(options.folder), ServerTls()
    if options.certificate is not None:
        tls = read_server_tls(options.certificate.folder)
        # The file that is looked at is the one that HAProxy reads.
        checked = server_tls.check(tls, options.certificate.host, files.certificate)
        if checked.fault:
            return _refused(options, "CertificateUnusable", unusable(options.certificate, checked.fault))
        files.validity.write_text("".join(f"{name} {moment}\n" for name, moment in _validity(checked).items()))
        log.info("clients connect by TLS; the certificate is valid until %s", checked.until)
    files.config.write_text(haproxy_config(options.told, files))
    files.keys.write_text("".join(f"{key_hash(key)}\n" for key in keys.accepted) if keys else "")
    known = _Known(keys, _words(keys, leave=_is_to_be_left(options, drain)), tls)
    files.state.write_text("".join(f"{word}\n" for word in known.words))
    if keys is not None:
        report(keys)
    command = [options.program, "-db", "-f", str(files.config)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    printed = threading.Thread(target=log_printed, args=(server.stdout,), name="HAProxy's output", daemon=True)
    printed.start()
    try:
        code = _follow(options, files, known, server, stop, drain)
    finally:
        server.terminate()
        server.wait(_STOP_SECONDS)
        printed.join(_STOP_SECONDS)
    return code


def _refused(options: Options, reason: str, said: str) -> ExitCode:
    """Say why nothing starts."""
    log.error(said)
    options.message.write_text(failure(said, reason))
    return ExitCode.RETRIABLE


def _follow(
    options: Options,
    files: Files,
    known: _Known,
    server: "subprocess.Popen[bytes]",
    stop: threading.Event,
    drain: threading.Event,
) -> ExitCode:
    """Tell HAProxy what changes, until it ends or is to end. What it did not take is told again."""
    while not stop.wait(_POLL_SECONDS):
        if server.poll() is not None:
            log.error("HAProxy ended with code %d", server.returncode)
            return ExitCode.RETRIABLE
        try:
            _tell_keys(options, files, known)
            leave = _is_to_be_left(options, drain)
            if (words := _words(known.keys, leave=leave)) != known.words:
                set_list(files.socket, files.state, words)
                if (DRAINING in words) != (DRAINING in known.words):
                    log.info("clients %s", "are told to leave" if leave else "may keep their connections again")
                known.words = words
        except (OSError, HaproxyError) as error:
            log.warning("HAProxy was not told what has changed, and is told again: %s", error)
        try:
            _tell_certificate(options.certificate, files, known)
        except (OSError, HaproxyError) as error:
            log.warning("the certificate stays as it is for now: %s", error)
    return ExitCode.OK


def _tell_keys(options: Options, files: Files, known: _Known) -> None:
    """The keys, if they have changed."""
    if options.keys is None or (keys := read_api_keys(options.keys)) == known.keys:
        return
    set_list(files.socket, files.keys, [key_hash(key) for key in keys.accepted])
    known.keys = keys
    report(keys)


def _tell_certificate(certificate: Certificate | None, files: Files, known: _Known) -> None:
    """The certificate, if it has changed. One that clients cannot use replaces nothing. It is said once, and looked at
    again: by a clock that is late, a new one is not valid yet."""
    if certificate is None or (tls := read_server_tls(certificate.folder)) == known.tls:
        return
    checked = server_tls.check(tls, certificate.host, files.folder / "next.pem")
    if checked.fault:
        said = unusable(certificate, checked.fault)
        if said != known.refused:
            log.warning("%s It keeps the previous one. %s.", said, server_tls.REMEDY)
        known.refused = said
        return
    set_certificate(files.socket, files.certificate, tls.pem)
    for name, moment in _validity(checked).items():
        set_entry(files.socket, files.validity, name, str(moment))
    log.info("the certificate is a new one, valid until %s", checked.until)
    known.tls, known.refused = tls, ""


def _validity(checked: Checked) -> dict[str, int]:
    """Since and until when a certificate is valid, in seconds since 1970."""
    return dict(zip(VALID, map(ssl.cert_time_to_seconds, (checked.since, checked.until)), strict=True))


def _is_to_be_left(options: Options, drain: threading.Event) -> bool:
    """Whether clients are to go elsewhere. Once the pod is about to stop, the self-check has no say any more."""
    return drain.is_set() or (bool(options.self_check) and not _has_proved_itself(options.self_check))


def _has_proved_itself(port: int) -> bool:
    """Whether the self-check says so of the server. One that has just failed it has ended, and says nothing."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_ANSWER_SECONDS)
    try:
        connection.request("GET", "/ready")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _words(keys: ApiKeys | None, *, leave: bool) -> list[str]:
    """The words for a state."""
    lets_in = keys is None or bool(keys.accepted)
    return [*([HAS_KEYS] if lets_in else []), *([DRAINING] if leave else [])]


def report(keys: ApiKeys) -> None:
    """How many keys there are, and which entries are none."""
    log.info("%d keys are accepted", len(keys.accepted))
    for each in keys.refused:
        log.warning("%s, and rejects all requests: %s", each, REMEDY)


def nobody(secret: str, keys: ApiKeys) -> str:
    """That there is no key, and why."""
    why = "; ".join(keys.refused) or "it does not exist, or is empty"
    return f"Secret {secret!r} has no valid API key: {why}."[:1000]


def unusable(certificate: Certificate, fault: str) -> str:
    """That there is no certificate which clients can use, and why."""
    return f"Secret {certificate.secret!r} has no usable certificate for {certificate.host}: {fault}."[:1000]


def failure(message: str, reason: str = "ApiKeysMissing") -> str:
    """A ``StageResult``, which the operator reads; its model is not in this image."""
    result = {"stage": "verify", "outcome": "Failed", "reason": reason, "message": message}
    return json.dumps(result)


def log_as_json() -> None:
    """Send the log, HAProxy's lines among it, to stdout. What ends the program is a line of it too."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonLines({"container": "proxy"}))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    sys.excepthook = lambda *error: log.critical("the proxy failed: %s", error[1], exc_info=error)


def main(argv: Sequence[str]) -> int:
    """Returns the exit code."""
    log_as_json()
    stop, drain = threading.Event(), threading.Event()

    def heard(number: int, _frame: FrameType | None) -> None:
        (drain if number == signal.SIGUSR1 else stop).set()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, heard)
    return run(parse(argv), stop, drain)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
