"""Human review: which pairs are shown and how, what a file of votes must be, and what votes show."""

import json
from collections.abc import Callable
from functools import cache
from typing import Any, Final

import numpy as np
import pytest

from finetune_api.finetunejob import Output
from finetune_api.gates import GateOutcome, Gates, OnInconclusive
from finetune_api.reasons import Reason
from finetune_api.review import HumanReview, Reviewing, ReviewTerms
from finetune_api.stages import PublishParams
from finetune_jobs.base.errors import StageError
from finetune_jobs.evaluation.metrics import at_every_look, wilson
from finetune_jobs.evaluation.review.page import marked, render_review
from finetune_jobs.evaluation.review.sheet import MOST_CHARACTERS, MOST_PAIRS, ReviewSheet
from finetune_jobs.evaluation.review.stored import ReviewState
from finetune_jobs.evaluation.review.verdict import is_undecided, judge_review
from finetune_jobs.evaluation.review.votes import MOST_BYTES, VotesFile, in_words, read_votes, tally
from finetune_jobs.reports.page import Fact
from tests.support.readiness import Parsed
from tests.support.reviewing import as_file, sheet_of, sheet_with, votes_of
from tests.support.sentences import assert_says, unsaid
from tests.support.stages import RUN

pytestmark = pytest.mark.unit

SHEET: Final = sheet_with(40, same=5)
HOSTILE: Final = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\u202egnp.exe\x00"


def checked(sheet: ReviewSheet, **votes: Any) -> VotesFile:
    return read_votes(as_file(votes_of(sheet, **votes)), "ana.json", sheet)


def shown(sheet: ReviewSheet) -> Parsed:
    return Parsed(render_review(sheet, [Fact("Job", ["team-a/invoices"])]))


def test_the_same_answers_are_shown_the_same_way_and_each_side_is_the_artifacts_about_as_often() -> None:
    sheet = sheet_with(200)
    assert sheet == sheet_with(200)
    assert 75 < sum(pair.artifact_left for pair in sheet.pairs) < 125
    for pair in sheet.pairs:
        artifact, base = (pair.left, pair.right) if pair.artifact_left else (pair.right, pair.left)
        assert (artifact[:3], base[:3]) == ("new", "old")
        assert artifact[4:] == base[4:] == pair.question.removeprefix("question ")


def test_different_answers_come_first_and_in_no_order_of_the_data() -> None:
    sheet = sheet_of(["x", "same ", "a"] * 20, ["y", "same", "b"] * 20)
    assert [pair.same for pair in sheet.pairs] == [False] * 40 + [True] * 20
    numbers = [int(pair.question.removeprefix("question ")) for pair in sheet.pairs[:40]]
    assert numbers != sorted(numbers)
    assert len({pair.id for pair in sheet.pairs}) == 60


def test_a_page_has_an_end_and_so_has_a_text() -> None:
    sheet = sheet_of(["x" * 5000] * 300, [f"{number}\r\n\tline" for number in range(300)])
    assert len(sheet.pairs) == MOST_PAIRS
    longest = {max((pair.left, pair.right), key=len) for pair in sheet.pairs}
    assert longest == {"x" * (MOST_CHARACTERS - 1) + "…"}
    assert min((sheet.pairs[0].left, sheet.pairs[0].right), key=len).endswith("\n  line")


def test_earlier_turns_stand_before_the_question() -> None:
    turns: list[dict[str, Any]] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "user", "content": "Why?"},
    ]
    [pair] = sheet_of(["a"], ["b"], prompts=[turns]).pairs
    assert (pair.before, pair.question) == ("system: Be brief.\n\nuser: Hi", "Why?")
    turns.insert(2, {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "look_up"}}]})
    [pair] = sheet_of(["a"], ["b"], prompts=[turns]).pairs
    assert pair.before.endswith('assistant: [{"function": {"name": "look_up"}}]')


