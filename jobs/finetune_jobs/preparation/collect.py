"""The first pass: every row of every source is read, checked, cleaned and tokenised, and waits in a spool."""

import json
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from finetune_api.dataset import DatasetSource, SourcePart, SourceRole
from finetune_jobs.base.errors import StoppedError
from finetune_jobs.base.progress import Report
from finetune_jobs.examples.ledger import Ledger, Place
from finetune_jobs.examples.parts import CLAIMS, Part
from finetune_jobs.examples.validation import Dropped, Example
from finetune_jobs.modelling.thinking import REASONING
from finetune_jobs.preparation.intake import Intake
from finetune_jobs.preparation.spool import Spooled, SpoolWriter, read_spool, read_texts
from finetune_jobs.preparation.tokens import Encoder
from finetune_jobs.reading.readers import read_rows
from finetune_jobs.reading.rows import Fault, Row
from finetune_jobs.reading.sources import SourceFile
from finetune_jobs.splitting.contamination import Reference
from finetune_jobs.splitting.near_duplicates import Near, compared_text, find
from finetune_jobs.text.placeholders import holds_placeholder

_ENCODER: Final = json.JSONEncoder(ensure_ascii=False)
_PARTS: Final = {SourcePart.TRAIN: Part.TRAIN, SourcePart.VALIDATION: Part.VALIDATION, SourcePart.TEST: Part.TEST}


@dataclass(frozen=True)
class Copy:
    """A source's file on this machine."""

    file: SourceFile
    path: Path


def of_role(copies: Iterable[Copy], role: SourceRole) -> list[Copy]:
    """The copies of what the data set reads for one purpose."""
    return [copy for copy in copies if copy.file.origin.role is role]


def own_parts_first(copies: Iterable[Copy]) -> list[Copy]:
    """The order in which files are read: the user's own test, validation, training, then files without a part.

    Of equal rows the first one stays. So the user's test stays whole wherever its source stands in the list, and what
    it shares with a source without a part is not trained.
    """
    return sorted(copies, key=lambda copy: CLAIMS.index(provided_part(copy.file.origin)))


def provided_part(origin: DatasetSource) -> Part | None:
    """Where all rows of a source go; None: the division decides. General data is for training only."""
    if origin.role is SourceRole.REPLAY:
        return Part.TRAIN
    return _PARTS[origin.source.part] if origin.source.part else None


def stoppable(report: Report, stopping: threading.Event) -> Report:
    """Like ``report``, but raises StoppedError once the pod is told to stop: nothing here is worth saving."""

    def tell(done: int, total: int) -> None:
        if stopping.is_set():
            raise StoppedError("The pod was stopped before all rows were read.")
        report(done, total)

    return tell


@dataclass
class Collected:
    """What a pass over rows gave."""

    ledger: Ledger
    intake: Intake
    encoder: Encoder
    spool: Path
    again: set[str] = field(default_factory=set)
    """Examples whose prompt another one has too: further answers to it."""
    added: int = 0
    """Pieces of longer examples, beyond the first of each."""
    repeated_pieces: int = 0
    """Those of them that were not new."""
    longest_answer: int = 0
    """Tokens of the longest answer with its thoughts; 0 where none are trained."""
    tests_in_benchmark: int = 0
    """Examples of a test that a source provides which hold texts of a benchmark."""

    def near(self, near_percent: int | None) -> Near:
        """Which prompts are near duplicates; every different one is looked at once."""
        by_source = defaultdict[int, set[str]](set)
        for identity in self.ledger.labels:
            if identity not in self.again:
                by_source[self.ledger.source_of(identity)].add(identity)
        return find(by_source.values(), self.texts, near_percent)

    def texts(self, identities: set[str]) -> Iterator[tuple[str, str]]:
        """Identity and compared text of those examples."""
        names = self.ledger.identities()
        for index, text in read_texts(self.spool):
            if names[index] in identities:
                yield names[index], compared_text(json.loads(text)["messages"])

    def examples(self, identities: Iterable[str]) -> Iterator[tuple[str, Spooled]]:
        """Those examples in the order of the sources."""
        wanted, names = set(identities), self.ledger.identities()
        for example in read_spool(self.spool):
            if names[example.index] in wanted:
                yield names[example.index], example


