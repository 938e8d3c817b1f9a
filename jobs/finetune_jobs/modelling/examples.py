"""The prepared data set: ``train.jsonl``, ``validation.jsonl`` and ``test.jsonl`` with one conversation a line."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune_jobs.modelling.chat import Message


@dataclass(frozen=True)
class Example:
    """One conversation that ends with the assistant's answer."""

    messages: list[Message]
    tools: list[dict[str, Any]] = field(default_factory=list)
    """What it may call."""

    @property
    def prompt(self) -> list[Message]:
        """Everything before the answer."""
        return self.messages[:-1]

    @property
    def label(self) -> str:
        """The right answer; empty where it only calls tools."""
        return str(self.messages[-1]["content"])


def read_split(dataset: Path, split: str) -> list[Example]:
    """All examples of ``train``, ``validation`` or ``test``, in the order of the file."""
    with (dataset / f"{split}.jsonl").open(encoding="utf-8") as lines:
        return [Example(**json.loads(line)) for line in lines if line.strip()]
