"""The prepared data set: conversations (``<split>.jsonl``, one a line), and tokens to train on (Parquet)."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune_jobs.modelling.chat import Message


@dataclass(frozen=True)
class Conversation:
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


def read_split(dataset: Path, split: str) -> list[Conversation]:
    """All examples of ``train``, ``validation`` or ``test``, in the order of the file."""
    with (dataset / f"{split}.jsonl").open(encoding="utf-8") as lines:
        return [Conversation(**json.loads(line)) for line in lines if line.strip()]


def read_tokens(dataset: Path, split: str) -> Any:
    """``train`` or ``validation`` as a table of ``input_ids`` and ``labels`` (pyarrow), in the order of the file."""
    import pyarrow.parquet as pq  # serving and publishing do without it

    return pq.read_table(dataset / f"{split}.parquet")