def test_the_base_model_that_was_shown_examples_is_the_one_to_beat() -> None:
    shown_one = sheet_of(["old"] * 2, ["new"] * 2, few_shot=["shown", "shown"])
    assert shown_one.baseline == "fewShot"
    assert {text for pair in shown_one.pairs for text in (pair.left, pair.right)} == {"shown", "new"}
    assert "with examples in its prompt" in shown(shown_one).text
    assert SHEET.baseline == "base"
    assert "with examples in its prompt" not in shown(SHEET).text


def test_the_address_is_that_of_what_is_shown() -> None:
    assert SHEET.address == sheet_with(40, same=5).address
    other = SHEET.pairs[0].model_copy(update={"left": "changed"})
    assert SHEET.model_copy(update={"pairs": [other, *SHEET.pairs[1:]]}).address != SHEET.address


def test_the_page_shows_every_pair_and_not_whose_the_sides_are() -> None:
    page = shown(SHEET)
    assert page.tags["article"] == 45
    assert page.tags["button"] == 4 * 40 + 3, "there is nothing to vote on where answers are the same"
    html = render_review(SHEET, [])
    assert SHEET.address in html
    for word in ("artifactLeft", "artifact_left", '"artifact"', "tuned model's</h3>"):
        assert word not in html
    flipped = [pair.model_copy(update={"artifact_left": not pair.artifact_left}) for pair in SHEET.pairs]
    assert render_review(SHEET.model_copy(update={"pairs": flipped}), []) == html, "the page cannot tell"


def test_the_page_can_load_and_send_nothing_and_runs_its_own_script_only() -> None:
    page = shown(SHEET)
    policy = page.values("meta", "content")[0]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    for part in ("script-src 'sha256-", "base-uri 'none'", "form-action 'none'"):
        assert part in policy
    assert "unsafe" not in policy
    assert not {"link", "img", "iframe", "form", "a"} & set(page.tags)
    assert not [name for _, name, _ in page.attributes if name.startswith("on") or name in ("src", "style")]


def test_hostile_texts_stay_text() -> None:
    hostile = sheet_of([HOSTILE, "a"], ["b", HOSTILE], truth=[HOSTILE] * 2)
    page, plain = shown(hostile), shown(sheet_of(["x", "a"], ["b", "y"]))
    assert page.tags["script"] == 1
    assert page.tags.keys() <= plain.tags.keys()
    assert "<img src=x onerror=alert(2)>\N{REPLACEMENT CHARACTER}gnp.exe\N{REPLACEMENT CHARACTER}" in page.text


def test_every_field_has_a_name_and_every_pair_a_title() -> None:
    page = shown(SHEET)
    named = set(page.values("label", "for")) | {"marks", "expected", "keys", "file"}
    fields = {*page.values("input", "id"), *page.values("select", "id"), *page.values("textarea", "id")}
    assert fields | {"progress"} == named
    assert set(page.values("article", "aria-labelledby")) <= set(page.values("h2", "id"))
    assert len(page.values("div", "aria-label")) == 40


def test_a_page_without_anything_to_vote_on_says_so() -> None:
    assert "there is nothing to vote on" in shown(sheet_with(0, same=3)).text
    assert "there is nothing to vote on" not in shown(SHEET).text


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        ("a b c", "a x c", ("a <mark>b</mark> c", "a <mark>x</mark> c")),
        ("same", "same", ("same", "same")),
        ("one\ntwo", "one", ("one<mark>\ntwo</mark>", "one")),
        ("<b>", "", ("<mark>&lt;b&gt;</mark>", "")),
    ],
)
def test_what_differs_is_marked(left: str, right: str, expected: tuple[str, str]) -> None:
    assert tuple(map(str, marked(left, right))) == expected


def changed(**fields: Any) -> bytes:
    return as_file(votes_of(SHEET, wins=3) | fields)


