"""The self-check of a serving pod: it proves itself before it is ready, whenever and wherever it starts.

A verification proves a revision once, on one pod. A pod that starts later, or a server that starts again, has other
hardware, another download, perhaps another image under the same tag. So beside each server runs this program, which
asks it over loopback what the artifact recorded, makes the same checks as the verification, and tells the kubelet that
the pod is ready once they have passed. From then on it asks one question now and then (the quality watch), and makes
all the checks again if the answer has changed. It lives as long as the server does: if the server ends, so does this
program, and what starts in its place proves the next server.

    waiting for the server ──▶ proving ──▶ ready, and watched ──the server ends──▶ exit 0
                                  │                 │
                                  └────────┬────────┘
                                    a check fails──▶ exit 65, with the checks in the termination message
"""

import argparse
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from finetune_api.adapterdeployment import CheckOutcome, VerificationCheck
from finetune_api.meta import SELF_CHECK_FILE, SELF_CHECK_PORT, SERVING_PORT, ExitCode
from finetune_api.reasons import Reason
from finetune_api.stages import SelfCheckLimits, Stage, StageResult
from finetune_jobs.base.documents import read_json
from finetune_jobs.base.errors import StageError
from finetune_jobs.runtime import logs
from finetune_jobs.runtime.commandline import TERMINATION_LOG
from finetune_jobs.runtime.runner import failure, write_result
from finetune_jobs.verification import checks
from finetune_jobs.verification.connection import wait_until_healthy
from finetune_jobs.verification.proof import Proof
from finetune_jobs.verification.servers import SERVERS, client_of
from finetune_jobs.verification.watch import QualityWatch

log = logging.getLogger(__name__)

_POLL_SECONDS: Final = 1.0
"""A server that starts again has its port closed for longer than this: it loads its model."""
_SERVER: Final = "Its server"
"""What messages call it; the operator names the pod before them."""


@dataclass(frozen=True)
class Options:
    """The command line."""

    artifact: Path | None
    """The artifact's own files, which ``fetch`` verified; None: the server has adapters."""
    digest: str
    """Its content address, which the server's path of its model has to hold."""
    engine: str
    endpoint: str
    limits: Path
    """SelfCheckLimits as JSON."""
    result: str
    """Where the StageResult of a failure goes."""
    port: int
    adapter: Sequence[tuple[str, str, str]] = ()
    """Of each adapter: its name in the server's API, the folder of its artifact, and the digest of that."""


class Gate:
    """Tells the kubelet whether the pod is ready: ``/ready`` is 200 once it has proved itself, and 503 until then."""

    def __init__(self, port: int) -> None:
        """Raises OSError if the port is taken."""
        self._open = threading.Event()
        gate = self._open

        class Handler(BaseHTTPRequestHandler):
            """Answers GET."""

            def do_GET(self) -> None:
                status = (200 if gate.is_set() else 503) if self.path == "/ready" else 404
                said = {200: b"proved\n", 503: b"not proved yet\n"}.get(status, b"")
                self.send_response(status)
                self.send_header("Content-Length", str(len(said)))
                self.end_headers()
                self.wfile.write(said)

            def log_message(self, *_: object) -> None:
                """The kubelet asks every few seconds."""

        class Server(ThreadingHTTPServer):
            """On IPv6 and IPv4 alike where the node has both."""

            address_family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET

            def server_bind(self) -> None:
                if self.address_family is socket.AF_INET6:
                    self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
                super().server_bind()

        self._server = Server(("", port), Handler)
        self.port = int(self._server.server_address[1])
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def open(self) -> None:
        """The pod is ready from now on."""
        self._open.set()

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()


def self_check(options: Options, gate: Gate) -> None:
    """Prove the server, open the gate, watch it, and return when it has ended.

    Raises StageError: AdapterInactive, VerificationFailed, PromptsTooLong, ArtifactCorrupt; retriable ones are
    CandidateFailed, if the server does not answer what it is asked, and InternalError, if the limits cannot be read.
    """
    log.info("waiting for the server at %s", options.endpoint)
    wait_until_healthy(options.endpoint)
    limits = _limits(options.limits)
    started = time.monotonic()
    proofs = list(_proofs(options))
    for who, proof in proofs:
        with _named(who):
            _require(proof.whole(limits), who)
    log.info("the pod has proved itself in %.1f s", time.monotonic() - started)
    gate.open()
    watches = [(f"{who}, which had proved itself,", QualityWatch(proof)) for who, proof in proofs]
    while _listens(options.endpoint):
        limits = _newest(options.limits, limits)
        for who, watch in watches:
            if watch.is_due(limits):
                with _named(who):
                    _require(watch.ask(limits), who)
        time.sleep(_POLL_SECONDS)
    log.info("the server has ended: the next one proves itself anew")


def _limits(file: Path) -> SelfCheckLimits:
    """The limits as they are now. Ones that cannot be read are no fault of the server, be they those of all pods.
    Raises StageError (InternalError, retriable)."""
    try:
        return read_json(file, SelfCheckLimits)
    except (StageError, OSError) as error:
        said = f"The self-check's limits cannot be read: {error}"
        raise StageError(Reason.INTERNAL_ERROR, said, retriable=True) from None


