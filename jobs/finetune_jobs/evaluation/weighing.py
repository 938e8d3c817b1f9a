"""How likely a model of transformers finds each of several given answers to one prompt, which it reads once."""

from collections.abc import Callable, Sequence

import torch

from finetune_jobs.evaluation.batches import PromptBatch
from finetune_jobs.evaluation.behaviour.likelihood import MOST_TOKENS


def weighing(codes: Sequence[Sequence[int]]) -> Callable[[PromptBatch], list[list[float]]]:
    """Finds the log-probability of each code after the one prompt of a batch, which it leaves as it is. A code has at
    least one token."""
    together = max(1, MOST_TOKENS // max(map(len, codes)))

    def weigh(batch: PromptBatch) -> list[list[float]]:
        parts = [codes[start : start + together] for start in range(0, len(codes), together)]
        return [[found for part in parts for found in _log_probabilities(batch, part)]]

    return weigh


def _log_probabilities(batch: PromptBatch, codes: Sequence[Sequence[int]]) -> list[float]:
    said = torch.log_softmax(_logits(batch, codes).float(), dim=-1)
    return [
        float(row[torch.arange(len(code)), torch.tensor(code)].sum()) for row, code in zip(said, codes, strict=True)
    ]


def _logits(batch: PromptBatch, codes: Sequence[Sequence[int]]) -> torch.Tensor:
    """Of each token of each code (codes × tokens × vocabulary)."""
    first, width = batch.logits.expand(len(codes), -1)[:, None], max(map(len, codes)) - 1
    if not width:
        return first  # the model has read all that stands before a single token
    # Padding stands behind, where no token sees it.
    padded = [[*code, *[code[-1]] * width][:width] for code in codes]
    rest = batch.copied([0] * len(codes)).read(torch.tensor(padded, device=batch.mask.device))
    return torch.cat([first, rest], dim=1)