class Collector:
    """Takes rows one after the other; a context manager that completes what it has collected."""

    def __init__(
        self,
        intake: Intake,
        encoder: Encoder,
        spool: Path,
        benchmark: Reference | None = None,
    ) -> None:
        """Usable examples go to the file ``spool``."""
        self.made = Collected(Ledger(intake.task.type), intake, encoder, spool)
        self._benchmark = benchmark
        self._out = SpoolWriter(spool)

    def __enter__(self) -> "Collector":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._out.__exit__(kind, error, trace)

    def read(self, copies: list[Copy], report: Report) -> None:
        """Take every row of some files. ``report`` is told how many bytes are read.

        Raises StageError as ``read_rows`` and ``Encoder``, and ThoughtsError.
        """
        total, done = sum(copy.file.size for copy in copies), 0
        dataset = self.made.intake.dataset
        columns = dataset.columns.names if dataset.columns else []
        if columns and dataset.group_by:
            columns = [*columns, dataset.group_by]
        for copy in copies:
            begin = done

            def tell(now: int, of: int, begin: int = begin, size: int = copy.file.size) -> None:
                report(begin + (size * now // of if of else 0), total)

            file = copy.file
            for row in read_rows(copy.path, file.uri, file.format, columns, report=tell, may_be_empty=file.one_of_many):
                self.take(file, row)
            done += file.size

    def take(self, file: SourceFile, row: Row | Fault, sample: int | None = None) -> None:
        """Take one row of a file: it becomes an example (or several), a fault, or is left out; it is counted once.

        ``sample``: number of the answer, where a prompt has several. Each is learned, and they stay together.
        """
        example = row if isinstance(row, Fault) else self.made.intake.take(row)
        self.made.ledger.read += example.rows if isinstance(example, Fault) else 1
        if isinstance(example, Fault):
            self.made.ledger.faults.add(file.uri, example)
        elif isinstance(example, Dropped):
            self.made.ledger.dropped[example.kind] += 1
        else:
            numbered = example if sample is None else _numbered(example, sample)
            self._take_example(numbered, Place(file.origin.number, file.uri, row.line), provided_part(file.origin))

    def in_benchmark(self, text: str) -> bool:
        """Whether a text holds one of a benchmark, whose texts are not masked."""
        return bool(text) and self._benchmark is not None and self._benchmark.overlaps(text)

    def _take_example(self, example: Example, place: Place, part: Part | None) -> None:
        ledger = self.made.ledger
        in_benchmark = self.in_benchmark(example.said) or self.in_benchmark(example.unmasked)
        if in_benchmark and part is not Part.TEST:
            ledger.dropped["inBenchmark"] += 1  # whether an equal row of the user's own test was there before, or not
            return
        if not ledger.is_new(example, place, part):
            return
        self.made.tests_in_benchmark += in_benchmark
        pieces = self.made.encoder.encode(example, f"{place.file} line {place.line}")
        if not pieces:
            ledger.dropped["tooLong"] += 1
            return
        for number, piece in enumerate(pieces):
            self.made.added += number > 0
            if piece.example is not example and not ledger.is_new(piece.example, place, part):
                self.made.repeated_pieces += number > 0
                continue
            index = ledger.keep(piece.example, place, piece.tokens, part, example)
            self._out.add(Spooled(index, _line(piece.example), piece.pieces))
            self._note_placeholders(piece.example)
            if piece.example.has_thoughts:
                ledger.thoughtful.add(piece.example.identity)
            if self.made.encoder.thoughts:
                self.made.longest_answer = max(self.made.longest_answer, piece.longest_answer)
            if piece.example.sample:
                self.made.again.add(piece.example.identity)

    def _note_placeholders(self, example: Example) -> None:
        ledger = self.made.ledger
        if holds_placeholder(example.messages):
            ledger.placeholders.add(example.identity)
        if holds_placeholder({part: said for part, said in example.messages[-1].items() if part != REASONING}):
            ledger.masked_answers.add(example.identity)


def _numbered(example: Example, sample: int) -> Example:
    return replace(example, sample=sample, group=example.group or f"prompt {example.identity}")


def _line(example: Example) -> bytes:
    content: dict[str, Any] = {"messages": example.messages}
    if example.tools:
        content["tools"] = example.tools
    return _ENCODER.encode(content).encode()
