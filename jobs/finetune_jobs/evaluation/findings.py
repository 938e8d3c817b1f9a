"""What models were found to say, kept while an evaluation runs: a pod that is lost costs the answers of some seconds.

What is kept is a batch, and it is found again only as the same batch of the same prompts. Half of it would not do:
which prompts share a batch decides how they are padded, and so the last digits of every probability, and now and then
an answer. That is why the pod that goes on comes to the very result of one that was never interrupted.

A program that decides by itself what shares a batch gives no such promise, kept or not: of it each answer is kept by
itself. The pod that goes on asks for the others only, and its result is one that the program could have given at once.

Each line says which model was asked what, as a hash, and holds a hash of itself: a line that is damaged is not used.
"""

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar
from weakref import WeakKeyDictionary

from pydantic import TypeAdapter

from finetune_api.hashing import digest, short
from finetune_api.layout import run_folder
from finetune_api.stages import RECIPE_VERSIONS, RunRef, Stage, StageInput
from finetune_jobs.base.background import Repeating
from finetune_jobs.base.errors import StageError
from finetune_jobs.base.progress import Progress
from finetune_jobs.modelling.device import described_device
from finetune_jobs.store.chunks import Chunk, Chunks
from finetune_jobs.store.s3 import Store

log = logging.getLogger(__name__)

T = TypeVar("T")

_KEEP_SECONDS: Final = 30.0
"""Time between two chunks: so much work a killed pod loses at most, beside the batch that it is at."""
_LAST_SECONDS: Final = 10.0
"""Longest that the end of an evaluation waits for its last chunk, and for kept ones to be deleted."""


@dataclass(frozen=True)
class FindingKind(Generic[T]):
    """One way to ask a model, and what is found of each prompt."""

    name: str
    form: TypeAdapter[T]
    """Of what is found: from and to JSON without any loss."""
    decided_by: Any = None
    """All that decides what is found beside the model and the prompts, as JSON."""
    answers: bool = False
    """Whether it is an answer, which people can count; otherwise it says how likely something is."""


class KeptFindings:
    """What is kept of one evaluation, in the place of its FineTuneJob."""

    def __init__(self, store: Store) -> None:
        """Reads what earlier pods kept."""
        self._chunks = Chunks(store)
        self._kept: dict[str, bytes] = {}
        self._goes_on: Callable[[str], None] | None = None
        self._expected = 0
        self.reused = 0
        """Answers that earlier pods had found."""
        self._load()

    @classmethod
    def of(cls, store: Store, given: StageInput, tools: Mapping[str, str]) -> "KeptFindings":
        """Those of an evaluation, with which earlier pods asked the same of the same models, by the same programs on
        the same kind of hardware; without ``reuse`` pods of this run only. ``tools``: versions of libraries."""
        recipe = {
            "work": given.input_key,
            "version": RECIPE_VERSIONS[Stage.EVALUATE],
            "upstream": given.upstream,
            "tools": tools,
            "device": described_device(),
            "run": "" if given.reuse else given.run.id,
        }
        return cls(store.below(f"{_folder(given.run)}/{short(recipe, 16)}"))

    @contextmanager
    def keeping(self, progress: Progress, expected: int) -> Iterator[None]:
        """Write what is found every ``_KEEP_SECONDS``, and once more however this ends. A store that is away costs what
        could not be kept, not the evaluation. ``progress`` says how many of the ``expected`` answers were kept, once
        the first is computed that was not: from then on the time left can be told."""
        self._goes_on, self._expected = progress.go_on, expected
        writing = Repeating(self._chunks.flush, name="keeping what the models answer", pause=_KEEP_SECONDS)
        try:
            yield
        finally:
            writing.end()
            writing.wait(_LAST_SECONDS)

    def find(self, key: str) -> list[Any] | None:
        """What was found of each prompt of a batch, as JSON; None: it is not known."""
        line = self._kept.get(key)
        return list(json.loads(line)["found"]) if line else None

    def add(self, key: str, found: list[Any]) -> None:
        """Note what was computed. It is safe after the next chunk."""
        line = {"key": key, "found": found, "check": digest([key, found])}
        self._chunks.add(json.dumps(line, ensure_ascii=False).encode() + b"\n")

    def computes(self) -> None:
        """Something has to be computed that was not kept."""
        if self._goes_on is None:
            return
        if self._kept:
            message = f"resumed: {self.reused} of {self._expected} answers kept"
            log.info("%s", message)
            self._goes_on(message)
        self._goes_on = None

    def _load(self) -> None:
        """What cannot be read costs the work that it would save, no more."""
        try:
            for chunk in self._chunks.read():
                self._take(chunk)
        except StageError as error:
            log.warning("what earlier pods may have kept is not used: %s", error.message)

    def _take(self, chunk: Chunk) -> None:
        keys = [_key(line) for line in chunk.lines]
        self._kept |= {key: line for key, line in zip(keys, chunk.lines, strict=True) if key}
        if damaged := keys.count(""):
            log.warning("%s: %s damaged lines dropped; what they held is asked again", chunk.uri, damaged)


