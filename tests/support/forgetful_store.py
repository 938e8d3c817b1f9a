"""A proxy before a real S3 server that drops headers, as stores do that do not know them, or fails writes, as one does
that has no room left, or answers them as a test wants.

A signature covers those headers, so each request is signed again with the server's own keys.
"""

import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from tests.support.seaweedfs import User

CONDITIONS = ("if-none-match", "if-match")
_OF_THE_CONNECTION = frozenset({"authorization", "host", "connection", "x-amz-date", "content-length"})


@dataclass(frozen=True)
class Refusal:
    """What a write that fails is answered."""

    status: int = 500
    code: str = "InternalError"
    arrives: bool = False
    """Whether it is made all the same."""

    @property
    def body(self) -> bytes:
        """As S3 says it."""
        return f"<?xml version='1.0'?><Error><Code>{self.code}</Code><Message>a test's</Message></Error>".encode()


FULL = Refusal()
"""Of a store that has no room left."""


def _nothing(_path: str) -> bool:
    return False


@contextmanager
def forgetful(
    endpoint: str,
    user: User,
    ignores: Sequence[str] = CONDITIONS,
    fails: Callable[[str], bool] = _nothing,
    refusal: Refusal = FULL,
) -> Iterator[str]:
    """Endpoint of a store that ignores some headers, in lower case, in front of the one at ``endpoint``; and answers
    the writes of the paths for which ``fails`` is true with a refusal."""
    dropped = _OF_THE_CONNECTION | set(ignores)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            refused = self.command == "PUT" and fails(self.path)
            if refused and not refusal.arrives:
                self._refuse()
                return
            headers = {k: v for k, v in self.headers.items() if k.lower() not in dropped}
            signed = AWSRequest(self.command, endpoint + self.path, headers, body)
            S3SigV4Auth(Credentials(user.key, user.secret), "s3", "us-east-1").add_auth(signed)
            request = urllib.request.Request(signed.url, body or None, dict(signed.headers), method=self.command)
            try:
                with urllib.request.urlopen(request, timeout=30) as answer:
                    if refused:
                        self._refuse()
                    else:
                        self._answer(answer.status, dict(answer.headers), answer.read())
            except urllib.error.HTTPError as error:
                self._answer(error.code, dict(error.headers), error.read())

        def _refuse(self) -> None:
            self._answer(refusal.status, {"Content-Type": "application/xml"}, refusal.body)

        def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
            self.send_response(status)
            for name, value in headers.items():
                if name.lower() not in {"transfer-encoding", "connection", "content-length", "date", "server"}:
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _forward  # noqa: N815 - names of the standard library

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as the base class names it
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
