"""The first pass: every row of every source is read, checked, cleaned and tokenised, and waits in a spool."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from finetune_api.dataset import SourcePart
from finetune_api.stages import PrepareParams
from finetune_jobs.dataset.contamination import Reference
from finetune_jobs.dataset.intake import Dropped, Intake
from finetune_jobs.dataset.ledger import Ledger, Place
from finetune_jobs.dataset.near_duplicates import NearDuplicates, compared_text
from finetune_jobs.dataset.readers import Fault, Row, read_rows
from finetune_jobs.dataset.sources import SourceFile
from finetune_jobs.dataset.split import Part
from finetune_jobs.dataset.spool import Spooled, SpoolWriter, read_spool
from finetune_jobs.dataset.tokens import Encoder
from finetune_jobs.dataset.validation import Example
from finetune_jobs.progress import Report

_PARTS: Final = {SourcePart.TRAIN: Part.TRAIN, SourcePart.VALIDATION: Part.VALIDATION, SourcePart.TEST: Part.TEST}


@dataclass(frozen=True)
class Copy:
    """A source's file on this machine."""

    file: SourceFile
    path: Path


@dataclass
class Collected:
    """What a pass over rows gave."""

    ledger: Ledger
    intake: Intake
    encoder: Encoder
    spool: Path
    clusters: dict[str, str] = field(default_factory=dict)
    """The cluster of every example that has near duplicates."""
    added: int = 0
    """Examples that are pieces of longer ones, beyond the first."""

    def texts(self, identities: set[str]) -> Iterator[tuple[str, str]]:
        """Identity and compared text of those examples."""
        names = self.ledger.identities()
        for example in read_spool(self.spool):
            if names[example.index] in identities:
                yield names[example.index], compared_text(json.loads(example.text)["messages"])

    def examples(self, identities: Iterable[str]) -> Iterator[tuple[str, Spooled]]:
        """Those examples in the order of the sources."""
        wanted, names = set(identities), self.ledger.identities()
        for example in read_spool(self.spool):
            if names[example.index] in wanted:
                yield names[example.index], example


def collect(
    copies: list[Copy],
    params: PrepareParams,
    encoder: Encoder,
    spool: Path,
    report: Report,
    benchmark: Reference | None = None,
) -> Collected:
    """Read ``copies``; what may be learnt is in the spool afterwards.

    ``report`` is told how many bytes are read. Raises StageError as ``read_rows``, ``Intake`` and ``Encoder``.
    """
    ledger, near = Ledger(params.task.type), NearDuplicates(params.duplicates.near_percent)
    made = Collected(ledger, Intake(params), encoder, spool)
    total, done = sum(copy.file.size for copy in copies), 0
    with SpoolWriter(spool) as out:
        for copy in copies:
            begin = done

            def read(now: int, of: int, begin: int = begin, size: int = copy.file.size) -> None:
                report(begin + (size * now // of if of else 0), total)

            for row in _rows(copy, params, read):
                ledger.read += 1
                for example in _take(made, row, copy.file, params, out, benchmark):
                    near.add(example.identity, compared_text(example.messages))
            done += copy.file.size
    made.clusters = near.clusters()
    return made


def _rows(copy: Copy, params: PrepareParams, report: Report) -> Iterator[Row | Fault]:
    file, columns = copy.file, params.columns.names if params.columns else []
    if columns and params.group_by:
        columns = [*columns, params.group_by]
    return read_rows(copy.path, file.uri, file.format, columns, report=report, may_be_empty=file.one_of_many)


def _take(
    made: Collected,
    row: Row | Fault,
    file: SourceFile,
    params: PrepareParams,
    out: SpoolWriter,
    benchmark: Reference | None,
) -> Iterator[Example]:
    """One row: it becomes an example (or several), a fault, or is left out; each is counted once."""
    ledger = made.ledger
    example = row if isinstance(row, Fault) else made.intake.take(row)
    if isinstance(example, Fault):
        ledger.faults.add(file.uri, example)
        return
    if isinstance(example, Dropped):
        ledger.dropped[example.kind] += 1
        return
    place = Place(file.number, file.uri, row.line)
    if not ledger.is_new(example, place):
        return
    if benchmark and benchmark.overlaps(_said(example)):
        ledger.dropped["inBenchmark"] += 1
        return
    pieces = made.encoder.encode(example, f"{file.uri} line {row.line}")
    if not pieces:
        ledger.dropped["tooLong"] += 1
        return
    provided = params.sources[file.number].part
    part = _PARTS[provided] if provided else None
    for number, piece in enumerate(pieces):
        if piece.example is not example and not ledger.is_new(piece.example, place):
            continue
        index = ledger.keep(piece.example, place, piece.tokens, part)
        out.add(Spooled(index, _line(piece.example), piece.pieces))
        made.added += number > 0
        yield piece.example


def benchmark_texts(copies: list[Copy]) -> Iterator[str]:
    """Every text of the rows of benchmarks, whatever its name."""
    for copy in copies:
        for row in read_rows(copy.path, copy.file.uri, copy.file.format, may_be_empty=copy.file.one_of_many):
            if isinstance(row, Row):
                yield from _strings(row.fields)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _strings(inner)


def _said(example: Example) -> str:
    return "\n".join(m["content"] for m in example.messages if m["role"] in ("user", "assistant"))


def _line(example: Example) -> bytes:
    content: dict[str, Any] = {"messages": example.messages}
    if example.tools:
        content["tools"] = example.tools
    return json.dumps(content, ensure_ascii=False).encode()
