"""Reading, validating and dividing examples: the pure part of prepare."""

import csv
import io
import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finetune_api.dataset import Columns, DataFormat, Split, Task
from finetune_api.reasons import Reason
from finetune_jobs.dataset.readers import MAX_LINE, Fault, Row, read_rows
from finetune_jobs.dataset.split import Part, assign
from finetune_jobs.dataset.validation import Example, Rules
from finetune_jobs.errors import StageError

pytestmark = pytest.mark.unit

COLUMNS = Columns(input="text", label="label")
HEADER = b"text,label\n"


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


@pytest.mark.parametrize(
    ("kind", "content", "line", "problem", "value"),
    [
        ("CSV", HEADER + b"good,a\nbad \xff,b\n", 3, "is not UTF-8 at byte 22 of the file, 5 of the line", "0xff"),
        ("CSV", HEADER + b"one,two,three\n", 2, "has 3 fields, the header has 2", "one,two,three"),
        ("CSV", HEADER + b"one\n", 2, "has 1 fields, the header has 2", "one"),
        ("CSV", HEADER + b'"a"b,c\n', 2, "is not CSV: ',' expected after '\"'", ""),
        ("CSV", HEADER + b"good,a\n" + b"x" * MAX_LINE + b",a\n", 3, f"the line is longer than {MAX_LINE} bytes", ""),
        ("JSONL", b'{"text": "a"}\n{"text": }\n', 2, "is not JSON at column 10: Expecting value", '{"text": }'),
        ("JSONL", b'["a"]\n', 1, "is not a JSON object", '["a"]'),
        ("JSONL", b"\xc3\x28\n", 1, "is not UTF-8 at byte 0 of the file, 1 of the line", "0xc3"),
        ("JSONL", b"[" * 100_000 + b"\n", 1, "is not JSON that can be read: RecursionError", ""),
        ("JSONL", b'{"a": ' + b"9" * 5000 + b"}\n", 1, "is not JSON that can be read: ValueError", ""),
    ],
)
def test_a_row_that_cannot_be_read_is_a_fault_with_its_place(
    tmp_path: Path, kind: str, content: bytes, line: int, problem: str, value: str
) -> None:
    faults = [row for row in read(tmp_path, content, kind) if isinstance(row, Fault)]
    assert [(f.line, f.problem, f.value) for f in faults] == [(line, problem, value)]


def test_reading_goes_on_after_a_fault(tmp_path: Path) -> None:
    content = HEADER + b"x" * (3 * MAX_LINE) + b"\nbad \xff,a\none\ngood,b\n"
    rows = read(tmp_path, content)
    assert [row.line for row in rows] == [2, 3, 4, 5]
    assert rows[-1] == Row(5, {"text": "good", "label": "b"})


@pytest.mark.parametrize(
    ("kind", "content", "message"),
    [
        ("CSV", b"", "s3://data/rows: the file is empty: it holds no header and no row."),
        ("CSV", HEADER, "s3://data/rows: the file is empty: it holds no row."),
        ("JSONL", b"\n\n", "s3://data/rows: the file is empty: it holds no row."),
        ("CSV", "text,label\na,b\n".encode("utf-16"), "s3://data/rows: the file is in UTF-16. Save it as UTF-8."),
        (
            "CSV",
            b"text,lable\na,b\n",
            "s3://data/rows: column 'label' does not exist; the file has 'text', 'lable'. Did you mean 'lable'?",
        ),
        (
            "CSV",
            b"text,label,text\na,b,c\n",
            "s3://data/rows: column 'text' exists more than once; the file has 'text', 'label', 'text'.",
        ),
        (
            "CSV",
            b"te\xffxt,label\na,b\n",
            "s3://data/rows: line 1, the header, is not UTF-8 at byte 2 of the file, 3 of the line (0xff).",
        ),
    ],
)
def test_a_file_that_cannot_be_read_fails(tmp_path: Path, kind: str, content: bytes, message: str) -> None:
    with pytest.raises(StageError) as error:
        read(tmp_path, content, kind)
    assert (error.value.reason, error.value.message) == (Reason.DATASET_INVALID, message)


def test_a_csv_needs_columns(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"needs spec\.dataset\.columns; the file has the columns 'text', 'label'"):
        read(tmp_path, HEADER + b"a,b\n", columns=None)


@pytest.mark.parametrize(
    ("fields", "field", "kind", "problem"),
    [
        ({"label": "a"}, "text", "missingColumn", "does not exist; the row has 'label'."),
        ({"text": " \t", "label": "a"}, "text", "empty", "is empty"),
        ({"text": "x", "label": ""}, "label", "empty", "is empty"),
        ({"text": "x\0y", "label": "a"}, "text", "nulByte", "holds a NUL byte at character 2"),
        (
            {"text": "x", "label": "Fod"},
            "label",
            "unknownLabel",
            "is not one of spec.task.labels. Did you mean 'Food'?",
        ),
        ({"text": None, "label": "a"}, "text", "notText", "is NoneType, must be text"),
        ({"text": 7, "label": "a"}, "text", "notText", "is int, must be text"),
        ({"text": "x", "label": True}, "label", "notText", "is bool, must be text"),
        (
            {"text": "\ud800", "label": "a"},
            "text",
            "loneSurrogate",
            "holds half a surrogate pair, which is no text",
        ),
    ],
)
def test_a_row_that_is_no_example_is_a_fault(fields: dict[str, object], field: str, kind: str, problem: str) -> None:
    rules = Rules(COLUMNS, task=Task(labels=["Food", "a", "7"]))
    found = rules.example(Row(9, fields))
    assert isinstance(found, Fault)
    assert (found.line, found.field, found.kind, found.problem) == (9, field, kind, problem)


