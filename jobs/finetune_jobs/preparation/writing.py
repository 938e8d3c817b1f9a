"""The files of a data set: conversations for people and for evaluation, tokens for training.

The same examples give the same bytes: fixed settings, no timestamps, the order of the sources.
"""

import json
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Final

import pyarrow as pa
import pyarrow.parquet as pq

from finetune_jobs.examples.parts import Part
from finetune_jobs.modelling.chat import Encoded
from finetune_jobs.preparation.batches import BatchWriter
from finetune_jobs.preparation.spool import Spooled

TOKENISED: Final = (Part.TRAIN, Part.VALIDATION)
"""Parts that are trained on, or watched while training."""
_ROWS: Final = 1024
"""Rows in memory, and in a row group."""
_SCHEMA: Final = pa.schema({"input_ids": pa.list_(pa.int32()), "labels": pa.list_(pa.int32())})


class DatasetWriter:
    """Writes ``<part>.jsonl`` for every part, and ``<part>.parquet`` (``input_ids``, ``labels``) for TOKENISED ones."""

    def __init__(self, folder: Path) -> None:
        self._stack = ExitStack()
        self._lines: dict[Part, IO[bytes]] = {
            part: self._stack.enter_context((folder / f"{part}.jsonl").open("wb")) for part in Part
        }
        self._tokens = {
            part: self._stack.enter_context(_token_writer(folder / f"{part}.parquet")) for part in TOKENISED
        }

    def __enter__(self) -> "DatasetWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def add(self, part: Part, example: Spooled, times: int = 1, group: str = "") -> None:
        """Write an example to its part; a training example ``times`` times, as often as an epoch uses it. ``group``: as
        ``Conversation`` has it."""
        of_group = b', "group": %s' % json.dumps(group).encode() if group else b""
        self._lines[part].write(example.text.removesuffix(b"}") + of_group + b"}\n")
        if part in self._tokens:
            for piece in example.encoded * times:
                self._tokens[part].append(piece.input_ids, piece.labels)

    def plant(self, encoded: Iterable[Encoded]) -> None:
        """Write training examples that are no part of the conversations."""
        for piece in encoded:
            self._tokens[Part.TRAIN].append(piece.input_ids, piece.labels)


def _token_writer(path: Path) -> BatchWriter:
    return BatchWriter(pq.ParquetWriter(path, _SCHEMA, compression="zstd", store_schema=False), _SCHEMA, _ROWS)
