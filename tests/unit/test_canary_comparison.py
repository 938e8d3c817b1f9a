"""When a canary's figures are worse than those of what serves: tables, and what holds for all figures."""

import math
import random
from bisect import bisect_left
from statistics import NormalDist

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.serving_status import AnalysisOutcome, CheckOutcome
from finetune_jobs.verification.comparison import (
    FAILED_REQUESTS,
    FIRST_LOOK,
    SIGNIFICANCE,
    Allowed,
    PodCounts,
    Side,
    compare,
    next_look,
    outcome_of,
    side_of,
    surely_more,
)
from finetune_jobs.verification.engine import ANSWERED, FAILED, FIRST_TOKEN_SECONDS, REQUEST_SECONDS, ServerCounts

pytestmark = pytest.mark.unit

ALLOWED = Allowed(min_requests=100, error_increase=0.01, latency_increase=0.5)


def times(fast: int, slow: int, limit: float = 1.0) -> dict[float, int]:
    """So many requests within the limit, and so many within four times as long."""
    return {limit: fast, 1.5 * limit: fast, 4 * limit: fast + slow, math.inf: fast + slow}


def side(answered: int, failed: int = 0, slow: int = 0, limit: float = 1.0) -> Side:
    """A revision of which every time is known."""
    counted = times(answered - slow, slow, limit)
    return Side(answered, failed, {REQUEST_SECONDS: counted, FIRST_TOKEN_SECONDS: counted})


def judged(canary: Side, stable: Side, look: int = 1) -> AnalysisOutcome:
    return outcome_of(compare(canary, stable, ALLOWED, look), canary, stable, ALLOWED)


PASSED, BAD, NONE = AnalysisOutcome.PASSED, AnalysisOutcome.FAILED, AnalysisOutcome.INCONCLUSIVE


@pytest.mark.parametrize(
    ("canary", "stable", "outcome"),
    [
        (side(0), side(0), NONE),
        (side(0), side(5000), NONE),
        (side(5000), side(0), NONE),
        (side(0, 500), side(0), NONE),  # there is nothing to compare it with
        (side(99), side(99), NONE),
        (side(100), side(99), NONE),
        (side(100), side(100), PASSED),
        (side(99, 1), side(300), PASSED),  # one of a hundred may be chance
        (side(0, 10), side(90), BAD),  # fewer than it takes to pass
        (side(9, 1), side(90), NONE),
        (side(6, 4), side(90), BAD),
        (side(800, 200), side(990, 10), BAD),
        (side(800, 200), side(800, 200), PASSED),  # what serves is as bad
        (side(980, 20), side(990, 10), PASSED),  # one in a hundred more is allowed
        (side(1000, slow=300), side(1000, slow=10), BAD),
        (side(1000, slow=300), side(1000, slow=300), PASSED),
        (side(1000, slow=60), side(1000, slow=40), PASSED),
        (side(1000, limit=1.4), side(1000), PASSED),  # less than half as long again
        (side(1000, limit=1.6), side(1000), PASSED),  # 1.5 s are in the middle of a range
        (side(1000, slow=1000), side(1000), BAD),
        (side(50, slow=40), side(1000), BAD),
    ],
)
def test_what_figures_say(canary: Side, stable: Side, outcome: AnalysisOutcome) -> None:
    assert judged(canary, stable) is outcome


def test_a_check_says_what_was_expected_and_seen() -> None:
    errors, whole, first = compare(side(800, 200), side(990, 10), ALLOWED, 1)
    assert (errors.name, errors.outcome) == (FAILED_REQUESTS, CheckOutcome.FAILED)
    assert (errors.seen, errors.expected) == ("200 of 1000 (20.0 %)", "10 of 1000 (1.0 %), and 1 % more")
    assert (whole.name, first.name) == (REQUEST_SECONDS, FIRST_TOKEN_SECONDS)
    assert whole.seen == "0 of 800 (0.0 %) over 1.5 s"
    assert whole.expected == "no more over 1.5 s than over 1 s before: 0 of 990 (0.0 %)"


def test_a_time_that_one_engine_does_not_measure_is_not_compared() -> None:
    other = Side(500, 0, {REQUEST_SECONDS: times(500, 0)})
    checks = compare(side(500), other, ALLOWED, 1)
    assert [check.outcome for check in checks] == ["Passed", "Passed", "Skipped"]
    assert judged(side(500), other) is PASSED


def test_without_any_time_there_is_no_verdict() -> None:
    assert judged(Side(500), Side(500)) is NONE


