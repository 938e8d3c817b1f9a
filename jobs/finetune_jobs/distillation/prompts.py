"""From rows to prompts, and from prompts to questions: each is asked once, and known by a hash (pure)."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from finetune_api.dataset import Columns
from finetune_api.distillation import Distillation
from finetune_api.hashing import digest
from finetune_jobs.dataset.rows import Fault, Row
from finetune_jobs.dataset.shapes import fill, shape
from finetune_jobs.dataset.validation import Faults

PROMPT: Final = "prompt"
DOCUMENT: Final = "document"


Clean = Callable[[str], str]
"""Takes out of a text what the teacher must not see; empty: the row is left out."""


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


def prompt_column(config: Distillation) -> str:
    """The column that every row of the sources must have."""
    return config.column or (DOCUMENT if config.question_template else PROMPT)


def read_prompts(
    source: str,
    rows: Iterable[Row | Fault],
    config: Distillation,
    faults: Faults,
    *,
    clean: Clean | None = None,
    keep: Sequence[str] = (),
) -> Iterator[Prompt]:
    """The prompts of a source's rows; a row that holds none goes to ``faults``.

    ``clean`` sees every text before it leaves for the teacher; ``keep`` names other columns for ``Prompt.kept``.
    """
    name, template = prompt_column(config), config.question_template
    for row in rows:
        if isinstance(row, Fault):
            faults.add(source, row)
            continue
        text = _text(row, name, clean)
        if isinstance(text, Fault):
            faults.add(source, text)
        else:
            kept = {column: row.fields[column] for column in keep if column in row.fields}
            yield Prompt(fill(template, {DOCUMENT: text}) if template else text, source, row.line, kept)


def _text(row: Row, name: str, clean: Clean | None) -> str | Fault:
    columns = Columns(input=name, label=name)  # a prompt has no label yet; it must be a text all the same
    shaped = shape(row, columns)
    if isinstance(shaped, Fault):
        return shaped
    text = str(shaped.messages[0]["content"])
    cleaned = clean(text) if clean else text
    return cleaned or Fault(row.line, name, "unfit", "may not leave for the teacher, or is empty after cleaning")


def recipe(config: Distillation) -> str:
    """Identity of all that shapes an answer besides its prompt. Filters, speed and money do not."""
    return digest(
        {
            "url": config.teacher.url,
            "model": config.teacher.model,
            "instruction": config.instruction,
            "temperature": config.temperature,
            "maxAnswerTokens": config.max_answer_tokens,
        }
    )


def questions(prompt: Prompt, config: Distillation, made_with: str) -> list[Question]:
    """The questions of a prompt; ``made_with`` is the ``recipe``."""
    return [Question(prompt, digest([made_with, prompt.text, n])) for n in range(config.samples_per_prompt)]
