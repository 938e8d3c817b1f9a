"""Commands to a running HAProxy, over its socket (https://docs.haproxy.org/2.6/management.html#9.3)."""

import re
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Final

_SECONDS: Final = 5.0
_VERSION: Final = re.compile(r"New version created: (\d+)")


class HaproxyError(Exception):
    """HAProxy did not do what it was told."""


def set_list(address: Path, name: Path, values: Iterable[str]) -> None:
    """Make a list that was loaded from a file hold these values, all at once: requests see the old ones or the new.

    Raises:
        HaproxyError: HAProxy refused a command.
        OSError: it does not listen.
    """
    created = _VERSION.search(_command(address, f"prepare acl {name}"))
    if created is None:
        raise HaproxyError("HAProxy did not start a new version of a list")
    version = f"@{created[1]}"
    for value in values:
        _silent(address, f"add acl {version} {name} {value}")
    _silent(address, f"commit acl {version} {name}")


def set_certificate(address: Path, name: Path, pem: str) -> None:
    """Exchange a certificate that was loaded from a file: connections keep the one that they have, new ones get this.
    ``pem``: certificate and key, without an empty line.

    Raises:
        HaproxyError: HAProxy refused it.
        OSError: it does not listen.
    """
    if "Transaction" not in _command(address, f"set ssl cert {name} <<\n{pem}"):
        raise HaproxyError("HAProxy rejected the certificate")
    if "Success" not in _command(address, f"commit ssl cert {name}"):
        _command(address, f"abort ssl cert {name}")
        raise HaproxyError("HAProxy rejected the certificate with its key")


def set_entry(address: Path, name: Path, key: str, value: str) -> None:
    """Change the value of a key in a map that was loaded from a file.

    Raises:
        HaproxyError: HAProxy refused it.
        OSError: it does not listen.
    """
    _silent(address, f"set map {name} {key} {value}")


def _silent(address: Path, command: str) -> None:
    """A command that answers only if it is refused. What it says is not repeated: it may quote the command."""
    if _command(address, command).strip():
        raise HaproxyError(f"HAProxy refused {' '.join(command.split()[:2])!r}")


def _command(address: Path, command: str) -> str:
    """What HAProxy answers to one command."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(_SECONDS)
        connection.connect(str(address))
        connection.sendall(f"{command}\n".encode())
        answer = b""
        while piece := connection.recv(4096):
            answer += piece
    return answer.decode(errors="replace")