shares = st.integers(0, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
looks = st.integers(1, 30)


@given(shares, shares, looks)
def test_one_failure_more_never_saves_a_canary(canary: tuple[int, int], stable: tuple[int, int], look: int) -> None:
    failed, total = canary
    before = judged(side(total - failed, failed), side(stable[1] - stable[0], stable[0]), look)
    if failed < total and before is BAD:
        assert judged(side(total - failed - 1, failed + 1), side(stable[1] - stable[0], stable[0]), look) is BAD


@given(shares, shares, looks)
def test_no_canary_fails_that_fails_no_more_of_its_requests(
    canary: tuple[int, int], stable: tuple[int, int], look: int
) -> None:
    checks = compare(side(canary[1] - canary[0], canary[0]), side(stable[1] - stable[0], stable[0]), ALLOWED, look)
    if checks[0].outcome is CheckOutcome.FAILED:
        assert canary[0] / canary[1] > stable[0] / stable[1] + 0.01


@given(shares, shares, looks)
def test_a_later_look_takes_no_less(canary: tuple[int, int], stable: tuple[int, int], look: int) -> None:
    pair = side(canary[1] - canary[0], canary[0]), side(stable[1] - stable[0], stable[0])
    if judged(*pair, look=look + 1) is BAD:
        assert judged(*pair, look=look) is BAD


@given(st.integers(0, 100), st.integers(0, 100), st.floats(0.1, 5))
def test_nothing_is_sure_of_nothing(some: int, more: int, z: float) -> None:
    assert not surely_more((0, 0), (min(some, more), max(some, more)), 0.0, z)
    assert not surely_more((min(some, more), max(some, more)), (0, 0), 0.0, z)


@pytest.mark.parametrize(("mine", "theirs"), [(0.02, 0.01), (0.31, 0.3)])
def test_one_that_is_just_allowed_fails_no_more_often_than_is_promised(mine: float, theirs: float) -> None:
    """Over all looks of a step."""
    rng, tries = random.Random(7), 50
    assert sum(_fails(mine, theirs, rng) for _ in range(tries)) <= 2 * SIGNIFICANCE * tries


@pytest.mark.slow
def test_the_chances_of_all_looks_and_comparisons_are_together_what_is_promised() -> None:
    """By the least number of failures for which a look fails a canary: so many requests are normally distributed."""
    total, share, allowed = 1_000_000, 0.1, ALLOWED.error_increase
    stable = side(900_000, 100_000)

    def fails(failed: int, look: int) -> bool:
        return compare(side(total - failed, failed), stable, ALLOWED, look)[0].outcome is CheckOutcome.FAILED

    def chance(look: int) -> float:
        least = bisect_left(range(total // 2), True, key=lambda failed: fails(failed, look))
        mine = least / total
        spread = math.sqrt((mine * (1 - mine) + share * (1 - share)) / total)
        return 1 - NormalDist().cdf((mine - share - allowed) / spread)

    comparisons = len(compare(stable, stable, ALLOWED, 1))
    looks = sum(chance(look) for look in range(1, 200))
    assert comparisons * looks == pytest.approx(SIGNIFICANCE, rel=0.1)


@pytest.mark.parametrize(("mine", "most"), [(1.0, 10), (0.3, 60), (0.1, 800)])
def test_a_bad_one_is_found_soon(mine: float, most: int) -> None:
    rng = random.Random(7)
    assert all(_fails(mine, 0.01, rng, most) for _ in range(20))


def _fails(mine: float, theirs: float, rng: random.Random, most: int = 500) -> bool:
    """Whether a canary that fails this share of its requests is found worse, with a third of what serves gets."""
    failed, others, look, due = 0, 0, 1, FIRST_LOOK
    for requests in range(1, most + 1):
        failed += rng.random() < mine
        others += sum(rng.random() < theirs for _ in range(3))
        if requests >= due or requests == most:
            pair = side(requests - failed, failed), side(3 * requests - others, others)
            if judged(*pair, look=look) is BAD:
                return True
            look, due = look + 1, next_look(requests)
    return False


def counts(answered: int, failed: int = 0, http: int = 0) -> ServerCounts:
    return ServerCounts(
        {
            (ANSWERED, ""): answered,
            (FAILED, "engine"): failed,
            (FAILED, "http"): http,
            (REQUEST_SECONDS, "0.5"): answered,
            (REQUEST_SECONDS, "+Inf"): answered,
        }
    )


def tally(*readings: ServerCounts) -> PodCounts:
    made = PodCounts()
    for reading in readings:
        made.add(reading)
    return made


@pytest.mark.parametrize(
    ("readings", "answered", "failed"),
    [
        ([], 0, 0),
        ([counts(1000, 50)], 0, 0),  # what was before is not of this step
        ([counts(1000, 50), counts(1030, 52)], 30, 2),
        ([counts(1000, 50), counts(1030, 52), counts(1030, 52)], 30, 2),
        ([counts(1000), counts(1030), counts(4)], 34, 0),  # the server has started again
        ([counts(1000), counts(1030), counts(4, 1), counts(9, 3)], 39, 3),
        ([ServerCounts(), counts(5, 1)], 5, 1),  # a series that exists only once it has a value
        ([counts(7, 3, http=1), counts(9, 4, http=6)], 2, 5),  # the larger of two counts of the same
    ],
)
def test_what_a_pod_has_counted_since_the_first_reading(
    readings: list[ServerCounts], answered: int, failed: int
) -> None:
    found = side_of([tally(*readings)])
    assert (found.answered, found.failed) == (answered, failed)
    assert found.timed(REQUEST_SECONDS) == answered


def test_the_pods_of_a_revision_count_together() -> None:
    first, second = tally(counts(0), counts(10, 2, http=1)), tally(counts(5), counts(9, 1, http=3))
    found = side_of([first, second, PodCounts()])
    assert (found.answered, found.failed, found.requests) == (14, 5, 19)
    assert found.usual(REQUEST_SECONDS) == 0.5


def test_few_looks_however_many_requests() -> None:
    due, looks = FIRST_LOOK, 0
    while due < 1_000_000:
        due, looks = next_look(due), looks + 1
    assert looks < 40
