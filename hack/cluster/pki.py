"""Certificates and kubeconfigs, made with the machine's openssl."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from pathlib import Path

from .console import run
from .processes import write_if_changed

DAYS = 3650
_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
_MINIMAL_CONFIG = "[req]\ndistinguished_name = name\n[name]\n"


@dataclass(frozen=True)
class Authority:
    """A certificate authority in a folder; a certificate is issued once, and again only if its subject or names
    change."""

    directory: Path

    @property
    def certificate(self) -> Path:
        return self.directory / "ca.crt"

    @property
    def service_account_key(self) -> Path:
        return self.directory / "service-accounts.key"

    @property
    def service_account_public_key(self) -> Path:
        return self.directory / "service-accounts.pub"

    def create(self) -> None:
        """Create the CA certificate."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self._config.write_text(_MINIMAL_CONFIG)
        if not self.certificate.exists():
            extensions = ("basicConstraints=critical,CA:TRUE", "keyUsage=critical,keyCertSign,cRLSign")
            self._request("ca", "/CN=finetune-cluster", extensions, signed_by_authority=False)

    def create_signing_key(self) -> None:
        """Create the key pair that signs service account tokens."""
        if not self.service_account_public_key.exists():
            key = self.service_account_key
            run(["openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-out", key])
            run(["openssl", "pkey", "-in", key, "-pubout", "-out", self.service_account_public_key])

    def issue(self, name: str, subject: str, names: tuple[str, ...] = ()) -> tuple[Path, Path]:
        """Issue a certificate and key for servers and clients; ``names`` like ``DNS:localhost``, ``IP:127.0.0.1``."""
        certificate, key = self.directory / f"{name}.crt", self.directory / f"{name}.key"
        asked = self.directory / f"{name}.json"
        wish = json.dumps([subject, names])
        if not (certificate.exists() and asked.exists() and asked.read_text() == wish):
            extensions = ["basicConstraints=CA:FALSE", "extendedKeyUsage=serverAuth,clientAuth"]
            if names:
                extensions.append("subjectAltName=" + ",".join(names))
            self._request(name, subject, tuple(extensions), signed_by_authority=True)
            asked.write_text(wish)
        return certificate, key

    @property
    def _config(self) -> Path:
        return self.directory / "openssl.cnf"

    def _request(self, name: str, subject: str, extensions: tuple[str, ...], *, signed_by_authority: bool) -> None:
        draft = self.directory / f"{name}.crt.draft"
        key = self.directory / f"{name}.key"
        argv: list[str | Path] = ["openssl", "req", "-x509", "-config", self._config, *_NEW_KEY]
        argv += ["-keyout", key, "-out", draft, "-days", str(DAYS), "-subj", subject]
        if signed_by_authority:
            argv += ["-CA", self.certificate, "-CAkey", self.directory / "ca.key"]
        for extension in extensions:
            argv += ["-addext", extension]
        run(argv)
        key.chmod(0o600)
        draft.replace(self.directory / f"{name}.crt")  # last: if the certificate exists, so does the key

    def kubeconfig(self, path: Path, server: str, name: str, subject: str) -> Path:
        """Write a self-contained kubeconfig for a client of this subject."""
        certificate, key = self.issue(name, subject)
        cluster = {"server": server, "certificate-authority-data": _base64(self.certificate)}
        user = {"client-certificate-data": _base64(certificate), "client-key-data": _base64(key)}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "finetune", "cluster": cluster}],
            "users": [{"name": name, "user": user}],
            "contexts": [{"name": "finetune", "context": {"cluster": "finetune", "user": name}}],
            "current-context": "finetune",
        }
        write_if_changed(path, json.dumps(config, indent=1))  # JSON is YAML
        return path


def _base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()
