"""From a row to an example, and everything that may be wrong with one (pure)."""

import hashlib
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

from finetune_api.dataset import Columns, Task, TaskType
from finetune_api.hashing import canonical_json
from finetune_jobs.base.strict_json import json_value
from finetune_jobs.base.wording import shorten
from finetune_jobs.examples.shapes import Message, kind_of, shape, strings, text_or_fault, texts
from finetune_jobs.modelling.thinking import REASONING
from finetune_jobs.reading.rows import Fault, Row
from finetune_jobs.text.redaction import redacted

_SHOWN: Final = 5
_STORED: Final = 100
_LOOKED_AT: Final = 500
"""Characters of a value in which personal data and secrets are looked for: more than are shown."""


@dataclass(frozen=True)
class Example:
    """A conversation that ends with the answer to learn."""

    messages: list[Message]
    tools: list[dict[str, Any]] = field(default_factory=list)
    """What the conversation may call."""
    group: str = ""
    """Examples of one group stay together; empty: none."""
    sample: int = 0
    """Number of the answer, where a prompt has several that are all learned."""
    unmasked: str = field(default="", compare=False, repr=False)
    """``said`` before personal data and secrets were masked, if they were; only to be compared, never written."""

    @property
    def has_thoughts(self) -> bool:
        """Whether any answer has thoughts before it."""
        return any(REASONING in message for message in self.messages)

    @property
    def label(self) -> str:
        """The answer; of one that only calls tools, the calls as JSON."""
        last = self.messages[-1]
        return last["content"] or canonical_json(last["tool_calls"]).decode()

    @property
    def said(self) -> str:
        """What is said after a system message: by user and assistant, with thoughts and what tools are called with, and
        what these answer."""
        spoken = [message for message in self.messages if message["role"] != "system"]
        called = [[call["function"]["arguments"] for call in message.get("tool_calls", ())] for message in spoken]
        said = zip(map(texts, spoken), called, strict=True)
        return "\n".join(each for plain, arguments in said for each in (*plain, *strings(arguments)))

    @cached_property
    def identity(self) -> str:
        """Equal for prompts that people would call the same: Unicode NFC, white space and letter case do not count.
        Answers that have a ``sample`` are examples of their own."""
        parts = [f"{m['role']}\0{_plain(m['content'])}{_calls(m)}{_thoughts(m)}" for m in self.messages[:-1]]
        parts += [_calls({"tool_calls": self.tools})] if self.tools else []
        parts += [f"answer\0{self.sample}"] if self.sample else []
        return hashlib.sha256("\0\0".join(parts).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Dropped:
    """A valid row that a rule leaves out."""

    kind: str


@dataclass(frozen=True)
class Rules:
    """What the spec demands of a row."""

    columns: Columns | None = None
    task: Task = field(default_factory=Task)
    group_by: str = ""

    @property
    def answer_field(self) -> str:
        """Where people find the answer of a row."""
        return self.columns.label if self.columns else "messages"

    def example(self, row: Row) -> Example | Fault:
        """The example in a row, or what is wrong with it."""
        made = shape(row, self.columns)
        if isinstance(made, Fault):
            return made
        group = self._group(row)
        if isinstance(group, Fault):
            return group
        example = Example([self._trimmed(message) for message in made.messages], made.tools, group)
        return self._answer_fault(row, example) or example

    def _trimmed(self, message: Message) -> Message:
        """White space before an answer means something in free text alone: a label or a record has none."""
        return message if self.task.type is TaskType.TEXT else message | {"content": message["content"].strip()}

    def _group(self, row: Row) -> str | Fault:
        if not self.group_by:
            return ""
        value = row.fields.get(self.group_by)
        if value is None or value == "" or value != value:  # NaN, as tables have it where a value is missing
            return Fault(row.line, self.group_by, "missingGroup", "is empty, but spec.dataset.groupBy uses this column")
        if isinstance(value, dict | list | bytes):
            problem = f"is {kind_of(value)}, but spec.dataset.groupBy needs a single value"
            return Fault(row.line, self.group_by, "notText", problem)
        is_whole = isinstance(value, float) and value.is_integer()  # as tables have whole numbers beside missing ones
        return text_or_fault(row.line, self.group_by, str(int(value) if is_whole else value))

    def _answer_fault(self, row: Row, example: Example) -> Fault | None:
        if self.task.type is TaskType.EXTRACTION and (problem := json_problem(example.label)):
            return Fault(row.line, self.answer_field, "answerNotJson", problem, example.label)
        return None


@dataclass
class Faults:
    """Everything wrong that was found: counted by kind, the first ones kept."""

    kinds: Counter[str] = field(default_factory=Counter)
    first: list[tuple[str, Fault]] = field(default_factory=list)

    def add(self, file: str, fault: Fault) -> None:
        """Count a fault of a file, with all rows that are lost by it."""
        self.kinds[fault.kind] += fault.rows
        if len(self.first) < _STORED:
            self.first.append((file, fault))

    def merge(self, other: "Faults") -> None:
        """Count those of another collection too."""
        self.kinds.update(other.kinds)
        self.first = (self.first + other.first)[:_STORED]

    @property
    def total(self) -> int:
        """Rows that are wrong."""
        return self.kinds.total()

    def sentences(self) -> str:
        """The first faults as a sentence: file, line, field, problem and shortened value."""
        return "; ".join(_sentence(file, fault) for file, fault in self.first[:_SHOWN])

    def stored(self) -> list[dict[str, str | int]]:
        """The first faults for the report, without values: those may be personal data."""
        return [
            {"file": file, "line": fault.line, "field": fault.field, "kind": fault.kind} for file, fault in self.first
        ]


def _sentence(file: str, fault: Fault) -> str:
    value = f" ({shown(fault.value, fault.begin)!r})" if fault.value else ""
    subject = f", {fault.field}:" if fault.field else ""
    hint = f".{fault.hint}" if fault.hint else ""
    return f"{file} line {fault.line}{subject} {fault.problem}{value}{hint}"


def shown(value: str, begin: int = 0) -> str:
    """A shortened part of a row, from ``begin`` on, with stars in place of personal data and secrets."""
    return shorten(redacted(value[: begin + _LOOKED_AT])[begin:])


def json_problem(text: str) -> str:
    """Why a text is not valid JSON, or an empty string."""
    try:
        json_value(text)
    except ValueError as error:
        return f"is not valid JSON ({str(error)[:80]}), which spec.task.type Extraction requires"
    return ""


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


def _thoughts(message: Message) -> str:
    return f"\0{_plain(message[REASONING])}" if REASONING in message else ""


def _calls(message: Message) -> str:
    calls = message.get("tool_calls")
    return f"\0{canonical_json(calls).decode()}" if calls else ""
