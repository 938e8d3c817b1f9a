"""What a user is told about a file that cannot be read, or about a line of it: exact messages, for every format.

Two tables, of files and of lines; no sentence in the code that reads files is without one.
"""

import gzip
import json
from pathlib import Path
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
from tests.support.sentences import unsaid
from tests.support.tiny_model import build_tiny_llama

pytestmark = pytest.mark.unit

CHAT: Final = {"columns": None}
HEADER: Final = b"text,label\n"
LINES: Final = b"".join(json.dumps({"text": f"text {n}", "label": "a"}).encode() + b"\n" for n in range(500))
GZ: Final = gzip.compress(LINES, mtime=0)
ZST: Final = zstandard.ZstdCompressor(write_checksum=True).compress(LINES)
BOMB: Final = gzip.compress(bytes(40 << 20), mtime=0)
TOO_LONG: Final = f"is longer than {MAX_LINE} bytes"
NO_COLUMN: Final = "Convert it, or name another column in spec.dataset.columns."


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


FILES: Final[list[tuple[str, bytes, dict[str, Any], str]]] = [
    # Any format
    ("rows.csv", b"", {}, "the file is empty: it holds no header and no row."),
    ("rows.csv", HEADER, {}, "the file is empty: it holds no row."),
    ("rows.jsonl", b"\n\n", {}, "the file is empty: it holds no row."),
    ("rows.json", b" \n", {}, "the file is empty: it holds no row."),
    ("rows.json", b"[]", {}, "the file is empty: it holds no row."),
    ("rows.csv", "text,label\na,b\n".encode("utf-16"), {}, "the file is in UTF-16. Save it as UTF-8."),
    ("rows.json", '[{"text": "a"}]'.encode("utf-16"), {}, "the file is in UTF-16. Save it as UTF-8."),
    # CSV
    (
        "rows.csv",
        HEADER + b"a,b\n",
        CHAT,
        "a CSV needs spec.dataset.columns; the file has the columns 'text', 'label'.",
    ),
    (
        "rows.csv",
        b"text,lable\na,b\n",
        {},
        "column 'label' does not exist; the file has 'text', 'lable'. Did you mean 'lable'?",
    ),
    (
        "rows.csv",
        b"text,label,text\na,b,c\n",
        {},
        "column 'text' exists more than once; the file has 'text', 'label', 'text'.",
    ),
    (
        "rows.csv",
        b"te\xffxt,label\na,b\n",
        {},
        "line 1, the header, is not UTF-8 at byte 2 of the file, 3 of the line (0xff).",
    ),
    ("rows.csv", b'"text"x,label\na,b\n', {}, "line 1, the header, is not CSV: ',' expected after '\"'."),
    ("rows.csv", b"x" * (MAX_LINE + 1), {}, f"line 1, the header, {TOO_LONG}."),
    (
        "rows.csv",
        b'text,"label\n' + b"a,b\n" * MAX_LINE,
        {},
        f"line 1, the header, ends a row that {TOO_LONG}.",
    ),
    # JSON
    (
        "rows.json",
        b'{"text": "a"}\n{"text": "b"}\n',
        {},
        "the file begins with an object, but JSON must be a list of objects: [{…}, …]. If each line is an object, "
        "set spec.dataset.sources[].format to JSONL (line 1, column 1).",
    ),
    ("rows.json", b"text,label\na,b\n", {}, "'[' is expected, not 't' (line 1, column 1)."),
    ("rows.json", b'[{"a": 1}\n {"a": 2}]', CHAT, "',' is expected, not '{' (line 2, column 2)."),
    ("rows.json", b'[{"a": 1},\n]', CHAT, "a comma stands before the end of the list (line 2, column 1)."),
    ("rows.json", b'[{"a": 1},\n {"a": tru}]', CHAT, "object 2 is not JSON: Expecting value (line 2, column 8)."),
    (
        "rows.json",
        b'[{"a": "x\0"}]',
        CHAT,
        "object 1 is not JSON: Invalid control character at (line 1, column 10).",
    ),
    (
        "rows.json",
        b'[{"a": 1}',
        CHAT,
        "the file ends in the middle of the list. Upload it again (line 1, column 10).",
    ),
    (
        "rows.json",
        b'[{"a": 1},\n {"a": "b',
        CHAT,
        "the file ends in the middle of object 2, which begins here. Upload it again (line 2, column 2).",
    ),
    ("rows.json", b'[{"a": 1}]\n\n[]', CHAT, "something stands behind the list (line 3, column 1)."),
    (
        "rows.json",
        b'[{"a": "' + b"x" * MAX_LINE + b'"}]',
        {},
        f"object 1 is longer than {MAX_LINE} characters (line 1, column 2).",
    ),
    (
        "rows.json",
        b'[\n{"a": "' + b"x" * (6 * MAX_LINE) + b'"}]',
        {},
        f"object 1 is longer than {MAX_LINE} characters (line 2, column 1).",
    ),
    (
        "rows.json",
        b"[" * 100_000,
        {},
        "object 1 is not JSON that can be read: RecursionError (line 1, column 2).",
    ),
    (
        "rows.json",
        b'[{"a": ' + b"9" * 5000 + b"}]",
        {},
        "object 1 is not JSON that can be read: ValueError (line 1, column 2).",
    ),
    # Parquet
    (
        "rows.parquet",
        parquet_bytes({"text": ["a"], "lable": ["b"]}),
        {},
        "column 'label' does not exist; the file has 'text', 'lable'. Did you mean 'lable'?",
    ),
    (
        "rows.parquet",
        parquet_bytes({"text": [["a"]], "label": ["b"]}),
        {},
        f"column 'text' is list<element: string>, must be text (string) or a number. {NO_COLUMN}",
    ),
    (
        "rows.parquet",
        parquet_bytes({"text": ["a"], "label": [{"name": "b", "id": 1}]}),
        {},
        f"column 'label' is struct<name: string, id: int64>, must be text (string) or a number. {NO_COLUMN}",
    ),
    (
        "rows.parquet",
        parquet_bytes({"text": [b"a"], "label": ["b"]}),
        {},
        f"column 'text' is binary, must be text (string) or a number. {NO_COLUMN}",
    ),
    (
        "rows.parquet",
        parquet_bytes(pa.table([pa.array([each]) for each in "abc"], ["text", "label", "text"])),
        {},
        "column 'text' exists more than once; the file has 'text', 'label', 'text'.",
    ),
    (
        "rows.parquet",
        parquet_bytes({"text": ["a"], "label": ["b"]}),
        CHAT,
        "a Parquet file needs spec.dataset.columns; the file has the columns 'text', 'label'.",
    ),
    (
        "rows.parquet",
        parquet_bytes({"text": pa.array([], pa.string()), "label": pa.array([], pa.string())}),
        {},
        "the file is empty: it holds no row.",
    ),
    (
        "rows.parquet",
        HEADER,
        {},
        "is no Parquet file that can be read (Parquet magic bytes not found in "
        "footer. Either the file is corrupted or this is not a parquet file).",
    ),
    (
        "rows.parquet",
        parquet_bytes({"text": ["a"], "label": ["b"]}, store_schema=False).replace(b"label", b"l\xffbel"),
        {},
        r"the column name 'l\xffbel' in the footer is not UTF-8 at byte 2. Write the file again.",
    ),
    (
        "rows.parquet",
        damaged_page(),
        CHAT,
        "column 'completion' cannot be read in row group 1 of 1 (ZSTD decompression failed: Unknown frame descriptor). "
        "Write the file again.",
    ),
    # Compression
    (
        "rows.jsonl.gz",
        GZ[:-4],
        {},
        f"the gzip data end at byte {len(GZ) - 4} before they are complete. Upload it again.",
    ),
    ("rows.jsonl.gz", GZ[:1], {}, "the gzip data end at byte 1 before they are complete. Upload it again."),
    ("rows.jsonl.zst", ZST[:99], {}, "the zstd data end at byte 99 before they are complete. Upload it again."),
    (
        "rows.jsonl.gz",
        LINES,
        {},
        f"the gzip data are damaged before byte {len(LINES)} (incorrect header check). Upload it again.",
    ),
    (
        "rows.jsonl.zst",
        LINES,
        {},
        f"the zstd data are damaged before byte {len(LINES)} (Unknown frame descriptor). Upload it again.",
    ),
    (
        "rows.jsonl.gz",
        flipped(GZ, -6),
        {},
        f"the gzip data are damaged before byte {len(GZ)} (incorrect data check). Upload it again.",
    ),
    (
        "rows.jsonl.gz",
        GZ + b"trailing",
        {},
        f"the gzip data are damaged before byte {len(GZ) + 8} (incorrect header check). Upload it again.",
    ),
    (
        "rows.jsonl.zst",
        flipped(ZST, -2),
        {},
        f"the zstd data are damaged before byte {len(ZST)} (Restored data doesn't match checksum). Upload it again.",
    ),
    (
        "rows.jsonl.zst",
        long_window(LINES),
        {},
        "zstd with a window of more than 128 MiB is not supported. Compress it without --long and --ultra.",
    ),
    (
        "rows.jsonl.gz",
        BOMB,
        {},
        f"{len(BOMB) / 1024:.1f} KiB decompress to more than 1.0 MiB, which is refused as a decompression bomb. If the "
        "rows are meant, divide them into smaller files or store them with less compression.",
    ),
]
"""Name and content of a file, what else the spec says, and what is said of the file."""


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    return Reader(build_tiny_llama(tmp_path_factory.mktemp("messages") / "base"))


