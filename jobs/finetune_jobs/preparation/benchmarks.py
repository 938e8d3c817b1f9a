"""Benchmarks: texts that the model will be measured with, so nothing that holds them may be trained on."""

from collections.abc import Iterator
from dataclasses import dataclass

from finetune_api.dataset import Cleaning
from finetune_jobs.examples.ledger import Ledger
from finetune_jobs.examples.shapes import strings
from finetune_jobs.preparation.collect import Copy
from finetune_jobs.reading.readers import read_rows
from finetune_jobs.reading.rows import Fault
from finetune_jobs.splitting.contamination import Reference
from finetune_jobs.text.cleaning import Cleaner


@dataclass(frozen=True)
class Benchmarks:
    """Texts that must not be trained on, and the rows from which they come."""

    reference: Reference
    ledger: Ledger


def read_benchmarks(copies: list[Copy], cleaning: Cleaning) -> Benchmarks | None:
    """The texts of all files of benchmarks, cleaned as those that they are compared with; None where there is no file.
    Raises StageError as ``read_rows``."""
    if not copies:
        return None
    ledger = Ledger()
    return Benchmarks(Reference(map(Cleaner(cleaning).text, _texts(copies, ledger))), ledger)


def _texts(copies: list[Copy], ledger: Ledger) -> Iterator[str]:
    """Every text of the rows of benchmarks, whatever its name; ``ledger`` counts the rows and those that are faults."""
    for copy in copies:
        for row in read_rows(copy.path, copy.file.uri, copy.file.format, may_be_empty=copy.file.one_of_many):
            ledger.read += row.rows if isinstance(row, Fault) else 1
            if isinstance(row, Fault):
                ledger.faults.add(copy.file.uri, row)
            else:
                yield from strings(row.fields)
