"""Stage prepare: source files in, a validated data set without duplicates out, divided for training and test.

Writes ``train.jsonl``, ``validation.jsonl`` and ``test.jsonl`` (a conversation a line: ``{"messages": [...]}``),
``labels.json`` (all labels, sorted) and ``report.json`` (what became of the rows).
"""

import json
from collections import Counter, defaultdict
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from finetune_api.dataset import TaskType
from finetune_api.reasons import Reason
from finetune_api.stages import PrepareParams, Stage
from finetune_jobs.dataset.readers import Fault, read_rows
from finetune_jobs.dataset.sources import SourceFile, find_sources, source_digest
from finetune_jobs.dataset.split import Part, assign
from finetune_jobs.dataset.validation import Example, Faults, Rules, shorten
from finetune_jobs.errors import StageError, need
from finetune_jobs.runner import Context, Made, run_stage

MIN_EXAMPLES: Final = 10
"""Fewest examples of any part: below it neither a loss curve nor a score says anything."""


@dataclass
class Rows:
    """What was read, and the label of every prompt that stays (memory: a few hundred bytes an example)."""

    read: int = 0
    faults: Faults = field(default_factory=Faults)
    labels: dict[str, str] = field(default_factory=dict)
    copies: Counter[str] = field(default_factory=Counter)
    """Rows by prompt."""
    _conflicting: set[str] = field(default_factory=set)

    def take(self, source: str, line: int, example: Example) -> bool:
        """Count a valid example; True when it is the first of its prompt and may stay.

        Equal prompts with different labels teach nothing: all of them are invalid, the first one too.
        """
        identity, label = example.identity, example.label
        if identity in self._conflicting:
            self.faults.add(source, _conflict(line, label))
        elif (known := self.labels.setdefault(identity, label)) != label:
            self._conflicting.add(identity)
            del self.labels[identity]
            self.faults.add(source, _conflict(line, label, known), count=1 + self.copies.pop(identity))
        else:
            self.copies[identity] += 1
            return self.copies[identity] == 1
        return False

    @property
    def duplicates(self) -> int:
        """Rows left out because an earlier one is the same."""
        return self.copies.total() - len(self.copies)


def prepare(context: Context) -> Made:
    """The stage. Raises StageError: DatasetInvalid, DatasetTooSmall, DatasetNotFound, as Store."""
    params = need(context.input.params.prepare, "params.prepare")
    files = _download(context, params)
    spool = context.scratch / "examples.jsonl"
    rows = _collect(context, params, files, spool)
    _judge(rows, params)
    parts = assign(rows.labels, params.split)
    sizes = Counter(parts.values())
    _require_enough(sizes, rows)
    folder = context.scratch / "dataset"
    folder.mkdir()
    _write(folder, spool, parts)
    _write_json(folder / "labels.json", sorted(set(rows.labels.values())))
    _write_json(folder / "report.json", _report(rows, parts))
    return Made(folder=folder, scalars=_scalars(rows, sizes), message=_message(rows, sizes))


def _download(context: Context, params: PrepareParams) -> list[tuple[SourceFile, Path]]:
    """Local copies of the sources' files, exactly as they were when the run began."""
    files = find_sources(context.store, params.sources)
    copies = []
    for index, file in enumerate(files):
        path = context.scratch / f"source-{index}"
        context.progress.report(0.3 * index / len(files), f"downloading {file.uri}")
        file.copy_to(path)
        copies.append((file, path))
    expected = context.input.upstream.source or source_digest(files)
    if source_digest(find_sources(context.store, params.sources)) != expected:
        some = ", ".join(file.uri for file in files[:3])
        raise StageError(
            Reason.DATASET_NOT_FOUND,
            f"The version of {some}{', …' if files[3:] else ''} that this run began with is gone: a file was "
            "overwritten meanwhile. Set spec.rerun to a new value to use the new version.",
        )
    return copies


def _collect(context: Context, params: PrepareParams, files: list[tuple[SourceFile, Path]], spool: Path) -> Rows:
    """Read and validate every row; the first valid example of each prompt goes to ``spool``."""
    rules = Rules(params.columns, params.instruction, params.task)
    columns = params.columns.names if params.columns else []
    rows = Rows()
    with spool.open("w", encoding="utf-8") as out:
        for index, (file, path) in enumerate(files):
            begin, share = 0.3 + 0.5 * index / len(files), 0.5 / len(files)
            report = context.progress.part(begin, begin + share, f"reading {file.uri}")
            for row in read_rows(path, file.uri, file.format, columns, report=report, may_be_empty=file.one_of_many):
                rows.read += 1
                example = row if isinstance(row, Fault) else rules.example(row)
                if isinstance(example, Fault):
                    rows.faults.add(file.uri, example)
                elif rows.take(file.uri, row.line, example):
                    out.write(json.dumps({"identity": example.identity, "messages": example.messages}) + "\n")
    return rows