BROKEN = st.lists(
    st.sampled_from([b'"', b",", b"\n", b"\r", b"\0", b"\xff", b"{", b"}", b":", b"[", b"text", b"label", b"a"])
)


@given(BROKEN.map(b"".join), st.sampled_from(["CSV", "JSONL"]))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_bytes_crash_the_reader(tmp_path: Path, content: bytes, kind: str) -> None:
    header = HEADER if kind == "CSV" else b'{"text": "a", "label": "b"}\n'
    rules = Rules(COLUMNS)
    lines = 1
    for row in read(tmp_path, header + b"good,a\n" + content, kind):
        assert row.line >= lines
        lines = row.line
        if isinstance(row, Row):
            json.dumps(getattr(rules.example(row), "messages", [])).encode()


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1).filter(str.strip)


@given(st.lists(TEXT, min_size=1, max_size=5))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_text_survives_both_formats(tmp_path: Path, texts: list[str]) -> None:
    out = io.StringIO()
    csv.writer(out).writerows([["text", "label"], *([text, "a"] for text in texts)])
    lines = "".join(json.dumps({"text": text, "label": "a"}, ensure_ascii=False) + "\n" for text in texts)
    for kind, content in (("CSV", out.getvalue()), ("JSONL", lines)):
        rows = read(tmp_path, content.encode(), kind)
        assert [row.fields["text"] for row in rows if isinstance(row, Row)] == texts


def turns(*roles: str) -> list[dict[str, str]]:
    return [{"role": role, "content": f"text {index}"} for index, role in enumerate(roles)]


@pytest.mark.parametrize(
    ("messages", "instruction", "kind"),
    [
        (None, "", "missingMessages"),
        ([], "", "missingMessages"),
        (["hello"], "", "notAMessage"),
        ([{"role": "user", "content": "x", "tool_calls": []}], "", "unknownKey"),
        ([{"role": "bot", "content": "x"}], "", "unknownRole"),
        ([{"role": "user", "content": ""}], "", "empty"),
        (turns("user"), "", "wrongOrder"),
        (turns("assistant"), "", "wrongOrder"),
        (turns("user", "user", "assistant"), "", "wrongOrder"),
        (turns("user", "system", "assistant"), "", "wrongOrder"),
        (turns("system", "user", "assistant"), "Be brief.", "wrongOrder"),
    ],
)
def test_a_chat_that_is_no_example_is_a_fault(messages: object, instruction: str, kind: str) -> None:
    found = Rules(None, instruction).example(Row(1, {"messages": messages}))
    assert isinstance(found, Fault)
    assert found.kind == kind


@pytest.mark.parametrize("roles", [("user", "assistant"), ("system", "user", "assistant"), ("user", "assistant") * 3])
def test_a_chat_is_taken_as_it_is(roles: tuple[str, ...]) -> None:
    assert Rules().example(Row(1, {"messages": turns(*roles)})) == Example(turns(*roles))


def test_the_instruction_comes_first_and_numbers_may_be_labels() -> None:
    found = Rules(COLUMNS, "Classify.").example(Row(1, {"text": " cafe\u0301 ", "label": 3}))
    assert found == Example(
        [
            {"role": "system", "content": "Classify."},
            {"role": "user", "content": "caf\u00e9"},
            {"role": "assistant", "content": "3"},
        ]
    )


@pytest.mark.parametrize(
    ("left", "right", "equal"),
    [
        ("Coffee  shop", "coffee shop", True),
        ("cafe\u0301", "caf\u00e9", True),
        ("Straße", "STRASSE", True),
        ("coffee shop", "coffee-shop", False),
    ],
)
def test_equal_prompts_have_one_identity(left: str, right: str, equal: bool) -> None:
    ids = [
        Example([{"role": "user", "content": text}, {"role": "assistant", "content": "a"}]).identity
        for text in (left, right)
    ]
    assert (ids[0] == ids[1]) is equal


LABELS = st.dictionaries(st.text(min_size=1), st.sampled_from("abc"), min_size=1, max_size=300)
SPLITS = st.builds(
    Split, validation_percent=st.integers(1, 30), test_percent=st.integers(1, 30), seed=st.integers(0, 2**31 - 1)
)


@given(LABELS, SPLITS)
def test_a_split_keeps_shares_and_labels_and_is_the_same_in_any_order(labels: dict[str, str], split: Split) -> None:
    parts = assign(labels, split)
    assert parts == assign(dict(reversed(labels.items())), split)
    assert parts.keys() == labels.keys()
    for label, count in Counter(labels.values()).items():
        sizes = Counter(part for identity, part in parts.items() if labels[identity] == label)
        assert sizes[Part.TRAIN] >= 1
        assert abs(sizes[Part.TEST] - count * split.test_percent / 100) <= 1
        assert abs(sizes[Part.VALIDATION] - count * split.validation_percent / 100) <= 1 or count <= 3


def test_another_seed_gives_another_split() -> None:
    labels = {str(n): "ab"[n % 2] for n in range(200)}
    assert assign(labels, Split(seed=1)) != assign(labels, Split(seed=2))
    assert Counter(assign(labels, Split()).values()) == {Part.TRAIN: 160, Part.VALIDATION: 20, Part.TEST: 20}
