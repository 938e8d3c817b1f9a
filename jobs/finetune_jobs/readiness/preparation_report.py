"""What happened to the rows: data sets that are refused, figures for the status, reports (pure)."""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, Final

from finetune_api.dataset import Dataset, SourceRole, Split, TaskType
from finetune_api.hashing import digest
from finetune_api.readiness import MAX_SUMMARY
from finetune_api.reasons import Reason
from finetune_api.stages import PrepareParams
from finetune_jobs.base.errors import StageError
from finetune_jobs.base.wording import ended, shorten
from finetune_jobs.examples.ledger import Ledger
from finetune_jobs.examples.parts import Part
from finetune_jobs.examples.validation import shown
from finetune_jobs.modelling.token_files import REASONING
from finetune_jobs.preparation.benchmarks import Benchmarks
from finetune_jobs.preparation.collect import Collected
from finetune_jobs.preparation.planting import NOTHING, Planted
from finetune_jobs.preparation.replay import Replayed
from finetune_jobs.readiness.checklist import MIN_PART, Item, check, count_of, summary
from finetune_jobs.readiness.facts import Beside, Facts, Findings, Lengths, Rows
from finetune_jobs.splitting.division import Division

_LISTED: Final = 100
"""Pairs of rows in the report."""
_NUMBER: Final = re.compile(r"[+-]?[0-9]{1,15}(?:\.[0-9]{1,15})?")


def require_valid(ledger: Ledger, dataset: Dataset) -> None:
    """Raises StageError (DatasetInvalid) for too many invalid rows."""
    wrong = ledger.faults.total
    if wrong * 100 > ledger.read * dataset.max_invalid_percent:
        raise StageError(
            Reason.DATASET_INVALID,
            f"{wrong} of {ledger.read} rows are invalid, {dataset.max_invalid_percent} % allowed: "
            f"{ended(shorten(ledger.faults.sentences(), 750))} Fix these rows, or raise "
            "spec.dataset.maxInvalidPercent.",
        )


def require_learnable(ledger: Ledger, params: PrepareParams) -> None:
    """Raises StageError (DatasetInvalid) for labels that cannot be learned."""
    if params.task.type is not TaskType.CLASSIFICATION:
        return
    labels, examples = sorted(set(ledger.labels.values())), len(ledger.labels)
    if len(labels) == 1:
        raise StageError(
            Reason.DATASET_INVALID,
            f"All {examples} examples have the label {shown(labels[0])!r}: a classification needs at least two "
            "labels. Check spec.dataset.columns.label.",
        )
    if examples >= len(Part) * MIN_PART and len(labels) * 2 > examples:
        some = ", ".join(repr(shown(label)) for label in labels[:3])
        raise StageError(
            Reason.DATASET_INVALID,
            f"{examples} examples have {len(labels)} different labels ({some}, …): labels that rarely repeat "
            "cannot be learned. Check spec.dataset.columns.label, or set spec.task.type to Text or Extraction.",
        )


def require_enough(ledger: Ledger, division: Division, split: Split) -> None:
    """Raises StageError (DatasetTooSmall) when a part has too few examples."""
    sizes = Counter(division.parts.values())
    small = {part: f"{sizes[part]} for {part}" for part in Part if sizes[part] < MIN_PART}
    by_rules = ledger.dropped.total() + division.near_dropped
    if small:
        raise StageError(
            Reason.DATASET_TOO_SMALL,
            f"{', '.join(small.values())}: each part needs at least {MIN_PART} examples. Of {ledger.read} rows, "
            f"{ledger.faults.total} were invalid, {ledger.duplicates} duplicates and {by_rules} dropped by rules; "
            f"{len(ledger.labels)} examples remain.{_indivisible(ledger, division, split, small.keys())}",
        )


