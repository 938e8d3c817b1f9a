"""What a canary's servers have counted, compared with what those of the revision that serves have. Pure.

A canary fails for what is no chance. Two shares of requests are compared by Newcombe's interval of their difference,
which is made of Wilson's for each ("Interval estimation for the difference between independent proportions", method 10,
1998): it fails if all of the interval is above what is allowed. It is looked at again and again while requests come in,
and each look is a chance to be wrong. So the k-th look, at the level 6 / (π² k²) of SIGNIFICANCE, takes more than the
one before; the sum of all, however many there are, is SIGNIFICANCE.

Times come as counts in ranges. The revision that serves has a usual time: the end of the first range within which 95 %
of its requests are answered. The share of a canary's requests that take longer than that and the allowed increase, up
to the end of a range, is compared with the share that takes longer than the usual time there. So what is wrong is
always to the canary's favour, by less than the width of a range.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Final

from finetune_api.serving_status import AnalysisOutcome, CheckOutcome, VerificationCheck
from finetune_jobs.evaluation.metrics import wilson
from finetune_jobs.verification.engine import ANSWERED, FAILED, REQUEST_SECONDS, TIMES, ServerCounts

SIGNIFICANCE: Final = 0.01
"""Probability that a canary which is just allowed fails a step, over all looks and comparisons."""
FIRST_LOOK: Final = 10
"""Requests of a canary before which it is not looked at."""
_GROWTH: Final = 1.5
"""Each look has so many times the requests of the one before: few looks, and none is late by much."""
_SLOWEST: Final = 0.05
"""Share of requests that may take longer than the usual time."""
FAILED_REQUESTS: Final = "failedRequests"
"""Name of the check of errors; those of times have the names of the times."""


@dataclass(frozen=True)
class Allowed:
    """What a canary may do worse, and how much it takes to pass."""

    min_requests: int
    error_increase: float
    """Difference of the shares of requests that failed."""
    latency_increase: float
    """Part of the usual time."""


@dataclass
class PodCounts:
    """What one pod has counted from the first reading on, also if its server starts again and counts from 0."""

    total: ServerCounts = field(default_factory=ServerCounts)
    _last: ServerCounts | None = None

    @property
    def is_read(self) -> bool:
        """Whether there was any reading."""
        return self._last is not None

    def add(self, reading: ServerCounts) -> None:
        """The next reading."""
        if self._last is not None:
            begun = any(reading[count] < before for count, before in self._last.items())
            self.total.update(reading)
            if not begun:
                self.total.subtract(self._last)
        self._last = reading


@dataclass(frozen=True)
class Side:
    """What all pods of a revision have counted together."""

    answered: int = 0
    failed: int = 0
    times: Mapping[str, Mapping[float, int]] = field(default_factory=dict)
    """By name: requests that took no longer than each bound, in seconds; of ``math.inf`` all."""

    @property
    def requests(self) -> int:
        """All but those that a client asked wrongly, or gave up."""
        return self.answered + self.failed

    def timed(self, time: str) -> int:
        """Requests of which this time is known."""
        return self.times.get(time, {}).get(math.inf, 0)

    def slower(self, time: str, bound: float) -> int:
        """Requests that took longer than a bound, or the next one that is counted."""
        counted = self.times.get(time, {})
        return self.timed(time) - counted.get(_up_to(counted, bound), 0)

    def usual(self, time: str) -> float:
        """The first bound within which 95 % of the requests are; infinite if that is not known."""
        counted, most = self.times.get(time, {}), (1 - _SLOWEST) * self.timed(time)
        return min((bound for bound, count in counted.items() if count >= most), default=math.inf)


def side_of(tallies: Iterable[PodCounts]) -> Side:
    """All pods of a revision together. Of each pod, the count that has noticed the most failures counts."""
    answered = failed = 0
    times: dict[str, dict[float, int]] = {time: {} for time in TIMES}
    for total in (each.total for each in tallies):
        answered += sum(value for (count, _), value in total.items() if count == ANSWERED)
        failed += max((value for (count, _), value in total.items() if count == FAILED), default=0)
        for (count, part), value in total.items():
            if count in times:
                bound = float(part)
                times[count][bound] = times[count].get(bound, 0) + value
    return Side(answered, failed, times)


def next_look(requests: int) -> int:
    """With how many requests to look again, after a look at so many."""
    return max(FIRST_LOOK, math.ceil(_GROWTH * requests))


def compare(canary: Side, stable: Side, allowed: Allowed, look: int) -> list[VerificationCheck]:
    """What a look finds. ``look``: its number, from 1 on."""
    z = _quantile(look)
    return [_errors(canary, stable, allowed, z), *(_time(time, canary, stable, allowed, z) for time in TIMES)]


def outcome_of(checks: Iterable[VerificationCheck], canary: Side, stable: Side, allowed: Allowed) -> AnalysisOutcome:
    """Failed, whatever the number of requests; Passed only with enough of them, whose times are known."""
    found = {check.name: check.outcome for check in checks}
    if CheckOutcome.FAILED in found.values():
        return AnalysisOutcome.FAILED
    few = min(canary.requests, stable.requests) < allowed.min_requests
    lacking = {CheckOutcome.SKIPPED} & {found[FAILED_REQUESTS], found[REQUEST_SECONDS]}
    return AnalysisOutcome.INCONCLUSIVE if few or lacking else AnalysisOutcome.PASSED


def surely_more(share: tuple[int, int], other: tuple[int, int], margin: float, z: float) -> bool:
    """Whether a share (so many, of so many) is surely more than another one by more than a margin; ``z``: the quantile
    of the normal distribution that stands for surely. Of nothing, nothing is sure."""
    (these, samples), (those, others) = share, other
    if not samples or not others:
        return False
    mine, theirs = these / samples, those / others
    low, high = wilson(these, samples, z)[0], wilson(those, others, z)[1]
    return mine - theirs - math.hypot(mine - low, high - theirs) > margin


def _quantile(look: int) -> float:
    level = SIGNIFICANCE * 6 / (math.pi * look) ** 2 / (1 + len(TIMES))
    return NormalDist().inv_cdf(1 - level)


def _errors(canary: Side, stable: Side, allowed: Allowed, z: float) -> VerificationCheck:
    mine, theirs = (canary.failed, canary.requests), (stable.failed, stable.requests)
    outcome = CheckOutcome.PASSED if canary.requests and stable.requests else CheckOutcome.SKIPPED
    if surely_more(mine, theirs, allowed.error_increase, z):
        outcome = CheckOutcome.FAILED
    expected = f"{part_of(*theirs)}, and {100 * allowed.error_increase:g} % more"
    return VerificationCheck(name=FAILED_REQUESTS, expected=expected, seen=part_of(*mine), outcome=outcome)


def _time(time: str, canary: Side, stable: Side, allowed: Allowed, z: float) -> VerificationCheck:
    usual, counted = stable.usual(time), canary.times.get(time, {})
    longest = _up_to(counted, usual * (1 + allowed.latency_increase))
    if not canary.timed(time) or not stable.timed(time):
        return VerificationCheck(name=time, expected="", seen="not measured", outcome=CheckOutcome.SKIPPED)
    mine, theirs = (canary.slower(time, longest), canary.timed(time)), (stable.slower(time, usual), stable.timed(time))
    return VerificationCheck(
        name=time,
        expected=f"no more over {longest:g} s than over {usual:g} s before: {part_of(*theirs)}",
        seen=f"{part_of(*mine)} over {longest:g} s",
        outcome=CheckOutcome.FAILED if surely_more(mine, theirs, 0.0, z) else CheckOutcome.PASSED,
    )


def part_of(some: int, total: int) -> str:
    """For people, e.g. ``3 of 120 (2.5 %)``."""
    return f"{some} of {total} ({100 * some / total:.1f} %)" if total else "no request"


def _up_to(counted: Mapping[float, int], bound: float) -> float:
    """The first bound that is counted and not below a given one."""
    return min((each for each in counted if each >= bound), default=math.inf)
