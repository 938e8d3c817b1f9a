"""The processes that train together, one per GPU, and the few messages that they exchange besides gradients. Each
learns its rank from torchrun's environment variables (the launcher sets them). accelerate handles weights and
gradients; messages go over CPUs (gloo) on GPU machines too, so that none waits for a kernel. They are bytes, never
pickles.
"""

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

import torch
from torch import distributed

from finetune_api.reasons import Reason
from finetune_jobs.base.errors import StageError
from finetune_jobs.modelling.device import is_out_of_memory

log = logging.getLogger(__name__)

GATHERING_SECONDS: Final = 3600.0
"""How long the processes wait for each other at the start: a pod may wait for a node, then fetches files."""
SILENCE_SECONDS: Final = 900.0
"""How long a process waits for another's message or gradients: a node that lost power closes no connection."""
_PAUSE: Final = 1.0
_WORK_PAUSE: Final = 0.2
_ASK_SECONDS: Final = 5.0
"""Between two questions of a waiting process whether there is anything to do."""
_LOST: Final = ("connection closed", "connection reset", "broken pipe", "timed out", "gloo", "nccl")
"""Texts of torch's errors when another process is gone."""
_PORT_TAKEN: Final = "EADDRINUSE"
_OWN: Final = ("ncclinvalidusage", "ncclinvalidargument", "ncclunhandledcudaerror", "shared memory segment")
"""Texts of NCCL's errors that are this pod's own: its settings, its GPUs, its /dev/shm. All processes have them again
after a restart."""
_TIME_IS_UP: Final = ("timed out", "timeout")
"""Texts of those when another process does not answer."""


@dataclass(frozen=True)
class Team:
    """The rank of this process among those that train together."""

    rank: int = 0
    """From 0; the first one alone writes checkpoints, measurements and the result."""
    size: int = 1
    local_rank: int = 0
    """Among those of this pod; the number of its GPU."""

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> "Team":
        """As torchrun's variables say; alone without them."""
        names = {"rank": "RANK", "size": "WORLD_SIZE", "local_rank": "LOCAL_RANK"}
        return cls(**{field: int(environment[name]) for field, name in names.items() if name in environment})

    @property
    def first(self) -> bool:
        """Whether this process speaks for all."""
        return self.rank == 0

    @property
    def first_of_pod(self) -> bool:
        """Whether this process fetches what all of its pod read."""
        return self.local_rank == 0

    def join(self, environment: Mapping[str, str] = os.environ, *, done: Callable[[], bool] = lambda: False) -> bool:
        """Connect to the others; True once all are connected. False if the first process does not listen and ``done``
        says that it never will, because there is nothing to do. Raises StageError: PeersUnreachable if they are
        not connected in time, PeerLost."""
        if self.size == 1:
            return True
        host, port = environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
        if torch.cuda.is_available():
            torch.cuda.set_device(self.local_rank)
        with peers_needed(self), _gathering(self, host, port):
            if not self.first and not _await(host, port, GATHERING_SECONDS, done):
                return False
            log.info("process %s of %s waits for the others at %s:%s", self.rank + 1, self.size, host, port)
            limit = timedelta(seconds=GATHERING_SECONDS)
            store = distributed.TCPStore(host, port, self.size, self.first, timeout=limit)
            distributed.init_process_group(
                "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
                store=store,
                rank=self.rank,
                world_size=self.size,
                timeout=timedelta(seconds=SILENCE_SECONDS),
            )
        log.info("all %s processes are connected", self.size)
        return True

    def wait_for_first(self, done: str, environment: Mapping[str, str] = os.environ) -> None:
        """The first process says that it has ``done`` something, once; the others wait for that as long as for each
        other at the start, since it may take longer than any message. Raises StageError (PeerLost)."""
        if self.size == 1:
            return
        host, port = environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
        limit = timedelta(seconds=GATHERING_SECONDS)
        with peers_needed(self):
            store = distributed.TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=limit)
            if self.first:
                store.set(done, "yes")
            store.wait([done], limit)

    def wait_for_work(self, work: Callable[[], None]) -> None:
        """Do ``work``, which may take longer than any message: a large checkpoint's download. Returns once no process
        is at its own; one that is lost is noticed at once. All call this together, and ``work`` sends no messages.
        Raises what ``work`` does."""
        if self.size == 1:
            work()
            return
        doing: futures.Future[None] = futures.Future()

        def run() -> None:
            try:
                work()
                doing.set_result(None)
            except BaseException as error:  # noqa: BLE001 # raised again below
                doing.set_exception(error)

        threading.Thread(target=run, name="work", daemon=True).start()
        while self.any(not doing.done())[0]:
            if doing.done():
                doing.result()
            time.sleep(_WORK_PAUSE)
        doing.result()

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """For each flag, whether it is set in any process. All must ask at the same point of their work."""
        if self.size == 1:
            return flags
        said = torch.tensor(flags, dtype=torch.uint8)
        distributed.all_reduce(said, distributed.ReduceOp.MAX)
        return tuple(bool(flag) for flag in said)

    def share(self, content: bytes = b"") -> bytes:
        """The first process's ``content``, for all."""
        return self.collect(content)[0]

    def collect(self, content: bytes) -> list[bytes]:
        """Every process's ``content``, by rank."""
        if self.size == 1:
            return [content]
        length = torch.tensor([len(content)])
        lengths = [torch.empty_like(length) for _ in range(self.size)]
        distributed.all_gather(lengths, length)
        padded = torch.zeros(max(int(each) for each in lengths), dtype=torch.uint8)
        padded[: len(content)] = torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else padded[:0]
        contents = [torch.empty_like(padded) for _ in range(self.size)]
        distributed.all_gather(contents, padded)
        return [bytes(each[: int(size)].numpy()) for each, size in zip(contents, lengths, strict=True)]

    def wait(self) -> None:
        """Returns once all have arrived."""
        self.any(False)


