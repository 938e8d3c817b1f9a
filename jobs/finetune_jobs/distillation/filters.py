"""Which answers may become examples: complete, of the right form and length, no refusals, no repetitions (pure)."""

import hashlib
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from finetune_api.dataset import Task, TaskType
from finetune_api.distillation import AnswerDuplicates, Distillation, Refusals
from finetune_jobs.base.strict_json import json_value
from finetune_jobs.chat_api.answers import CUT, FILTERED, REFUSED, ModelAnswer, without_fence
from finetune_jobs.distillation.prompts import Prompt
from finetune_jobs.examples.shapes import shape
from finetune_jobs.reading.rows import Fault, Row
from finetune_jobs.text.schemas import schema_check

Near = Callable[[str], bool]
"""Whether an answer is nearly the same as one that it was asked about before."""

_SCHEMA: Final = "spec.dataset.distillation.answerSchema"
_ANY: Final = Task(type=TaskType.TEXT)
ANSWER: Final = "answer"
"""Field of the faults of answers."""

_CANNOT: Final = r"(?:i|we) ?(?:can ?not|can't|won't|will not|(?:am|'m|are|'re) (?:not able|unable|not allowed) to)"
_HELP: Final = r"(?:help|assist|comply|fulfil|do (?:that|this)|answer (?:that|this)|discuss|engage|continue)\b"
_REFUSAL: Final = re.compile(
    "|".join(
        (
            rf"(?:i(?:'m| am) )?(?:very |so |really )?sorry\b[^.!?]{{0,60}}?\b{_CANNOT}",
            rf"(?:i )?apologi[sz]e\b[^.!?]{{0,60}}?\b{_CANNOT}",
            rf"(?:unfortunately,? )?{_CANNOT} {_HELP}",
            r"as an ai\b",
            r"i(?:'m| am) (?:just |only )?an ai\b",
        )
    )
)
"""Beginnings by which chat models refuse. English; other languages need a look at the answers."""


class AnswerRules:
    """What the spec demands of an answer. Remembers answers, so each must be put to it once and in order."""

    def __init__(self, config: Distillation, near: Near | None = None, task: Task = _ANY) -> None:
        """``task``: what the answers are to be fit for. Raises StageError (SpecInvalid) for a schema that is none."""
        self._config = config
        self._records = task.type is TaskType.EXTRACTION
        self._labels = frozenset(task.labels) if task.type is TaskType.CLASSIFICATION else frozenset[str]()
        self._near = near
        self._schema_problem = schema_check(config.answer_schema, _SCHEMA) if config.answer_schema else None
        self._seen: set[bytes] = set()

    def judge(self, answer: ModelAnswer, prompt: Prompt) -> str | Fault:
        """The text to learn, or why there is none (never with the text, which may hold personal data)."""
        text = self._complete(answer) or self._readable(answer, prompt.text)
        if isinstance(text, str) and (self._schema_problem or self._records):
            text = self._json(text)
        if isinstance(text, str) and self._labels and text not in self._labels:
            text = _fault("unknownLabel", "is not one of spec.task.labels")
        if isinstance(text, str):
            text = self._wrong_length(text) or self._repetition(text, prompt.text) or text
        return replace(text, line=prompt.line, field=ANSWER) if isinstance(text, Fault) else text

    def _complete(self, answer: ModelAnswer) -> Fault | None:
        if answer.finish == CUT:
            return _fault("truncated", f"was cut off at {self._config.max_answer_tokens} tokens")
        if answer.finish == FILTERED:
            return _fault("contentFilter", "was removed by the teacher's content filter")
        if answer.finish == REFUSED or (self._config.refusals is Refusals.DROP and is_refusal(answer.text)):
            return _fault("refusal", "is a refusal")
        return None

    def _readable(self, answer: ModelAnswer, prompt: str) -> str | Fault:
        """The answer as any example's: Unicode NFC, no white space around it, no NUL, not empty."""
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer.text}]
        shaped = shape(Row(0, {"messages": turns}), None)
        return shaped if isinstance(shaped, Fault) else str(shaped.messages[-1]["content"]).strip()

    def _json(self, text: str) -> str | Fault:
        """The JSON of an answer."""
        bare = without_fence(text)
        try:
            value = json_value(bare)
        except ValueError:
            wanted = "answerSchema" if self._schema_problem else "spec.task.type Extraction"
            return _fault("answerNotJson", f"is not valid JSON, which {wanted} requires")
        problem = self._schema_problem(value) if self._schema_problem else ""
        return _fault("answerSchema", f"does not match answerSchema: {problem}") if problem else bare

    def _wrong_length(self, text: str) -> Fault | None:
        words, least, most = len(text.split()), self._config.min_answer_words, self._config.max_answer_words
        if words < least:
            return _fault("tooShort", f"has {words} words, minAnswerWords is {least}")
        if most is not None and words > most:
            return _fault("tooLong", f"has {words} words, maxAnswerWords is {most}")
        return None

    def _repetition(self, text: str, prompt: str) -> Fault | None:
        mode = self._config.duplicates
        if mode is AnswerDuplicates.KEEP:
            return None
        scope = prompt if mode is AnswerDuplicates.WITHIN_PROMPT else ""
        mark = hashlib.sha256(f"{scope}\0{' '.join(text.casefold().split())}".encode()).digest()
        if mark in self._seen:
            return _fault("repeatedAnswer", "duplicates an earlier answer")
        self._seen.add(mark)
        if mode is AnswerDuplicates.DROP and self._near and self._near(text):
            return _fault("nearlyRepeatedAnswer", "nearly duplicates an earlier answer")
        return None


def is_refusal(text: str) -> bool:
    """Whether an answer starts like a refusal."""
    begin = " ".join(text[:200].replace("’", "'").casefold().split())
    return _REFUSAL.match(begin) is not None


def _fault(kind: str, problem: str) -> Fault:
    return Fault(0, ANSWER, kind, problem)
