"""What a user is told about a file that cannot be read, or about a line of it: for every format.

Two tables, of files and of lines; no sentence in the code that reads files is without a row.
"""

import gzip
import json
from collections.abc import Callable
from functools import cache
from typing import Any, Final

import pyarrow as pa
import pytest
import zstandard

from finetune_api.dataset import Columns
from finetune_api.reasons import Reason
from finetune_jobs.base.errors import StageError
from finetune_jobs.reading import content
from finetune_jobs.reading.rows import MAX_LINE
from tests.support.parquet import parquet_bytes
from tests.support.preparing import Reader
from tests.support.sentences import assert_says, unsaid
from tests.support.tiny_model import build_tiny_llama

pytestmark = pytest.mark.unit

CHAT: Final = {"columns": None}
HEADER: Final = b"text,label\n"
LINES: Final = b"".join(json.dumps({"text": f"text {n}", "label": "a"}).encode() + b"\n" for n in range(500))
GZ: Final = gzip.compress(LINES, mtime=0)
ZST: Final = zstandard.ZstdCompressor(write_checksum=True).compress(LINES)
BOMB: Final = gzip.compress(bytes(40 << 20), mtime=0)
TOO_LONG: Final = ("longer than", f"{MAX_LINE} bytes")
NO_COLUMN: Final = ("text (string)", "number", "Convert it", "spec.dataset.columns")
EMPTY: Final = ("empty", "no rows")


def flipped(raw: bytes, place: int) -> bytes:
    """With another byte in one place."""
    place %= len(raw)
    return raw[:place] + bytes([raw[place] ^ 0xFF]) + raw[place + 1 :]


def long_window(raw: bytes) -> bytes:
    """As ``zstd --long=28`` makes it."""
    parameters = zstandard.ZstdCompressionParameters.from_level(3, window_log=28, enable_ldm=True)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    return compressor.compress(raw) + compressor.flush()


def damaged_page() -> bytes:
    """A Parquet file whose only column is damaged in the middle."""
    raw = parquet_bytes({"prompt": ["q"], "completion": ["x" * 1000]}, compression="zstd", use_dictionary=False)
    return raw[:60] + bytes(30) + raw[90:]


def no_utf8(*texts: bytes) -> pa.Table:
    """A Parquet column of text that holds other bytes: the format does not look."""
    binary = pa.array(texts, pa.binary())
    column = pa.StringArray.from_buffers(len(texts), *binary.buffers()[1:])
    return pa.table({"text": column, "label": ["a"] * len(texts)})


