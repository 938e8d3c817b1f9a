"""Personal data: the pseudonyms in its place, in texts and in the arguments of tools, and what a report may hold."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_jobs.text.pii import Finding
from finetune_jobs.text.pii.masking import Pseudonyms, counts, map_texts
from tests.support.cost import assert_grows_with_the_size_only
from tests.support.personal_texts import DEFAULTS, TEXTS

pytestmark = pytest.mark.unit


def test_pseudonyms_are_the_same_for_the_same_value_however_it_is_written() -> None:
    names = Pseudonyms()

    def mask(text: str) -> str:
        return names.mask(text, DEFAULTS.find(text))

    assert mask("jane@example.com or bob@example.com") == "<EMAIL_ADDRESS_1> or <EMAIL_ADDRESS_2>"
    assert mask("Write to JANE@example.com!") == "Write to <EMAIL_ADDRESS_1>!"
    assert mask("call +44 20 7946 0958") == "call <PHONE_NUMBER_1>"
    assert mask("020 7946 0958, not 020 7946 0959") == "<PHONE_NUMBER_1>, not <PHONE_NUMBER_2>"
    assert mask("(212) 555-0188, +1 212.555.0188 x5, 312-555-0188") == (
        "<PHONE_NUMBER_3>, <PHONE_NUMBER_3>, <PHONE_NUMBER_4>"
    )
    assert mask("4111-1111-1111-1111 = 4111 1111 1111 1111") == "<CREDIT_CARD_1> = <CREDIT_CARD_1>"
    assert Pseudonyms().mask("bob@example.com", [Finding(0, 15, "EMAIL_ADDRESS")]) == "<EMAIL_ADDRESS_1>"


def test_a_placeholder_that_a_conversation_holds_already_is_given_to_no_other_value() -> None:
    names = Pseudonyms({"<EMAIL_ADDRESS_1>", "<EMAIL_ADDRESS_3>", "<PHONE_NUMBER_2>"})
    text = "bob@example.com, ann@example.com, bob@example.com, +44 20 7946 0958"
    assert names.mask(text, DEFAULTS.find(text)) == (
        "<EMAIL_ADDRESS_2>, <EMAIL_ADDRESS_4>, <EMAIL_ADDRESS_2>, <PHONE_NUMBER_1>"
    )


def mask_all(text: str, key: str) -> str:
    return Pseudonyms().mask(text, DEFAULTS.find(text, key))


@pytest.mark.slow
def test_the_cost_of_telephone_numbers_grows_with_how_many_there_are_only() -> None:
    def mask_numbers(size: int) -> None:
        numbers = [f"{2025550000 + 7 * n}" for n in range(size)]
        places = [Finding(11 * n, 11 * n + 10, "PHONE_NUMBER") for n in range(size)]
        masked = Pseudonyms().mask(
            " ".join([*numbers, f"+1 {numbers[6]}"]), [*places, Finding(11 * size, 11 * size + 13, "PHONE_NUMBER")]
        )
        assert masked.endswith(f"<PHONE_NUMBER_{size}> <PHONE_NUMBER_7>")

    assert_grows_with_the_size_only(mask_numbers, 2_000)


def test_values_of_tools_are_masked_at_any_depth_and_keys_say_what_they_are() -> None:
    arguments = {
        "to": "jane@example.com",
        "passport": "912803456",
        "ids": ["912803456", 912803456, 1.5, 1e300, True, None],
        "café": "\u2615 \n",
        "cards": [[{"deep": {"number": 4111111111111111}}], 4111111111111111.0],
        "jane@example.com": {"bob@example.com": False},
    }
    assert map_texts(arguments, mask_all) == {
        "to": "<EMAIL_ADDRESS_1>",
        "passport": "<US_PASSPORT_1>",
        "ids": arguments["ids"],
        "café": "\u2615 \n",
        "cards": [[{"deep": {"number": "<CREDIT_CARD_1>"}}], "<CREDIT_CARD_1>"],
        "<EMAIL_ADDRESS_1>": {"<EMAIL_ADDRESS_1>": False},
    }


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(JSON)
def test_masked_arguments_have_the_same_structure(arguments: Any) -> None:
    def structure(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: structure(item) for key, item in value.items()}
        if isinstance(value, list):
            return [structure(item) for item in value]
        return value if value is None or isinstance(value, bool) else "a text, or a number that may become one"

    assert structure(map_texts(arguments, mask_all)) == structure(arguments)


def test_a_report_holds_counts_only() -> None:
    text = "jane@example.com, bob@example.com, 203.0.113.7"
    assert counts(DEFAULTS.find(text)) == {"EMAIL_ADDRESS": 2, "IP_ADDRESS": 1}
    assert "jane" not in repr(DEFAULTS.find(text))
