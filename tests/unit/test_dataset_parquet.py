"""Rows out of Parquet, and everything that may be wrong with such files."""

import io
import json
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from finetune_api.dataset import Columns, DataFormat
from finetune_api.reasons import Reason
from finetune_jobs.base.errors import StageError
from finetune_jobs.examples.validation import Rules
from finetune_jobs.reading import content
from finetune_jobs.reading.readers import read_rows
from finetune_jobs.reading.rows import MAX_LINE, Fault, Row
from tests.support.fast import share
from tests.support.parquet import parquet_bytes
from tests.support.sentences import Saying, assert_says

pytestmark = pytest.mark.unit

COLUMNS = ["text", "label"]


def read(tmp_path: Path, raw: bytes, columns: list[str] | None = None) -> list[Row | Fault]:
    path = tmp_path / "source"
    path.write_bytes(raw)
    needed = COLUMNS if columns is None else columns
    return list(read_rows(path, "s3://data/rows.parquet", DataFormat.PARQUET, needed))


def test_rows_carry_their_number_and_the_needed_columns(tmp_path: Path) -> None:
    table = {"note": [b"x", b"y", b"z"], "label": [1, 2.5, None], "text": ["a", None, "c"]}
    assert read(tmp_path, parquet_bytes(table, row_group_size=2)) == [
        Row(1, {"text": "a", "label": 1.0}),
        Row(2, {"text": None, "label": 2.5}),
        Row(3, {"text": "c", "label": None}),
    ]


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())]
)
@pytest.mark.parametrize("codec", ["none", "snappy", "gzip", "zstd", "lz4", "brotli"])
def test_every_kind_of_text_and_compression(tmp_path: Path, kind: pa.DataType, codec: str) -> None:
    texts = ["a", "ä", "a", None] * 50
    table = pa.table({"text": pa.array(texts, kind), "label": texts})
    rows = read(tmp_path, parquet_bytes(table, compression=codec))
    assert [row.fields for row in rows if isinstance(row, Row)] == [{"text": each, "label": each} for each in texts]


def test_chat_messages_come_without_the_keys_that_are_null(tmp_path: Path) -> None:
    """A struct has all keys in all rows: what JSON leaves out is null there."""
    messages = [
        [{"role": "user", "content": "x", "name": None}, {"role": "assistant", "content": "y", "name": None}],
        [{"role": "user", "content": "x", "name": "Ada"}, {"role": "assistant", "content": None, "name": None}],
    ]
    rows = read(tmp_path, parquet_bytes({"messages": messages}), columns=[])
    assert rows == [
        Row(1, {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}),
        Row(2, {"messages": [{"role": "user", "content": "x", "name": "Ada"}, {"role": "assistant"}]}),
    ]


def test_a_nul_byte_is_a_fault_of_its_row(tmp_path: Path) -> None:
    row = read(tmp_path, parquet_bytes({"text": ["x\0y"], "label": ["a"]}))[0]
    assert isinstance(row, Row)
    found = Rules(Columns(input="text", label="label")).example(row)
    assert found == Fault(1, "text", "nulByte", Saying("NUL byte", "character 2"))


def test_texts_that_are_too_long_or_no_utf8_are_faults(tmp_path: Path) -> None:
    binary = pa.array([b"a", b"b\xffc", b"d" * (MAX_LINE + 1), b"e"], pa.binary())
    text = pa.StringArray.from_buffers(4, binary.buffers()[1], binary.buffers()[2])
    assert read(tmp_path, parquet_bytes(pa.table({"text": text, "label": ["a"] * 4}))) == [
        Row(1, {"text": "a", "label": "a"}),
        Fault(2, "text", "notUtf8", Saying("UTF-8", "byte 2"), "0xff"),
        Fault(3, "text", "lineTooLong", Saying("longer than", f"{MAX_LINE} bytes")),
        Row(4, {"text": "e", "label": "a"}),
    ]


def repeated(text: str, count: int) -> bytes:
    """A small file of rows that all have the same messages, with a text that it holds once."""
    roles = pa.array(["user", "assistant"] * count)
    said = pa.DictionaryArray.from_arrays(pa.array([0, 1] * count, pa.int32()), pa.array([text, "y"]))
    messages = pa.StructArray.from_arrays([roles, said.cast(pa.string())], ["role", "content"])
    rows = pa.ListArray.from_arrays(pa.array(range(0, 2 * count + 1, 2), pa.int32()), messages)
    return parquet_bytes(pa.table({"messages": rows}), dictionary_pagesize_limit=1 << 30)