FILES: Final[list[tuple[str, bytes, dict[str, Any], tuple[str, ...]]]] = [
    # Any format
    ("rows.csv", b"", {}, ("empty", "no header", "no rows")),
    ("rows.csv", HEADER, {}, EMPTY),
    ("rows.jsonl", b"\n\n", {}, EMPTY),
    ("rows.json", b" \n", {}, EMPTY),
    ("rows.json", b"[]", {}, EMPTY),
    ("rows.csv", "text,label\na,b\n".encode("utf-16"), {}, ("UTF-16", "Save", "UTF-8")),
    ("rows.json", '[{"text": "a"}]'.encode("utf-16"), {}, ("UTF-16", "Save", "UTF-8")),
    # CSV
    (
        "rows.csv",
        HEADER + b"a,b\n",
        CHAT,
        ("CSV", "spec.dataset.columns", "'text', 'label'"),
    ),
    (
        "rows.csv",
        b"text,lable\na,b\n",
        {},
        ("'label'", "does not exist", "'text', 'lable'", "Did you mean 'lable'"),
    ),
    (
        "rows.csv",
        b"text,label,text\na,b,c\n",
        {},
        ("'text'", "more than once", "'text', 'label', 'text'"),
    ),
    (
        "rows.csv",
        b"te\xffxt,label\na,b\n",
        {},
        ("line 1", "header", "UTF-8", "byte 2", "3 of the line", "0xff"),
    ),
    ("rows.csv", b'"text"x,label\na,b\n', {}, ("line 1", "header", "CSV", "',' expected after '\"'")),
    ("rows.csv", b"text,label\ra,b\r", {}, ("line 1", "header", "carriage return", "LF or CRLF")),
    ("rows.csv", b"x" * (MAX_LINE + 1), {}, ("line 1", "header", *TOO_LONG)),
    (
        "rows.csv",
        b'text,"label\n' + b"a,b\n" * MAX_LINE,
        {},
        ("line 1", "header", "ends", *TOO_LONG),
    ),
    # JSON
    (
        "rows.json",
        b'{"text": "a"}\n{"text": "b"}\n',
        {},
        (
            *("starts with", "an object", "list of objects", "[{…}, …]"),
            *("spec.dataset.sources[].format to JSONL", "line 1, column 1"),
        ),
    ),
    ("rows.json", b"text,label\na,b\n", {}, ("'['", "'t'", "line 1, column 1")),
    ("rows.json", b'[{"a": 1}\n {"a": 2}]', CHAT, ("','", "'{'", "line 2, column 2")),
    ("rows.json", b'[{"a": 1},\n]', CHAT, ("comma", "line 2, column 1")),
    ("rows.json", b'[{"a": 1},\n {"a": tru}]', CHAT, ("object 2", "JSON: Expecting value", "line 2, column 8")),
    (
        "rows.json",
        b'[{"a": "x\0"}]',
        CHAT,
        ("object 1", "JSON: Invalid control character at", "line 1, column 10"),
    ),
    (
        "rows.json",
        b'[{"a": 1}',
        CHAT,
        ("ends", "list", "Upload", "line 1, column 10"),
    ),
    (
        "rows.json",
        b'[{"a": 1},\n {"a": "b',
        CHAT,
        ("ends", "object 2", "starts here", "Upload", "line 2, column 2"),
    ),
    ("rows.json", b'[{"a": 1}]\n\n[]', CHAT, ("after the list", "line 3, column 1")),
    (
        "rows.json",
        b'[{"a": "' + b"x" * MAX_LINE + b'"}]',
        {},
        ("object 1", f"{MAX_LINE} characters", "line 1, column 2"),
    ),
    (
        "rows.json",
        b'[\n{"a": "' + b"x" * (6 * MAX_LINE) + b'"}]',
        {},
        ("object 1", f"{MAX_LINE} characters", "line 2, column 1"),
    ),
    (
        "rows.json",
        b"[" * 100_000,
        {},
        ("object 1", "JSON: RecursionError", "line 1, column 2"),
    ),
    (
        "rows.json",
        b'[{"a": ' + b"9" * 5000 + b"}]",
        {},
        ("object 1", "JSON: ValueError", "line 1, column 2"),
    ),
    # Parquet
    (
        "rows.parquet",
        parquet_bytes({"text": ["a"], "lable": ["b"]}),
        {},
        ("'label'", "does not exist", "'text', 'lable'", "Did you mean 'lable'"),
    ),
    (
        "rows.parquet",
        parquet_bytes({"text": [["a"]], "label": ["b"]}),
        {},
        ("'text'", "list<element: string>", *NO_COLUMN),
    ),
    (
        "rows.parquet",
        parquet_bytes({"text": ["a"], "label": [{"name": "b", "id": 1}]}),
        {},
        ("'label'", "struct<name: string, id: int64>", *NO_COLUMN),
    ),
    (
        "rows.parquet",
        parquet_bytes({"text": [b"a"], "label": ["b"]}),
        {},
        ("'text'", "binary", *NO_COLUMN),
    ),
    (
        "rows.parquet",
        parquet_bytes(pa.table([pa.array([each]) for each in "abc"], ["text", "label", "text"])),
        {},
        ("'text'", "more than once", "'text', 'label', 'text'"),
    ),
    (
        "rows.parquet",
        parquet_bytes({"text": ["a"], "label": ["b"]}),
        CHAT,
        ("Parquet file", "spec.dataset.columns", "'text', 'label'"),
    ),
    (
        "rows.parquet",
        parquet_bytes({"text": pa.array([], pa.string()), "label": pa.array([], pa.string())}),
        {},
        EMPTY,
    ),
    (
        "rows.parquet",
        HEADER,
        {},
        (
            "Parquet file",
            "Parquet magic bytes not found in footer. Either the file is corrupted or this is not a parquet file",
        ),
    ),
    (
        "rows.parquet",
        parquet_bytes({"text": ["a"], "label": ["b"]}, store_schema=False).replace(b"label", b"l\xffbel"),
        {},
        ("column name", r"'l\xffbel'", "footer", "UTF-8", "byte 2", "Write the file"),
    ),
    (
        "rows.parquet",
        damaged_page(),
        CHAT,
        (
            *("'completion'", "row group 1 of 1", "ZSTD decompression failed: Unknown frame descriptor"),
            "Write the file",
        ),
    ),
    # Compression
    (
        "rows.jsonl.gz",
        GZ[:-4],
        {},
        ("gzip", f"byte {len(GZ) - 4}", "Upload"),
    ),
    ("rows.jsonl.gz", GZ[:1], {}, ("gzip", "byte 1", "Upload")),
    ("rows.jsonl.zst", ZST[:99], {}, ("zstd", "byte 99", "Upload")),
    (
        "rows.jsonl.gz",
        LINES,
        {},
        ("gzip", f"byte {len(LINES)}", "incorrect header check", "Upload"),
    ),
    (
        "rows.jsonl.zst",
        LINES,
        {},
        ("zstd", f"byte {len(LINES)}", "Unknown frame descriptor", "Upload"),
    ),
    (
        "rows.jsonl.gz",
        flipped(GZ, -6),
        {},
        ("gzip", f"byte {len(GZ)}", "incorrect data check", "Upload"),
    ),
    (
        "rows.jsonl.gz",
        GZ + b"trailing",
        {},
        ("gzip", f"byte {len(GZ) + 8}", "incorrect header check", "Upload"),
    ),
    (
        "rows.jsonl.zst",
        flipped(ZST, -2),
        {},
        ("zstd", f"byte {len(ZST)}", "Restored data doesn't match checksum", "Upload"),
    ),
    (
        "rows.jsonl.zst",
        long_window(LINES),
        {},
        ("zstd", "128 MiB", "Compress", "without --long", "--ultra"),
    ),
    (
        "rows.jsonl.gz",
        BOMB,
        {},
        (
            *(f"{len(BOMB) / 1024:.1f} KiB", "1.0 MiB", "decompression bomb"),
            *("split", "smaller files", "compress it less"),
        ),
    ),
]
"""Name and content of a file, what else the spec says, and the parts of what is said of the file."""


