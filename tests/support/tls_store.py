"""TLS in front of a real S3 server: certificates of an authority of its own, and a tunnel that ends the encryption."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_LIFETIME = timedelta(hours=1)


@dataclass(frozen=True)
class PrivateAuthority:
    """A certificate authority that nobody knows yet, and a certificate of it for 127.0.0.1."""

    authority: Path
    """Its own certificate: what clients must trust."""
    certificate: Path
    """The server's certificate and key."""


def private_authority(folder: Path, name: str = "private authority") -> PrivateAuthority:
    """Make one in a folder."""
    authority_key, server_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    issuer, subject = _name(name), _name("store")
    authority = (
        _builder(issuer, issuer, authority_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(authority_key.public_key()), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    server = (
        _builder(subject, issuer, server_key.public_key())
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    key = server_key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    made = PrivateAuthority(folder / f"{name}.crt", folder / f"{name} server.pem")
    made.authority.write_bytes(authority.public_bytes(pem))
    made.certificate.write_bytes(server.public_bytes(pem) + key)
    return made


def _name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _LIFETIME)
        .not_valid_after(now + _LIFETIME)
    )


@contextlib.contextmanager
def encrypted(endpoint: str, certificate: Path) -> Iterator[str]:
    """An https endpoint that is the plain one at ``endpoint``, byte for byte."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    behind = urlsplit(endpoint)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=_accept, args=(listener, context, (behind.hostname, behind.port)), daemon=True).start()
        yield f"https://127.0.0.1:{listener.getsockname()[1]}"


def _accept(listener: socket.socket, context: ssl.SSLContext, behind: tuple[str, int]) -> None:
    with contextlib.suppress(OSError):  # the listener was closed
        while True:
            accepted, _ = listener.accept()
            threading.Thread(target=_serve, args=(accepted, context, behind), daemon=True).start()


def _serve(accepted: socket.socket, context: ssl.SSLContext, behind: tuple[str, int]) -> None:
    """One connection; a client that does not trust the certificate ends it here."""
    with (
        contextlib.suppress(OSError),
        context.wrap_socket(accepted, server_side=True) as front,
        socket.create_connection(behind) as back,
    ):
        answers = threading.Thread(target=_pump, args=(back, front), daemon=True)
        answers.start()
        _pump(front, back)
        answers.join()


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while block := source.recv(1 << 16):
            target.sendall(block)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)
