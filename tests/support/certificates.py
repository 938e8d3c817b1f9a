"""Certificates of a private authority, as cert-manager writes them into a Secret."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


@dataclass
class Issuer:
    """An authority."""

    name: str = "authority"
    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))

    @property
    def subject(self) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.name)])

    @property
    def certificate(self) -> str:
        """Its own, in PEM."""
        return _pem(_builder(self.subject, self, self.key.public_key(), days=30, is_authority=True), self)

    def secret(self, host: str, *, days: float = 1, password: str = "", seconds: float = -3600) -> dict[str, str]:
        """The entries of a Secret with a new certificate for a host, valid for so many days, in so many seconds."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
        builder = _builder(subject, self, key.public_key(), days=days, is_authority=False, seconds=seconds)
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        sealed = serialization.BestAvailableEncryption(password.encode()) if password else serialization.NoEncryption()
        private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, sealed)
        return {"tls.crt": _pem(builder, self), "tls.key": private.decode(), "ca.crt": self.certificate}


def _builder(
    subject: x509.Name,
    issuer: Issuer,
    key: ec.EllipticCurvePublicKey,
    *,
    days: float,
    is_authority: bool,
    seconds: float = -3600,
) -> x509.CertificateBuilder:
    start = datetime.now(UTC) + timedelta(seconds=seconds)
    return (
        x509.CertificateBuilder(issuer.subject, subject, key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
    )


def _pem(builder: x509.CertificateBuilder, issuer: Issuer) -> str:
    return builder.sign(issuer.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()