ROWS: Final[list[tuple[str, bytes, tuple[str, ...]]]] = [
    (
        "rows.csv",
        HEADER + b"good,a\nbad \xff,b\n",
        ("line 3", "UTF-8", "byte 22", "5 of the line", "'0xff'"),
    ),
    ("rows.csv", HEADER + b"one,two,three\n", ("line 2", "3 fields", "header", "2", "'one,two,three'")),
    ("rows.csv", HEADER + b"one\n", ("line 2", "1 fields", "header", "2", "'one'")),
    ("rows.csv", HEADER + b'"a"b,c\n', ("line 2", "CSV", "',' expected after '\"'")),
    ("rows.csv", HEADER + b'"a,b\n', ("line 2", "unclosed quotation mark")),
    ("rows.csv", HEADER + b"one,a\rtwo,b\n", ("line 2", "carriage return", "LF or CRLF")),
    ("rows.csv", HEADER + b"good,a\n" + b"x" * MAX_LINE + b",a\n", ("line 3", *TOO_LONG)),
    ("rows.csv", HEADER + b'"' + b"xy\n" * (MAX_LINE // 3 + 1), ("line 349527", "ends", *TOO_LONG)),
    (
        "rows.jsonl",
        b'{"text": "a", "label": "b"}\n{"text": }\n',
        ("line 2", "JSON", "column 10: Expecting value", "'{\"text\": }'"),
    ),
    ("rows.jsonl", b'["a"]\n', ("line 1", "not a JSON object", "'[\"a\"]'")),
    ("rows.jsonl", b"\xc3\x28\n", ("line 1", "UTF-8", "byte 0", "1 of the line", "'0xc3'")),
    ("rows.jsonl", b'{"text": "a\0b"}\n', ("line 1", "NUL byte", "column 12")),
    ("rows.jsonl", b"\0" * 100 + b"\n", ("line 1", "NUL byte", "column 1")),
    ("rows.jsonl", b"[" * 100_000 + b"\n", ("line 1", "JSON: RecursionError")),
    ("rows.jsonl", b'{"a": ' + b"9" * 5000 + b"}\n", ("line 1", "JSON: ValueError")),
    ("rows.json", b'[["a"]]', ("line 1", "not a JSON object", "'[\"a\"]'")),
    ("rows.json", b'[{"text": "\xff"}]', ("line 1", "UTF-8", "character 11", "'0xff'")),
    (
        "rows.parquet",
        parquet_bytes(no_utf8(b"a", b"b\xffc")),
        ("line 2, text:", "UTF-8", "byte 2", "'0xff'"),
    ),
    ("rows.parquet", parquet_bytes(no_utf8(b"x" * (MAX_LINE + 1))), ("line 1, text:", *TOO_LONG)),
]
"""Name and content of a file, and the parts of what is said of its first wrong row."""


NO_FORMAT: Final[tuple[str, bytes, dict[str, Any]]] = ("rows.txt.gz", GZ, {})
CASES: Final = [*((name, raw, fields) for name, raw, fields, _ in FILES), *((*row[:2], {}) for row in ROWS), NO_FORMAT]
"""Name and content of every file here, and what else the spec says."""


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], StageError]:
    """How prepare refuses a file of CASES with the columns text and label, by number; each is provoked once."""
    reader = Reader(build_tiny_llama(tmp_path_factory.mktemp("messages") / "base"))

    @cache
    def refuse(number: int) -> StageError:
        name, raw, fields = CASES[number]
        fields = {"columns": Columns(input="text", label="label")} | fields
        with pytest.MonkeyPatch.context() as patch:
            if number < len(FILES):
                patch.setattr(content, "FREE_SIZE", 1 << 20)
                patch.setattr(content, "MAX_RATIO", 1)
            with pytest.raises(StageError) as error:
                reader.read(tmp_path_factory.mktemp("file"), raw, name, **fields)
        return error.value

    return refuse