def told(reader: Reader, folder: Path, name: str, raw: bytes, fields: dict[str, Any]) -> tuple[Reason, str]:
    """What a user is told about a file with the columns text and label."""
    with pytest.raises(StageError) as error:
        reader.read(folder, raw, name, **{"columns": Columns(input="text", label="label")} | fields)
    return error.value.reason, error.value.message


@pytest.mark.parametrize(("name", "raw", "fields", "problem"), FILES, ids=map(str, range(len(FILES))))
def test_a_file_that_cannot_be_read(
    reader: Reader,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    raw: bytes,
    fields: dict[str, Any],
    problem: str,
) -> None:
    monkeypatch.setattr(content, "FREE_SIZE", 1 << 20)
    monkeypatch.setattr(content, "MAX_RATIO", 1)
    assert told(reader, tmp_path, name, raw, fields) == (Reason.DATASET_INVALID, f"s3://data/{name}: {problem}")


def test_a_name_that_says_no_format(reader: Reader, tmp_path: Path) -> None:
    assert told(reader, tmp_path, "rows.txt.gz", GZ, {}) == (Reason.SPEC_INVALID, NO_FORMAT)


NO_FORMAT: Final = (
    "s3://data/rows.txt.gz: the name ends with none of .csv, .jsonl, .ndjson, .json, .parquet (each also with .gz or "
    ".zst). Set spec.dataset.sources[].format, or leave the file out."
)

