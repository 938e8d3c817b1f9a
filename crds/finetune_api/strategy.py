"""How another revision takes over, how long the one before is kept, and how what serves is watched."""

from enum import StrEnum
from typing import Annotated, Final

from pydantic import Field

from finetune_api.base import ApiModel
from finetune_api.spelled import spelled

KEEP: Final = r"^([0-9]{1,5}s|[0-9]{1,4}m|[0-9]{1,2}h)$"
"""Pattern of a time with one unit."""
KEPT_BY_DEFAULT: Final = "10m"
"""For how long the pods of the revision before stay where the spec does not say."""
TimeSpan = Annotated[str, spelled(KEEP, "write seconds, minutes or hours, e.g. 90s, 10m or 2h", max_length=6)]

_UNITS: Final = {"s": 1, "m": 60, "h": 3600}


def seconds_of(text: str) -> int:
    """Seconds of a time that matches ``KEEP``."""
    return int(text[:-1]) * _UNITS[text[-1]]


MOST_WEIGHT: Final = 99
"""Percent, where requests are divided: at 100, nothing is left to compare another revision with."""
MOST_SHARE: Final = 50
"""Percent, where the share is that of the pods: as many of another revision as of the one that serves."""


class StrategyType(StrEnum):
    """Which pods go first when another revision takes over."""

    BLUE_GREEN = "BlueGreen"
    CANARY = "Canary"
    IN_PLACE = "InPlace"


class CanaryStep(ApiModel):
    """A share of the traffic, and for how long."""

    weight: Annotated[int, Field(ge=1, le=MOST_WEIGHT, json_schema_extra={"format": "int32"})]
    """Percent of new connections that the new revision gets. Its share is that of its pods, so few pods give coarse
    shares: it gets the number of pods that comes closest without exceeding the weight, and at least one. At most 50,
    because all pods of the serving revision stay. With an HTTPRoute (access.route.httpRoute, without access.tls) it
    is exact, percent of the requests that come through it, and at most 99; above 50 it has as many pods as the revision
    that serves."""
    pause: TimeSpan = "10m"
    """For how long it has to stand this share before the next step, counted from when it has it: seconds, minutes or
    hours."""

    @property
    def pause_seconds(self) -> int:
        """The pause in seconds."""
        return seconds_of(self.pause)


class WithoutVerdict(StrEnum):
    """What becomes of a step whose analysis has no verdict."""

    HOLD = "Hold"
    CONTINUE = "Continue"


ERROR_INCREASE: Final = r"^0(\.[0-9]{1,3})?$"
"""Pattern of a difference between two shares of requests: thousandths, below 1."""
LATENCY_INCREASE: Final = r"^[0-9](\.[0-9]{1,2})?$"
"""Pattern of a part of a time: hundredths, below 10."""


class CanaryAnalysis(ApiModel):
    """What another revision must not do worse than the one that serves, by the metrics of their own servers. It fails
    for what is no chance: for a revision that is as good, once in a hundred steps at most."""

    max_error_increase: Annotated[
        str,
        spelled(ERROR_INCREASE, "write a number from 0 to below 1 with at most 3 decimals, e.g. 0.01", max_length=16),
    ] = "0.01"
    """By how much more of its requests may fail: of all its requests, e.g. "0.01" for one in a hundred more than of the
    revision that serves. What a client asks wrongly is no failure."""
    max_latency_increase: Annotated[
        str,
        spelled(LATENCY_INCREASE, "write a number from 0 to below 10 with at most 2 decimals, e.g. 0.5", max_length=16),
    ] = "0.5"
    """By how much longer the slowest 5 % of its requests may take, whole and, where the server measures it, until their
    first token: e.g. "0.5" for half as long again. Servers count times in ranges, so a small increase is not seen."""
    min_requests: Annotated[int, Field(ge=10, le=1_000_000, json_schema_extra={"format": "int32"})] = 100
    """Number of requests that each of the two revisions must have had in a step to pass it; with fewer it is
    inconclusive. It can fail with fewer."""
    on_inconclusive: WithoutVerdict = WithoutVerdict.HOLD
    """Hold: a step without a verdict (too few requests, or metrics that could not be read) lasts until there is one, or
    until this changes. Continue: it ends with its pause, and the status says what was lacking."""


class Canary(ApiModel):
    """How another revision gets its share of the traffic."""

    steps: Annotated[list[CanaryStep], Field(min_length=1, max_length=10)] = [
        CanaryStep(weight=10),
        CanaryStep(weight=MOST_SHARE),
    ]
    """One after the other. After the last one it takes over."""
    analysis: CanaryAnalysis | None = None
    """Compare errors and times of both revisions in each step, and give all traffic back if the new one is worse. {}:
    with the defaults. Without it, only crashes and silence end a canary."""


class Strategy(ApiModel):
    """How another revision takes over from the one that serves."""

    type: StrategyType = StrategyType.BLUE_GREEN
    """BlueGreen: the new revision starts beside the serving one, which needs hardware for both. Canary: the same, and
    once it is verified it gets a share of the traffic, step by step, before it takes over. InPlace: the pods of the
    serving revision stop first, and clients get no answers until the new one is verified. If it fails, the previous
    revision comes back automatically."""
    canary: Canary = Canary()
    """Canary: the steps."""
    notice: TimeSpan = "30s"
    """InPlace: for how long the status announces the gap in service before it begins: seconds, minutes or hours."""

    @property
    def notice_seconds(self) -> int:
        """The notice in seconds."""
        return seconds_of(self.notice)


WATCH_INTERVAL: Final = r"^(0s|[1-9][0-9]{1,4}s|[1-9][0-9]{0,3}m|[1-9][0-9]?h)$"
"""Pattern of the time between two questions: none, or 10 s and more."""
WatchInterval = Annotated[
    str, spelled(WATCH_INTERVAL, "write at least 10 seconds, e.g. 30s, 10m or 2h, or 0s", max_length=6)
]


def watch_seconds(interval: str) -> int:
    """A WatchInterval in seconds; 0: no question."""
    return seconds_of(interval)


class QualityWatch(ApiModel):
    """Whether what serves is still what was verified."""

    interval: WatchInterval = "5m"
    """Every so often each pod is asked one of the recorded texts or golden prompts again, unless requests wait at its
    server: seconds (10 or more), minutes or hours. If it answers otherwise than when it proved itself, it has to prove
    itself again. If it fails, it gets no new connections, and the condition Degraded says why. For traffic to go back
    by itself to the revision before, keepLastGood has to be longer than this. "0s": pods are asked only when they
    start. The platform may set a longest interval."""
