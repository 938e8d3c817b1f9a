"""Checkpoints that outlive the pod: the trainer's ``checkpoint-<step>`` folders, kept in the store.

    <place>/state.json                        which checkpoints count, and which attempt may say so (``ownership``)
    <place>/attempt-<n>-<token>/checkpoint-<step>/    one checkpoint with its manifest
        parts/<rank>.json                     what another process of a divided training sent of it
    <place>/too-large/<examples>              a pass that did not fit the memory of one of several GPUs
    <place>/too-large/activations             the same, if only it would keep no activations

A checkpoint counts once ``state.json`` names it: it is completely uploaded by then, and its sizes were checked. Its
hashes are verified when it is downloaded. Nothing in it is unpickled without ``weights_only`` (transformers 5 reads
optimiser, scheduler and random states that way).

The upload runs beside the training, in its own thread on hard links, so that the trainer may continue and delete its
own folders. Only the newest snapshot waits: if the store is slower than the training, checkpoints are skipped, not
queued.

In a divided training each process sends its own shard, then says what it has sent. The first process sends the rest,
waits for the others' parts, and writes the manifest. They find each other in the store: a thread that used the
training's connections would mix its messages with theirs. So that nobody waits for a part that never comes, all skip a
checkpoint or none does, and a process that could not send its part tries again.
"""

import json
import logging
import math
import os
import shutil
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from finetune_api.layout import MANIFEST, FileEntry, Manifest
from finetune_api.reasons import Reason
from finetune_api.stages import Stage
from finetune_jobs.artifacts import folders
from finetune_jobs.base.documents import parse_json
from finetune_jobs.base.errors import StageError
from finetune_jobs.fit.recipe import Batch
from finetune_jobs.store.s3 import Store
from finetune_jobs.training.ownership import STATE, Following, Ownership, RunState
from finetune_jobs.training.resuming import CHECKPOINTS, newest, step_of
from finetune_jobs.training.team import ALONE, Team

log = logging.getLogger(__name__)

_NOT_NEEDED: Final = "training_args.bin"
"""A pickle that only the writing process may read."""
_TOO_LARGE: Final = "too-large"
_ACTIVATIONS: Final = "activations"
SHARDS: Final = "shards"
"""The folder of a checkpoint in which each process of a divided training has a folder of its own."""
_SNAPSHOTS: Final = ".snapshots"
_PARTS: Final = "parts"
_PAUSE: Final = 0.5
"""Seconds between two looks for another process's part, and before a process sends its own again."""


