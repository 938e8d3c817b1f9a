"""Canaries among the training examples: what is planted, or why it cannot be."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from finetune_api.hashing import digest
from finetune_api.reasons import Reason
from finetune_api.stages import PrepareParams
from finetune_jobs.base.errors import StageError
from finetune_jobs.modelling import chat
from finetune_jobs.modelling.canaries import Canary, make_canaries
from finetune_jobs.preparation.tokens import Encoder

MOST: Final = 10
"""Percent: canaries are no more than so much of the user's own training examples, whatever they are to teach."""


@dataclass(frozen=True)
class Planted:
    """Canaries, and their training examples as tokens in the same order. They count as none of the user's examples."""

    canaries: Sequence[Canary] = ()
    encoded: Sequence[chat.Encoded] = ()

    @property
    def tokens(self) -> int:
        """Tokens that an epoch trains of them."""
        return sum(len(each.input_ids) for each in self.encoded)

    def report(self) -> dict[str, Any]:
        """The figures for the report."""
        return {"planted": len(self.canaries), "tokens": self.tokens}


NOTHING: Final = Planted()


def plant(params: PrepareParams, source: str, encoder: Encoder, trained: int) -> Planted:
    """What the spec asks for; the same for the same sources and seed of the split. ``source``: identity of the source
    files; ``trained``: training examples of the user.

    Raises StageError: SpecInvalid where the canaries would be too many, too long, or could not be measured.
    """
    number = params.dataset.canaries
    if number is None:
        return NOTHING
    if number * 100 > trained * MOST:
        raise StageError(
            Reason.SPEC_INVALID,
            f"spec.dataset.canaries is {number}, more than {MOST} % of the {trained} training examples, so that they "
            "would change what is learned: plant fewer, remove canaries, or add examples.",
        )
    if encoder.thoughts:
        raise StageError(
            Reason.SPEC_INVALID,
            "spec.dataset.canaries: the model learns to think before it answers, and how likely an answer after "
            "thoughts is cannot be measured: remove canaries.",
        )
    canaries = make_canaries(number, digest([source, params.dataset.split.seed]))
    encoded = [chat.encode(encoder.tokenizer, canary.messages, encoder.stop) for canary in canaries]
    longest = max(len(each.input_ids) for each in encoded)
    if longest > params.max_length:
        raise StageError(
            Reason.SPEC_INVALID,
            f"spec.dataset.canaries: a canary has up to {longest} tokens, more than spec.training.maxLength, "
            f"{params.max_length}: raise maxLength, or remove canaries.",
        )
    return Planted(canaries, encoded)