def _indivisible(ledger: Ledger, division: Division, split: Split, small: AbstractSet[Part]) -> str:
    """Why parts are small although their shares are not, or an empty string."""
    wanted = {Part.VALIDATION: split.validation_percent, Part.TEST: split.test_percent}
    divided = small - set(ledger.given.values())
    shares = [len(ledger.labels) * percent // 100 for part, percent in wanted.items() if part in divided]
    if not any(MIN_PART <= share < division.largest_unit for share in shares):
        return ""
    return (
        f" {division.largest_unit} of them are near duplicates of each other or one group, and stay in one part: name "
        "a column with smaller groups in spec.dataset.groupBy, if it is set, or raise "
        "spec.dataset.duplicates.nearPercent."
    )


@dataclass(frozen=True)
class PreparationReport:
    """The figures of one data set."""

    facts: Facts
    items: list[Item]
    errors: list[dict[str, str | int]]
    """The first faults, without values."""
    first_errors: Mapping[SourceRole, str]
    """The first faults for people, of the sources and of what is read beside them."""
    tokens: int
    """Tokens that one epoch trains."""
    across: Sequence[tuple[str, str]] = ()
    """Where rows of the test are, and rows for training that were left out because of them."""
    planted: Planted = NOTHING

    @classmethod
    def of(  # noqa: PLR0913 # all that a data set is made of
        cls,
        own: Collected,
        division: Division,
        params: PrepareParams,
        source_digest: str,
        replayed: Replayed | None = None,
        benchmarks: Benchmarks | None = None,
        planted: Planted = NOTHING,
    ) -> "PreparationReport":
        """Count what was collected and divided, with the general examples that were mixed in. What is planted counts
        among the tokens only."""
        ledger, trained, dataset = own.ledger, division.parts, params.dataset
        mixed_in = len(replayed.chosen) if replayed else 0
        beside = {SourceRole.REPLAY: replayed.collected.ledger} if replayed else {}
        beside |= {SourceRole.BENCHMARK: benchmarks.ledger} if benchmarks else {}
        sizes = Counter(trained.values())
        extra = sum(times - 1 for times in division.repeats.values() if times)
        sizes[Part.TRAIN] += mixed_in + extra
        unused = sum(times == 0 for times in division.repeats.values())
        dropped = Counter(ledger.dropped)
        if unused:
            dropped["sourceWeight"] += unused
        facts = Facts(
            sources=[source.name for source in dataset.sources],
            task=params.task.type.value,
            rows=Rows(
                read=ledger.read,
                parts=dict(sizes),
                invalid=dict(sorted(ledger.faults.kinds.items())),
                dropped=dict(sorted(dropped.items())),
                duplicates=ledger.duplicates,
                near_duplicates=division.near if dataset.duplicates.sought_percent else None,
                near_dropped=division.near_dropped,
                outside_pilot=division.outside_pilot,
                added=own.added + mixed_in + extra,
                repeated_pieces=own.repeated_pieces,
            ),
            lengths=Lengths(
                max_length=params.max_length,
                rule=dataset.cleaning.too_long,
                by_part=_lengths(ledger.tokens, trained),
                over=own.encoder.over,
                longest=own.encoder.longest,
                left_out=own.encoder.left_out,
            ),
            pii=Findings(
                dataset.pii.mode,
                dict(sorted(own.intake.personal.items())),
                dataset.pii.entities,
                own.intake.looks_for_names,
            ),
            secrets=Findings(dataset.cleaning.secrets, dict(sorted(own.intake.secrets.items()))),
            labels=_labels(ledger, trained) if params.task.type is TaskType.CLASSIFICATION else {},
            placeholders=sum(part is Part.TEST for each, part in trained.items() if each in ledger.placeholders),
            masked_answers=len(ledger.masked_answers & trained.keys()),
            thoughts=_thoughts(ledger, trained) if own.encoder.thoughts else None,
            without_thoughts=len(trained.keys() - ledger.thoughtful) if own.encoder.thoughts else 0,
            longest_answer=own.longest_answer,
            escaped=dict(sorted(own.intake.escaped.items())),
            languages=dict(sorted(own.intake.languages.items())),
            split_provided=bool(ledger.given),
            seed=dataset.split.seed,
            across=len(ledger.across),
            leaks=0 if dataset.duplicates.sought_percent else None,
            contaminated=ledger.dropped["inBenchmark"] if dataset.benchmarks else None,
            tests_in_benchmark=own.tests_in_benchmark,
            benchmarks=_beside(beside.get(SourceRole.BENCHMARK)),
            replay=_beside(beside.get(SourceRole.REPLAY)),
            canaries=len(planted.canaries),
            source_digest=source_digest,
            dataset_digest=digest(sorted(f"{part} {identity}" for identity, part in trained.items())),
        )
        tokens = sum(
            ledger.tokens[identity] * division.repeats.get(identity, 1)
            for identity, part in trained.items()
            if part is Part.TRAIN
        )
        faults = {SourceRole.OWN: ledger.faults} | {role: each.faults for role, each in beside.items()}
        errors = [entry for each in faults.values() for entry in each.stored()]
        first = {role: each.sentences() for role, each in faults.items() if each.total}
        return cls(facts, check(facts), errors, first, tokens + planted.tokens, ledger.across, planted)

    @property
    def labels(self) -> list[str]:
        """All labels of a classification, sorted."""
        return sorted(self.facts.labels)

    def scalars(self) -> dict[str, str]:
        """The stage's scalars, as docs/reference/stages.md names them."""
        rows = self.facts.rows
        counts = {
            "rowsRead": rows.read,
            "rowsInvalid": sum(rows.invalid.values()),
            "rowsDropped": sum(rows.dropped.values()) + rows.near_dropped,
            "rowsDuplicates": rows.duplicates,
            "rowsTrain": rows.parts.get(Part.TRAIN, 0),
            "rowsValidation": rows.parts.get(Part.VALIDATION, 0),
            "rowsTest": rows.parts.get(Part.TEST, 0),
            "labels": len(self.labels),
            "tokens": self.tokens,
            "longest": self.facts.lengths.longest,
            "rowsTestMasked": self.facts.placeholders,
            "answersMasked": self.facts.masked_answers,
        }
        counts |= {"canaries": self.facts.canaries} if self.facts.canaries else {}
        return {name: str(count) for name, count in counts.items()} | {"readiness": summary(self.items)[:MAX_SUMMARY]}

    def report(self) -> dict[str, Any]:
        """``report.json``. It names files, lines and fields, and never holds a value of a row."""
        facts, rows = self.facts, self.facts.rows
        report: dict[str, Any] = {
            "rows": {"read": rows.read, "invalid": sum(rows.invalid.values()), "duplicates": rows.duplicates}
            | {"nearDuplicates": rows.near_duplicates, "nearDropped": rows.near_dropped}
            | {"outsidePilot": rows.outside_pilot, "added": rows.added}
            | {part.value: rows.parts.get(part, 0) for part in Part},
            "filters": dict(sorted((Counter(rows.invalid) + Counter(rows.dropped)).items())),
            "labels": {label: {part.value: n for part, n in parts.items()} for label, parts in facts.labels.items()},
            "tokens": {"train": self.tokens, "longest": facts.lengths.longest, "over": facts.lengths.over},
            "pii": {"mode": facts.pii.mode.value, "counts": facts.pii.counts},
            "placeholders": {"test": facts.placeholders, "answers": facts.masked_answers},
            "secrets": {"mode": facts.secrets.mode.value, "counts": facts.secrets.counts},
            "readiness": [
                {"name": item.name, "state": item.state.value, "evidence": item.evidence, "remedy": item.remedy}
                for item in self.items
            ],
            "errors": self.errors,
            "warnings": self._warnings(),
        }
        if facts.lengths.left_out:
            report["tokens"] |= {"exchangesLeftOut": facts.lengths.left_out}
        if facts.thoughts is not None:
            counts = {part.value: count for part, count in facts.thoughts.items()}
            report[REASONING] = counts | {"longestAnswer": facts.longest_answer}
        if facts.canaries:
            report["canaries"] = self.planted.report()
        if facts.escaped:
            report["controlTokens"] = {"escaped": facts.escaped}
        if self.across:
            pairs = [{"test": test, "training": train} for test, train in self.across[:_LISTED]]
            report["acrossParts"] = {"rows": facts.across, "first": pairs}
        if facts.languages:
            report["languages"] = facts.languages
        if known := facts.benchmarks:
            report["benchmarks"] = {"read": known.read, "filters": known.invalid, "ownTest": facts.tests_in_benchmark}
        return report

    def message(self) -> str:
        """What happened, in sentences for the status."""
        rows = self.facts.rows
        text = (
            f"{rows.read} rows gave {rows.parts.get(Part.TRAIN, 0)} training, "
            f"{rows.parts.get(Part.VALIDATION, 0)} validation and {rows.parts.get(Part.TEST, 0)} test examples."
        )
        if self.facts.canaries:
            text += f" {self.facts.canaries} canaries are added for training."
        if rows.duplicates:
            text += f" {rows.duplicates} duplicates dropped."
        if rows.dropped or rows.near_dropped:
            kinds = Counter(rows.dropped) + Counter(nearDuplicate=rows.near_dropped)
            text += f" Rules dropped {kinds.total()} ({_counted(kinds)})."
        if self.across:
            test, train = self.across[0]
            text += f" inTest: training rows that (nearly) repeat your test, such as {train} ({test})."
        if lost := self.facts.lengths.left_out:
            text += f" Too long, and left out of conversations that were split: {count_of(lost, 'exchange')}."
        if masked := self.facts.placeholders:
            text += f" {masked} test examples contain placeholders; the evaluation scores them separately."
        if self.facts.thoughts is not None:
            text += f" {sum(self.facts.thoughts.values())} examples have thoughts, which the model learns"
            text += f"; {self.facts.without_thoughts} have none." if self.facts.without_thoughts else "."
        if escaped := self.facts.escaped:
            text += f" Control tokens were escaped with a space ({_counted(escaped)})."
        if rows.invalid:
            wrong = sum(rows.invalid.values())
            text += (
                f" {wrong} invalid rows dropped ({_counted(rows.invalid)}): "
                f"{ended(shorten(self.first_errors[SourceRole.OWN], 400))}"
            )
        for role, sentence in self._invalid_beside().items():
            text += f" {sentence}: {ended(shorten(self.first_errors[role], 200))}"
        return " ".join([text, *self._alike()])

    def _invalid_beside(self) -> dict[SourceRole, str]:
        """What cannot be used of the rows beside the sources, in a sentence without values and stop."""
        return {
            role: f"{each.wrong} of {each.read} rows of spec.dataset.{role} are invalid and were dropped "
            f"({_counted(each.invalid)})"
            for role, each in ((SourceRole.REPLAY, self.facts.replay), (SourceRole.BENCHMARK, self.facts.benchmarks))
            if each and each.wrong
        }

    def _warnings(self) -> list[str]:
        """Allowed, but rarely intended."""
        return [*(f"{sentence}." for sentence in self._invalid_beside().values()), *self._alike()]

    def _alike(self) -> list[str]:
        alike: dict[str, list[str]] = defaultdict(list)
        for label in self.labels:
            alike[_plain(label)].append(label)
        return [
            f"Labels differ only in letter case, or in how a number is written: {', '.join(map(repr, some))}."
            for some in alike.values()
            if some[1:]
        ]


def _plain(label: str) -> str:
    """Equal for labels that are probably one class: Sales and sales, 1 and 1.0 (as tables with gaps write it)."""
    return str(float(label)) if _NUMBER.fullmatch(label) else label.casefold()


def _beside(ledger: Ledger | None) -> Beside | None:
    return Beside(ledger.read, dict(sorted(ledger.faults.kinds.items()))) if ledger else None


def _counted(kinds: Mapping[str, int]) -> str:
    return ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items()))


def _lengths(tokens: Mapping[str, int], parts: Mapping[str, Part]) -> dict[Part, dict[int, int]]:
    counts: dict[Part, Counter[int]] = {part: Counter() for part in Part}
    for identity, part in parts.items():
        counts[part][tokens[identity]] += 1
    return {part: dict(sorted(each.items())) for part, each in counts.items()}


def _thoughts(ledger: Ledger, parts: Mapping[str, Part]) -> dict[Part, int]:
    return {part: sum(parts[each] is part for each in ledger.thoughtful & parts.keys()) for part in Part}


def _labels(ledger: Ledger, parts: Mapping[str, Part]) -> dict[str, dict[Part, int]]:
    counts: dict[str, Counter[Part]] = {label: Counter() for label in sorted(set(ledger.labels.values()))}
    for identity, part in parts.items():
        counts[ledger.labels[identity]][part] += 1
    return {label: dict(sorted(each.items())) for label, each in counts.items()}