ALONE: Final = Team()


@contextmanager
def peers_needed(team: Team) -> Iterator[None]:
    """Turns torch's errors about a lost process into StageError (PeerLost), after which all restart."""
    try:
        yield
    except (RuntimeError, OSError) as error:
        if team.size == 1 or not _is_about_others(error):
            raise
        log.warning("another process was lost: %s", str(error).splitlines()[0][:300])
        raise StageError(
            Reason.PEER_LOST,
            "Another process of this training was lost; all restart from the last checkpoint.",
            retriable=True,
            peer_initiated=True,
        ) from error


@contextmanager
def _gathering(team: Team, host: str, port: int) -> Iterator[None]:
    """Turns such an error into StageError (PeersUnreachable) until all are connected, which unlike a loss counts as a
    failure: pods that cannot reach each other would otherwise restart without end, and hold their GPUs.

    A helper whose connection ends has lost a process that was told to stop, or is about to begin again: that stays a
    loss. The first process waits for all, so it is the one that runs out of time where a helper is cut off every time.
    """
    try:
        yield
    except (RuntimeError, OSError) as error:
        in_time = not any(word in str(error).lower() for word in _TIME_IS_UP)
        if not _is_about_others(error) or (in_time and not team.first):
            raise
        log.warning("the processes are not connected: %s", str(error).splitlines()[0][:300])
        if _PORT_TAKEN in str(error):
            why = (
                f"another program listens at port {port}, where they meet. In a pod, a sidecar container has it, or a "
                "program of the node whose network the pod shares; elsewhere, give another --coordinator-port."
            )
        else:
            why = (
                f"process {team.rank + 1} has waited for the others at {host}:{port}. A pod has no node yet, or DNS, a "
                "network policy or a service mesh keeps the pods apart."
            )
        raise StageError(
            Reason.PEERS_UNREACHABLE,
            f"The {team.size} processes of this training are not connected: {why}",
            retriable=True,
        ) from error


def _is_about_others(error: Exception) -> bool:
    """Whether torch says that another process is gone or does not answer."""
    said = str(error).lower()
    reported = isinstance(error, distributed.DistError) or any(word in said for word in _LOST)
    return reported and not is_out_of_memory(error) and not any(word in said for word in _OWN)


def _await(host: str, port: int, seconds: float, done: Callable[[], bool]) -> bool:
    """Wait until the first process listens: until then its pod's name has no address, and after a restart a new one.
    False if it does not and ``done`` says so. That is not asked while it listens: it has begun, and needs the others.
    """
    deadline, next_question = time.monotonic() + seconds, 0.0
    while True:
        try:
            socket.create_connection((host, port), timeout=5).close()
        except OSError as error:
            if time.monotonic() > deadline:
                raise TimeoutError(f"timed out waiting for {host}:{port}") from error
            if time.monotonic() > next_question:
                if done():
                    return False
                next_question = time.monotonic() + _ASK_SECONDS
            time.sleep(_PAUSE)
        else:
            return True
