"""From rows to prompts, and from prompts to questions: each is asked once, and known by a hash (pure)."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from finetune_api.dataset import Columns
from finetune_api.distillation import Distillation
from finetune_api.hashing import digest
from finetune_jobs.dataset.readers import Fault, Row
from finetune_jobs.dataset.shapes import fill, shape
from finetune_jobs.dataset.validation import Faults

PROMPT: Final = "prompt"
DOCUMENT: Final = "document"


@dataclass(frozen=True)
class Prompt:
    """What the teacher is asked, and the row that it comes from."""

    text: str
    source: str
    """URI of the file."""
    line: int


@dataclass(frozen=True)
class Question:
    """One answer to ask for: a prompt has as many as ``samplesPerPrompt`` says."""

    prompt: Prompt
    identity: str
    """Equal when prompt, number and all that shapes the answer are equal: an answer to it may be used again."""


def read_prompts(
    source: str, rows: Iterable[Row | Fault], config: Distillation, faults: Faults, column: str = ""
) -> Iterator[Prompt]:
    """The prompts of a source's rows; a row that holds none goes to ``faults``.

    ``column`` is the one of spec.dataset.columns.input; without it the rows hold ``prompt``, or ``document`` where
    there is a template.
    """
    template = config.question_template
    name = column or (DOCUMENT if template else PROMPT)
    columns = Columns(input=name, label=name)  # a prompt has no label yet; it must be a text all the same
    for row in rows:
        shaped = row if isinstance(row, Fault) else shape(row, columns)
        if isinstance(shaped, Fault):
            faults.add(source, shaped)
        else:
            text = shaped.messages[0]["content"]
            yield Prompt(fill(template, {DOCUMENT: text}) if template else text, source, row.line)


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
