"""From rows to usable examples: validated, cleaned, in the right language, without private data.

Pure: one row after the other, nothing is kept but counts.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from finetune_api.dataset import Dataset, OnFinding, Task, TaskType
from finetune_jobs.base.wording import did_you_mean
from finetune_jobs.examples.shapes import Message, Shaped, texts
from finetune_jobs.examples.validation import Dropped, Example, Rules, json_problem
from finetune_jobs.modelling.control_tokens import NO_CONTROL_TOKENS, ControlTokens
from finetune_jobs.modelling.thinking import REASONING
from finetune_jobs.preparation.guard import CONTROL_TOKEN, Guard
from finetune_jobs.reading.rows import Fault, Row
from finetune_jobs.text.cleaning import Cleaner
from finetune_jobs.text.escapes import Find, finding_in_escaped, is_document, map_strings
from finetune_jobs.text.language import LanguageFilter
from finetune_jobs.text.pii.findings import Finding
from finetune_jobs.text.pii.masking import Pseudonyms, map_texts
from finetune_jobs.text.pii.recognition import Recognition
from finetune_jobs.text.placeholders import placeholders
from finetune_jobs.text.secrets import find_secrets

_SHORT: Final = 256
"""Characters of a text whose findings are remembered."""
_REMEMBERED: Final = 1 << 12
"""Texts of which that is so."""


class Intake:
    """Takes rows as the spec asks."""

    def __init__(
        self, dataset: Dataset, task: Task, ner: Path | None = None, controls: ControlTokens = NO_CONTROL_TOKENS
    ) -> None:
        """``ner``: as ``Recognition``; ``controls``: those of the base model. Raises StageError (SpecInvalid) as
        ``Recognition`` and ``LanguageFilter``, and for a control token in the instruction."""
        self.dataset, self.task = dataset, task
        self._rules = Rules(dataset.columns, task, dataset.group_by or "")
        self._instruction = dataset.instruction
        self._classes = task.type is TaskType.CLASSIFICATION
        self._records = task.type is TaskType.EXTRACTION
        self._cleaner = Cleaner(dataset.cleaning)
        self._labels = [self._cleaner.text(label).strip() for label in task.labels] if self._classes else []
        self._guard = Guard(controls, dataset.cleaning.control_tokens)
        self._guard.require_plain("spec.dataset.instruction", dataset.instruction)
        self.looks_for_names = ner is not None
        """Whether a language model looks for names and places."""
        self._languages = LanguageFilter(dataset.cleaning.languages)
        self._scans: list[tuple[OnFinding, Counter[str], Find, str]] = []
        self.secrets: Counter[str] = Counter()
        """Secrets by kind."""
        self.personal: Counter[str] = Counter()
        """Personal data by entity."""
        if dataset.cleaning.secrets is not OnFinding.OFF:
            self._scans.append((dataset.cleaning.secrets, self.secrets, _remembering(_secrets), "secret"))
        if dataset.pii.mode is not OnFinding.OFF:
            recognition = Recognition(dataset.pii, ner)
            self._scans.append((dataset.pii.mode, self.personal, _remembering(recognition.find), "personalData"))

    @property
    def escaped(self) -> Counter[str]:
        """Control tokens that were escaped."""
        return self._guard.escaped

    @property
    def languages(self) -> Counter[str]:
        """Rows seen by the language filter, dropped ones included, by code; empty if it did not run."""
        return self._languages.seen

    def take(self, row: Row) -> Example | Fault | Dropped:
        """The example in a row, what is wrong with it, or why it is dropped."""
        found = self._rules.example(row)
        if isinstance(found, Fault):
            return found
        if self._instruction and found.messages[0]["role"] == "system":
            problem = "start with a system message, but spec.dataset.instruction is also set: keep one of them"
            return Fault(row.line, "messages", "wrongOrder", problem)
        messages = [self._clean(message) for message in found.messages]
        empty = next((n for n, m in enumerate(messages) if not m["content"] and not m.get("tool_calls")), None)
        if empty is not None:
            return Fault(row.line, f"messages[{empty}]", "empty", "is empty after cleaning")
        label = Example(messages).label
        if self._labels and label not in self._labels:
            hint, where = did_you_mean(label, self._labels), self._rules.answer_field
            return Fault(row.line, where, "unknownLabel", "is not one of spec.task.labels", label, hint=hint)
        if problem := self._left_out(messages):
            return Dropped(problem)
        masked = self._scan(messages, found.tools)
        if isinstance(masked, Dropped):
            return masked
        plain = self._guard.plain(row, masked, with_label=not self._classes)
        if isinstance(plain, Fault):
            return plain
        system = [{"role": "system", "content": self._instruction}] if self._instruction else []
        unmasked = "" if plain.messages == messages else replace(found, messages=messages).said
        made = replace(found, messages=[*system, *plain.messages], tools=plain.tools, unmasked=unmasked)
        return self._broken_record(row, made) or made

    def _broken_record(self, row: Row, made: Example) -> Fault | None:
        """A pseudonym that replaces an unquoted number breaks the JSON."""
        if not self._records or not json_problem(made.label):
            return None
        problem = (
            "is no longer valid JSON after masking personal data and secrets: write such values as strings, or remove "
            "their kind from spec.dataset.pii.entities"
        )
        return Fault(row.line, self._rules.answer_field, "answerNotJson", problem)

    def text(self, text: str) -> str | Dropped:
        """A prompt, cleaned and masked (possibly empty), or why it is dropped. What is only reported is counted in the
        examples that are made of it."""
        masked = self._scan([{"role": "user", "content": self.unmasked(text)}], whole=True)
        if isinstance(masked, Dropped):
            return masked
        said = str(masked.messages[0]["content"])
        return Dropped(CONTROL_TOKEN) if self._guard.rejects(said) else said

    def unmasked(self, text: str) -> str:
        """A prompt, only cleaned."""
        return self._cleaned(text).strip()

    def _clean(self, message: Message) -> Message:
        """The message with cleaned texts; only an answer in free text (code) is indented."""
        text = self._cleaned(message["content"]).rstrip()
        indented = message["role"] == "assistant" and not (self._classes or self._records)
        cleaned = message | {"content": text if indented else text.lstrip()}
        thoughts = self._cleaner.text(cleaned.pop(REASONING, "")).strip()
        return cleaned | ({REASONING: thoughts} if thoughts else {})

    def _cleaned(self, text: str) -> str:
        """The text cleaned; what is JSON stays JSON: in it, a character or an entity may become one that ends a string
        or that no string may hold."""
        cleaned = self._cleaner.text(text)
        if cleaned == text or not is_document(text) or is_document(cleaned):
            return cleaned
        return map_strings(text, self._cleaner.text)

    def _left_out(self, messages: Sequence[Message]) -> str:
        last = messages[-1]
        if not self._classes and not last.get("tool_calls") and (problem := self._cleaner.problem(last["content"])):
            return problem
        said = " ".join(each for m in messages if m["role"] in ("user", "assistant") for each in texts(m))
        return "" if self._languages.allows(said) else "otherLanguage"

    def _scan(
        self, messages: list[Message], tools: Sequence[dict[str, Any]] = (), *, whole: bool = False
    ) -> Shaped | Dropped:
        """The conversation without what the scans mask. The label of a classification is the user's own word."""
        found = Shaped(messages, list(tools))
        label = len(messages) - 1 if self._classes and not whole else None
        taken = frozenset(placeholders([*messages, *tools]))
        for mode, counts, find, kind in self._scans:
            scan = _Scan(find, Pseudonyms(taken), Counter())
            masked = Shaped(
                [scan.message(message, is_label=n == label) for n, message in enumerate(found.messages)],
                [scan.tool(tool) for tool in found.tools],
            )
            if not scan.counts:
                continue
            if mode is not OnFinding.REPORT or not whole:
                counts.update(scan.counts)
            if mode is OnFinding.DROP:
                return Dropped(kind)
            if mode is OnFinding.MASK:
                found = masked
        return found


