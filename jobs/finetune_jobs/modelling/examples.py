"""The prepared data set: ``train.jsonl``, ``validation.jsonl`` and ``test.jsonl`` with one conversation a line."""

import json
from dataclasses import dataclass
from pathlib import Path

from finetune_jobs.modelling.chat import Message


@dataclass(frozen=True)
class Example:
    """One conversation that ends with the assistant's answer."""

    messages: list[Message]

    @property
    def prompt(self) -> list[Message]:
        """Everything before the answer."""
        return self.messages[:-1]

    @property
    def label(self) -> str:
        """The right answer."""
        return self.messages[-1]["content"]


def read_split(dataset: Path, split: str) -> list[Example]:
    """All examples of ``train``, ``validation`` or ``test``, in the order of the file."""
    with (dataset / f"{split}.jsonl").open(encoding="utf-8") as lines:
        return [Example(json.loads(line)["messages"]) for line in lines if line.strip()]
