"""What proves the very weights once they are served: how likely the artifact finds each token of some conversations.

Answers tell too little. A label stays the likeliest one when an adapter counts double, a layer is lost or positions are
wrong, and the same weights on another engine may break a tie in a long text and go on differently. Probabilities of
given tokens need one forward pass, and move with every weight that moves. The prompt's tokens count like the answer's:
tuning makes a model so sure of its answer that little can shake that, while it was never taught the prompt.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Final

from finetune_jobs.artifacts.artifact import ReferenceText
from finetune_jobs.evaluation.distances import distance
from finetune_jobs.evaluation.disturbance import Disturbed
from finetune_jobs.evaluation.passages import Passage

log = logging.getLogger(__name__)

SHORT: Final = 8
"""Short texts that show wrong weights: where base and artifact differ most. All of them show wrong positions, for which
no noise is needed: it goes in no direction."""


def to_record(passages: Sequence[Passage], base: Sequence[list[float]], artifact: Sequence[list[float]]) -> list[int]:
    """The numbers of the conversations to record: the short ones, first those on which the two models differ most, then
    the long ones. ``base`` and ``artifact`` are their ``log_probs``; without numbers from both, one is left out."""
    known = [n for n in range(len(passages)) if _finite(base[n], artifact[n])]
    short = [n for n in known if not passages[n].long]
    short.sort(key=lambda n: distance(base[n], artifact[n]), reverse=True)
    return [*short, *(n for n in known if passages[n].long)]


def make_references(
    passages: Sequence[Passage],
    base: Sequence[list[float]],
    artifact: Sequence[list[float]],
    disturbed: Mapping[int, Disturbed],
) -> list[ReferenceText]:
    """What is recorded. ``disturbed``: of the artifact, what ``to_record`` has chosen, by its numbers, in its order.
    Short texts after the first SHORT are for positions only."""
    known = {number: _numbers(number, found) for number, found in disturbed.items()}
    short = [number for number in known if not passages[number].long]
    return [
        ReferenceText(
            text=passages[number].text,
            ids=passages[number].ids,
            long=passages[number].long,
            positions_only=number in short[SHORT:],
            base=base[number],
            artifact=artifact[number],
            straight=found.straight,
            turned=found.turned,
            noise=found.noise,
        )
        for number, found in known.items()
        if found.turned or number not in short[SHORT:]
    ]


def _numbers(number: int, found: Disturbed) -> Disturbed:
    """Without what is none. The artifact computes numbers for the text itself, which stays as good a proof as before:
    what is lost is its share in finding wrong positions, or the tolerance that follows from noise. The log names it as
    ``outputs`` does."""
    straight = found.straight if _finite(found.straight) else []
    turned = found.turned if straight and _finite(found.turned) else []
    if found.turned and not turned:
        log.warning("texts/%d shows no wrong positions: with changed ones, its probabilities are no numbers", number)
    if found.noise is None or math.isfinite(found.noise):
        return Disturbed(straight, turned, found.noise)
    log.warning(
        "texts/%d shows no noise: with it, its probabilities are no numbers. So servers may be as far from the "
        "artifact as its format usually allows; spec.verification.maxDistance of an AdapterDeployment asks for less",
        number,
    )
    return Disturbed(straight, turned, None)


def _finite(*found: Sequence[float]) -> bool:
    return all(math.isfinite(value) for values in found for value in values)
