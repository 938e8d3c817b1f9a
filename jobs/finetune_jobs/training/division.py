"""The data of a training, divided among the processes that train together: the same steps however many they are.

An epoch's last step, and a validation's last batch, rarely have an example for every process. Accelerate would fill
them up with examples that were seen already. Here blanks take these places: a token without a label, which adds nothing
to the loss, to its gradient, or to the number of tokens by which both are divided.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
from accelerate.data_loader import SeedableRandomSampler
from datasets import Dataset
from datasets.table import InMemoryTable, MemoryMappedTable
from torch.utils.data import Sampler

from finetune_jobs.modelling import chat
from finetune_jobs.modelling.token_files import mapped_tokens, read_tokens


def mapped_split(dataset: Path, split: str) -> Dataset:
    """``train`` or ``validation`` as the trainer takes it; no process holds a copy of its own."""
    path = mapped_tokens(dataset, split)
    return Dataset(MemoryMappedTable(read_tokens(dataset, split), str(path)))


def with_blanks(split: Dataset, count: int, token: int) -> Dataset:
    """``split`` (columns ``input_ids`` and ``labels``) with so many blanks at its end; ``token`` is what they hold."""
    if not count:
        return split
    table = split.data.table.select(["input_ids", "labels"])
    columns = {"input_ids": [[token]] * count, "labels": [[chat.IGNORED]] * count}
    blanks = pa.table(columns, schema=table.schema.remove_metadata())
    whole = pa.concat_tables([table.replace_schema_metadata(None), blanks])
    return Dataset(InMemoryTable(whole), fingerprint=f"{split._fingerprint}-{count}")  # else all of it is pickled


def missing(examples: int, group: int) -> int:
    """How many are missing to a multiple of ``group``."""
    return -examples % group


class FilledSampler(Sampler[int]):  # type: ignore[misc] # torch's types are not looked at
    """The order of one process alone (``SeedableRandomSampler``), with blanks at the end of each epoch.

    The blanks are the data set's examples from number ``examples`` on.
    """

    def __init__(self, examples: int, blanks: int, seed: int) -> None:
        self._order: Any = SeedableRandomSampler(range(examples), data_seed=seed)
        self._blanks = range(examples, examples + blanks)

    def __iter__(self) -> Iterator[int]:
        """The numbers of an epoch's examples; the next call gives those of the next epoch."""
        yield from self._order
        yield from self._blanks

    def __len__(self) -> int:
        return len(self._order) + len(self._blanks)

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate's data loader."""
        self._order.set_epoch(epoch)
