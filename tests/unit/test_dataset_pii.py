"""Personal data: what the recognisers find and what they leave, and the pseudonyms in its place."""

import re
import socket
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_api.dataset import OnFinding, Pii
from finetune_jobs.text.pii import Finding, Recognition, cards, identifiers, internet, phones, presidio
from finetune_jobs.text.pii.cards import passes_luhn
from finetune_jobs.text.pii.findings import Recognizer, without_overlaps
from finetune_jobs.text.pii.masking import Pseudonyms
from finetune_jobs.text.pii.recognition import DEFAULT, ON_REQUEST
from finetune_jobs.text.pii.text import Text
from tests.support.cost import assert_grows_with_the_size_only
from tests.support.fast import share
from tests.support.personal_texts import DEFAULTS, TEXTS, found

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("entity", "value"),
    [
        # ISO/IEC 7812: the networks' published test numbers, as cards print them and joined
        ("CREDIT_CARD", "4111 1111 1111 1111"),
        ("CREDIT_CARD", "4222222222222"),
        ("CREDIT_CARD", "4000-0566-5566-5556"),
        ("CREDIT_CARD", "5555555555554444"),
        ("CREDIT_CARD", "2223 0031 2200 3222"),
        ("CREDIT_CARD", "3782 822463 10005"),
        ("CREDIT_CARD", "30569309025904"),
        ("CREDIT_CARD", "6011 1111 1111 1117"),
        ("CREDIT_CARD", "3566002020360505"),
        ("CREDIT_CARD", "6205500000000000004"),
        ("CREDIT_CARD", "501800000009"),
        # E.164, E.123 and national notations, numbers reserved for fiction where there are such
        ("PHONE_NUMBER", "+1 212-555-0188"),
        ("PHONE_NUMBER", "+12125550188"),
        ("PHONE_NUMBER", "(212) 555-0188"),
        ("PHONE_NUMBER", "212.555.0188"),
        ("PHONE_NUMBER", "212-555-0188 ext. 42"),
        ("PHONE_NUMBER", "1-800-555-0199x7"),
        ("PHONE_NUMBER", "001-212-555-0188"),
        ("PHONE_NUMBER", "+44 (0)20 7946 0958"),
        ("PHONE_NUMBER", "020 7946 0958"),
        ("PHONE_NUMBER", "07700 900123"),
        ("PHONE_NUMBER", "+49 30 23125 000"),
        ("PHONE_NUMBER", "0049 30 23125 000"),
        ("PHONE_NUMBER", "030/23125 123"),
        ("PHONE_NUMBER", "01 99 00 12 34"),
        ("PHONE_NUMBER", "(02) 5550 1234"),
        ("PHONE_NUMBER", "+41 44 668 18 00"),
        ("PHONE_NUMBER", "601 234 567"),
        ("PHONE_NUMBER", "2125550188"),
        ("EMAIL_ADDRESS", "jane.o'neill+news@mail.example.co.uk"),
        ("EMAIL_ADDRESS", "jörg@müller.de"),
        ("EMAIL_ADDRESS", "root@db1.corp.internal"),
        ("EMAIL_ADDRESS", "jane (at) example (dot) com"),
        ("EMAIL_ADDRESS", "jane[at]example.com"),
        ("IBAN_CODE", "DE89 3704 0044 0532 0130 00"),
        ("IBAN_CODE", "GB29NWBK60161331926819"),
        ("IBAN_CODE", "FR14 2004 1010 0505 0001 3M02 606"),
        ("IP_ADDRESS", "203.0.113.7"),
        ("IP_ADDRESS", "2001:db8::8a2e:370:7334"),
        ("IP_ADDRESS", "::ffff:203.0.113.7"),
        ("MAC_ADDRESS", "00:1A:2B:3C:4D:5E"),
        ("CRYPTO", "bc1qar0srrr7xfkvy5l643lydnw9re59gtzzwf5mdq"),
        ("US_SSN", "536-90-4399"),
        ("US_SSN", "536 90 4399"),
        ("US_ITIN", "912-70-1234"),
        ("URL", "https://example.com/profile?id=7"),
        ("URL", "http://www.example.org/"),
        ("URL", "www.jane-miller.photography"),
        ("URL", "jane-miller.co.uk"),
        ("URL", "EXAMPLE.COM"),
    ],
)
def test_formats_that_prove_themselves_are_found_whole(entity: str, value: str) -> None:
    for text in (value, f"It is {value}.", f"({value})", f"first {value}, then\nmore"):
        assert found(text) == [(entity, value)]