def vote(pair: str, choice: str = "left") -> dict[str, str]:
    return {"pair": pair, "choice": choice}


REFUSED: Final[dict[str, tuple[Callable[[], bytes], str]]] = {
    "no JSON": (lambda: changed()[:-9], "ana.json cannot be read as VotesFile … Invalid JSON"),
    "no votes at all": (lambda: b"{}", "ana.json cannot be read as VotesFile … run: Field required"),
    "a list": (lambda: b"[]", "ana.json cannot be read as VotesFile: the document"),
    "a choice that is none": (lambda: changed(votes=[vote(SHEET.pairs[0].id, "both")]), "ana.json … votes.0.choice"),
    "a name that is no object's": (lambda: changed(reviewer="../../manifest"), "ana.json … reviewer"),
    "a later form": (lambda: changed(schemaVersion=2), "ana.json … has schemaVersion 2 … up to 1"),
    "another run's": (
        lambda: changed(run="team-b/mail/r9"),
        "ana.json … run 'team-b/mail/r9' … 'team-a/transactions/r1'",
    ),
    "other answers'": (lambda: changed(digest="f" * 64), f"ana.json … digest 'ffffffffffff…' … {SHEET.address[:12]!r}"),
    "an unknown pair": (lambda: changed(votes=[vote("nowhere")]), "votes[0] … 'nowhere' … the page does not have"),
    "same answers": (lambda: changed(votes=[vote(SHEET.pairs[-1].id)]), "votes[0] … whose answers are the same"),
    "two votes": (lambda: changed(votes=[vote(SHEET.pairs[0].id)] * 2), f"several votes on pair {SHEET.pairs[0].id!r}"),
    "no vote": (lambda: changed(votes=[]), "ana.json … it has no votes"),
    "too large": (lambda: b" " * (MOST_BYTES + 1), "ana.json … 1,000,001 bytes … at most 1,000,000"),
}


@cache
def refusal(name: str) -> StageError:
    with pytest.raises(StageError) as error:
        read_votes(REFUSED[name][0](), "ana.json", SHEET)
    return error.value


@pytest.mark.parametrize("name", REFUSED)
def test_a_foreign_or_damaged_file_is_refused_with_the_place_and_what_to_do(name: str) -> None:
    error = refusal(name)
    assert error.reason is Reason.SPEC_INVALID
    assert_says(error.message, *REFUSED[name][1].split(" … "), "Export the votes again from review.html")


def test_every_sentence_about_a_file_is_said() -> None:
    messages = [refusal(name).message for name in REFUSED]
    messages += [in_words(tally(SHEET, [checked(SHEET, wins=1)])), in_words(tally(SHEET, []))]
    messages.append(in_words(tally(SHEET, [checked(SHEET, wins=1), checked(SHEET, reviewer="ben", wins=1)])))
    assert unsaid("finetune_jobs.evaluation.review.votes", messages) == []


def test_what_a_newer_page_adds_is_not_in_the_way() -> None:
    assert read_votes(changed(minutes=12), "ana.json", SHEET).reviewer == "ana"


def test_votes_are_counted_for_whose_answer_they_are() -> None:
    found = tally(SHEET, [checked(SHEET, wins=20, losses=5, ties=5)])
    assert (found.votes, found.reviewers, found.pairs) == (30, 1, 30)
    assert (found.wins, found.losses, found.ties, found.both_bad) == (20, 5, 5, 0)
    assert found.win_rate == pytest.approx(22.5 / 30)
    assert (found.low, found.high) == at_every_look(22.5, 30)


def test_two_reviewers_of_one_pair_tell_less_than_two_pairs() -> None:
    files = [checked(SHEET, reviewer=name, wins=20, losses=10) for name in ("ana", "ben")]
    both, one = tally(SHEET, files), tally(SHEET, files[:1])
    assert (both.votes, both.reviewers, both.pairs) == (60, 2, 30)
    assert (both.win_rate, both.low, both.high) == (one.win_rate, one.low, one.high)
    against = tally(SHEET, [files[0], checked(SHEET, reviewer="eve", losses=30)])
    assert against.win_rate == pytest.approx(1 / 3), "where they disagree, the pair is half won"


