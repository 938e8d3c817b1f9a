"""The certificate of an endpoint's servers, from a mounted Secret of the type kubernetes.io/tls.

The proxy in front of a server shows it to clients, and the verification of a candidate checks it as they do. The
proxy's image has the standard library only, so this module imports nothing else. No message holds a part of a key.
"""

import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

CERTIFICATE: Final = "tls.crt"
"""Entry with the servers' certificate, then those between it and the authority's; PEM."""
PRIVATE_KEY: Final = "tls.key"
"""Entry with its private key; PEM, without a password."""
AUTHORITY: Final = "ca.crt"
"""Entry with the certificate of the authority that signed it, where there is one. cert-manager writes it."""
LONGEST: Final = 15_000
"""Bytes of certificates and key together: so many fit into a command to HAProxy, whose buffer has 16 KiB."""
REMEDY: Final = "cert-manager's Certificate, or `kubectl create secret tls`, makes such a Secret"
_NONE: Final = b"none"
_ROUNDS: Final = 6
"""A handshake takes three."""


@dataclass(frozen=True)
class ServerTls:
    """What a folder has, as far as it is there."""

    certificate: bytes = b""
    key: bytes = field(default=b"", repr=False)
    authority: bytes = b""

    @property
    def pem(self) -> str:
        """Certificate and key in one text, without empty lines, with which a command would end."""
        lines = (self.certificate + b"\n" + self.key).decode("ascii", errors="ignore").splitlines()
        return "".join(f"{line}\n" for line in lines if line.strip())


@dataclass(frozen=True)
class Checked:
    """What clients would make of it."""

    fault: str = ""
    """Why they could not connect; empty: they could."""
    since: str = ""
    """Since when it is valid, in OpenSSL's words."""
    until: str = ""
    """Until when, likewise."""


def read_server_tls(folder: Path) -> ServerTls:
    """What is in a folder. One that is missing or empty, as the kubelet leaves it without the Secret, has nothing.

    Raises OSError for a file that cannot be read.
    """
    # The kubelet exchanges this link: all entries are of the same version of the Secret.
    whole = folder / "..data"
    found = (whole if whole.exists() else folder).resolve()
    entries = [(found / name) for name in (CERTIFICATE, PRIVATE_KEY, AUTHORITY)]
    return ServerTls(*(each.read_bytes() if each.exists() else b"" for each in entries))


def client_context(given: ServerTls) -> ssl.SSLContext:
    """How a client checks it: by its authority's certificate, or, where the Secret has none, as this very certificate.

    Raises ssl.SSLError: neither is a certificate in PEM.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # An authority that was signed by another one is enough, and so is a certificate itself.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    trusted = given.authority if given.authority.strip() else given.certificate
    if not trusted.strip():
        raise ssl.SSLError("there is no certificate")
    context.load_verify_locations(cadata=trusted.decode("ascii", errors="ignore"))
    return context


def check(given: ServerTls, host: str, scratch: Path) -> Checked:
    """What a client that asks for ``host`` makes of it, found out by a handshake in memory. ``scratch``: a file that
    may be written, with the key in it; nobody else reads it."""
    missing = [name for name, value in ((CERTIFICATE, given.certificate), (PRIVATE_KEY, given.key)) if not value]
    if len(missing) == 2:
        return Checked(f"it does not exist, or has neither {CERTIFICATE} nor {PRIVATE_KEY}")
    if missing:
        return Checked(f"it has no {missing[0]}")
    if len(given.pem) > LONGEST:
        said = f"{CERTIFICATE} and {PRIVATE_KEY} together have more than {LONGEST:,} bytes"
        return Checked(f"{said}: leave out the certificates that clients have, or that belong to others")
    scratch.touch(mode=0o600)
    scratch.write_text(given.pem)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # OpenSSL would ask at a terminal for the password of a key that has one.
        server.load_cert_chain(scratch, password=lambda: _NONE)
    except ssl.SSLError as error:
        return Checked(_unusable(error))
    try:
        client = client_context(given)
    except ssl.SSLError:
        return Checked(f"{AUTHORITY} is no certificate in PEM")
    try:
        return _shake_hands(server, client, host)
    except ssl.SSLCertVerificationError as error:
        by = AUTHORITY if given.authority.strip() else CERTIFICATE
        return Checked(f"clients that trust {by} refuse {CERTIFICATE}: {error.verify_message.rstrip('.')}")
    except ssl.SSLError as error:
        return Checked(f"no client can connect by it ({error.reason})")


def _unusable(error: ssl.SSLError) -> str:
    if error.reason == "KEY_VALUES_MISMATCH":
        return f"{PRIVATE_KEY} is not the key of {CERTIFICATE}"
    return f"{CERTIFICATE} and {PRIVATE_KEY} are no certificate and key in PEM, without a password ({error.reason})"


def _shake_hands(server_context: ssl.SSLContext, client_side: ssl.SSLContext, host: str) -> Checked:
    """Connect the two in memory; since and until when the certificate is valid. Raises ssl.SSLError."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_side.wrap_bio(to_client, to_server, server_hostname=host)
    server = server_context.wrap_bio(to_server, to_client, server_side=True)
    pending = [client, server]
    for _ in range(_ROUNDS):
        for side in tuple(pending):
            try:
                side.do_handshake()
                pending.remove(side)
            except ssl.SSLWantReadError:
                continue
    if pending:
        raise ssl.SSLError("the handshake does not end")
    shown = client.getpeercert() or {}
    return Checked(since=str(shown.get("notBefore", "")), until=str(shown.get("notAfter", "")))