@pytest.mark.slow
def test_a_conversation_that_is_too_long_is_a_fault(tmp_path: Path) -> None:
    raw = repeated("x" * MAX_LINE, 70)
    assert len(raw) < MAX_LINE / 4
    assert read(tmp_path, raw, []) == [
        Fault(number, "messages", "lineTooLong", Saying("longer than", f"{MAX_LINE} bytes")) for number in range(1, 71)
    ]
    messages = [{"role": "user", "content": "x" * (MAX_LINE // 4 - 8)}, None, {"role": "user", "tags": ["y", None]}]
    rows = [[*messages, *messages], None, [], messages * 4, messages]
    found = read(tmp_path, parquet_bytes(pa.table({"messages": rows}).slice(1)), [])
    assert [type(row) for row in found] == [Row, Row, Fault, Row]


def test_bytes_that_are_no_utf8_inside_messages_and_categories(tmp_path: Path) -> None:
    text = pa.StringArray.from_buffers(2, *pa.array([b"a", b"\xff"], pa.binary()).buffers()[1:])
    messages = pa.ListArray.from_arrays([0, 1, 2], pa.StructArray.from_arrays([text], ["content"]))
    assert read(tmp_path, parquet_bytes({"messages": messages}), columns=[]) == [
        Row(1, {"messages": [{"content": "a"}]}),
        Fault(2, "messages", "notUtf8", Saying("UTF-8", "byte 1"), "0xff"),
    ]
    categories = pa.DictionaryArray.from_arrays([0, 1], text)
    with pytest.raises(StageError, match=r"'text'.* row group 1 of 1 \(Invalid UTF8 payload\)"):
        read(tmp_path, parquet_bytes({"text": categories, "label": [1, 2]}))


def test_progress_counts_the_bytes_that_are_read(tmp_path: Path) -> None:
    path = tmp_path / "source"
    path.write_bytes(parquet_bytes({"prompt": ["a"] * 2500, "completion": ["b"] * 2500}))
    told: list[tuple[int, int]] = []

    def report(done: int, total: int) -> None:
        told.append((done, total))

    assert len(list(read_rows(path, "rows.parquet", DataFormat.PARQUET, [], report=report))) == 2500
    size = path.stat().st_size
    assert told == [(size * 1000 // 2500, size), (size * 2000 // 2500, size)]


@pytest.mark.parametrize(
    "column", [pa.array([2**60], pa.timestamp("ms")), pa.array([1], pa.timestamp("s", tz="Nowhere/City"))]
)
def test_a_cell_that_python_cannot_hold_costs_no_conversation(tmp_path: Path, column: Any) -> None:
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    raw = parquet_bytes(pa.table({"messages": [messages], "at": column}))
    assert read(tmp_path, raw, []) == [Row(1, {"messages": messages, "at": None})]


def test_a_column_may_be_asked_for_twice(tmp_path: Path) -> None:
    """spec.dataset.groupBy may name the column of the label."""
    raw = parquet_bytes(pa.table({"text": ["a", "b"], "label": ["x", "y"]}))
    assert read(tmp_path, raw, ["text", "label", "label"]) == [
        Row(1, {"text": "a", "label": "x"}),
        Row(2, {"text": "b", "label": "y"}),
    ]


def test_any_columns_will_do_where_none_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "source"
    path.write_bytes(parquet_bytes({"question": ["a"], "choices": [["b", "c"]], "when": pa.array([0], pa.date32())}))
    [row] = read_rows(path, "rows.parquet", DataFormat.PARQUET)
    assert row == Row(1, {"question": "a", "choices": ["b", "c"], "when": date(1970, 1, 1)})


def test_a_damaged_page_names_its_column(tmp_path: Path) -> None:
    texts = [f"text {number}" for number in range(2000)]
    raw = bytearray(
        parquet_bytes({"text": texts, "label": texts}, row_group_size=1000, compression="zstd", use_dictionary=False)
    )
    column = pq.ParquetFile(io.BytesIO(raw)).metadata.row_group(1).column(1)
    place = column.data_page_offset + column.total_compressed_size // 2
    raw[place : place + 64] = bytes(64)
    path = tmp_path / "source"
    path.write_bytes(raw)
    rows = read_rows(path, "s3://data/rows.parquet", DataFormat.PARQUET, COLUMNS)
    assert len([next(rows) for _ in range(1000)]) == 1000
    with pytest.raises(StageError) as error:
        list(rows)
    assert_says(error.value.message, "s3://data/rows.parquet:", "'label'", "row group 2 of 2 (", "). Write the file")


@pytest.mark.parametrize("raw", [b"", b"text,label\na,b\n", b"PAR1" + bytes(100) + b"PAR1"])
def test_something_else_is_no_parquet(tmp_path: Path, raw: bytes) -> None:
    with pytest.raises(StageError, match=r"^s3://data/rows\.parquet: .* Parquet file \(.+\)\.$"):
        read(tmp_path, raw)


@pytest.mark.slow
def test_a_bomb_is_refused_by_what_the_file_says_of_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content, "FREE_SIZE", 1 << 20)
    texts = pa.table({"text": ["x" * (1 << 20)] * 40, "label": ["a"] * 40})
    raw = parquet_bytes(texts, compression="zstd", use_dictionary=False)
    with pytest.raises(StageError) as error:
        read(tmp_path, raw)
    sizes = (f"{len(raw) / 1024:.1f} KiB", f"{len(raw) * 1000 / 2**20:.1f} MiB")
    remedies = ("split", "smaller files", "compress it less")
    assert_says(error.value.message, "s3://data/rows.parquet:", *sizes, "decompression bomb", *remedies)


WHOLE = parquet_bytes({"text": ["a", "b"] * 100, "label": list(range(200))})


def damaged(place: int, flip: int) -> bytes:
    """The file with bits of one byte flipped; without any, it ends before that byte."""
    return WHOLE[:place] + (bytes([WHOLE[place] ^ flip]) + WHOLE[place + 1 :] if flip else b"")


@given(st.integers(0, len(WHOLE) - 1), st.integers(0, 0xFF))
@example(WHOLE.index(b"label"), 0xFF)  # a column name in the footer that is not UTF-8
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=share(200))
def test_no_damage_crashes_the_reader(tmp_path: Path, place: int, flip: int) -> None:
    raw = damaged(place, flip)
    try:
        assert len(read(tmp_path, raw)) <= 200
    except StageError as error:
        assert error.reason is Reason.DATASET_INVALID  # noqa: PT017 - both ends are right


_READ = """
import json, resource, sys
from pathlib import Path
from finetune_api.dataset import DataFormat
from finetune_jobs.reading import content
from finetune_jobs.reading.readers import read_rows
import finetune_jobs.reading.parquet
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path, columns in json.loads(sys.argv[1]):
    count = sum(1 for _ in read_rows(Path(path), "rows.parquet", DataFormat.PARQUET, columns))
    print(count, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.fixture(scope="module")
def read_apart(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[int, int]]:
    """Rows of two files, and KiB at the peak until their end, in a process of its own: Arrow's memory is not Python's.

    The one for which less is allowed comes first.
    """
    group, shared = (tmp_path_factory.mktemp("large") / name for name in ("group", "shared"))
    texts = pa.array([f"{number} " * 10_000 for number in range(4_400)])
    group.write_bytes(
        parquet_bytes(pa.table({"text": texts, "label": ["a"] * len(texts)}), use_dictionary=False, compression="zstd")
    )
    assert pq.ParquetFile(group).metadata.row_group(0).total_byte_size > 190 << 20
    shared.write_bytes(repeated("x" * (4 << 20), 100))
    asked = json.dumps([(str(group), COLUMNS), (str(shared), [])])
    ended = subprocess.run([sys.executable, "-c", _READ, asked], check=True, capture_output=True, text=True)
    found = [tuple(map(int, line.split())) for line in ended.stdout.splitlines()]
    return [(count, kib) for count, kib in found]


@pytest.mark.slow
def test_a_row_group_may_be_larger_than_memory(read_apart: list[tuple[int, int]]) -> None:
    """One row group of 200 MB is read within 64 MiB."""
    count, kib = read_apart[0]
    assert count == 4_400
    assert kib < 64 << 10


@pytest.mark.slow
def test_a_text_that_all_rows_share_is_in_few_of_them_at_a_time(read_apart: list[tuple[int, int]]) -> None:
    """100 rows of 4 MiB out of a file of less than one."""
    count, kib = read_apart[1]
    assert count == 100
    assert kib < 160 << 10