ROWS: Final[list[tuple[str, bytes, str]]] = [
    (
        "rows.csv",
        HEADER + b"good,a\nbad \xff,b\n",
        "line 3 is not UTF-8 at byte 22 of the file, 5 of the line ('0xff')",
    ),
    ("rows.csv", HEADER + b"one,two,three\n", "line 2 has 3 fields, the header has 2 ('one,two,three')"),
    ("rows.csv", HEADER + b"one\n", "line 2 has 1 fields, the header has 2 ('one')"),
    ("rows.csv", HEADER + b'"a"b,c\n', "line 2 is not CSV: ',' expected after '\"'"),
    ("rows.csv", HEADER + b'"a,b\n', "line 2 opens a quotation mark that is never closed"),
    ("rows.csv", HEADER + b"good,a\n" + b"x" * MAX_LINE + b",a\n", f"line 3 {TOO_LONG}"),
    ("rows.csv", HEADER + b'"' + b"xy\n" * (MAX_LINE // 3 + 1), f"line 349527 ends a row that {TOO_LONG}"),
    (
        "rows.jsonl",
        b'{"text": "a", "label": "b"}\n{"text": }\n',
        "line 2 is not JSON at column 10: Expecting value ('{\"text\": }')",
    ),
    ("rows.jsonl", b'["a"]\n', "line 1 is not a JSON object ('[\"a\"]')"),
    ("rows.jsonl", b"\xc3\x28\n", "line 1 is not UTF-8 at byte 0 of the file, 1 of the line ('0xc3')"),
    ("rows.jsonl", b'{"text": "a\0b"}\n', "line 1 holds a NUL byte at column 12"),
    ("rows.jsonl", b"\0" * 100 + b"\n", "line 1 holds a NUL byte at column 1"),
    ("rows.jsonl", b"[" * 100_000 + b"\n", "line 1 is not JSON that can be read: RecursionError"),
    ("rows.jsonl", b'{"a": ' + b"9" * 5000 + b"}\n", "line 1 is not JSON that can be read: ValueError"),
    ("rows.json", b'[["a"]]', "line 1 is not a JSON object ('[\"a\"]')"),
    ("rows.json", b'[{"text": "\xff"}]', "line 1 is not UTF-8 at character 11 of the object ('0xff')"),
    (
        "rows.parquet",
        parquet_bytes(no_utf8(b"a", b"b\xffc")),
        "line 2, text: is not UTF-8 at byte 2 of a text ('0xff')",
    ),
    ("rows.parquet", parquet_bytes(no_utf8(b"x" * (MAX_LINE + 1))), f"line 1, text: {TOO_LONG}"),
]
"""Name and content of a file, and what is said of its first wrong row."""


@pytest.mark.parametrize(("name", "raw", "sentence"), ROWS, ids=map(str, range(len(ROWS))))
def test_a_row_that_cannot_be_read(reader: Reader, tmp_path: Path, name: str, raw: bytes, sentence: str) -> None:
    reason, message = told(reader, tmp_path, name, raw, {})
    assert reason is Reason.DATASET_INVALID
    first = message.partition(" % are allowed: ")[2].partition("; s3://")[0].partition(". Correct these rows")[0]
    assert first == f"s3://data/{name} {sentence}"


@pytest.mark.parametrize(
    "module", ["content", "csv_rows", "formats", "json_list", "jsonl", "lines", "parquet", "readers", "rows"]
)
def test_every_sentence_about_a_file_is_in_a_table(module: str) -> None:
    messages = [NO_FORMAT, *(file[-1] for file in FILES), *(row[-1] for row in ROWS)]
    assert unsaid(f"finetune_jobs.reading.{module}", messages) == []
