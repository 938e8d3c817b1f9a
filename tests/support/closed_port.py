"""A port where nobody listens, for as long as a test needs that.

A free port is not enough: whichever program starts next on the machine may take it, and answers.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def closed_port() -> Iterator[int]:
    """A port of loopback. It belongs to a socket that does not listen, so the kernel refuses whoever connects."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield int(held.getsockname()[1])
