"""What a revision must prove before it receives traffic, and which artifacts may be served."""

from enum import StrEnum
from math import ceil, comb
from typing import Annotated, Final

from pydantic import Field

from finetune_api.base import AS_SET, ApiModel
from finetune_api.custom_metrics import CUSTOM_PATTERN
from finetune_api.goals import MAX_GOALS, Metric
from finetune_api.spelled import spelled

PUBLIC_KEY: Final = r"^-----BEGIN PUBLIC KEY-----\n([A-Za-z0-9+/=]{1,64}\n){1,4}-----END PUBLIC KEY-----\n?$"

PublicKey = Annotated[
    str,
    spelled(
        PUBLIC_KEY,
        "write a public key in PEM: the line -----BEGIN PUBLIC KEY-----, one to four lines of base64, and the line "
        "-----END PUBLIC KEY-----",
        min_length=1,
        max_length=400,
    ),
]


DISTANCE: Final = r"^[0-9](\.[0-9]{1,3})?$"
"""Pattern of nats a token."""
DROP: Final = r"^0\.(0[1-9]|[1-9][0-9]?)$"
"""Pattern of a drop in accuracy: hundredths, above 0 and below 1."""
Drop = Annotated[str, spelled(DROP, "write hundredths from 0.01 to 0.99, e.g. 0.1", max_length=4)]
Distance = Annotated[
    str, spelled(DISTANCE, "write a number from 0 to below 10 with at most 3 decimals, e.g. 0.7", max_length=16)
]
DEFAULT_SAMPLES: Final = 50
"""Test examples that are sent where nothing says how many."""
MAX_SAMPLES: Final = 1000
"""The most test examples that are sent to a server."""
_SQUARED: Final = 6
"""A sample that shows a drop has less than so many examples divided by its square, and a few: half of all answers may
change, and (1.96 + 1.28)² / 2 is 5.3 (Connor, "Sample size for testing differences in proportions for the
paired-sample design", 1987)."""
_BASE_SAMPLES: Final = 6
"""The few."""
_LOST: Final = 6
"""So many answers must have become wrong, and none right, before that is no chance (McNemar's exact test, at 5 %)."""
_MISSED: Final = 0.1
"""Share of the samples that may have fewer of them."""

GATE: Final = "|".join([*(rf"^{metric.value}$" for metric in Metric if metric is not Metric.CUSTOM), CUSTOM_PATTERN])
"""Pattern of what a gate is about: a metric, or a container's figure."""
RequiredGate = Annotated[
    str,
    spelled(
        GATE,
        "write a metric of goals, e.g. accuracy, or a metric container and its figure, e.g. lm-eval.acc",
        max_length=65,
    ),
]


DURATION: Final = r"^([1-9][0-9]{0,5}ms|[1-9][0-9]{0,2}s)$"
"""Pattern of a short time, above 0."""

Duration = Annotated[str, spelled(DURATION, "write milliseconds or seconds, e.g. 500ms or 2s", max_length=8)]


def duration_seconds(duration: str) -> float:
    """A Duration in seconds."""
    return int(duration[:-2]) / 1000 if duration.endswith("ms") else float(duration[:-1])


class Objectives(ApiModel):
    """How fast a server must answer, measured with four clients at once: 95 % of their streams are no slower."""

    time_to_first_token: Duration | None = None
    """Longest time from a request to the first part of its answer: milliseconds or seconds, e.g. "2s"."""
    time_per_output_token: Duration | None = None
    """Longest time between the tokens of an answer, on average over the answer, e.g. "50ms"."""


class Verification(ApiModel):
    """What a new revision must prove before it receives traffic."""

    samples: Annotated[int, Field(ge=0, le=MAX_SAMPLES)] = DEFAULT_SAMPLES
    """Number of test examples sent to the server; their accuracy must match the evaluation. Not looked at with
    detectDrop."""
    detect_drop: Drop | None = None
    """Send as many test examples as show, with 90 % probability, that the server's accuracy is lower by this much, e.g.
    "0.1" for 0.9 down to 0.8; at most 1000, and what the test split has. Then samples is not looked at. Where there are
    too few, the check says which drop they show; where they show none, 50 are sent. So it is with most texts: only
    answers with exactly the expected words count as right, and these are few."""
    min_agreement_percent: Annotated[int, Field(ge=1, le=100)] = 75
    """Share of the golden prompts that must get the same answers as from the evaluated artifact, where answers are
    labels, and of the answers that must end by themselves where the artifact's did."""
    max_distance: Distance | None = None
    """How far the probabilities of recorded texts may be from the evaluated artifact's: nats a token, e.g. "0.7". By
    default what another precision was measured to change. Raise it only for a server that is known to be right."""
    require_probabilities: bool = False
    """Whether the probabilities of recorded texts must prove the weights. An artifact without a record of them, as
    earlier versions published, then gets no traffic, nor does one whose recorded texts are all too long for the
    runtime. By default such an artifact is verified by its answers alone."""
    objectives: Objectives = Objectives()
    """How fast the server must answer. What has no objective is measured and shown."""

    @property
    def most_samples(self) -> int:
        """No more test examples than these are sent, whatever the accuracy that was evaluated."""
        if self.detect_drop is None:
            return self.samples
        return min(MAX_SAMPLES, _BASE_SAMPLES + ceil(_SQUARED / float(self.detect_drop) ** 2))

    @property
    def least_samples(self) -> int:
        """No fewer test examples than these are sent, as far as the test split has them."""
        return self.samples if self.detect_drop is None else _fewest_that_show(float(self.detect_drop))


def _fewest_that_show(drop: float) -> int:
    """The size of a sample that shows a drop from an accuracy of 1, where the fewest examples do."""

    def missed(size: int) -> float:
        return sum(comb(size, lost) * drop**lost * (1 - drop) ** (size - lost) for lost in range(_LOST))

    return next((size for size in range(_LOST, MAX_SAMPLES) if missed(size) <= _MISSED), MAX_SAMPLES)


class SignaturePolicy(ApiModel):
    """Whose signature an artifact must bear."""

    public_keys: Annotated[list[PublicKey], Field(min_length=1, max_length=4)]
    """Public keys in PEM (Ed25519, or ECDSA on the curve P-256). One of them must have signed the artifact; a second is
    for the time in which a key is replaced."""


class WithdrawnPolicy(StrEnum):
    """What becomes of an artifact that was withdrawn."""

    REFUSE = "Refuse"
    WARN = "Warn"


class GatesPolicy(StrEnum):
    """What the gates must have said of an artifact when it was published."""

    ANY = "Any"
    PASSED = "Passed"


class Policy(ApiModel):
    """Which artifacts may be served."""

    signature: SignaturePolicy | None = None
    """Serve signed artifacts only (a FineTuneJob's spec.output.signing). Without it, signatures are not looked at."""
    withdrawn: WithdrawnPolicy = WithdrawnPolicy.REFUSE
    """Refuse: no new revision serves a withdrawn artifact. Warn: it does, with the condition Discouraged. What serves
    already keeps serving in both cases, and gets that condition when one of its pods starts."""
    gates: GatesPolicy = GatesPolicy.ANY
    """Passed: no new revision serves an artifact that missed a goal, as one does that was published under the channel
    candidate, or of which nothing says what its gates found. Any: that is not looked at."""
    required_gates: Annotated[list[RequiredGate], Field(max_length=MAX_GOALS), *AS_SET] = []
    """Metrics of which a goal must have been set and met when the artifact was published, e.g. recall or
    politeness.score. Each may be met in another run that published the same artifact."""