@dataclass
class _Scan:
    """One scan of one conversation."""

    find: Find
    pseudonyms: Pseudonyms
    counts: Counter[str]
    before: str = ""

    def message(self, message: Message, *, is_label: bool) -> Message:
        """The message with findings replaced, in all that it holds. Of a label that only calls tools nothing is."""
        changed = dict(message)
        if REASONING in message:
            changed[REASONING] = self.text(message[REASONING], self.before)
            self.before = message[REASONING]
        if not is_label:
            changed["content"] = self.text(message["content"], self.before)
        self.before = message["content"]
        if is_label and not message["content"]:
            return changed
        for part in ("name", "tool_call_id", "tool_calls"):
            if part in message:
                changed[part] = map_texts(message[part], self.text)
        return changed

    def tool(self, tool: dict[str, Any]) -> dict[str, Any]:
        """What may be called, with findings replaced; the version of JSON Schema that describes it is a URL of none."""
        changed: dict[str, Any] = map_texts(tool, lambda text, key: text if key == "$schema" else self.text(text, key))
        return changed

    def text(self, text: str, before: str) -> str:
        """A text with findings replaced."""
        findings = self.find(text, before)
        if not findings:
            return text
        self.counts.update(finding.entity for finding in findings)
        return self.pseudonyms.mask(text, findings)


def _remembering(find: Find) -> Find:
    """As ``find``, which is not asked again for short texts: names and tools are the same in many rows."""
    anywhere = finding_in_escaped(find)
    known = lru_cache(maxsize=_REMEMBERED)(anywhere)
    return lambda text, before: known(text, before) if len(text) + len(before) <= _SHORT else anywhere(text, before)


def _secrets(text: str, _before: str) -> list[Finding]:
    return find_secrets(text)
