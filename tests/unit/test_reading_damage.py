"""Damaged files of every format and origin: whatever edits make of one, it gives rows, faults or one named error.

Each file is good before it is edited: most of an edited file still makes sense, so that edits come far into a reader.
"""

import gzip
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pytest
import zstandard
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from finetune_api.dataset import Columns, DataFormat, Dataset, Source
from finetune_api.reasons import Reason
from finetune_api.references import ConfigMapKeyRef
from finetune_jobs.base.errors import StageError
from finetune_jobs.examples.validation import Example, Faults
from finetune_jobs.reading.formats import format_of
from finetune_jobs.reading.readers import read_rows
from finetune_jobs.reading.rows import Fault
from finetune_jobs.reading.sources import find_sources
from tests.support.fake_hub import fake_hub
from tests.support.parquet import parquet_bytes
from tests.support.preparing import intake_of, params_of

pytestmark = [pytest.mark.unit, pytest.mark.slow]

COLUMNS: Final = Columns(input="text", label="label")
TEXTS: Final = ["where is my parcel?", 'refund mé, "please"', "two\nlines", "jo@example.org", "\U0001f3f4 flag"] * 4
CHATS: Final = [
    {
        "messages": [
            {"role": "user", "content": each},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": '{"a": [1.5, null]}'}}],
            },
            {"role": "tool", "content": "7", "tool_call_id": "x"},
            {"role": "assistant", "content": "seven"},
        ]
    }
    for each in TEXTS
]
MAPPED: Final = [{"text": each, "label": "ab"[n % 2]} for n, each in enumerate(TEXTS)]
TABLE: Final = {"text": TEXTS, "label": list(range(len(TEXTS)))}
ODD: Final = pa.table(
    {
        "conversations": [[{"from": "human", "value": each}, {"from": "gpt", "value": "a"}] for each in TEXTS],
        "when": pa.array([datetime(2024, 2, 29)] * len(TEXTS), pa.timestamp("ns", "Europe/Berlin")),
        "price": pa.array([Decimal("1.50")] * len(TEXTS), pa.decimal128(9, 2)),
        "more": pa.array([[("k", b"\xff")]] * len(TEXTS), pa.map_(pa.string(), pa.binary())),
        "kind": pa.array(TEXTS).dictionary_encode(),
    }
)


def _csv(rows: list[dict[str, str]]) -> bytes:
    lines = [[*rows[0]], *([*row.values()] for row in rows)]
    quoted = [",".join('"' + cell.replace('"', '""') + '"' for cell in line) for line in lines]
    return "\r\n".join(quoted).encode()


def _lines(rows: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=number % 2 == 0).encode() + b"\n" for number, row in enumerate(rows))


FILES: Final[Mapping[str, bytes]] = {
    "rows.csv": _csv(MAPPED),
    "rows.jsonl": _lines(MAPPED),
    "rows.json": json.dumps(MAPPED, indent=1).encode(),
    "rows.parquet": parquet_bytes(TABLE),
    "plain.parquet": parquet_bytes(TABLE, use_dictionary=False, compression="none", data_page_version="2.0"),
    "zstd.parquet": parquet_bytes(TABLE, compression="zstd", row_group_size=6, write_page_index=True),
    "chat.jsonl": _lines(CHATS),
    "chat.json": json.dumps(CHATS, ensure_ascii=False).encode(),
    "chat.parquet": parquet_bytes(pa.Table.from_pylist(CHATS), compression="none"),
    "odd.parquet": parquet_bytes(ODD, compression="none"),
    "rows.csv.gz": gzip.compress(_csv(MAPPED), mtime=0),
    "chat.jsonl.zst": zstandard.compress(_lines(CHATS)),
    "rows.parquet.gz": gzip.compress(parquet_bytes(TABLE, compression="none"), mtime=0),
}
NO_STORE: Final[Any] = None
"""A ConfigMap is no file of a store."""
TOKENS: Final = [
    *(b"\0", b"\n", b"\r", b"\r\n", b'"', b'""', b",", b"[", b"]", b"{", b"}", b":", b"\\", b"\\ud800", b"\\u0000"),
    *(b"null", b"NaN", b"-Infinity", b"1e999", b"9" * 400, b"[" * 3000, b'{"a":' * 3000, b"\xef\xbb\xbf", b"\xff\xfe"),
    *(b"\xed\xa0\x80", b"\xc3", b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PAR1", b"\xff" * 4, b"\x80" * 9 + b"\x01"),
]


@dataclass(frozen=True)
class Edit:
    """One change of a file: ``drop`` bytes at a place (a share of the file) become ``put``."""

    place: float
    drop: int
    put: bytes

    def of(self, raw: bytes) -> bytes:
        """The file with this change."""
        begin = int(self.place * len(raw))
        return raw[:begin] + self.put + raw[begin + self.drop :]


EDITS: Final = st.lists(
    st.builds(
        Edit,
        st.floats(0, 1, allow_nan=False, width=32),
        st.sampled_from([0, 1, 1, 2, 4, 8, 64, 1 << 20]),
        st.one_of(st.binary(max_size=9), st.sampled_from(TOKENS)),
    ),
    min_size=1,
    max_size=4,
)
QUICK: Final = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None, max_examples=200
)