def test_both_bad_is_no_win() -> None:
    votes = [vote(pair.id, "bothBad") for pair in SHEET.votable[:10]]
    found = tally(SHEET, [read_votes(changed(votes=votes), "ana.json", SHEET)])
    assert (found.both_bad, found.wins, found.losses, found.win_rate) == (10, 0, 0, 0.5)


def state(**votes: Any) -> ReviewState:
    files = [checked(SHEET, **votes)] if votes else []
    return ReviewState(SHEET, tally(SHEET, files))


VERDICTS: Final = [
    ({}, GateOutcome.INCONCLUSIVE, "undecided: 0 votes of 0 reviewers; at least 30 votes and a win rate of 0.5"),
    ({"wins": 1}, GateOutcome.INCONCLUSIVE, "undecided: 1 vote of 1 reviewer, win rate 1.0000"),
    ({"wins": 29}, GateOutcome.INCONCLUSIVE, "undecided: 29 votes of 1 reviewer, win rate 1.0000"),
    (
        {"wins": 30},
        GateOutcome.PASS,
        "passed: 30 votes of 1 reviewer, win rate 1.0000 (95 % interval 0.8071 to 1.0000)",
    ),
    ({"wins": 20, "losses": 10}, GateOutcome.INCONCLUSIVE, "undecided: 30 votes … 0.6667"),
    ({"wins": 23, "losses": 7}, GateOutcome.INCONCLUSIVE, "undecided: 30 votes … 0.7667"),
    ({"wins": 24, "losses": 6}, GateOutcome.PASS, "passed: 30 votes … 0.8000"),
    ({"wins": 6, "losses": 24}, GateOutcome.FAIL, "failed: 30 votes … at least 30 votes and a win rate of 0.5"),
    ({"losses": 29}, GateOutcome.INCONCLUSIVE, "undecided: 29 votes"),
    ({"ties": 40}, GateOutcome.INCONCLUSIVE, "undecided: 40 votes … 0.5000"),
]


@pytest.mark.parametrize(("votes", "outcome", "said"), VERDICTS)
def test_a_win_rate_is_read_as_an_interval_and_from_enough_votes(
    votes: dict[str, int], outcome: GateOutcome, said: str
) -> None:
    found = judge_review(ReviewTerms(), state(**votes))
    assert found.outcome is outcome
    assert_says(found.sentence(ReviewTerms()), *said.split(" … "))


@pytest.mark.parametrize(
    ("votes", "on_inconclusive", "waits"),
    [
        ({"wins": 20, "losses": 10}, OnInconclusive.BLOCK, True),
        ({"wins": 20, "losses": 10}, OnInconclusive.WARN, False),
        ({"wins": 19, "losses": 10}, OnInconclusive.WARN, True),
        ({"wins": 30}, OnInconclusive.BLOCK, False),
        ({"losses": 30}, OnInconclusive.BLOCK, False),
    ],
)
def test_the_least_number_of_votes_is_enough_where_a_warning_is(
    votes: dict[str, int], on_inconclusive: OnInconclusive, waits: bool
) -> None:
    params = PublishParams(
        output=Output(uri="s3://data/out", name="it"),
        format="INT8",
        gates=Gates(on_inconclusive=on_inconclusive),
        reviewing=Reviewing(human_review=HumanReview.REQUIRED),
    )
    assert is_undecided(judge_review(ReviewTerms(), state(**votes)), params) is waits


