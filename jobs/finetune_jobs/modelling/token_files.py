"""The prepared data set: conversations (``<split>.jsonl``, one a line), and tokens to train on (Parquet)."""

import fcntl
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from finetune_jobs.modelling.chat import Message

REPORT: Final = "report.json"
"""What became of the rows."""
REASONING: Final = "reasoning"
"""Key in the report of a data set that teaches to think before an answer; absent in others."""
_BATCH: Final = 1024
"""Examples in memory while they are unpacked."""


@dataclass(frozen=True)
class Conversation:
    """One conversation that ends with the assistant's answer."""

    messages: list[Message]
    tools: list[dict[str, Any]] = field(default_factory=list)
    """What it may call."""
    group: str = ""
    """Of validation and test: the same for examples that are alike, such as those of one group of the user's or near
    duplicates; empty: no other one is like it."""

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
    return list(iterate_split(dataset, split))


def iterate_split(dataset: Path, split: str) -> Iterator[Conversation]:
    """The same, one at a time."""
    with (dataset / f"{split}.jsonl").open(encoding="utf-8") as lines:
        for line in lines:
            if line.strip():
                yield Conversation(**json.loads(line))


def longest_thoughts(dataset: Path) -> int:
    """Tokens of the longest answer with its thoughts; 0 where the model is not to think before it answers."""
    report = dataset / REPORT
    made = json.loads(report.read_text(encoding="utf-8")) if report.exists() else {}
    return int(made.get(REASONING, {}).get("longestAnswer", 0))


def read_tokens(dataset: Path, split: str) -> Any:
    """``train`` or ``validation`` as a table of ``input_ids`` and ``labels`` (pyarrow), in the order of the file.

    It is mapped from ``mapped_tokens``: the kernel reads what is looked at, and processes share what it has read.
    """
    import pyarrow as pa  # serving and publishing do without it

    with pa.memory_map(str(mapped_tokens(dataset, split))) as file, pa.ipc.open_stream(file) as stream:
        return stream.read_all()


def mapped_tokens(dataset: Path, split: str) -> Path:
    """The tokens as they can be mapped, in Arrow's stream format: unpacked by the first process that asks for them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    packed, mapped = dataset / f"{split}.parquet", dataset / f"{split}.arrow"
    with packed.open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the processes of a training start together
        if mapped.exists() and mapped.stat().st_mtime_ns >= packed.stat().st_mtime_ns:
            return mapped
        unfinished = mapped.with_suffix(".part")
        with pq.ParquetFile(packed) as source, pa.ipc.new_stream(unfinished, source.schema_arrow) as out:
            for batch in source.iter_batches(_BATCH):
                out.write_batch(batch)
        unfinished.replace(mapped)
    return mapped
