"""The general and the adversarial set: their files are whole, and every check tells right from wrong."""

import re
from collections import Counter
from collections.abc import Sequence

import pytest

from finetune_jobs.evaluation.behaviour.checks import Absent, JsonIs, Matches, Mentions, NumberIs
from finetune_jobs.evaluation.behaviour.items import (
    ADVERSARIAL,
    GENERAL,
    adversarial_set,
    general_set,
    subset,
    subset_of_swaps,
    swap_set,
)

pytestmark = pytest.mark.unit

ALL = [*general_set(), *adversarial_set()]


def test_ids_and_prompts_are_unique() -> None:
    for values in (
        [item.id for item in ALL] + [swap.id for swap in swap_set()],
        [(item.system, item.prompt) for item in ALL] + [("", prompt) for swap in swap_set() for prompt in swap.prompts],
    ):
        assert [value for value, times in Counter(values).items() if times > 1] == []


def test_counts_by_category() -> None:
    """The sets are fixed: another count is another recipe of stage evaluate."""
    assert Counter(item.category for item in general_set()) == {
        "arithmetic": 40,
        "instructions": 40,
        "format": 32,
        "facts": 60,
        "reading": 30,
        "refusals": 20,
    }
    assert Counter(item.category for item in adversarial_set()) == {
        "harmful": 24,
        "benign": 24,
        "jailbreak": 72,
        "injection": 16,
        "leakage": 16,
        "offtopic": 14,
    }
    assert len(swap_set()) == 24
    assert (
        tuple(dict.fromkeys(item.category for item in general_set())),
        tuple(dict.fromkeys(item.category for item in adversarial_set())),
    ) == (GENERAL, ADVERSARIAL)


def test_every_check_accepts_the_reference_and_rejects_the_wrong_answer() -> None:
    assert [item.id for item in ALL if not item.check.accepts(item.reference)] == []
    assert [item.id for item in ALL if not item.check.accepts(f"  {item.reference}\n")] == []
    assert [item.id for item in ALL if item.check.accepts(item.wrong)] == []


def test_items_are_short() -> None:
    """What a set costs is bounded, and no answer is cut off at the limit of tokens."""
    assert [item.id for item in ALL if len(f"{item.system} {item.prompt}".split()) > 120] == []
    assert [item.id for item in ALL if len(item.reference.split()) > 20] == []


def test_what_must_not_be_said_stands_in_the_prompt() -> None:
    """Otherwise no answer could hold it."""
    for item in ALL:
        if isinstance(item.check, Absent):
            assert item.check.accepts(item.reference), item.id
            assert not item.check.accepts(f"{item.system}\n{item.prompt}"), item.id


def test_a_swap_changes_the_prompt_only_where_it_says_so() -> None:
    for swap in swap_set():
        first, second = swap.prompts
        assert first != second, swap.id
        assert "{" not in first + second, swap.id
        assert re.sub(rf"\b{swap.swaps[0]}\b", swap.swaps[1], first) == second, swap.id


def test_a_subset_has_so_many_of_every_category_and_is_always_the_same() -> None:
    chosen = subset(general_set(), 8)
    assert Counter(item.category for item in chosen) == dict.fromkeys(GENERAL, 8)
    assert subset(general_set()[::-1], 8)[::-1] == chosen
    assert {item.id for item in subset(general_set(), 4)} < {item.id for item in chosen}
    assert subset(general_set(), 1000) == list(general_set())
    assert len(subset_of_swaps(swap_set(), 6)) == 6
    assert subset_of_swaps(swap_set()[::-1], 6)[::-1] == subset_of_swaps(swap_set(), 6)


def test_a_harmful_request_is_chosen_with_its_twin() -> None:
    chosen = subset(adversarial_set(), 6)
    groups = {name: {item.group for item in chosen if item.category == name} for name in ("harmful", "benign")}
    assert groups["harmful"] == groups["benign"]


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("42", True),
        ("17 + 25 = 42.", True),
        ("The answer is 42", True),
        ("42.0", True),
        ("1,042", False),
        ("42 or 43", False),
        ("forty-two", False),
        ("", False),
        ("-42", False),
    ],
)
def test_the_last_number_counts(answer: str, right: bool) -> None:
    assert NumberIs(kind="number", value=42).accepts(answer) is right


@pytest.mark.parametrize(
    ("words", "answer", "right"),
    [
        (["Rome"], "The capital of Italy is rome.", True),
        (["Rome"], "Romeo", False),
        (["8", "Eight"], "It has 8 legs", True),
        (["8", "Eight"], "It has 18 legs", False),
        (["H2O"], "(H2O)", True),
    ],
)
def test_whole_words_are_found(words: Sequence[str], answer: str, right: bool) -> None:
    assert Mentions(kind="mentions", words=list(words)).accepts(answer) is right
    assert Absent(kind="absent", words=list(words)).accepts(answer) is not right


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ('{"a": 1, "b": [true, null]}', True),
        ('{"b":[true,null],"a":1.0}', True),
        ('```json\n{"a": 1, "b": [true, null]}\n```', True),
        ('Here it is: {"a": 1, "b": [true, null]}', False),
        ('{"a": true, "b": [1, null]}', False),
        ('{"a": 1}', False),
        ("", False),
    ],
)
def test_a_json_value_is_equal_in_value_and_type(answer: str, right: bool) -> None:
    assert JsonIs(kind="json", value={"a": 1, "b": [True, None]}).accepts(answer) is right


def test_a_form_is_that_of_the_whole_answer() -> None:
    check = Matches(kind="regex", pattern=r"(yes|no)\.?")
    assert [check.accepts(text) for text in ("yes", " no.\n", "yes, it is", "Yes")] == [True, True, False, False]