def edited(raw: bytes, edits: list[Edit]) -> bytes:
    """The file after all edits."""
    for edit in edits:
        raw = edit.of(raw)
    return raw


def take_all(path: Path, uri: str, kind: DataFormat | None = None) -> None:
    """Read a file as prepare does; what comes out of it can be counted, shown and written."""
    name = uri.rpartition("/")[2]
    mapped = not name.startswith(("chat", "odd"))
    intake, faults, last = intake_of(params_of(name, columns=COLUMNS if mapped else None)), Faults(), 0
    for row in read_rows(path, uri, format_of(uri, kind), COLUMNS.names if mapped else []):
        assert row.line >= max(1, last)
        last = row.line
        made = row if isinstance(row, Fault) else intake.take(row)
        if isinstance(made, Fault):
            faults.add(uri, made)
        elif isinstance(made, Example):
            json.dumps(made.messages, ensure_ascii=False).encode()
            assert made.identity
    faults.sentences().encode()
    json.dumps(faults.stored()).encode()


@pytest.mark.parametrize("name", FILES)
def test_every_file_is_good_before_it_is_edited(tmp_path: Path, name: str) -> None:
    path = tmp_path / "source"
    path.write_bytes(FILES[name])
    take_all(path, name)


@pytest.mark.parametrize("name", FILES)
@given(edits=EDITS)
@QUICK
def test_no_edit_crashes_a_reader(tmp_path: Path, name: str, edits: list[Edit]) -> None:
    path = tmp_path / "source"
    path.write_bytes(edited(FILES[name], edits))
    try:
        take_all(path, name)
    except StageError as error:
        assert error.reason is Reason.DATASET_INVALID  # noqa: PT017 - both ends are right
        assert name in error.message  # noqa: PT017


@given(st.sampled_from(sorted(FILES)), EDITS, st.sampled_from([None, *DataFormat]))
@QUICK
def test_no_key_of_a_config_map_crashes_its_reader(
    tmp_path: Path, name: str, edits: list[Edit], kind: DataFormat | None
) -> None:
    """The format that a source declares may be another one than that of the file."""
    (tmp_path / "0").mkdir(exist_ok=True)
    (tmp_path / "0" / name).write_bytes(edited(FILES[name], edits))
    source = Source(config_map_key_ref=ConfigMapKeyRef(name="rows", key=name), format=kind)
    [file] = find_sources(NO_STORE, Dataset(sources=[source]), tmp_path)
    file.copy_to(tmp_path / "copy")
    try:
        take_all(tmp_path / "copy", file.uri, file.format)
    except StageError as error:
        assert error.reason is Reason.DATASET_INVALID  # noqa: PT017
        assert file.uri in error.message  # noqa: PT017


SPOILT: Final[list[Edit]] = []
"""What is done to every answer of the hub."""
ANSWERS: Final = [
    *(b"null", b"[]", b"{}", b"-1", b'"sha"', b'"size"', b'"path"', b'"oid"', b'"type"', b'"file"', b'"lfs"'),
    *(b"<html>", b",", b":", b"{", b"}", b'"', b"\xff", b"1e9", b"true"),
]


@pytest.fixture(scope="module")
def hub() -> Iterator[None]:
    """A hub whose answers are edited by SPOILT."""
    files = {"data/rows.csv": FILES["rows.csv"], "data/more/rows.jsonl": b"{}"}
    with (
        pytest.MonkeyPatch.context() as patch,
        fake_hub(patch, "dataset", "org/set", files, spoil=lambda raw: edited(raw, SPOILT)),
    ):
        yield


@pytest.mark.usefixtures("hub")
@given(
    st.sampled_from(["data/rows.csv", "data/", "data/*.csv"]),
    st.lists(
        st.builds(Edit, st.floats(0, 1, allow_nan=False, width=32), st.integers(0, 12), st.sampled_from(ANSWERS)),
        min_size=1,
        max_size=3,
    ),
)
@example(path="data/rows.csv", edits=[Edit(0.0, 0, b"<html>")])  # a proxy's page
@example(path="data/rows.csv", edits=[Edit(0.625, 0, b"null")])
@example(path="data/", edits=[Edit(0.0, 0, b"\xff")])
@settings(QUICK, max_examples=100)
def test_no_answer_of_the_hub_crashes_its_reader(tmp_path: Path, path: str, edits: list[Edit]) -> None:
    SPOILT[:] = edits
    try:
        for file in find_sources(NO_STORE, Dataset(sources=[Source(uri=f"hf://datasets/org/set@main/{path}")])):
            file.copy_to(tmp_path / "copy")
    except StageError as error:
        assert error.reason in (Reason.DATASET_NOT_FOUND, Reason.SPEC_INVALID)  # noqa: PT017
        assert "hf://datasets/org/set@main" in error.message  # noqa: PT017
