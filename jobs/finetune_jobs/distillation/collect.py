"""The first pass of a distillation: rows are prompts, and what a teacher answers to them becomes the examples."""

from collections import Counter
from collections.abc import Iterator
from typing import Final

import rensa

from finetune_api.dataset import AcrossParts, TaskType
from finetune_api.distillation import Distillation
from finetune_api.stages import PrepareParams
from finetune_jobs.chat_api.answer_collector import AnswerSource
from finetune_jobs.chat_api.asked_time import AskedTime
from finetune_jobs.chat_api.chat_model import ChatModel
from finetune_jobs.chat_api.journal import Journal
from finetune_jobs.distillation.distil import Distilled, TeacherSession, distil
from finetune_jobs.distillation.prompts import Prompt, prompt_column, read_prompts, terms_of
from finetune_jobs.examples.ledger import Ledger, Place
from finetune_jobs.examples.parts import Part
from finetune_jobs.examples.validation import Dropped, Example
from finetune_jobs.preparation.collect import Collector, Copy, provided_part
from finetune_jobs.readiness.preparation_report import require_valid
from finetune_jobs.reading.readers import read_rows
from finetune_jobs.reading.rows import Fault, Row
from finetune_jobs.reading.sources import SourceFile
from finetune_jobs.runtime.runner import Context
from finetune_jobs.splitting import leakage
from finetune_jobs.splitting.near_duplicates import shingles

_VALUES: Final = 128
_BANDS: Final = 16
_SEED: Final = 0xA15


def collect_distilled(
    context: Context, params: PrepareParams, config: Distillation, copies: list[Copy], collector: Collector
) -> Distilled:
    """Have the rows of ``copies`` answered and give ``collector`` the conversations.

    Prompts are cleaned and masked before they leave for the teacher. Rows without a prompt count as invalid; prompts
    without a good answer are left out and counted. Of a free text all good answers to a prompt are learned; where only
    one can be right, answers that differ contradict each other (``Ledger.is_new``). Raises StageError and StoppedError
    as ``distil``, and StageError (DatasetInvalid) before the first prompt is asked, as ``_prompts``.
    """
    ledger, given, files = collector.made.ledger, Ledger(params.task.type), dict[str, SourceFile]()
    for copy in copies:
        files.setdefault(copy.file.uri, copy.file)  # the first one's prompts are those that stay
    several = config.samples_per_prompt > 1 and params.task.type is TaskType.TEXT
    taken: Counter[tuple[str, int]] = Counter()

    def take(uri: str, row: Row | Fault) -> None:
        if isinstance(row, Fault):
            ledger.read += 1
            ledger.dropped[row.kind] += 1
            return
        collector.take(files[uri], row, taken[uri, row.line] if several else None)
        taken[uri, row.line] += several

    prompts = _prompts(copies, config, params, collector, given)
    near = NearAnswers(params.dataset.duplicates.sought_percent)
    terms = terms_of(config)
    place = (context.store, context.input.run, "distillation", terms.recipe)
    asked = AskedTime.of(*place) if config.deadline_minutes else None
    source = AnswerSource(terms, ChatModel.from_environment(terms), Journal.of(*place), asked=asked)
    session = TeacherSession(config, source, params.task)
    report = context.progress.part(0.2, 0.75, "collecting the teacher's answers")
    made = distil(prompts, session, take, report=report, stopping=context.stopping, near=near)
    ledger.faults.merge(given.faults)
    ledger.dropped.update(given.dropped)
    ledger.across += given.across
    ledger.dropped.update({"promptNotAsked": made.unasked} if made.unasked else {})
    ledger.duplicates += made.repeated
    ledger.read += given.faults.total + given.dropped.total() + made.unasked + made.repeated
    return made


def _prompts(
    copies: list[Copy], config: Distillation, params: PrepareParams, collector: Collector, given: Ledger
) -> Iterator[Prompt]:
    """The prompts of all files; ``given`` counts the rows. One that holds a benchmark's text is only asked for tests:
    its answer would be paid and left out, or learned where masking has hidden that text.

    What is wrong with them is known behind the last one, when none is asked yet. Raises StageError (DatasetInvalid) for
    too many invalid rows, and for prompts that the sources provide for training and for the test: once they are paid,
    ``Ledger.train_test_conflicts`` would say so.
    """
    group_by, intake = params.dataset.group_by or "", collector.made.intake

    def clean(text: str) -> str | Dropped:
        return Dropped("inBenchmark") if collector.in_benchmark(intake.unmasked(text)) else intake.text(text)

    tested: dict[str, str] = {}
    conflicts: list[tuple[str, str]] = []
    for copy in copies:
        file, part = copy.file, provided_part(copy.file.origin)
        rows = read_rows(
            copy.path,
            file.uri,
            file.format,
            [prompt_column(config), *([group_by] if group_by else [])],
            may_be_empty=file.one_of_many,
        )
        take = intake.text if part is Part.TEST else clean
        for prompt in read_prompts(file.uri, rows, config, given, clean=take, group_by=group_by):
            if part is Part.TEST:
                tested.setdefault(_identity(prompt), str(Place(file.origin.number, file.uri, prompt.line)))
            elif part is Part.TRAIN and tested and (test := tested.get(_identity(prompt), "")):
                conflicts.append((test, str(Place(file.origin.number, file.uri, prompt.line))))
                continue
            yield prompt
    require_valid(given, params.dataset)
    if conflicts and params.dataset.duplicates.across_parts is AcrossParts.FAIL:
        raise leakage.refusal(conflicts)
    given.leave_out_of_training(conflicts)


def _identity(prompt: Prompt) -> str:
    """As an example has it, whatever the answer."""
    return Example([{"role": "user", "content": prompt.text}, {"role": "assistant", "content": ""}]).identity


class NearAnswers:
    """Tells whether a text nearly duplicates an earlier answer. Memory: about 1 kB a text."""

    def __init__(self, near_percent: int | None) -> None:
        """``near_percent``: as spec.dataset.duplicates.nearPercent; None: nothing is near to anything."""
        self._threshold = (near_percent or 0) / 100
        self._index = rensa.RMinHashLSH(threshold=max(0.01, self._threshold), num_perm=_VALUES, num_bands=_BANDS)
        self._known: list[rensa.RMinHash] = []

    def __call__(self, text: str) -> bool:
        """Whether it is; if not, it is one of the known ones from now on."""
        if not self._threshold:
            return False
        found = rensa.RMinHash(num_perm=_VALUES, seed=_SEED)
        found.update(shingles(text))
        if any(self._known[number].jaccard(found) >= self._threshold for number in self._index.query(found)):
            return True
        self._index.insert(len(self._known), found)
        self._known.append(found)
        return False
