"""The data of a training, divided among the processes that train together: the same steps however many they are.

An epoch's last step rarely has an example for every process. Accelerate would fill it up with examples that were seen
already. Here blanks take these places: a token without a label, which adds nothing to the loss, to its gradient, or to
the number of tokens by which both are divided.
"""

from bisect import bisect_right
from itertools import accumulate
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as compute
from datasets import Dataset
from datasets.table import InMemoryTable, MemoryMappedTable

from finetune_api.timing import VALIDATION_TOKENS
from finetune_api.training import Training
from finetune_jobs.modelling import chat
from finetune_jobs.modelling.token_files import mapped_tokens, read_tokens


def mapped_split(dataset: Path, split: str) -> Dataset:
    """``train`` or ``validation`` as the trainer takes it; no process holds a copy of its own."""
    path = mapped_tokens(dataset, split)
    return Dataset(MemoryMappedTable(read_tokens(dataset, split), str(path)))


def validation_split(dataset: Path, training: Training) -> Dataset:
    """What the training is judged by: the validation split, or the same examples of it every time if it is large."""
    whole = mapped_split(dataset, "validation")
    count = min(len(whole), training.validation.max_examples)
    drawn = np.random.default_rng(training.seed).permutation(len(whole))[:count]
    lengths = compute.list_value_length(whole.data.column("input_ids"))
    total = list(accumulate(lengths.take(drawn).to_pylist()))
    kept = drawn[: max(1, bisect_right(total, VALIDATION_TOKENS))]
    if len(kept) == len(whole):
        return whole
    return Dataset(InMemoryTable(whole.data.table.take(sorted(kept))))


def token_counts(split: Dataset) -> list[int]:
    """Tokens of each example, in order."""
    lengths = compute.list_value_length(split.data.column("input_ids"))
    chosen = split._indices  # of a part of a table, whose columns are still whole
    return list((lengths if chosen is None else lengths.take(chosen.column(0))).to_pylist())


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