@pytest.mark.parametrize(
    ("entity", "text", "value"),
    [
        ("US_SSN", "my social security number is 536904399, thanks", "536904399"),
        ("US_DRIVER_LICENSE", "Driver's license: D400-7836-0001", "D400-7836-0001"),
        ("US_DRIVER_LICENSE", "the driver license no. A1234567 expired", "A1234567"),
        ("US_PASSPORT", "passport 912803456", "912803456"),
        ("US_PASSPORT", "A12803456 is in my passport", "A12803456"),
        ("US_BANK_NUMBER", "from checking account 000123456789", "000123456789"),
        ("DATE_OF_BIRTH", "I was born 12/03/1980 in Leeds", "12/03/1980"),
        ("DATE_OF_BIRTH", "DOB: March 12, 1980", "March 12, 1980"),
        ("PHONE_NUMBER", "please call 555-0188 today", "555-0188"),
        ("PHONE_NUMBER", "Meine Handynummer: 17212345678", "17212345678"),
        ("CREDIT_CARD", "card 4111 1111 1111 1112 was declined", "4111 1111 1111 1112"),
        ("MEDICAL_LICENSE", "the doctor's DEA number BB1388568", "BB1388568"),
        ("UK_NHS", "patient with NHS number 943 476 5919", "943 476 5919"),
        ("URL", "my website is jane.photography", "jane.photography"),
    ],
)
def test_other_numbers_are_found_where_a_word_says_what_they_are(entity: str, text: str, value: str) -> None:
    assert (entity, value) in found(text)
    assert (entity, value) not in found(f"see {value} there")


@pytest.mark.parametrize(
    "text",
    [
        "order 4815162342 of 2024-03-01 12:30:45 costs 1,234,567.89 or 12 000 000",
        "invoice no. 212-555-0188, ticket #5550188, ISBN 978-3-16-148410-0",
        "between 2019-2023, on 01.02.2024, ZIP 12345-6789, 52.5200080, 13.4049540",
        "4111 1111 1111 1112 and 1234 5678 9012 3456 and 9999999999999999",
        "000-12-3456 or 666-12-3456 or 123-00-4567 or 123-45-0000",
        "DE89 3704 0044 0532 0130 01 has a wrong check digit",
        "edit readme.md and main.py, then obj.id or user.name and log.info(x), e.g. this. Then.That",
        "lodash@4.17.21, @decorator, a@b, x @ y",
        "version 1.2.3.4, 127.0.0.1, ::1, 256.1.1.1, std::vector<int>, x[1::2], add::bad, 12:30:45",
        "sha256 e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "123e4567-e89b-12d3-a456-426614174000 at 1700000000",
        "A1234567 and 912803456 and 000123456789 and 12/03/1980",
        "BB1388568",
        "masked as <PHONE_NUMBER_1> and <EMAIL_ADDRESS_12>",
    ],
)
def test_what_only_looks_like_personal_data_stays(text: str) -> None:
    assert found(text) == []


def test_what_was_said_before_tells_what_a_number_is() -> None:
    assert found("912803456", before="What is your passport number?") == [("US_PASSPORT", "912803456")]
    assert found("912803456", before="What is your order number?") == []
    assert found("no mail", before="jane@example.com") == []


@pytest.mark.parametrize(
    ("digits", "valid"), [("4111111111111111", True), ("4111111111111112", False), ("79927398713", True), ("0", True)]
)
def test_luhn(digits: str, valid: bool) -> None:
    assert passes_luhn(digits) is valid


EVERYTHING = Recognition(Pii(entities=[each.entity for each in (*DEFAULT, *ON_REQUEST)], min_score_percent=1))


@pytest.mark.slow
@settings(deadline=None, max_examples=share(300))
@given(TEXTS, st.sampled_from(["", "your passport number?"]))
def test_the_fast_way_finds_exactly_what_all_recognisers_find(text: str, before: str) -> None:
    assert EVERYTHING.find(text, before) == EVERYTHING.find_unfiltered(text, before)


PIECES = "1 1- 12/ 4111- +1 +49- (1 A1 GB29 a. 1. @ a@ @a. a@b. (at) [at]a. https:// www. ://a: x.co/ a- _ . + :: f:"


