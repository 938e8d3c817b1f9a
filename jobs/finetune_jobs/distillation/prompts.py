"""From rows to prompts, and from prompts to questions: each is asked once, and known by a hash (pure)."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from finetune_api.dataset import Columns, Task, TaskType
from finetune_api.distillation import Distillation
from finetune_api.hashing import digest
from finetune_api.meta import TEACHER_KEY_VARIABLE
from finetune_jobs.chat_api.terms import Terms, Turns
from finetune_jobs.examples.ledger import Ledger
from finetune_jobs.examples.shapes import fill
from finetune_jobs.examples.validation import Dropped, Rules
from finetune_jobs.reading.rows import Fault, Row

PROMPT: Final = "prompt"
DOCUMENT: Final = "document"


Clean = Callable[[str], str | Dropped]
"""Removes from a text what the teacher must not see, or says why the row is dropped."""


@dataclass(frozen=True)
class Prompt:
    """What the teacher is asked, and the row that it comes from."""

    text: str
    source: str
    """URI of the file."""
    line: int
    """As ``Row.line``."""
    kept: dict[str, Any] = field(default_factory=dict)
    """Other columns of the row that the example must have too, such as the one of spec.dataset.groupBy."""


@dataclass(frozen=True)
class Question:
    """One answer to ask for: a prompt has as many as ``samplesPerPrompt`` says."""

    prompt: Prompt
    identity: str
    """Equal when prompt, number and all that shapes the answer are equal: an answer to it may be used again."""

    @property
    def turns(self) -> Turns:
        """The conversation that the teacher answers."""
        return [{"role": "user", "content": self.prompt.text}]


def prompt_column(config: Distillation) -> str:
    """The column that every row of the sources must have."""
    return config.column or (DOCUMENT if config.question_template else PROMPT)


def read_prompts(
    source: str,
    rows: Iterable[Row | Fault],
    config: Distillation,
    ledger: Ledger,
    *,
    clean: Clean | None = None,
    group_by: str = "",
) -> Iterator[Prompt]:
    """The prompts of a source's rows; ``ledger`` counts the rows, those that hold none, and those left out.

    ``clean`` sees every text before it leaves for the teacher; ``group_by`` is the column that names a row's group, for
    ``Prompt.kept``: empty, if there are no groups.
    """
    name = prompt_column(config)
    columns = Columns(input=name, label=name)  # a prompt has no label yet; it must be a text all the same
    rules = Rules(columns, Task(type=TaskType.TEXT), group_by)
    for row in rows:
        made = row if isinstance(row, Fault) else _prompt(source, row, config, clean, rules)
        ledger.read += made.rows if isinstance(made, Fault) else 1
        if isinstance(made, Fault):
            ledger.faults.add(source, made)
        elif isinstance(made, Dropped):
            ledger.dropped[made.kind] += 1
        else:
            yield made


def _prompt(source: str, row: Row, config: Distillation, clean: Clean | None, rules: Rules) -> Prompt | Fault | Dropped:
    name, template = prompt_column(config), config.question_template
    found = rules.example(row)
    if isinstance(found, Fault):
        return found
    text = str(found.messages[0]["content"])
    cleaned = clean(text) if clean else text
    if isinstance(cleaned, Dropped):
        return cleaned
    if not cleaned:
        return Fault(row.line, name, "empty", "is empty after cleaning")
    kept = {rules.group_by: row.fields[rules.group_by]} if rules.group_by else {}
    return Prompt(fill(template, {DOCUMENT: cleaned}) if template else cleaned, source, row.line, kept)


def terms_of(config: Distillation) -> Terms:
    """How the teacher is asked."""
    return Terms(
        server=config.teacher,
        role="teacher",
        place="spec.dataset.distillation",
        key_variable=TEACHER_KEY_VARIABLE,
        max_answer_tokens=config.max_answer_tokens,
        instruction=config.instruction,
        temperature=config.temperature,
        concurrency=config.concurrency,
        requests_per_minute=config.requests_per_minute,
        deadline_minutes=config.deadline_minutes,
        prices=config.prices,
        max_cost=config.max_cost,
    )


def questions(prompt: Prompt, config: Distillation, made_with: str) -> list[Question]:
    """The questions of a prompt; ``made_with`` is the ``Terms.recipe``."""
    return [Question(prompt, digest([made_with, prompt.text, n])) for n in range(config.samples_per_prompt)]
