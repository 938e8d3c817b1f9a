"""Rows out of CSV, JSONL and JSON, and everything that may be wrong with such files."""

import csv
import io
import json
import tracemalloc
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finetune_api.dataset import Columns, DataFormat
from finetune_jobs.base.errors import StageError
from finetune_jobs.examples.validation import Faults, Rules
from finetune_jobs.reading import json_list
from finetune_jobs.reading.readers import read_rows
from finetune_jobs.reading.rows import MAX_LINE, Fault, Row
from tests.support.sentences import Saying, assert_says

pytestmark = pytest.mark.unit

COLUMNS = Columns(input="text", label="label")
HEADER = b"text,label\n"
QUICK = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def read(tmp_path: Path, content: bytes, kind: str = "CSV", columns: Columns | None = COLUMNS) -> list[Row | Fault]:
    path = tmp_path / "source"
    path.write_bytes(content)
    return list(read_rows(path, "s3://data/rows", DataFormat(kind), columns.names if columns else []))


def test_rows_of_a_csv_carry_the_line_where_they_begin(tmp_path: Path) -> None:
    content = b'\xef\xbb\xbftext,label,note\n"two\nlines",a,\n\nplain,b,"quoted ""x"""\r\n'
    assert read(tmp_path, content) == [
        Row(2, {"text": "two\nlines", "label": "a", "note": ""}),
        Row(5, {"text": "plain", "label": "b", "note": 'quoted "x"'}),
    ]


def test_rows_of_a_json_list_carry_their_number(tmp_path: Path) -> None:
    content = (
        b'\xef\xbb\xbf [ {"text": "a"},\n["no object"] , {"text": "\xff"},\n{"text": "d", "n": 36893488147419103232}]\n'
    )
    assert read(tmp_path, content, "JSON") == [
        Row(1, {"text": "a"}),
        Fault(2, "", "notAnObject", Saying("not a JSON object"), '["no object"]'),
        Fault(3, "", "notUtf8", Saying("UTF-8", "character 11"), "0xff"),
        Row(4, {"text": "d", "n": 2**65}),
    ]


SECRET = "hunter2-" + "aB3x" * 3
PRIVATE = f"ana@example.org,password={SECRET}"


@pytest.mark.parametrize(
    ("kind", "content", "parts"),
    [
        (
            "CSV",
            HEADER + f"{PRIVATE},x\n".encode(),
            ("3 fields", "2", "('***************,password=**************…')"),
        ),
        ("JSONL", f'["{PRIVATE}"]\n'.encode(), ("not a JSON object", "('[\"***************,password=************…')")),
        (
            "JSONL",
            f'{{"text": "a", "password": {SECRET}}}\n'.encode(),
            ("column 27: Expecting value", "('assword\": ********************}')"),
        ),
    ],
)
def test_what_is_quoted_of_a_row_is_neither_private_nor_secret(
    tmp_path: Path, kind: str, content: bytes, parts: tuple[str, ...]
) -> None:
    (fault,) = read(tmp_path, content, kind)
    assert isinstance(fault, Fault)
    faults = Faults()
    faults.add("s3://data/rows", fault)
    assert_says(faults.sentences(), f"s3://data/rows line {fault.line}", *parts)
    assert not any(each in faults.sentences() for each in (*PRIVATE.split(","), SECRET))


def test_a_row_in_place_of_a_header_is_not_quoted_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(StageError) as error:
        read(tmp_path, f"Write to ana@example.org,{SECRET}\n".encode())
    assert "'Write to ***************'," in error.value.message


def test_reading_goes_on_after_a_fault(tmp_path: Path) -> None:
    content = HEADER + b"x" * (3 * MAX_LINE) + b"\nbad \xff,a\none\ngood,b\n"
    rows = read(tmp_path, content)
    assert [row.line for row in rows] == [2, 3, 4, 5]
    assert rows[-1] == Row(5, {"text": "good", "label": "b"})


