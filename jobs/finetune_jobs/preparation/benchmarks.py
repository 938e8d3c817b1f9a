"""Benchmarks: texts that the model will be measured with, so nothing that holds them may be trained on."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from finetune_jobs.examples.ledger import Ledger
from finetune_jobs.preparation.collect import Copy
from finetune_jobs.reading.readers import read_rows
from finetune_jobs.reading.rows import Fault
from finetune_jobs.splitting.contamination import Reference


@dataclass(frozen=True)
class Benchmarks:
    """Texts that must not be trained on, and the rows from which they come."""

    reference: Reference
    ledger: Ledger


def read_benchmarks(copies: list[Copy]) -> Benchmarks | None:
    """The texts of all files of benchmarks; None where there is no file. Raises StageError as ``read_rows``."""
    if not copies:
        return None
    ledger = Ledger()
    return Benchmarks(Reference(_texts(copies, ledger)), ledger)


def _texts(copies: list[Copy], ledger: Ledger) -> Iterator[str]:
    """Every text of the rows of benchmarks, whatever its name; ``ledger`` counts the rows and those that are faults."""
    for copy in copies:
        for row in read_rows(copy.path, copy.file.uri, copy.file.format, may_be_empty=copy.file.one_of_many):
            ledger.read += row.rows if isinstance(row, Fault) else 1
            if isinstance(row, Fault):
                ledger.faults.add(copy.file.uri, row)
            else:
                yield from _strings(row.fields)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _strings(inner)