@pytest.mark.slow
@pytest.mark.parametrize("piece", [*PIECES.split(" "), "1 ", "4111 ", "a at ", " "])
def test_cost_grows_with_the_length_only(piece: str) -> None:
    assert_grows_with_the_size_only(lambda size: DEFAULTS.find_unfiltered(piece * (size // len(piece)) + "!"), 10_000)


def patterns_of(recognizer: Recognizer) -> list[re.Pattern[str]]:
    """What one of IDENTIFIERS looks for in long numbers."""
    arguments = recognizer.find.args  # type: ignore[attr-defined]  # a functools.partial
    return [each for each in arguments if isinstance(each, re.Pattern)]


IN_NUMBERS = [
    *(phones._INTERNATIONAL, phones._AMERICAN, phones._NATIONAL, cards._RUN, presidio._MEDICAL_LICENSE),
    *(pattern for each in identifiers.NUMBERS for pattern in patterns_of(each)),
]
NUMBERS = st.lists(
    st.one_of(
        st.text(st.sampled_from("0123456789 -./()+x\u2010٣a\n"), max_size=12),
        st.sampled_from(
            ["212-555-0188", "4111 1111 1111 1111", "+1 (212) 555 0188", "00 49", "536-90-4399", "9127012345"]
        ),
        st.sampled_from(
            [" ext. 12", "x123456", " durchwahl 1234567", ";ext=12345678", "%", " €", "    ", "A1234567", "#1 "]
        ),
    ),
    max_size=8,
).map("".join)


@settings(deadline=None, max_examples=share(150))
@given(NUMBERS, st.one_of(st.just(""), NUMBERS))
def test_around_long_numbers_everything_is_found_that_is_anywhere(text: str, before: str) -> None:
    whole = Text(text, before)
    for pattern in IN_NUMBERS:
        anywhere = [match.span() for match in pattern.finditer(before + text) if match.start() >= len(before)]
        found_here = [match.span() for match in whole.in_numbers(pattern) if match.start() >= len(before)]
        assert found_here == anywhere, pattern.pattern


@settings(deadline=None, max_examples=share(300))
@given(st.text(st.sampled_from("ab.@ \n\t/:"), max_size=40), st.text(st.sampled_from("ab.@ \n"), max_size=8))
def test_in_words_with_an_anchor_everything_is_found_that_is_anywhere(text: str, before: str) -> None:
    whole = Text(text, before)
    for pattern, anchor in ((r"\w+@[\w.]+", "@"), (r"[\w:/]*\w\.\w[^\s]*(?!@)", r"\.(?<=\w\.)\w")):
        anywhere = [match.span() for match in re.finditer(pattern, before + text) if match.start() >= len(before)]
        found_here = [match.span() for match in whole.in_words(re.compile(pattern), re.compile(anchor))]
        assert [span for span in found_here if span[0] >= len(before)] == anywhere


@settings(deadline=None, max_examples=share(200))
@given(TEXTS)
def test_masked_texts_keep_nothing_that_was_found_and_everything_else(text: str) -> None:
    findings = DEFAULTS.find(text)
    masked = Pseudonyms().mask(text, findings)
    kept = re.escape(text)
    for finding in reversed(findings):
        before, after = re.escape(text[: finding.start]), kept[len(re.escape(text[: finding.end])) :]
        kept = f"{before}<{finding.entity}_[0-9]+>{after}"
    assert re.fullmatch(kept, masked, re.DOTALL)


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 9), st.sampled_from([0.4, 0.6, 1.0])), max_size=12))
def test_of_overlapping_findings_the_surest_and_longest_stays(places: list[tuple[int, int, float]]) -> None:
    findings = [Finding(start, start + length, "X", score) for start, length, score in places]
    kept = without_overlaps(findings)
    assert all(first.end <= second.start for first, second in pairwise(kept))
    for lost in set(findings) - set(kept):
        overlapping = [k for k in kept if k.start < lost.end and lost.start < k.end]
        assert any((r.score, r.end - r.start) >= (lost.score, lost.end - lost.start) for r in overlapping)


LATIN = st.characters(max_codepoint=0x24F, exclude_characters="ſıİK")


WITH_CONTEXT = [
    *identifiers.IDENTIFIERS,
    *(each for each in presidio.DEFAULT if each.find.args[-1]),  # type: ignore[attr-defined]  # a functools.partial
]


@pytest.mark.parametrize("recognizer", WITH_CONTEXT, ids=lambda recognizer: str(recognizer.entity))
@given(data=st.data())
def test_hints_are_in_every_text_with_a_word_of_the_context(recognizer: Recognizer, data: st.DataObject) -> None:
    context = recognizer.find.args[-1]  # type: ignore[attr-defined]
    text = data.draw(st.from_regex(context.words, alphabet=LATIN))
    assert context.within(text) is True
    assert context.hinted(Text(text)) is True


def test_nothing_reaches_for_the_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a recogniser reached for the network")

    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    internet._extractor.cache_clear()
    internet._suffix_of_name.cache_clear()
    text = "jane@example.com, www.example.co.uk, DE89 3704 0044 0532 0130 00, +1 212-555-0188"
    assert len(EVERYTHING.find_unfiltered(text)) == 4
    assert list(tmp_path.iterdir()) == []


def test_entities_scores_and_modes_are_the_users_choice() -> None:
    text = "jane@example.com, 2024-03-01, +1 212-555-0188, 2125550188"
    assert found(text, Recognition(Pii(entities=["DATE_TIME", "EMAIL_ADDRESS"]))) == [
        ("EMAIL_ADDRESS", "jane@example.com"),
        ("DATE_TIME", "2024-03-01"),
    ]
    assert found(text, Recognition(Pii(min_score_percent=75))) == [
        ("EMAIL_ADDRESS", "jane@example.com"),
        ("PHONE_NUMBER", "+1 212-555-0188"),
    ]
    assert found(text, Recognition(Pii(mode=OnFinding.OFF))) == []


def test_cards_among_other_digits() -> None:
    text = "4111 1111 1111 1111 12/25 and 5555 5555 5555 4444 4111 1111 1111 1111, 12 4222222222222"
    assert [value for _, value in found(text)] == [
        "4111 1111 1111 1111",
        "5555 5555 5555 4444",
        "4111 1111 1111 1111",
        "4222222222222",
    ]
