"""A server that speaks TLS, asked as its clients ask it: by its certificate, under the name that they use.

A candidate is reached by a Service of its own, for which its certificate is not made.
"""

import ssl
from pathlib import Path

import httpx2
from huggingface_hub import set_client_factory

from finetune_api import meta
from finetune_api.reasons import Reason
from finetune_api.server_tls import AUTHORITY, CERTIFICATE, client_context, read_server_tls
from finetune_jobs.base.errors import StageError


class _Named(httpx2.HTTPTransport):
    """Connects to where it is told, and asks for the certificate of another name."""

    def __init__(self, host: str, context: ssl.SSLContext) -> None:
        super().__init__(verify=context)
        self._host = host

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        request.extensions = {**request.extensions, "sni_hostname": self._host}
        return super().handle_request(request)


def trust_server(endpoint: str, secret: str, host: str, folder: Path = Path(meta.TLS_DIR)) -> None:
    """From now on, requests to an endpoint are answered only by a server with the certificate that a Secret has, or one
    of its authority, for a host. Nothing happens without a Secret.

    Raises StageError (CertificateUnusable): it has neither yet, or any more.
    """
    if not secret:
        return
    try:
        context = client_context(read_server_tls(folder))
    except ssl.SSLError:
        said = (
            f"Secret {secret!r} has no certificate by which to know the server: neither {AUTHORITY} nor {CERTIFICATE}."
        )
        raise StageError(Reason.CERTIFICATE_UNUSABLE, said, retriable=True) from None
    origin = httpx2.URL(endpoint)

    def client() -> httpx2.Client:
        mounts = {f"{origin.scheme}://{origin.host}": _Named(host, context)}
        return httpx2.Client(mounts=mounts, follow_redirects=True, timeout=None)

    set_client_factory(client)