def _folder(run: RunRef) -> str:
    return f"{run_folder(run)}/evaluation"


def _key(line: bytes) -> str:
    """Of which batch a line is; empty where it is not as it was written."""
    try:
        read = json.loads(line)
        return str(read["key"]) if read["check"] == digest([read["key"], read["found"]]) else ""
    except (ValueError, KeyError, TypeError):
        return ""


def remove_findings(store: Store, run: RunRef) -> None:
    """Delete what is kept of a FineTuneJob's evaluations, once one has a result. A failure is logged, and costs storage
    only."""
    place = store.below(_folder(run))

    def remove() -> None:
        for entry in place.list():
            place.delete(entry.key)

    removing = Repeating(remove, name="deleting kept answers", pause=_LAST_SECONDS)
    removing.end()
    if not removing.wait(_LAST_SECONDS):
        log.warning("kept answers were not deleted below %s", place.uri())


_KEPT: Final[WeakKeyDictionary[Any, tuple[KeptFindings, Any]]] = WeakKeyDictionary()
"""Models whose findings are kept, as long as they are in memory."""


def keep_findings(model: Any, findings: KeptFindings | None, identity: Any) -> None:
    """Keep what is found of a model from now on, and use what is known of it; None: nothing. ``identity`` says which
    one it is, as JSON; what it computes in is part of it."""
    if findings is None:
        _KEPT.pop(model, None)
    else:
        _KEPT[model] = (findings, [identity, str(model.dtype)])


class Notes(Generic[T]):
    """What is known of a model's answers to some prompts, batch by batch; nothing, where it is not kept."""

    def __init__(self, model: Any, kind: FindingKind[T] | None, prompts: Sequence[Any]) -> None:
        """``prompts``: all of them, each as JSON, and all else that decides an answer."""
        findings, identity = _KEPT.get(model, (None, None))
        self._findings = findings if kind else None
        self._kind = kind
        self._of = ""
        if self._findings and kind:
            each = [digest(prompt) for prompt in prompts]  # one after the other: as JSON they take much memory
            self._of = digest([identity, kind.name, kind.decided_by, each])

    def find(self, batch: Sequence[int]) -> list[T] | None:
        """What was found of each prompt of a batch; None: it has to be computed now."""
        if self._findings is None or self._kind is None:
            return None
        if (kept := self._findings.find(self._key(batch))) is None:
            self._findings.computes()
            return None
        self._findings.reused += len(batch) if self._kind.answers else 0
        return [self._kind.form.validate_python(each) for each in kept]

    def keep(self, batch: Sequence[int], found: Sequence[T]) -> None:
        """Note what was computed of each prompt of a batch."""
        if self._findings is not None and self._kind is not None:
            self._findings.add(self._key(batch), [self._kind.form.dump_python(each) for each in found])

    def _key(self, batch: Sequence[int]) -> str:
        return digest([self._of, list(batch)])


def look_up(model: Any, kind: FindingKind[T], asked: Any, compute: Callable[[], T]) -> T:
    """What a model finds of one thing that is ``asked``, as JSON: as it was kept, or computed now."""
    [found] = look_up_each(model, kind, [asked], lambda _: [compute()])
    return found


def look_up_each(
    model: Any, kind: FindingKind[T], asked: Sequence[Any], compute: Callable[[Sequence[int]], Sequence[T]]
) -> list[T]:
    """What a model finds of each thing that is ``asked``, as JSON: as it was kept, whatever it was asked with then. The
    others are computed now, all at once, by their numbers."""
    notes = [Notes(model, kind, [each]) for each in asked]
    kept = {number: known[0] for number, each in enumerate(notes) if (known := each.find([0])) is not None}
    left = [number for number in range(len(notes)) if number not in kept]
    computed = dict(zip(left, compute(left) if left else [], strict=True))
    for number, found in computed.items():
        notes[number].keep([0], [found])
    return [kept[number] if number in kept else computed[number] for number in range(len(notes))]
