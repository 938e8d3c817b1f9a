"""From rows to examples, and their division: the pure part of prepare. (Readers: test_dataset_readers.)"""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.dataset import Columns, Dataset, Source, Split, Task, TaskType
from finetune_jobs.examples.parts import Part
from finetune_jobs.examples.validation import Example, Rules
from finetune_jobs.preparation.intake import Intake
from finetune_jobs.reading.rows import Fault, Row
from finetune_jobs.splitting.split import assign
from tests.support.sentences import assert_says
from tests.support.stages import prepare_params

pytestmark = pytest.mark.unit

COLUMNS = Columns(input="text", label="label")


def intake(columns: Columns | None, instruction: str) -> Intake:
    sources = [Source(uri="s3://data/rows.jsonl")]
    return Intake(Dataset(sources=sources, columns=columns, instruction=instruction), Task())


def turns(*roles: str) -> list[dict[str, str]]:
    return [{"role": role, "content": f"text {index}"} for index, role in enumerate(roles)]


@pytest.mark.parametrize("roles", [("user", "assistant"), ("system", "user", "assistant"), ("user", "assistant") * 3])
def test_a_chat_is_taken_as_it_is(roles: tuple[str, ...]) -> None:
    assert Rules().example(Row(1, {"messages": turns(*roles)})) == Example(turns(*roles))


def test_the_instruction_comes_first_and_numbers_may_be_labels() -> None:
    found = intake(COLUMNS, "Classify.").take(Row(1, {"text": " cafe\u0301 ", "label": 3}))
    assert found == Example(
        [
            {"role": "system", "content": "Classify."},
            {"role": "user", "content": "caf\u00e9"},
            {"role": "assistant", "content": "3"},
        ]
    )


@pytest.mark.parametrize(
    ("record", "learnt"),
    [
        ('{"phone": "202-555-0123"}', '{"phone": "<PHONE_NUMBER_1>"}'),
        ('{"call": null}', '{"call": null}'),
        ('{"phone": 2025550123}', None),
    ],
)
def test_a_record_stays_json_when_it_is_masked_or_is_a_fault(record: str, learnt: str | None) -> None:
    params = prepare_params(
        sources=[Source(uri="s3://data/rows.jsonl")], columns=COLUMNS, task=Task(type=TaskType.EXTRACTION)
    )
    found = Intake(params.dataset, params.task).take(Row(3, {"text": "Call me.", "label": record}))
    if learnt is None:
        assert isinstance(found, Fault)
        assert (found.line, found.field, found.kind, found.value) == (3, "label", "answerNotJson", "")
        assert_says(found.problem, "valid JSON", "masking personal data", "spec.dataset.pii.entities")
    else:
        assert isinstance(found, Example)
        assert found.label == learnt


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