class Checkpoints:
    """The checkpoints of one training in ``store``, a place of its own that this attempt takes over for the run with
    the id ``run``; without ``reuse`` it resumes from those of this run only.

    Of several processes that train together, only the first one writes, except for the shards of a divided training;
    the others read what it names. All of them must make and use it at the same points of their work.
    Raises StageError as Store. Later methods raise StageError (Superseded) once a newer attempt has taken over.
    """

    def __init__(self, store: Store, run: str = "", team: Team = ALONE, *, reuse: bool = True) -> None:
        self._store, self._team = store, team
        self._owner: Ownership | Following = _take(store, run, team, reuse)
        self._wake = threading.Condition()
        self._pending: deque[Path] = deque()
        self._busy = False
        self._failure: BaseException | None = None
        self._seconds = 0.0
        self._thread: threading.Thread | None = None

    # What earlier attempts found out

    @property
    def attempt(self) -> int:
        """Number of this attempt, from 1."""
        return self._owner.state.attempt

    @property
    def _folder(self) -> str:
        return self._owner.state.folder

    def batch(self, otherwise: Batch) -> Batch:
        """The batch that was found to fit the GPUs' memory, or ``otherwise``."""
        state = self._owner.state
        found = Batch(state.batch_size, state.gradient_accumulation)
        same = found.size * found.passes == otherwise.size * otherwise.passes
        batch = found if found.size and same else otherwise
        if self._team.first:
            limit = min((int(name) for name in self._found_too_large() if name.isdecimal()), default=batch.size + 1)
            while batch.size >= limit and (smaller := batch.smaller()):
                batch = smaller
        size, passes = json.loads(self._team.share(json.dumps([batch.size, batch.passes]).encode()))
        return Batch(size, passes)

    def checkpointing(self, otherwise: bool) -> bool:
        """Whether no activations are kept: because earlier attempts found no room for them, or ``otherwise``, which
        the first process says for all."""
        known = otherwise or self._owner.state.checkpointing
        asked = self._team.first and (known or _ACTIVATIONS in self._found_too_large())
        return bool(json.loads(self._team.share(json.dumps(asked).encode())))

    def remember_too_large(self, batch: Batch | None = None) -> None:
        """Let later attempts start with fewer examples per pass, or, without a ``batch``, keep no activations; any
        process of a team may call this."""
        self._store.put(f"{_TOO_LARGE}/{batch.size if batch else _ACTIVATIONS}", b"")

    def remember_checkpointing(self) -> None:
        """Let later attempts keep no activations."""
        self._owner.update(checkpointing=True)

    def _found_too_large(self) -> list[str]:
        return [entry.key.rpartition("/")[2] for entry in self._store.list(_TOO_LARGE)]

    def remember_batch(self, batch: Batch) -> None:
        """Let later attempts start with this batch."""
        self._owner.update(batch_size=batch.size, gradient_accumulation=batch.passes)

    @property
    def seconds(self) -> float:
        """Seconds of this run's attempts so far, as given to ``remember_seconds``."""
        return self._owner.state.seconds

    def remember_seconds(self, seconds: float) -> None:
        """Tell later attempts how long the training has taken."""
        self._owner.update(seconds=round(seconds, 1))

    def restore(self, work: Path) -> Path | None:
        """Download the store's checkpoints to ``work``, once per pod; the newest, or None if there is none. A damaged
        one is skipped with a warning: resuming from an older one, or restarting, costs only time.
        """
        self._team.wait_for_work(lambda: self._fetch(work) if self._team.first else None)
        places = json.loads(self._team.share(json.dumps(self._owner.state.checkpoints).encode()))
        if not self._team.first:
            self._owner.update(checkpoints=places)
        copies = self._team.first_of_pod and not self._team.first
        self._team.wait_for_work(lambda: self._fetch_all(places, work) if copies else None)
        if self._team.first_of_pod:
            newest(work)  # its changes to the files must not happen concurrently
        self._team.wait()
        return newest(work)

    def _fetch_all(self, places: Sequence[str], work: Path) -> None:
        for place in places:
            folders.fetch_folder(self._store, place, work / place.rpartition("/")[2])

    def _fetch(self, work: Path) -> None:
        whole = []
        for place in self._owner.state.checkpoints:
            folder = work / place.rpartition("/")[2]
            try:
                folders.fetch_folder(self._store, place, folder)
                whole.append(place)
            except StageError as error:
                if error.reason not in (Reason.ARTIFACT_CORRUPT, Reason.ARTIFACT_NOT_FOUND):
                    raise
                log.warning("checkpoint skipped: %s", error.message)
                shutil.rmtree(folder, ignore_errors=True)
        if whole != self._owner.state.checkpoints:
            self._owner.update(checkpoints=whole)

    # Keeping new ones

    def keep(self, work: Path, *, divided: bool = False, last: bool = False) -> None:
        """Make the store keep the checkpoints below ``work`` and no others, as soon as possible. Returns at once;
        raises the permanent error of an earlier upload. ``divided``: each process has written a shard, and all call
        this together; ``last``: no later checkpoint will make up for this one if it is skipped.
        """
        if not self._team.first and not divided:
            return
        self.check()
        if divided and self._team.any(bool(self._pending))[0] and not last:
            log.warning("the store is slower than the training: a checkpoint was skipped")
            return
        snapshot = _snapshot(work, self._team)
        with self._wake:
            replaced = [] if divided else list(self._pending)
            if replaced:
                self._pending.clear()
            self._pending.append(snapshot)
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name="checkpoints", daemon=True)
                self._thread.start()
            self._wake.notify_all()
        for each in replaced:
            log.warning("the store is slower than the training: a checkpoint was skipped for a newer one")
            shutil.rmtree(each, ignore_errors=True)

    def check(self) -> None:
        """Raises the permanent error of an upload (no access, superseded); an unavailable store is not one."""
        with self._wake:
            if self._failure:
                raise self._failure

    def flush(self, seconds: float) -> bool:
        """Wait until everything is in the store; False if that takes too long. Raises as ``check``."""
        deadline = time.monotonic() + seconds
        with self._wake:
            while (self._busy or self._pending) and not self._failure:
                if (left := deadline - time.monotonic()) <= 0:
                    return False
                self._wake.wait(left)
        self.check()
        return True

    @property
    def newest_step(self) -> int:
        """Step of the newest checkpoint in the store, for all but the first process as far as they know; 0 if there is
        none."""
        return max((step_of(place) for place in self._owner.state.checkpoints), default=0)

    @property
    def upload_seconds(self) -> float:
        """How long the fastest upload so far took: a store that was away says nothing of the next one. 0 before the
        first, and in a process that uploads nothing."""
        return self._seconds

    def _serve(self) -> None:
        while True:
            with self._wake:
                while not self._pending:
                    self._wake.wait()
                snapshot, self._busy = self._pending.popleft(), True
            begun, again = time.monotonic(), False
            try:
                self._mirror(snapshot)
                self._seconds = min(self._seconds or math.inf, time.monotonic() - begun)
            except StageError as error:
                if error.retriable and error.reason is not Reason.SUPERSEDED:
                    again = not self._team.first  # which waits for this part
                    when = "again" if again else "again with the next one"
                    log.warning("checkpoint not saved, trying %s: %s", when, error.message)
                else:
                    self._failure = error
            except BaseException as error:  # noqa: BLE001 # raised again in the training's own thread
                self._failure = error
            if again:
                time.sleep(_PAUSE)
            else:
                shutil.rmtree(snapshot, ignore_errors=True)
            with self._wake:
                self._pending.extendleft([snapshot] if again else [])
                self._busy = False
                self._wake.notify_all()

    def _mirror(self, snapshot: Path) -> None:
        stored = {place.rpartition("/")[2]: place for place in self._owner.state.checkpoints}
        kept = []
        for folder in sorted(snapshot.glob(CHECKPOINTS), key=lambda folder: step_of(folder.name)):
            place = stored.get(folder.name) or f"{self._folder}/{folder.name}"
            if folder.name not in stored:
                self._upload(place, folder)
            kept.append(place)
        self._owner.update(checkpoints=kept)
        if self._team.first:
            self._prune()

    def _upload(self, name: str, folder: Path) -> None:
        manifest, place = folders.describe_folder(folder, Stage.TRAIN), self._store.below(name)
        place.upload_all({file.path: folder / file.path for file in manifest.files})
        if not self._team.first:
            place.put(f"{_PARTS}/{self._team.rank}.json", manifest.model_dump_json(by_alias=True).encode())
            return
        if is_sharded(folder):
            others = [file for rank in range(1, self._team.size) for file in self._part(name, rank)]
            manifest = manifest.model_copy(update={"files": manifest.files + others})
        found = {entry.key: entry.size for entry in place.list()}
        if short := [file.path for file in manifest.files if found.get(file.path) != file.size]:
            raise StageError(
                Reason.S3_UNREACHABLE,
                f"{place.uri(short[0])} has {found.get(short[0], 0)} bytes after the upload: not what was sent.",
                retriable=True,
            )
        place.put(MANIFEST, manifest.model_dump_json(by_alias=True, indent=1).encode())

    def _part(self, name: str, rank: int) -> list[FileEntry]:
        """What the process ``rank`` sent of a checkpoint; waits for it. Raises StageError (S3Unreachable) if that is
        past it already: its part could not be sent, and is lost."""
        attempt, _, own = name.rpartition("/")
        while True:
            names = [entry.key for entry in self._store.below(attempt).list()]
            sent = {key.partition("/")[0] for key in names if key.endswith(f"/{_PARTS}/{rank}.json")}
            if own in sent:
                path = f"{name}/{_PARTS}/{rank}.json"
                return parse_json(self._store.get(path) or b"", Manifest, self._store.uri(path)).files
            if any(step_of(each) > step_of(own) for each in sent):
                message = f"process {rank} could not send its part of {own}, and has sent a newer one."
                raise StageError(Reason.S3_UNREACHABLE, message, retriable=True)
            time.sleep(_PAUSE)

    def _prune(self) -> None:
        """Delete what no longer counts, except a newer attempt's files, which this one may not judge, and what other
        processes have sent of a checkpoint that is yet to come."""
        kept = tuple(f"{place}/" for place in self._owner.state.checkpoints)
        for entry in self._store.list():
            attempt, _, rest = entry.key.partition("/")
            number, step = _number(attempt), rest.partition("/")[0].rpartition("-")[2]
            to_come = attempt == self._folder and step.isdecimal() and int(step) > self.newest_step
            foreign = entry.key == STATE or entry.key.startswith(f"{_TOO_LARGE}/")
            if not foreign and number <= self.attempt and not to_come and not entry.key.startswith(kept or "/"):
                self._store.delete(entry.key)


