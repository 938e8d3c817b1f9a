"""How a verification connects to a server: again if that fails for a moment, and to one that speaks TLS as its clients
do: by its certificate, under the name that they use.

A candidate is reached by a Service of its own, for which its certificate is not made.
"""

import ssl
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

import httpx2
from huggingface_hub import set_client_factory

from finetune_api import meta
from finetune_api.reasons import Reason
from finetune_api.server_tls import AUTHORITY, CERTIFICATE, client_context, read_server_tls
from finetune_jobs.base.errors import StageError

_CONNECTS: Final = 4
"""Further attempts to connect, 0, 0.5, 1 and 2 s apart. A name that is not resolved in time, or a listener whose queue
is full, says nothing of the model."""


class _Named(httpx2.HTTPTransport):
    """Connects to where it is told, and asks for the certificate of another name."""

    def __init__(self, host: str, context: ssl.SSLContext) -> None:
        super().__init__(verify=context, retries=_CONNECTS)
        self._host = host

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        request.extensions = {**request.extensions, "sni_hostname": self._host}
        return super().handle_request(request)


def reach_server(endpoint: str, secret: str, host: str, folder: Path = Path(meta.TLS_DIR)) -> None:
    """From now on, requests to an endpoint connect patiently. With a Secret, they are answered only by a server with
    the certificate that the Secret has, or one of its authority, for a host.

    Raises StageError (CertificateUnusable): it has neither yet, or any more.
    """
    origin = httpx2.URL(endpoint)
    transport: Callable[[], httpx2.HTTPTransport] = partial(httpx2.HTTPTransport, retries=_CONNECTS)
    if secret:
        transport = partial(_Named, host, _context(secret, folder))

    def client() -> httpx2.Client:
        mounts = {f"{origin.scheme}://{origin.host}": transport()}
        return httpx2.Client(mounts=mounts, follow_redirects=True, timeout=None)

    set_client_factory(client)


def _context(secret: str, folder: Path) -> ssl.SSLContext:
    try:
        return client_context(read_server_tls(folder))
    except ssl.SSLError:
        said = (
            f"Secret {secret!r} has no certificate by which to know the server: neither {AUTHORITY} nor {CERTIFICATE}."
        )
        raise StageError(Reason.CERTIFICATE_UNUSABLE, said, retriable=True) from None