@pytest.mark.slow
def test_a_quote_that_is_never_closed_costs_a_megabyte_of_rows_and_no_more(tmp_path: Path) -> None:
    line = b"some text " * 12 + b",b\n"
    count = 2 * MAX_LINE // len(line)
    content = HEADER + b'"never closed,a\n' + line * count
    fault, *rows = read(tmp_path, content)
    assert isinstance(fault, Fault)
    assert (fault.kind, fault.rows) == ("lineTooLong", MAX_LINE // len(line) + 1)
    assert [row.line for row in rows] == list(range(fault.line + 1, len(rows) + fault.line + 1))
    assert fault.rows + len(rows) == 1 + count


def test_every_line_that_a_wrong_quote_takes_in_counts(tmp_path: Path) -> None:
    """It may be half of the data, which must not pass as one wrong row."""
    content = HEADER + b"good,a\n" + b'"never closed,a\n' + b"some text,b\n" * 50
    assert read(tmp_path, content) == [
        Row(2, {"text": "good", "label": "a"}),
        Fault(3, "", "malformedCsv", Saying("unclosed quotation mark"), rows=51),
    ]
    two_lines = read(tmp_path, HEADER + b'"one,a\n"two,b\ngood,a\n')
    assert two_lines == [
        Fault(2, "", "malformedCsv", Saying("CSV: ',' expected after '\"'"), rows=2),
        Row(4, {"text": "good", "label": "a"}),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["CSV", "JSONL"])
def test_a_line_of_a_hundred_megabytes_is_a_fault_and_never_in_memory(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "source"
    with path.open("wb") as file:
        file.write(HEADER if kind == "CSV" else b"")
        file.truncate(100 << 20)
    tracemalloc.start()
    found = list(read_rows(path, "s3://data/rows", DataFormat(kind), COLUMNS.names))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    line = 2 if kind == "CSV" else 1
    assert found == [Fault(line, "", "lineTooLong", Saying("longer than", "1048576 bytes"))]
    assert peak < 8 << 20


@pytest.mark.slow
def test_a_json_list_is_read_piece_by_piece(tmp_path: Path) -> None:
    path = tmp_path / "source"
    with path.open("w") as file:
        file.write("[")
        for number in range(1_000):
            file.write(f'{{"text": "{number}{"x" * 70_000}"}},')
        file.write('{"text": "last"}]')
    tracemalloc.start()
    count = sum(isinstance(row, Row) for row in read_rows(path, "s3://data/rows", DataFormat.JSON, COLUMNS.names))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 1_001
    assert path.stat().st_size > 64 << 20
    assert peak < 32 << 20


@pytest.mark.parametrize(("kind", "content"), [("CSV", HEADER), ("JSONL", b""), ("JSON", b"[]")])
def test_one_file_of_many_may_be_empty(tmp_path: Path, kind: str, content: bytes) -> None:
    path = tmp_path / "source"
    path.write_bytes(content)
    assert list(read_rows(path, "s3://data/rows", DataFormat(kind), COLUMNS.names, may_be_empty=True)) == []


def test_a_csv_needs_columns_or_those_of_a_known_form(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"'prompt'.* more than once"):
        read(tmp_path, b"prompt,completion,prompt\na,b,c\n", columns=None)
    row = Row(2, {"prompt": "a", "completion": "b"})
    assert read(tmp_path, b"prompt,completion\na,b\n", columns=None) == [row]
    assert list(read_rows(tmp_path / "source", "s3://data/rows", DataFormat.CSV)) == [row]
    (tmp_path / "source").write_bytes(HEADER + b"a,b\n")
    assert list(read_rows(tmp_path / "source", "s3://data/rows", DataFormat.CSV)) == [
        Row(2, {"text": "a", "label": "b"})
    ]


@pytest.mark.parametrize("kind", ["CSV", "JSONL", "JSON"])
def test_progress_counts_the_bytes_that_are_read(tmp_path: Path, kind: str) -> None:
    rows = [{"text": f"text {n}", "label": "a"} for n in range(5000)]
    content = {
        "CSV": HEADER + b"".join(f"{row['text']},a\n".encode() for row in rows),
        "JSONL": b"".join(json.dumps(row).encode() + b"\n" for row in rows),
        "JSON": json.dumps(rows).encode(),
    }[kind]
    path = tmp_path / "source"
    path.write_bytes(content)
    told: list[tuple[int, int]] = []

    def report(done: int, total: int) -> None:
        told.append((done, total))

    assert len(list(read_rows(path, "s3://data/rows", DataFormat(kind), COLUMNS.names, report=report))) == 5000
    assert len(told) == 5
    assert told == sorted(told)
    assert all(0 < done <= total == len(content) for done, total in told)


BROKEN = st.lists(
    st.sampled_from([b'"', b",", b"\n", b"\r", b"\0", b"\xff", b"{", b"}", b":", b"[", b"]", b"text", b"label", b"a"])
)


@given(BROKEN.map(b"".join), st.sampled_from(["CSV", "JSONL"]))
@QUICK
def test_no_bytes_crash_the_reader(tmp_path: Path, content: bytes, kind: str) -> None:
    header = HEADER if kind == "CSV" else b'{"text": "a", "label": "b"}\n'
    rules = Rules(COLUMNS)
    lines = 1
    for row in read(tmp_path, header + b"good,a\n" + content, kind):
        assert row.line >= lines
        lines = row.line
        if isinstance(row, Row):
            json.dumps(getattr(rules.example(row), "messages", [])).encode()


@given(BROKEN.map(b"".join))
@QUICK
def test_no_bytes_crash_the_reader_of_lists(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "source"
    path.write_bytes(b'[{"text": "a"}' + content)
    rows = read_rows(path, "s3://data/rows", DataFormat.JSON)
    assert next(rows) == Row(1, {"text": "a"})
    with suppress(StageError):
        assert all(row.line > 1 for row in rows)


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1).filter(str.strip)


@given(st.lists(TEXT, min_size=1, max_size=5))
@QUICK
def test_every_text_survives_all_formats(tmp_path: Path, texts: list[str]) -> None:
    out = io.StringIO()
    csv.writer(out).writerows([["text", "label"], *([text, "a"] for text in texts)])
    rows = [{"text": text, "label": "a"} for text in texts]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    contents = {"CSV": out.getvalue(), "JSONL": lines, "JSON": json.dumps(rows, ensure_ascii=False, indent=1)}
    for kind, content in contents.items():
        found = read(tmp_path, content.encode(), kind)
        assert [row.fields["text"] for row in found if isinstance(row, Row)] == texts


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters())
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=6,
)
"""What has more leaves than that is drawn again, which takes longer than reading it: so the bounds of lists."""