def _take(store: Store, run: str, team: Team, reuse: bool) -> Ownership | Following:
    """The place's state: the first process takes it over, the others are told what it found."""
    owner = Ownership(store, run, reuse=reuse) if team.first else None
    content = team.share(owner.state.model_dump_json().encode() if owner else b"")
    return owner or Following(RunState.model_validate_json(content))


def shard_folder(team: Team) -> str:
    """Where this process of a divided training writes, below a checkpoint."""
    return f"{SHARDS}/{team.rank}-of-{team.size}"


def is_sharded(checkpoint: Path) -> bool:
    """Whether a checkpoint was written by the processes of a divided training."""
    return (checkpoint / SHARDS).is_dir()


def _number(attempt: str) -> int:
    """Of an attempt, by its folder; 0 for other names. Those of earlier versions have no token."""
    number = attempt.removeprefix("attempt-").partition("-")[0]
    return int(number) if number.isdecimal() else 0


def _snapshot(work: Path, team: Team) -> Path:
    """Hard links to what this process keeps of all checkpoints as they are now: created instantly, and unchanged when
    the originals are deleted."""
    target = work / _SNAPSHOTS / f"{time.monotonic_ns()}-{team.rank}"
    for folder in work.glob(CHECKPOINTS):
        (target / folder.name).mkdir(parents=True)
        for file in _kept_of(folder, team):
            link = target / file.relative_to(work)
            link.parent.mkdir(parents=True, exist_ok=True)
            os.link(file, link)
    target.mkdir(parents=True, exist_ok=True)
    return target


def _kept_of(checkpoint: Path, team: Team) -> Iterator[Path]:
    """The files of a checkpoint that this process sends: its own shard, and the first one what is no shard."""
    for file in checkpoint.rglob("*"):
        path = file.relative_to(checkpoint).as_posix()
        shard = path.startswith(f"{SHARDS}/")
        own = path.startswith(f"{shard_folder(team)}/") if shard else team.first
        if own and file.is_file() and file.name != _NOT_NEEDED:
            yield file
