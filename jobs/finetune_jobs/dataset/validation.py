"""From a row to an example: what a conversation must be, and everything that may be wrong with one (pure)."""

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

from finetune_api.dataset import Columns
from finetune_jobs.dataset.readers import Fault, Row, did_you_mean

Message = dict[str, str]

_ROLES: Final = ("system", "user", "assistant")
_SHOWN: Final = 5
_STORED: Final = 100


@dataclass(frozen=True)
class Example:
    """A conversation that ends with the answer that must be learnt."""

    messages: list[Message]

    @property
    def label(self) -> str:
        """The answer."""
        return self.messages[-1]["content"]

    @cached_property
    def identity(self) -> str:
        """Equal for prompts that people would call the same: Unicode NFC, white space and letter case do not count."""
        parts = [f"{m['role']}\0{' '.join(_nfc(m['content']).casefold().split())}" for m in self.messages[:-1]]
        return hashlib.sha256("\0\0".join(parts).encode()).hexdigest()


@dataclass(frozen=True)
class Rules:
    """What the spec demands of a row."""

    columns: Columns | None
    instruction: str
    labels: Sequence[str]
    """Allowed labels; empty: any."""

    def example(self, row: Row) -> Example | Fault:
        """The example that a row gives, or what is wrong with it."""
        made = self._mapped(row, self.columns) if self.columns else self._chat(row)
        if isinstance(made, Fault):
            return made
        label = made[-1]["content"]
        if self.labels and label not in self.labels:
            where = self.columns.label if self.columns else "messages"
            hint = did_you_mean(label, self.labels)
            return Fault(row.line, where, "unknownLabel", f"is not one of spec.task.labels.{hint}", label)
        system = [{"role": "system", "content": self.instruction}] if self.instruction else []
        return Example(system + made)

    def _mapped(self, row: Row, columns: Columns) -> list[Message] | Fault:
        texts = []
        for name in (columns.input, columns.label):
            if name not in row.fields:
                have = ", ".join(repr(key[:40]) for key in list(row.fields)[:12])
                hint = did_you_mean(name, row.fields)
                return Fault(row.line, name, "missingColumn", f"does not exist; the row has {have or 'nothing'}.{hint}")
            value = row.fields[name]
            if name == columns.label and isinstance(value, int) and not isinstance(value, bool):
                value = str(value)
            text = _text(row.line, name, value)
            if isinstance(text, Fault):
                return text
            texts.append(text)
        return [{"role": "user", "content": texts[0]}, {"role": "assistant", "content": texts[1]}]

    def _chat(self, row: Row) -> list[Message] | Fault:
        messages = row.fields.get("messages")
        if not isinstance(messages, list) or not messages:
            have = ", ".join(repr(key[:40]) for key in list(row.fields)[:12])
            problem = f"must be a list of messages; the row has {have}. Without it, set spec.dataset.columns"
            return Fault(row.line, "messages", "missingMessages", problem)
        made: list[Message] = []
        for index, message in enumerate(messages):
            checked = _message(row.line, f"messages[{index}]", message)
            if isinstance(checked, Fault):
                return checked
            made.append(checked)
        problem = _order_problem([m["role"] for m in made], bool(self.instruction))
        return Fault(row.line, "messages", "wrongOrder", problem) if problem else made


@dataclass
class Faults:
    """Everything wrong that was found: counted by kind, the first ones kept."""

    kinds: Counter[str] = field(default_factory=Counter)
    first: list[tuple[str, Fault]] = field(default_factory=list)

    def add(self, file: str, fault: Fault, count: int = 1) -> None:
        """Count a fault of a file."""
        self.kinds[fault.kind] += count
        if len(self.first) < _STORED:
            self.first.append((file, fault))

    @property
    def total(self) -> int:
        """Rows that are wrong."""
        return self.kinds.total()

    def sentences(self) -> str:
        """The first faults for people: file, line, field, what is wrong, and the value in short."""
        return "; ".join(_sentence(file, fault) for file, fault in self.first[:_SHOWN])

    def stored(self) -> list[dict[str, str | int]]:
        """The first faults for the report, without values: those may be personal data."""
        return [
            {"file": file, "line": fault.line, "field": fault.field, "kind": fault.kind} for file, fault in self.first
        ]


def _sentence(file: str, fault: Fault) -> str:
    value = f" ({shorten(fault.value)!r})" if fault.value else ""
    subject = f", {fault.field}:" if fault.field else ""
    return f"{file} line {fault.line}{subject} {fault.problem.rstrip('.')}{value}"


def shorten(value: str, limit: int = 40) -> str:
    """At most ``limit`` characters of a value, on one line."""
    line = " ".join(value.split())
    return line if len(line) <= limit else f"{line[: limit - 1]}…"


def _message(line: int, place: str, message: Any) -> Message | Fault:
    if not isinstance(message, dict):
        return Fault(line, place, "notAMessage", "is not an object with role and content")
    if unknown := sorted(set(message) - {"role", "content"}):
        return Fault(line, place, "unknownKey", "has a key that is not supported", unknown[0])
    role = message.get("role")
    if role not in _ROLES:
        return Fault(line, f"{place}.role", "unknownRole", f"must be one of {', '.join(_ROLES)}", str(role))
    content = _text(line, f"{place}.content", message.get("content"))
    return content if isinstance(content, Fault) else {"role": role, "content": content}


def _text(line: int, place: str, value: Any) -> str | Fault:
    """A text without surrounding white space, in Unicode NFC."""
    if not isinstance(value, str):
        return Fault(line, place, "notText", f"is {type(value).__name__}, must be text")
    text = _nfc(value).strip()
    if not text:
        return Fault(line, place, "empty", "is empty")
    if "\0" in text:
        return Fault(line, place, "nulByte", f"holds a NUL byte at character {text.index(chr(0)) + 1}")
    if any("\ud800" <= character <= "\udfff" for character in text):
        return Fault(line, place, "loneSurrogate", "holds half a surrogate pair, which is no text")
    return text


def _order_problem(roles: list[str], has_instruction: bool) -> str:
    if roles[0] == "system":
        if has_instruction:
            return "begin with a system message, but spec.dataset.instruction is set too: keep one of them"
        roles = roles[1:]
    if not roles or roles[-1] != "assistant":
        return "must end with the assistant's answer"
    expected = ["user", "assistant"] * (len(roles) // 2)
    return "" if roles == expected else "must alternate between user and assistant, beginning with user"


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)