def _judge(rows: Rows, params: PrepareParams) -> None:
    """Raises StageError (DatasetInvalid) for too many invalid rows, and for labels from which nothing can be learnt."""
    wrong = rows.faults.total
    if wrong * 100 > rows.read * params.max_invalid_percent:
        raise StageError(
            Reason.DATASET_INVALID,
            f"{wrong} of {rows.read} rows are invalid, {params.max_invalid_percent} % are allowed: "
            f"{shorten(rows.faults.sentences(), 800)}.",
        )
    if params.task.type is not TaskType.CLASSIFICATION:
        return
    labels, examples = sorted(set(rows.labels.values())), len(rows.labels)
    if len(labels) == 1:
        raise StageError(
            Reason.DATASET_INVALID,
            f"All {examples} examples have the label {shorten(labels[0])!r}: a classification needs two labels at "
            "least. Check spec.dataset.columns.label.",
        )
    if examples >= len(Part) * MIN_EXAMPLES and len(labels) * 2 > examples:
        some = ", ".join(repr(shorten(label)) for label in labels[:3])
        raise StageError(
            Reason.DATASET_INVALID,
            f"{examples} examples have {len(labels)} different labels ({some}, …): nothing can be learnt from labels "
            "that hardly repeat. Check spec.dataset.columns.label.",
        )


def _require_enough(sizes: Counter[Part], rows: Rows) -> None:
    small = [f"{sizes[part]} for {part}" for part in Part if sizes[part] < MIN_EXAMPLES]
    if small:
        raise StageError(
            Reason.DATASET_TOO_SMALL,
            f"{', '.join(small)}: each part needs {MIN_EXAMPLES} examples at least. Of {rows.read} rows, "
            f"{rows.faults.total} were invalid and {rows.duplicates} duplicates; {len(rows.labels)} examples are left.",
        )


def _warnings(rows: Rows) -> list[str]:
    """What is allowed, but seldom meant."""
    alike: dict[str, list[str]] = defaultdict(list)
    for label in sorted(set(rows.labels.values())):
        alike[label.casefold()].append(label)
    return [f"Labels differ only in letter case: {', '.join(map(repr, some))}." for some in alike.values() if some[1:]]


def _write(folder: Path, spool: Path, parts: dict[str, Part]) -> None:
    """The three files, each in the order of the sources."""
    with ExitStack() as stack:
        files = {part: stack.enter_context((folder / f"{part}.jsonl").open("w", encoding="utf-8")) for part in Part}
        for line in stack.enter_context(spool.open(encoding="utf-8")):
            example = json.loads(line)
            part = parts.get(example["identity"])
            if part is not None:  # a prompt whose labels turned out to conflict has no part
                files[part].write(json.dumps({"messages": example["messages"]}, ensure_ascii=False) + "\n")


def _report(rows: Rows, parts: dict[str, Part]) -> dict[str, Any]:
    sizes = Counter(parts.values())
    by_label: dict[str, Counter[str]] = defaultdict(Counter)
    for identity, part in parts.items():
        by_label[rows.labels[identity]][part.value] += 1
    return {
        "rows": {"read": rows.read, "invalid": rows.faults.total, "duplicates": rows.duplicates}
        | {part.value: sizes[part] for part in Part},
        "filters": dict(sorted(rows.faults.kinds.items())),
        "labels": {label: dict(sorted(counts.items())) for label, counts in sorted(by_label.items())},
        "errors": rows.faults.stored(),
        "warnings": _warnings(rows),
    }


def _scalars(rows: Rows, sizes: Counter[Part]) -> dict[str, str]:
    counts = {
        "rowsRead": rows.read,
        "rowsInvalid": rows.faults.total,
        "rowsDuplicates": rows.duplicates,
        "rowsTrain": sizes[Part.TRAIN],
        "rowsValidation": sizes[Part.VALIDATION],
        "rowsTest": sizes[Part.TEST],
        "labels": len(set(rows.labels.values())),
    }
    return {name: str(count) for name, count in counts.items()}


def _message(rows: Rows, sizes: Counter[Part]) -> str:
    text = (
        f"{rows.read} rows gave {sizes[Part.TRAIN]} examples for training, {sizes[Part.VALIDATION]} for validation and "
        f"{sizes[Part.TEST]} for the test."
    )
    if rows.duplicates:
        text += f" {rows.duplicates} duplicates were left out."
    if rows.faults.total:
        kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(rows.faults.kinds.items()))
        text += f" {rows.faults.total} invalid rows were left out ({kinds}): {shorten(rows.faults.sentences(), 500)}."
    return " ".join([text, *_warnings(rows)])


def _conflict(line: int, label: str, other: str = "") -> Fault:
    problem = f"is not the label of an equal row before ({shorten(other)!r})" if other else "is one of several labels"
    return Fault(line, "label", "conflictingLabels", f"{problem}: equal inputs need one label", label)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def main() -> None:
    """``python -m finetune_jobs.prepare``"""
    run_stage(Stage.PREPARE, prepare)


if __name__ == "__main__":
    main()
