"""Stage analyse: whether a canary fails more of its clients' requests than the revision that serves, or is slower.

Both have clients now, and their servers count what becomes of the requests. This program reads the metrics of all pods
of both revisions when it starts, and again and again until the time at which it has to give its verdict. What they have
counted in between is compared (``verification.comparison``). A canary that is worse fails at once, and the operator
takes its share back; one that is as good passes at the end. With too few requests there is no verdict.
"""

import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from finetune_api.endpoint_stages import AnalyseParams
from finetune_api.reasons import Reason
from finetune_api.serving_status import AnalysisOutcome, CheckOutcome, VerificationCheck
from finetune_api.stages import Stage
from finetune_jobs.base.errors import StageError, require
from finetune_jobs.runtime.runner import Context, StageOutput, run_stage
from finetune_jobs.verification.comparison import (
    FAILED_REQUESTS,
    FIRST_LOOK,
    Allowed,
    PodCounts,
    Side,
    compare,
    next_look,
    outcome_of,
    part_of,
    side_of,
)
from finetune_jobs.verification.engine import FIRST_TOKEN_SECONDS, REQUEST_SECONDS, ModelServer
from finetune_jobs.verification.servers import client_of

log = logging.getLogger(__name__)

_SHORTEST, _LONGEST = 1.0, 15.0
"""Seconds between two readings: few at first, when a canary that fails every request shows."""
_GROWTH: Final = 1.5
_AT_ONCE: Final = 8
"""Pods that are read at the same time."""
_LIMITS: Final = {
    FAILED_REQUESTS: ("requests failed", "maxErrorIncrease"),
    REQUEST_SECONDS: ("requests were slow", "maxLatencyIncrease"),
    FIRST_TOKEN_SECONDS: ("first tokens were slow", "maxLatencyIncrease"),
}
"""What a check that fails is about, and the field with its limit."""


@dataclass
class Revision:
    """The pods of a revision, and what they have counted since the first reading."""

    servers: Sequence[ModelServer]
    tallies: Sequence[PodCounts] = field(init=False)
    problem: str = ""
    """Why the newest reading of one of them failed."""

    def __post_init__(self) -> None:
        self.tallies = [PodCounts() for _ in self.servers]

    def read(self, pool: ThreadPoolExecutor) -> None:
        """Read the metrics of all pods. One that does not answer is read again the next time."""
        for problem in pool.map(self._read, self.servers, self.tallies):
            self.problem = problem or self.problem

    @staticmethod
    def _read(server: ModelServer, tally: PodCounts) -> str:
        try:
            tally.add(server.counts())
        except StageError as error:
            log.warning("%s", error.message)
            return error.message
        return ""

    @property
    def side(self) -> Side:
        """What they have counted together."""
        return side_of(self.tallies)

    @property
    def lacks(self) -> str:
        """Why nothing is known of any pod; empty if something is."""
        if any(tally.is_read for tally in self.tallies):
            return ""
        return self.problem or "It has no pods."


@dataclass(frozen=True)
class Look:
    """What the newest look has found."""

    canary: Side
    stable: Side
    checks: list[VerificationCheck]
    outcome: AnalysisOutcome


def analyse(context: Context) -> StageOutput:
    """The stage. Raises StageError: AnalysisFailed, CandidateFailed (this image does not know the engine)."""
    params = require(context.input.params.analyse, "params.analyse")
    canary = Revision([client_of(params.engine, url) for url in params.canary])
    stable = Revision([client_of(params.stable_engine, url) for url in params.stable])
    found = _watch(context, canary, stable, params)
    for check in found.checks:
        log.info("%s: %s (expected: %s; seen: %s)", check.name, check.outcome, check.expected or "-", check.seen)
    if found.outcome is AnalysisOutcome.FAILED:
        raise StageError(Reason.ANALYSIS_FAILED, _failure(found.checks), checks=found.checks)
    lacks = [f"{name}: {each.lacks}" for name, each in (("canary", canary), ("what serves", stable)) if each.lacks]
    return StageOutput(
        decided={"analysis": found.outcome.value},
        scalars={"requests": str(found.canary.requests), "stableRequests": str(found.stable.requests)},
        message=f"No metrics were read. {' '.join(lacks)}" if lacks else _summary(found, params),
        checks=found.checks,
    )


def _watch(context: Context, canary: Revision, stable: Revision, params: AnalyseParams) -> Look:
    """Read and look until the time is over, or the canary has failed."""
    seconds = (datetime.fromisoformat(params.until) - datetime.now(UTC)).total_seconds()
    end, pause = time.monotonic() + seconds, _SHORTEST
    allowed = Allowed(params.min_requests, params.max_error_increase, params.max_latency_increase)
    look, due = 1, FIRST_LOOK
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        while True:
            canary.read(pool)
            stable.read(pool)
            mine, theirs, left = canary.side, stable.side, end - time.monotonic()
            if mine.requests >= due or left <= 0:
                checks = compare(mine, theirs, allowed, look)
                found = Look(mine, theirs, checks, outcome_of(checks, mine, theirs, allowed))
                if left <= 0 or found.outcome is AnalysisOutcome.FAILED:
                    return found
                look, due = look + 1, next_look(mine.requests)
            done = 1 - left / seconds
            context.progress.report(
                done, f"{mine.requests} requests of the canary, {theirs.requests} of the serving revision"
            )
            time.sleep(min(pause, left))
            pause = min(_GROWTH * pause, _LONGEST)


def _failure(checks: Sequence[VerificationCheck]) -> str:
    """Which limit the canary has broken, with the figures."""
    failed = [check for check in checks if check.outcome is CheckOutcome.FAILED]
    said = []
    for check in failed:
        what, limit = _LIMITS[check.name]
        said.append(f"Too many of the canary's {what}: {check.seen}; expected: {check.expected} ({limit}).")
    return " ".join(said)


def _summary(found: Look, params: AnalyseParams) -> str:
    canary, stable = found.canary, found.stable
    figures = f"{part_of(canary.failed, canary.requests)} of the canary failed, and "
    figures += f"{part_of(stable.failed, stable.requests)} of the serving revision."
    if found.outcome is AnalysisOutcome.PASSED:
        times = canary.usual(REQUEST_SECONDS), stable.usual(REQUEST_SECONDS)
        return f"{figures} 95 % were answered within {times[0]:g} s and {times[1]:g} s."
    if min(canary.requests, stable.requests) < params.min_requests:
        return (
            f"The canary has had {canary.requests} requests and the serving revision {stable.requests}; "
            f"{params.min_requests} of each are needed (minRequests)."
        )
    return f"{figures} Their servers do not say how long requests take."


def main() -> None:
    """``python -m finetune_jobs.analyse``"""
    run_stage(Stage.ANALYSE, analyse)


if __name__ == "__main__":
    main()