@pytest.mark.parametrize("number", range(len(FILES)))
def test_a_file_that_cannot_be_read(refused: Callable[[int], StageError], number: int) -> None:
    name, _, _, parts = FILES[number]
    error = refused(number)
    assert error.reason is Reason.DATASET_INVALID
    assert error.message.startswith(f"s3://data/{name}: ")
    assert_says(error.message, f"s3://data/{name}:", *parts)


@pytest.mark.parametrize("number", range(len(ROWS)))
def test_a_row_that_cannot_be_read(refused: Callable[[int], StageError], number: int) -> None:
    name, _, (line, *parts) = ROWS[number]
    error = refused(len(FILES) + number)
    assert error.reason is Reason.DATASET_INVALID
    first = error.message.partition("; s3://")[0].partition(" Fix these rows")[0]
    assert_says(first, "allowed:", f"s3://data/{name} {line}", *parts)


def test_a_name_that_says_no_format(refused: Callable[[int], StageError]) -> None:
    error = refused(CASES.index(NO_FORMAT))
    assert error.reason is Reason.SPEC_INVALID
    endings = (".csv, .jsonl, .ndjson, .json, .parquet", ".gz", ".zst")
    assert_says(error.message, "s3://data/rows.txt.gz:", *endings, "spec.dataset.sources[].format", "remove the file")


@pytest.mark.parametrize(
    "module", ["content", "csv_rows", "formats", "json_list", "jsonl", "lines", "parquet", "readers", "rows"]
)
def test_every_sentence_about_a_file_is_provoked(refused: Callable[[int], StageError], module: str) -> None:
    messages = [refused(number).message for number in range(len(CASES))]
    assert unsaid(f"finetune_jobs.reading.{module}", messages) == []
