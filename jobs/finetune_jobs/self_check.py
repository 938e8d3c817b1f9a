"""The self-check of a serving pod: it proves itself before it is ready, whenever and wherever it starts.

A verification proves a revision once, on one pod. A pod that starts later, or a server that starts again, has other
hardware, another download, perhaps another image under the same tag. So beside each server runs this program, which
asks it over loopback what the artifact recorded, makes the same checks as the verification, and tells the kubelet that
the pod is ready once they have passed. From then on it asks one question now and then (the quality watch), and makes
all the checks again if the answer has changed. It lives as long as the server does: if the server ends, so does this
program, and what starts in its place proves the next server. Where the server loads adapters while it runs, this
program has it load them, at the start and whenever the set changes (``verification.loading``).

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

from finetune_api.endpoint_stages import AdapterReports, FetchParams, SelfCheckLimits, WantedAdapters
from finetune_api.meta import INPUT_FILE, MODELS_DIR, SELF_CHECK_FILE, SELF_CHECK_PORT, SERVING_PORT, ExitCode
from finetune_api.reasons import Reason
from finetune_api.serving_status import CheckOutcome, VerificationCheck
from finetune_api.stages import Stage, StageResult
from finetune_jobs.base.background import Repeating
from finetune_jobs.base.documents import M, read_json
from finetune_jobs.base.errors import StageError
from finetune_jobs.runtime import logs
from finetune_jobs.runtime.adapters import AdapterSource
from finetune_jobs.runtime.commandline import TERMINATION_LOG
from finetune_jobs.runtime.results import failure, write_result
from finetune_jobs.runtime.stage_input import read_input
from finetune_jobs.store.cache import HOLD_SECONDS, FolderCache
from finetune_jobs.store.places import Places
from finetune_jobs.verification import checks
from finetune_jobs.verification.connection import wait_until_healthy
from finetune_jobs.verification.loading import Loader
from finetune_jobs.verification.proof import Proof
from finetune_jobs.verification.servers import HOSTS, SERVERS, client_of
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
    """Of each adapter: its name in the server's API, the folder of its artifact, and the digest of that. Where servers
    load adapters when they start; pods of earlier releases have it."""
    wanted: Path | None = None
    """WantedAdapters as JSON, which the server loads while it runs; None: it has what it was started with."""
    model: str = ""
    """Name of their base in the server's API."""
    input: str = INPUT_FILE
    """The StageInput of ``fetch``: how the adapters are reached, and what they must bear."""
    models: Path = Path(MODELS_DIR)
    """Where the server reads them."""
    models_room: int = 0
    """Bytes that may be there; 0: not known."""
    model_cache: Path | None = None
    """The volume to which links lead there; None: there are none."""


class Gate:
    """Tells the kubelet whether the pod is ready: ``/ready`` is 200 once it has proved itself, and 503 until then.
    ``/adapters`` tells the verifier of adapters that come and go meanwhile; 404: none do."""

    def __init__(self, port: int) -> None:
        """Raises OSError if the port is taken."""
        self._open = threading.Event()
        self._told = b""
        gate, mine = self._open, self

        class Handler(BaseHTTPRequestHandler):
            """Answers GET."""

            def do_GET(self) -> None:
                status = (200 if gate.is_set() else 503) if self.path == "/ready" else 404
                said = {200: b"proved\n", 503: b"not proved yet\n"}.get(status, b"")
                if self.path == "/adapters" and (reports := mine._told):
                    status, said = 200, reports
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

    def shut(self) -> None:
        """It is ready no longer."""
        self._open.clear()

    def tell(self, reports: AdapterReports) -> None:
        """Where adapters stand that come and go."""
        self._told = reports.model_dump_json(by_alias=True).encode()

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()


def self_check(options: Options, gate: Gate) -> None:
    """Prove the server, open the gate, watch it, and return when it has ended.

    Raises StageError: AdapterInactive, VerificationFailed, PromptsTooLong, ArtifactCorrupt; retriable ones are
    CandidateFailed, if the server does not answer what it is asked, and InternalError, if the limits cannot be read.
    """
    if options.model_cache is not None:
        hold_models(options.models, FolderCache(options.model_cache))
    log.info("waiting for the server at %s", options.endpoint)
    wait_until_healthy(options.endpoint)
    limits = _read(options.limits, SelfCheckLimits)
    started = time.monotonic()
    loader, wanted = _loader(options, gate), WantedAdapters()
    proofs = list(_proofs(options))
    for who, proof in proofs:
        with _named(who):
            _require(proof.whole(limits), who)
    if loader is not None and options.wanted is not None:
        wanted = _read(options.wanted, WantedAdapters)
        loader.begin(wanted, limits)
    log.info("the pod has proved itself in %.1f s", time.monotonic() - started)
    gate.open()
    ended = _shut_at_its_end(options.endpoint, gate)
    watches = [(who, QualityWatch(proof)) for who, proof in proofs]
    while not ended.is_set():
        limits = _newest(options.limits, limits)
        if loader is not None and options.wanted is not None:
            wanted = _newest(options.wanted, wanted)
            loader.settle(wanted, limits)
        for name, watch in loader.watches() if loader is not None else watches:
            if watch.is_due(limits):
                who = f"{name}, which had passed before,"
                with _named(who):
                    _require(watch.ask(limits), who)
        ended.wait(_POLL_SECONDS)
    log.info("the server has exited: the next one is checked again")


