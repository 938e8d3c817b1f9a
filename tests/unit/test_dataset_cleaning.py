"""Cleaning: characters, white space, markup, and answers that teach nothing."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_api.dataset import Cleaning, Markup, Task
from finetune_jobs.examples.validation import Example
from finetune_jobs.reading.rows import Fault, Row
from finetune_jobs.text.cleaning import Cleaner
from tests.support.cost import assert_grows_with_the_size_only
from tests.support.fast import share
from tests.support.preparing import intake_of, params_of

pytestmark = pytest.mark.unit

KEEP, STRIP = Cleaner(Cleaning()), Cleaner(Cleaning(markup=Markup.STRIP))


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("cafe\u0301 \u212b", "caf\u00e9 \u00c5"),
        ("one\r\ntwo\rthree\u2028four\u2029five\x0bsix\x85seven", "one\ntwo\nthree\nfour\nfive\nsix\nseven"),
        ("a\u00a0b\u2009c\u202fd\u3000e", "a b c d e"),
        ("end  \nnext\t \n", "end\nnext"),
        ("\n\n  indented\n\n\n    more\n", "  indented\n\n\n    more"),
        ("be\x00ll\x07 esc\x1b[0m tab\tstays", "bell esc[0m tab\tstays"),
        ("zero\u200bwidth\ufeff soft\u00adhyphen\u2060", "zerowidth softhyphen"),
        ("user\u202egnp.exe\u202c \u2066x\u2069\u200e", "usergnp.exe x"),
        ("lat\u200din \u200c", "latin"),
        (
            "\U0001f468\u200d\U0001f469\u200d\U0001f467 می\u200cخواهم क्\u200dष",
            "\U0001f468\u200d\U0001f469\u200d\U0001f467 می\u200cخواهم क्\u200dष",
        ),
        (
            "flag \U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
            "flag \U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
        ),
        ("hidden\U000e0069\U000e0067\U000e006e text", "hidden text"),
        ("<b>kept</b> &amp; so", "<b>kept</b> &amp; so"),
        ("", ""),
    ],
)
def test_characters_and_white_space(text: str, clean: str) -> None:
    assert KEEP.text(text) == clean


CODE = """Use this:

```python
def f(a: List[str]) -> None:
    if a and not b:
\treturn "<b>&amp;</b>"
```

and `<br>` or `&lt;`, then:

    x = [1,
         2]"""


@pytest.mark.parametrize("cleaner", [KEEP, STRIP])
def test_code_and_indentation_stay(cleaner: Cleaner) -> None:
    assert cleaner.text(CODE) == CODE


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("<p>Hello <b>you</b>,<br/>fine?</p>", "Hello you,\nfine?"),
        ("<ul><li>one</li><li>two</li></ul>", "one\n\ntwo"),
        ('<a href="x?a=1&amp;b=2" class=y>link</a> <input disabled>', "link"),
        ("<!DOCTYPE html><html><head><title>T</title></head><body>B</body></html>", "TB"),
        ("a<!-- gone\nfor good -->b", "ab"),
        ("a<script type='x'>if (a<b) go()</script>b<style>p {}</style>c", "abc"),
        ("5 &lt; 6 &amp;&amp; 7 &gt; 6 &euro; &#233; &#x1F600;", "5 < 6 && 7 > 6 € é \U0001f600"),
        ("&nbsp;non&nbsp;breaking&shy;", " non breaking"),
        ("twice &amp;lt;b&amp;gt;bold", "twice bold"),
        # what is no markup of HTML stays
        ("if a < b and c > d or List<String> or Map<K, V>", "if a < b and c > d or List<String> or Map<K, V>"),
        ("a <b and c> d", "a <b and c> d"),
        ("<EMAIL_ADDRESS_1> <think>hm</think>", "<EMAIL_ADDRESS_1> <think>hm</think>"),
        ("x?a=1&copy=2&unknown; AT&T", "x?a=1&copy=2&unknown; AT&T"),
        ("<!-- never closed <b>", "<!-- never closed"),
        ("<script>never closed", "never closed"),
        ("<a href='", "<a href='"),
    ],
)
def test_markup_is_stripped_where_asked(text: str, clean: str) -> None:
    assert STRIP.text(text) == clean


HARD = st.lists(
    st.one_of(
        st.sampled_from(
            [
                *(
                    "<b>",
                    "</b>",
                    "<br>",
                    "<p>",
                    "<!--",
                    "-->",
                    "<script>",
                    "</script>",
                    "&amp;",
                    "&lt;",
                    "&gt;",
                    "&#60;",
                ),
                *(
                    "lt;",
                    "amp;",
                    "b>",
                    "`",
                    "```",
                    "\n",
                    "\r",
                    " ",
                    "\t",
                    "\u00a0",
                    "\u200b",
                    "\u200c",
                    "\u200d",
                    "\u0301",
                ),
                *(
                    "e",
                    "α",
                    "\u0345",
                    "\U0001f468",
                    "\U0001f3f4",
                    "\U000e0067",
                    "\U000e007f",
                    "&#x200d;",
                    "&NewLine;",
                    "क्",
                ),
            ]
        ),
        st.text(max_size=3),
    ),
    max_size=14,
).map("".join)


@pytest.mark.slow
@settings(max_examples=share(400))
@given(HARD)
def test_a_clean_text_stays(text: str) -> None:
    for cleaner in (KEEP, STRIP):
        once = cleaner.text(text)
        assert cleaner.text(once) == once


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126)))
def test_plain_text_is_not_touched(text: str) -> None:
    assert KEEP.text(text) == text


@pytest.mark.parametrize(
    "piece", ["<!--", "<script>", "<a href=", "&amp;", "&#38;", "`", "<b", "\u200d", " \n", "<p>", " "]
)
def test_cost_grows_with_the_length_only(piece: str) -> None:
    assert_grows_with_the_size_only(lambda size: STRIP.text("é" + piece * (size // len(piece)) + "."), 25_000)


@pytest.mark.parametrize(
    ("answer", "least", "problem"),
    [
        ("", 1, "answerEmpty"),
        (" \n", 1, "answerEmpty"),
        ("Groceries", 1, ""),
        ("+", 1, ""),
        ("Yes.", 2, "answerTooShort"),
        ("Yes, please.", 2, ""),
        ("三个字", 3, ""),
        ("三字", 3, "answerTooShort"),
    ],
)
def test_answers_that_teach_nothing(answer: str, least: int, problem: str) -> None:
    assert Cleaner(Cleaning(min_answer_words=least)).problem(answer) == problem


@pytest.mark.parametrize(
    ("given", "markup", "clean"),
    [
        ("Credit\u00a0card\u200b", Markup.KEEP, "Credit card"),
        ("Caf\u00e9", Markup.KEEP, "Caf\u00e9"),
        ("R&amp;D", Markup.KEEP, "R&amp;D"),
        ("R&amp;D", Markup.STRIP, "R&D"),
        ("R&D", Markup.STRIP, "R&D"),
        ("R&D", Markup.KEEP, None),
        ("Credit", Markup.STRIP, None),
    ],
)
def test_labels_are_compared_when_they_are_clean(given: str, markup: Markup, clean: str | None) -> None:
    task = Task(labels=["Credit card", "Cafe\u0301", "R&amp;D"])
    intake = intake_of(params_of(task=task, cleaning=Cleaning(markup=markup)))
    found = intake.take(Row(1, {"prompt": "q", "completion": given}))
    if clean is None:
        assert isinstance(found, Fault)
        assert found.kind == "unknownLabel"
    else:
        assert isinstance(found, Example)
        assert found.label == clean
