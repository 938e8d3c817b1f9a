"""Memory of a serving pod's proxy with as many clients as it takes: what its container asks for rests on this.

The real HAProxy, told what a pod's is told, before an engine whose streams do not end; all on loopback. ``streams``:
each client sends a prompt and reads the first part of its answer. ``stuck``: it reads no more of an answer that never
ends, and the engine nothing of a prompt that does not either, until every buffer on the way is full. The kernel's are
far larger than HAProxy's, so that is done with fewer clients, and says what each of them costs.

What counts is HAProxy's own memory. The kernel's buffers are beside it: ``sockets`` is what those of all connections
of this machine grew by, of both ends of each, so that about half of it is the proxy's.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import socket
import ssl
import tempfile
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

from hack.cluster.console import say
from tests.support.certificates import Issuer
from tests.support.proxy_door import FIRST, HOST, WRITE, Door, StandIn, started

CLIENTS = 1900
"""As many as it lets in."""
PROMPT = 12_000
"""Bytes."""
STUCK_CLIENTS = 40
PIECE = b"%x\r\n" % (1 << 16) + b"x" * (1 << 16) + b"\r\n"
"""Of an answer that nobody reads; of a prompt it is any text."""
ENDLESS = 1 << 40
"""Bytes that are promised of a prompt that does not end."""
WINDOW = 4096
"""Bytes that the kernel keeps for who does not read."""
FILLING_SECONDS = 15
AT_ONCE = 50
"""So many clients connect at a time: handshakes take a processor, and a queue of them is no client."""
PAGE = 4096


class Engine:
    """Answers a POST with the beginning of a stream, and goes on when it is told to; anything else with ``ok``."""

    def __init__(self, *, stuck: bool) -> None:
        self.stuck, self.port = stuck, 0
        self._over = asyncio.Event()

    async def start(self) -> None:
        """Listen."""
        listening = _socket()
        listening.bind(("127.0.0.1", 0))
        server = await asyncio.start_server(self._serve, sock=listening, backlog=4096, limit=PROMPT)
        self.port = server.sockets[0].getsockname()[1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"POST"):
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
                await writer.drain()
                writer.close()
                return
            if not self.stuck:
                await reader.readexactly(PROMPT)
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nd\r\ndata: first\n\n\r\n")
            if self.stuck:
                await endlessly(writer)
            await self._over.wait()

    async def end(self) -> None:
        """End all streams."""
        self._over.set()
        await asyncio.sleep(1)


async def endlessly(writer: asyncio.StreamWriter) -> None:
    """Write until the connection ends."""
    with contextlib.suppress(ConnectionError):
        while True:
            writer.write(PIECE)
            await writer.drain()


async def connect(port: int, trust: ssl.SSLContext | None, *, stuck: bool) -> asyncio.StreamWriter:
    """A client whose answer has begun."""
    connected = _socket()
    await asyncio.get_running_loop().sock_connect(connected, ("127.0.0.1", port))
    host = HOST if trust else None
    reader, writer = await asyncio.open_connection(sock=connected, ssl=trust, server_hostname=host, limit=1 << 10)
    length = ENDLESS if stuck else PROMPT
    head = (
        f"POST {WRITE[0]} HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: Bearer {FIRST}\r\nContent-Length: {length}\r\n\r\n"
    )
    writer.write(head.encode() + b"x" * (0 if stuck else length))
    answer = await reader.readuntil(b"data: first\n\n")
    if not answer.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(answer.decode())
    if stuck:
        _WRITING.add(asyncio.create_task(endlessly(writer)))
    return writer


_WRITING: set[asyncio.Task[None]] = set()
"""A task that nobody holds may be collected."""


async def crowd(port: int, trust: ssl.SSLContext | None, clients: int, *, stuck: bool) -> list[asyncio.StreamWriter]:
    """So many of them."""
    turn = asyncio.Semaphore(AT_ONCE)

    async def one() -> asyncio.StreamWriter:
        async with turn:
            return await connect(port, trust, stuck=stuck)

    return list(await asyncio.gather(*(one() for _ in range(clients))))


def measure(work: Path, *, tls: bool, stuck: bool, clients: int) -> dict[str, float]:
    """The proxy's memory with so many clients, in MiB."""
    issuer, engine = Issuer(), Engine(stuck=stuck)
    with _loop() as run, contextlib.ExitStack() as stack:
        run(engine.start())
        trust = ssl.create_default_context(cadata=issuer.certificate) if tls else None
        shown = issuer.secret(HOST) if tls else None
        door: Door = stack.enter_context(started(work, StandIn(engine.port), shown, trust))
        pid, before = _haproxy(), _sockets()
        idle = _own(pid)
        held = run(crowd(door.port, trust, clients, stuck=stuck))
        run(asyncio.sleep(FILLING_SECONDS if stuck else 1))
        found = {
            "clients": float(len(held)),
            "idle": idle,
            "with clients": _own(pid),
            "most, with its program": _status(pid, "VmHWM"),
            "sockets": round(_sockets() - before, 1),
        }
        for each in held:
            each.transport.abort()
        run(engine.end())
        return found


@contextlib.contextmanager
def _loop() -> Iterator[Callable[[Coroutine[Any, Any, Any]], Any]]:
    """An event loop in a thread, and what waits for its coroutines."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield lambda given: asyncio.run_coroutine_threadsafe(given, loop).result(600)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)


def _socket() -> socket.socket:
    """Whose other side soon finds that nothing more fits."""
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, WINDOW)
    made.setblocking(False)
    return made


def _haproxy() -> int:
    """The process that this one has started."""
    for task in Path("/proc/self/task").iterdir():
        for pid in (task / "children").read_text().split():
            if Path(f"/proc/{pid}/comm").read_text().strip() == "haproxy":
                return int(pid)
    raise RuntimeError("HAProxy does not run")


def _own(pid: int) -> float:
    """MiB that are no file's."""
    return round(_status(pid, "RssAnon") + _status(pid, "RssShmem"), 1)


def _status(pid: int, name: str) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return round(next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1024, 1)


def _sockets() -> float:
    """MiB of all TCP connections' buffers on this machine."""
    words = next(
        line for line in Path("/proc/net/sockstat").read_text().splitlines() if line.startswith("TCP:")
    ).split()
    return int(words[words.index("mem") + 1]) * PAGE / (1 << 20)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--clients", type=int, default=CLIENTS, help="of streams (%(default)s)")
    given = parser.parse_args()
    for tls in (False, True):
        for stuck in (False, True):
            with tempfile.TemporaryDirectory(prefix="finetune-proxy-") as folder:
                clients = STUCK_CLIENTS if stuck else given.clients
                found = measure(Path(folder), tls=tls, stuck=stuck, clients=clients)
            say(f"{'TLS' if tls else 'keys'}, {'stuck' if stuck else 'streams'}: {found}")
