"""What became of the rows, from the ``report.json`` of a data set (pure)."""

from collections.abc import Sequence
from dataclasses import dataclass

from finetune_api.base import WireModel
from finetune_api.dataset import OnFinding
from finetune_jobs.examples.parts import Part
from finetune_jobs.readiness.facts import Counts, Findings, Rows
from finetune_jobs.readiness.page import finding, languages, waterfall
from finetune_jobs.reports.page import Table


class _Counted(WireModel):
    read: int = 0
    invalid: int = 0
    duplicates: int = 0
    near_dropped: int = 0
    outside_pilot: int = 0
    added: int = 0
    train: int = 0
    validation: int = 0
    test: int = 0


class _Found(WireModel):
    mode: OnFinding = OnFinding.OFF
    counts: Counts = {}


class DataReport(WireModel):
    """What this page shows of ``report.json``; earlier versions wrote less."""

    rows: _Counted = _Counted()
    filters: Counts = {}
    """Rows that are no examples, by kind: invalid ones and those that a rule left out."""
    pii: _Found = _Found()
    secrets: _Found = _Found()
    languages: Counts = {}


@dataclass(frozen=True)
class DataSection:
    """The section about the data."""

    tables: Sequence[Table]
    sentences: Sequence[str]
    """What was looked for and not found."""


def data_section(report: DataReport) -> DataSection:
    """Every row, and what was found in them."""
    counted = report.rows
    by_rules = max(0, sum(report.filters.values()) - counted.invalid)
    rows = Rows(
        read=counted.read,
        parts={part: getattr(counted, part.value) for part in Part},
        invalid={"invalid": counted.invalid},
        dropped={"rules": by_rules},
        duplicates=counted.duplicates,
        near_dropped=counted.near_dropped,
        outside_pilot=counted.outside_pilot,
        added=counted.added,
    )
    found = [
        finding("Personal data", Findings(report.pii.mode, report.pii.counts)),
        finding("Keys, tokens and passwords", Findings(report.secrets.mode, report.secrets.counts)),
    ]
    tables = [waterfall(rows), *(each for each in found if isinstance(each, Table))]
    if spoken := languages(report.languages):
        tables.append(spoken)
    return DataSection(tables, [each for each in found if isinstance(each, str)])