@given(st.dictionaries(st.text(), SCALARS), st.booleans())
@QUICK
def test_a_line_means_what_python_reads_in_it(tmp_path: Path, fields: dict[str, Any], ascii_only: bool) -> None:
    """The fast parser is an implementation detail: large numbers, NaN and half surrogate pairs come out the same."""
    line = json.dumps(fields, ensure_ascii=ascii_only).encode(errors="replace")
    assert repr(read(tmp_path, line, "JSONL")) == repr([Row(1, json.loads(line))])


def test_large_numbers_that_tools_are_called_with_stay_what_they_are(tmp_path: Path) -> None:
    call = {"function": {"name": "balance", "arguments": {"account": 10**25 + 1}}}
    row = {"messages": [{"role": "assistant", "tool_calls": [call]}]}
    assert read(tmp_path, json.dumps(row).encode(), "JSONL") == [Row(1, row)]


@pytest.mark.parametrize("levels", [975, 1000, 1022])
def test_a_row_of_tools_that_is_too_deep_for_one_of_the_parsers_is_a_fault(tmp_path: Path, levels: int) -> None:
    """orjson takes 1,024 levels, Python's own parser as many as are left to this process."""
    content = f'{{"tools": {"[" * levels}{"]" * levels}}}\n{{"text": "a"}}\n'
    first, second = read(tmp_path, content.encode(), "JSONL", columns=None)
    assert isinstance(first, Row) or first == Fault(1, "", "malformedJson", Saying("JSON: RecursionError"))
    assert second == Row(2, {"text": "a"})


@pytest.mark.slow
@given(
    st.lists(st.dictionaries(st.text(max_size=3), VALUES, max_size=3), min_size=1, max_size=4),
    st.sampled_from([None, 2]),
)
@QUICK
def test_a_list_does_not_depend_on_where_it_is_cut(
    tmp_path: Path, rows: list[dict[str, Any]], indent: int | None
) -> None:
    text = json.dumps(rows, indent=indent)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_list, "_CHUNK", 7)
        patch.setattr(json_list, "MAX_LINE", max(len(json.dumps([row], indent=indent)) + 20 for row in rows))
        found = read(tmp_path, text.encode(), "JSON")
    assert repr(found) == repr([Row(number, row) for number, row in enumerate(json.loads(text), start=1)])