def test_where_nobody_can_vote_nobody_is_waited_for() -> None:
    same = sheet_with(0, same=4)
    expected = r"spec\.evaluation\.humanReview .* none of the 4 pairs .* has different answers"
    with pytest.raises(StageError, match=expected) as error:
        judge_review(ReviewTerms(), ReviewState(same, tally(same, [])))
    assert error.value.reason is Reason.GATE_FAILED
    with pytest.raises(StageError) as few:
        judge_review(ReviewTerms(), ReviewState(sheet_with(3), tally(sheet_with(3), [])))
    assert unsaid("finetune_jobs.evaluation.review.verdict", [error.value.message, few.value.message]) == []


@pytest.mark.slow
def test_two_models_that_are_liked_equally_are_rarely_told_apart_however_often_the_votes_are_counted() -> None:
    """Looks at every tenth vote: Wilson's interval told 20 % of them apart, half for the worse."""
    looks = range(30, MOST_PAIRS + 1, 10)
    # By how many half wins more or less than half of the pairs; the interval is the same from both sides.
    clear = {n: np.array([at_every_look((n + more) / 2, n)[0] >= 0.5 for more in range(n + 1)]) for n in looks}
    votes = np.random.default_rng(46).random((5_000, MOST_PAIRS))
    halves = {"no ties": 2 * (votes < 0.5), "means of two votes": (votes < 0.25) + 1 * (votes < 0.75)}
    for name, won in halves.items():
        counted = won.cumsum(axis=1)
        told = np.logical_or.reduce([clear[n][abs(counted[:, n - 1] - n)] for n in looks])
        assert told.mean() <= 0.05, name
    preferred = clear[MOST_PAIRS][2 * (votes < 0.7).sum(axis=1) - MOST_PAIRS]
    assert preferred.mean() > 0.95, "and yet a clear preference is seen"


@pytest.mark.parametrize(("won", "samples"), [(0, 5), (5, 5), (22.5, 30), (1, 200), (199, 200), (0.25, 1)])
def test_an_interval_for_every_look_holds_wilsons_and_is_the_same_from_the_other_side(won: float, samples: int) -> None:
    low, high = at_every_look(won, samples)
    assert 0 <= low <= max(0, wilson(won, samples)[0] + 1e-9)
    assert 1 >= high >= min(1, wilson(won, samples)[1] - 1e-9)
    assert at_every_look(samples - won, samples) == pytest.approx((1 - high, 1 - low))


@pytest.mark.parametrize(
    ("pairs", "win_rate", "begins"), [(3, "0.5", "0.2321"), (7, "0.5", "0.4843"), (40, "0.9", "0.8456")]
)
def test_where_no_votes_could_pass_nobody_is_waited_for(pairs: int, win_rate: str, begins: str) -> None:
    sheet = sheet_with(pairs, same=2)
    few, terms = ReviewState(sheet, tally(sheet, [])), ReviewTerms(win_rate=win_rate)
    with pytest.raises(StageError) as error:
        judge_review(terms, few)
    assert error.value.reason is Reason.GATE_FAILED
    remedies = ("spec.evaluation.maxSamples", "spec.evaluation.review.winRate")
    assert_says(error.value.message, f"{pairs} pairs", begins, f"{win_rate} is required", *remedies)
    assert judge_review(terms, few, warns=True).outcome is GateOutcome.INCONCLUSIVE


def test_eight_pairs_are_enough_where_all_are_won() -> None:
    sheet = sheet_with(8)
    files = [read_votes(as_file(votes_of(sheet, name, wins=8)), name, sheet) for name in ("ana", "ben", "eve", "max")]
    assert judge_review(ReviewTerms(), ReviewState(sheet, tally(sheet, files))).outcome is GateOutcome.PASS


def test_the_sheet_survives_its_file() -> None:
    text = SHEET.model_dump_json(by_alias=True)
    assert json.loads(text)["run"] == f"{RUN.namespace}/{RUN.name}/{RUN.id}"
    assert ReviewSheet.model_validate_json(text) == SHEET
