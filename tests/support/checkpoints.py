"""Checkpoints as a trainer writes them, and a store whose uploads wait, fail or arrive short as a test tells it."""

import json
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune_jobs.base.errors import StageError
from finetune_jobs.store.s3 import Store
from finetune_jobs.training.checkpoints import Checkpoints
from finetune_jobs.training.ownership import STATE, RunState
from finetune_jobs.training.team import Team


class Gate(Store):
    """A store whose uploads wait for ``open``, and fail or shorten files as told."""

    def __init__(self, client: Any, uri: str, shared: "Gate | None" = None) -> None:
        super().__init__(client, uri)
        self.open: threading.Event = shared.open if shared else threading.Event()
        self.failures: list[StageError] = shared.failures if shared else []
        self.short: list[str] = shared.short if shared else []

    def at(self, uri: str) -> "Gate":
        return Gate(self._client, uri, self)

    def upload_all(self, files: Mapping[str, Path], advance: Any = None) -> None:
        assert self.open.wait(120)
        if self.failures:
            raise self.failures.pop()
        super().upload_all(files, advance)
        for path in set(self.short) & set(files):
            self.short.remove(path)
            self.put(path, files[path].read_bytes()[:-1])


def open_gate(store: Store) -> Gate:
    """A way to the place of a store that lets uploads through, until it is told otherwise."""
    gate = Gate(store._client, store.uri())
    gate.open.set()
    return gate


def checkpoint(work: Path, step: int, *, best: int = 0) -> Path:
    """What the trainer leaves in its folder after a step."""
    folder = work / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(b"weights %d" % step * 1000)
    (folder / "training_args.bin").write_bytes(b"a pickle")
    state = {"global_step": step, "best_model_checkpoint": str(work / f"checkpoint-{best or step}")}
    (folder / "trainer_state.json").write_text(json.dumps(state))
    return folder


def divided_checkpoint(work: Path, step: int) -> None:
    """Both are in one pod, and write to the same folder."""
    folder = checkpoint(work, step)
    for rank in range(2):
        (folder / f"shards/{rank}-of-2").mkdir(parents=True)
        (folder / f"shards/{rank}-of-2/weights.safetensors").write_bytes(b"%d" % rank * 1000)


def delete(folder: Path) -> None:
    """The trainer cleans up."""
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()


def stored(store: Store) -> set[str]:
    """Folders, without the tokens of the attempts."""
    folders = {entry.key.rpartition("/")[0] for entry in store.list() if entry.key != STATE}
    return {re.sub(r"^(attempt-[0-9]+)-[0-9a-f]+", r"\1", folder) for folder in folders}


def newest_in(store: Store) -> int:
    """The newest step that an attempt would resume from now."""
    state = RunState.model_validate_json(store.get(STATE) or b"")
    return max((int(place.rpartition("-")[2]) for place in state.checkpoints), default=0)


@dataclass(frozen=True)
class OfTwo(Team):
    """One of two processes of a divided training; both are in this one, and what they tell each other is ``said``."""

    size: int = 2
    said: dict[str, Any] = field(default_factory=dict)

    def any(self, *flags: bool) -> tuple[bool, ...]:
        return tuple(flag or self.said.get("slow", False) for flag in flags)

    def collect(self, content: bytes) -> list[bytes]:
        if self.first:
            self.said["content"] = content
        return [self.said["content"], content]


def begin_two(store: Gate, other: Gate) -> list[Checkpoints]:
    """The checkpoints of two processes, each of which reaches the store in its own way."""
    said: dict[str, Any] = {}
    return [Checkpoints(each, "", OfTwo(rank=rank, said=said)) for rank, each in enumerate((store, other))]