def _newest(file: Path, known: SelfCheckLimits) -> SelfCheckLimits:
    """The same; those known, if they cannot be read."""
    try:
        return _limits(file)
    except StageError as error:
        log.debug("the limits cannot be read: %s", error)
        return known


def _proofs(options: Options) -> Iterator[tuple[str, Proof]]:
    """What the server has to prove, and what messages call it."""
    if options.artifact is not None:
        yield _SERVER, Proof(client_of(options.engine, options.endpoint), options.artifact, options.digest)
    for name, artifact, digest in options.adapter:
        server = client_of(options.engine, options.endpoint, adapter=name)
        yield f"Its adapter {name!r}", Proof(server, Path(artifact), digest)


@contextmanager
def _named(who: str) -> Iterator[None]:
    """Failures say of which of several adapters they are, as those of checks do already."""
    try:
        yield
    except StageError as error:
        if error.checks or who.startswith(_SERVER):
            raise
        raise error.of(who) from error


def _require(made: Sequence[VerificationCheck], who: str) -> None:
    for check in made:
        level = logging.ERROR if check.outcome is CheckOutcome.FAILED else logging.INFO
        said = (check.name, check.outcome, check.expected or "-", check.seen)
        log.log(level, "%s: %s (expected: %s; seen: %s)", *said)
    checks.require_all(made, who)


def _listens(endpoint: str) -> bool:
    """Whether the server's port is open. A server that is too busy to answer is none that has ended."""
    address = urlsplit(endpoint)
    try:
        socket.create_connection((address.hostname or "", address.port or 80), timeout=_POLL_SECONDS).close()
    except ConnectionRefusedError:
        return False
    except OSError:
        return True
    return True


def main(argv: Sequence[str] | None = None) -> None:
    """``python -m finetune_jobs.self_check``"""
    options = parse(argv)
    logs.set_up("self-check", terminal=sys.stderr.isatty())
    # As the first process of a container it would ignore the signal, and hold up the end of its pod.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(ExitCode.OK))
    result, code = _guarded(options)
    logs.take_down()
    if result is not None:
        log.error("%s: %s", result.reason, result.message)
        write_result(options.result, result)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _guarded(options: Options) -> tuple[StageResult | None, ExitCode]:
    """Every failure becomes a result and an exit code."""
    try:
        self_check(options, Gate(options.port))
    except StageError as error:
        log.debug("the cause", exc_info=True)
        found = failure(Stage.VERIFY, error.reason, error.message).model_copy(update={"checks": error.checks})
        return found, ExitCode.RETRIABLE if error.retriable else ExitCode.FATAL
    except Exception as error:
        log.exception("the self-check crashed")
        said = f"The self-check crashed ({type(error).__name__})."
        return failure(Stage.VERIFY, Reason.INTERNAL_ERROR, said), ExitCode.RETRIABLE
    return None, ExitCode.OK


def parse(argv: Sequence[str] | None) -> Options:
    """The options; ``--help`` and faults end the process."""
    logs.take_down()  # what is wrong with the command line is told to a person
    parser = argparse.ArgumentParser(
        prog="python -m finetune_jobs.self_check",
        description="Proves the model server beside it, says on a port that the pod is ready, and watches the server's "
        "answers from then on. Runs in every serving pod of an AdapterDeployment.",
        epilog=f"exit codes:\n  {ExitCode.OK.value:2d}  the server has ended\n"
        f"  {ExitCode.FATAL.value:2d}  the server is not what was evaluated: the result says which check failed\n"
        f"  {ExitCode.RETRIABLE.value:2d}  the server did not answer what it was asked",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--artifact", type=Path, metavar="DIR", help="the artifact's files, as fetch leaves them")
    add("--digest", default="", help="content address of the artifact")
    add(
        "--adapter",
        nargs=3,
        action="append",
        default=[],
        metavar=("MODEL", "DIR", "DIGEST"),
        help="in their place, once for each adapter on the server: its name there, its artifact's files and digest",
    )
    add("--engine", required=True, choices=list(SERVERS), help="API of the server")
    default = f"http://127.0.0.1:{SERVING_PORT}"
    add("--endpoint", default=default, metavar="URL", help="the server (default: %(default)s)")
    add("--limits", type=Path, default=Path(SELF_CHECK_FILE), metavar="FILE", help="(default: %(default)s)")
    add("--result", default=str(TERMINATION_LOG), metavar="FILE", help="of a failure (default: %(default)s)")
    add("--port", type=int, default=SELF_CHECK_PORT, help="where /ready is answered (default: %(default)s)")
    given = parser.parse_args(argv)
    if not given.adapter and not (given.artifact and given.digest):
        parser.error("what to prove is not said: give --artifact and --digest, or --adapter")
    return Options(**vars(given))


if __name__ == "__main__":
    main()
