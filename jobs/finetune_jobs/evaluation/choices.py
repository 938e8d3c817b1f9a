"""A base model that must answer with one of the allowed labels: the one that it finds likeliest as the whole answer.

What a prompt with guided decoding would get at best. The model writes nothing: it is given a label, and says how likely
each of its tokens is. A whole label is never likelier than its first tokens are. So the model is given the most
promising label first, and never those that can no longer be the likeliest. What it says of one label also bounds the
others that begin alike.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Final

import torch

from finetune_jobs.evaluation.batches import PromptBatch
from finetune_jobs.modelling import chat

MOST_LABELS: Final = 200
"""Among more labels, the choice would cost more than all other answers; then it is not asked."""
_NEVER: Final = float("-inf")


@dataclass(frozen=True)
class Choices:
    """Answers among which a model must choose, as tokens, and what they have in common."""

    tokens: Sequence[Sequence[int]]
    shared: torch.Tensor
    """Of each pair: with how many tokens both begin, less than either has."""
    following: torch.Tensor
    """Of each pair: the second's token behind these."""
    decided: torch.Tensor
    """Of each pair: whether that is the second's last token."""

    @classmethod
    def of(cls, tokens: Sequence[Sequence[int]]) -> "Choices":
        """``tokens``: at least one in each."""
        shared = [[_alike(one, other) for other in tokens] for one in tokens]
        following = [[other[n] for n, other in zip(row, tokens, strict=True)] for row in shared]
        decided = [[n == len(other) - 1 for n, other in zip(row, tokens, strict=True)] for row in shared]
        return cls(tokens, torch.tensor(shared), torch.tensor(following), torch.tensor(decided))


def choosing(tokenizer: Any, labels: Sequence[str], stop: int) -> Callable[[PromptBatch], list[str]]:
    """Finds the likeliest label for each prompt of a batch, which it leaves as it is; of equally likely ones the first.

    A label's likelihood is that of its tokens and of ``stop``, which ends the answer: otherwise "card" would never be
    less likely than "card payment".
    """
    choices = Choices.of([[*chat.answer_ids(tokenizer, label), stop] for label in labels])
    return lambda batch: [labels[index] for index in likeliest(batch, choices)]


def likeliest(batch: PromptBatch, choices: Choices) -> list[int]:
    """Of each prompt, which choice follows it with the highest probability."""
    firsts = torch.tensor([each[0] for each in choices.tokens])
    bounds = torch.log_softmax(batch.logits.float(), dim=-1)[:, firsts].double().cpu()
    known = torch.tensor([[len(each) == 1 for each in choices.tokens]]).repeat(len(bounds), 1)
    while True:
        best = bounds.masked_fill(~known, _NEVER).amax(dim=1, keepdim=True)
        hopeful = bounds.masked_fill(known | (bounds < best), _NEVER)
        rows = [row for row, most in enumerate(hopeful.amax(dim=1).tolist()) if most > _NEVER]
        if not rows:
            break
        given = hopeful[rows].argmax(dim=1).tolist()
        for row, choice, found in zip(rows, given, _bounds(batch, rows, given, choices), strict=True):
            bounds[row] = torch.where(known[row], bounds[row], torch.minimum(bounds[row], found))
            known[row] |= choices.decided[choice]
    likely: list[int] = bounds.masked_fill(~known, _NEVER).argmax(dim=1).tolist()
    return likely


def _bounds(batch: PromptBatch, rows: Sequence[int], given: Sequence[int], choices: Choices) -> list[torch.Tensor]:
    """What each of these prompts, followed by the choice that it is given, says of the log-probability of every choice:
    that of its tokens as far as the two are alike, and of one more."""
    device = batch.mask.device
    width = max(len(choices.tokens[choice]) for choice in given) - 1
    # Padding stands behind, where no token sees it.
    padded = [[*each, *[each[-1]] * width][:width] for each in (choices.tokens[choice] for choice in given)]
    read = batch.copied(rows).read(torch.tensor(padded, device=device))
    found = []
    for row, choice, logits in zip(rows, given, read, strict=True):
        said = torch.log_softmax(torch.cat([batch.logits[row][None], logits]).float(), dim=-1)
        own = choices.tokens[choice]
        taken = said[torch.arange(len(own)), torch.tensor(own)].double().cpu()
        before = taken.cumsum(0) - taken
        place = choices.shared[choice]
        found.append(before[place] + said[place, choices.following[choice]].double().cpu())
    return found


def _alike(one: Sequence[int], other: Sequence[int]) -> int:
    pairs = zip(one[:-1], other[:-1], strict=False)
    return len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))
