"""Which process may write a training's state: the newest attempt, and no other.

A pod on a disconnected node runs for a while after its replacement has started. Both see the same place in the store,
so every attempt begins by raising a number there (compare and swap), and every later write of the state requires that
the object is still the one that this attempt wrote last. An attempt that lost the place can no longer change it, and
stops (a fencing token, Kleppmann, "How to do distributed locking", 2016).

A write whose response was lost may still have arrived, and its repetition is then refused: only what the object says of
its owner is conclusive, not the refusal. That is a random token beside the number, since numbers begin again where the
state is lost.
"""

import logging
import secrets
import threading
from typing import Any, Final

from finetune_api.base import WireModel
from finetune_api.reasons import Reason
from finetune_jobs.base.documents import parse_json
from finetune_jobs.base.errors import StageError
from finetune_jobs.store.s3 import Store

log = logging.getLogger(__name__)

STATE: Final = "state.json"
_TRIES: Final = 10
"""Attempts that may start at the same moment; also responses that may be lost in a row."""
_TOKEN_BYTES: Final = 4


class RunState(WireModel):
    """Content of ``state.json``: what an attempt must know of those before it."""

    schema_version: int = 1
    attempt: int = 0
    """Number of the attempt that owns the place."""
    token: str = ""
    """Random, and of that attempt alone; empty in states of earlier versions."""
    batch_size: int = 0
    """Examples per pass that were found to fit the GPU's memory; 0: the spec's."""
    gradient_accumulation: int = 0
    """Passes per step that go with it."""
    checkpointing: bool = False
    """Whether keeping the activations did not fit the GPU's memory."""
    run: str = ""
    """Id of the run to which that attempt belongs."""
    seconds: float = 0.0
    """Seconds of the run's attempts so far, if the training has a time budget."""
    checkpoints: list[str] = []
    """Folders of the complete checkpoints; anything else in the place can be deleted."""

    @property
    def folder(self) -> str:
        """Where that attempt puts its checkpoints: no other one writes there."""
        return f"attempt-{self.attempt}-{self.token}"


class Ownership:
    """The right of one attempt to write ``state.json`` in a place of the store; thread-safe."""

    def __init__(self, store: Store, run: str = "", *, reuse: bool = True) -> None:
        """Take the place over from the attempt that had it, for the run with the id ``run``; without ``reuse`` the
        checkpoints of other runs no longer count."""
        self._store, self._run, self._reuse = store, run, reuse
        self._lock = threading.Lock()
        self._state, self._etag = self._take()

    @property
    def state(self) -> RunState:
        """The state as this attempt last wrote it."""
        return self._state

    def update(self, **changes: Any) -> None:
        """Change fields of the state. Raises StageError (Superseded) if a newer attempt owns the place."""
        with self._lock:
            state = self._state.model_copy(update=changes)
            for _ in range(_TRIES):
                written = self._store.replace(STATE, _content(state), self._etag)
                standing, self._etag = self._own(state)
                if written or standing == state:
                    self._state = state
                    return
        raise self._contended()

    def _take(self) -> tuple[RunState, str]:
        for _ in range(_TRIES):
            found = self._store.get_tagged(STATE)
            state = self._after(self._parse(found[0]) if found else RunState())
            content = _content(state)
            if self._store.replace(STATE, content, found[1]) if found else self._store.put_if_absent(STATE, content):
                return self._own(state)
        raise self._contended()

    def _after(self, before: RunState) -> RunState:
        """The state with which this attempt begins."""
        token = secrets.token_hex(_TOKEN_BYTES)
        changes: dict[str, Any] = {"attempt": before.attempt + 1, "token": token, "run": self._run}
        if before.run != self._run:
            changes |= {"seconds": 0.0} | ({} if self._reuse else {"checkpoints": []})
        return before.model_copy(update=changes)

    def _own(self, state: RunState) -> tuple[RunState, str]:
        """What the store holds of the attempt that wants ``state``, with its tag. Raises StageError (Superseded) if it
        now belongs to another attempt."""
        found = self._store.get_tagged(STATE)
        standing = self._parse(found[0]) if found else RunState()
        if found is None or standing.folder != state.folder:
            raise self._superseded()
        return standing, found[1]

    def _parse(self, content: bytes) -> RunState:
        try:
            return parse_json(content, RunState, self._store.uri(STATE))
        except StageError as error:  # the training restarts: that costs only time
            log.warning("state ignored: %s", error.message)
            return RunState()

    def _contended(self) -> StageError:
        return StageError(
            Reason.S3_UNREACHABLE, f"{self._store.uri(STATE)} is being changed by other writers.", retriable=True
        )

    def _superseded(self) -> StageError:
        return StageError(
            Reason.SUPERSEDED,
            f"A newer attempt at this training has taken over {self._store.uri()}: this one stops and writes nothing "
            "more.",
            retriable=True,
        )


class Following:
    """The state as the other processes of a training see it; only the first one writes it. Thread-safe."""

    def __init__(self, state: RunState) -> None:
        self.state = state
        self._lock = threading.Lock()

    def update(self, **changes: Any) -> None:
        """What the first process writes at this point."""
        with self._lock:
            self.state = self.state.model_copy(update=changes)


def _content(state: RunState) -> bytes:
    return state.model_dump_json(by_alias=True, indent=1).encode()