def hold_models(models: Path, cache: FolderCache) -> None:
    """Keep what a server reads in the cache, also when it starts again, for as long as this process runs. Should the
    volume refuse it, the use by ``fetch`` counts for an hour, and it is tried again."""
    for home in models.iterdir():
        if (link := home / "model").is_symlink():  # whether or not the volume says just now that it is there
            name = f"the hold on {link.readlink()}"
            # Never slower: after an hour without a use anybody may remove it.
            Repeating(cache.hold(link.readlink().name), name=name, pause=HOLD_SECONDS, slowest=1).soon()


def _loader(options: Options, gate: Gate) -> Loader | None:
    """What loads adapters while the server runs; None: it has what it was started with."""
    if options.wanted is None:
        return None
    given = read_input(Stage.FETCH, options.input)
    asked = given.params.fetch or FetchParams()
    source = AdapterSource(Places(given.storage), given.storage, asked, options.models, options.models_room)
    return Loader(
        HOSTS[options.engine](options.endpoint),
        source.take,
        lambda name: client_of(options.engine, options.endpoint, adapter=name),
        _require,
        options.models,
        options.model,
        gate.tell,
    )


def _read(file: Path, kind: type[M]) -> M:
    """What the operator says now. What cannot be read is no fault of the server, be it that of all pods. Raises
    StageError (InternalError, retriable)."""
    try:
        return read_json(file, kind)
    except (StageError, OSError) as error:
        said = f"The self-check's limits cannot be read: {error}"
        raise StageError(Reason.INTERNAL_ERROR, said, retriable=True) from None


def _newest(file: Path, known: M) -> M:
    """The same; what is known, if it cannot be read."""
    try:
        return _read(file, type(known))
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


def _shut_at_its_end(endpoint: str, gate: Gate) -> threading.Event:
    """Shut the gate once the server has ended, whatever else goes on by then: what is fetched or proved meanwhile may
    take minutes, and the server that starts again has proved nothing. Returns what is set then."""
    ended = threading.Event()

    def look() -> None:
        while _listens(endpoint):
            time.sleep(_POLL_SECONDS)
        gate.shut()
        ended.set()

    threading.Thread(target=look, name="the server's port", daemon=True).start()
    return ended


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
        description="Verifies the model server in its pod, reports on a port that the pod is ready, and watches the "
        "server's answers afterwards. Runs in every serving pod of an AdapterDeployment.",
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
        help="instead of both, once for each adapter on the server: its name there, its artifact's files and digest",
    )
    add("--wanted", type=Path, metavar="FILE", help="instead: the adapters that the server is to load while it runs")
    add("--model", default="", help="name of their base model on the server")
    add("--input", default=INPUT_FILE, metavar="FILE", help="input of fetch, for these adapters (default: %(default)s)")
    add(
        "--models",
        type=Path,
        default=Path(MODELS_DIR),
        metavar="DIR",
        help="folder for these adapters (default: %(default)s)",
    )
    add("--models-room", type=int, default=0, metavar="BYTES", help="that they may have there (default: not known)")
    add("--model-cache", type=Path, metavar="DIR", help="volume to which links in that folder point (default: none)")
    add("--engine", required=True, choices=list(SERVERS), help="API of the server")
    default = f"http://127.0.0.1:{SERVING_PORT}"
    add("--endpoint", default=default, metavar="URL", help="the server (default: %(default)s)")
    add(
        "--limits",
        type=Path,
        default=Path(SELF_CHECK_FILE),
        metavar="FILE",
        help="limits of the checks (default: %(default)s)",
    )
    add(
        "--result",
        default=str(TERMINATION_LOG),
        metavar="FILE",
        help="where the result of a failure goes (default: %(default)s)",
    )
    add("--port", type=int, default=SELF_CHECK_PORT, help="where /ready is answered (default: %(default)s)")
    given = parser.parse_args(argv)
    if not given.adapter and not (given.wanted and given.model) and not (given.artifact and given.digest):
        parser.error("nothing to verify was given: give --artifact and --digest, --adapter, or --wanted and --model")
    if given.wanted and given.engine not in HOSTS:
        parser.error(f"servers of {given.engine} load no adapters while they run: leave --wanted out")
    return Options(**vars(given))


if __name__ == "__main__":
    main()
