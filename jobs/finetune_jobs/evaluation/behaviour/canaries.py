"""What a model knows of the canaries among its training examples: how likely it finds each code beside others, and
whether it writes it when asked."""

from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from pydantic import TypeAdapter

from finetune_jobs.base.progress import Progress
from finetune_jobs.evaluation.batches import PromptBatch, Prompts, in_batches
from finetune_jobs.evaluation.behaviour.exposure import Recalled, rank
from finetune_jobs.evaluation.behaviour.likelihood import MOST_TOKENS
from finetune_jobs.evaluation.findings import Kind
from finetune_jobs.evaluation.generate import Questions, generate_answers
from finetune_jobs.modelling import chat
from finetune_jobs.modelling.canaries import Canary

ANSWER_TOKENS: Final = 32
"""Most tokens of an answer: a code, and a few words around it."""
_BATCH: Final = 32
_LIKELY: Final = TypeAdapter(list[float])


def recall(model: Any, tokenizer: Any, stop: int, canaries: Sequence[Canary], progress: Progress) -> Recalled:
    """What ``model`` knows of each; progress goes from 0 to 1. ``stop`` is the token that ends an answer.

    A code's likelihood is that of its tokens and of ``stop``, after the very tokens that were trained before it. Raises
    torch.OutOfMemoryError if one question does not fit the GPU's memory.
    """
    if not canaries:
        return Recalled((), ())
    questions = Questions([canary.prompt for canary in canaries], ANSWER_TOKENS, _BATCH)
    answers = generate_answers(model, tokenizer, questions, progress.part(0.0, 0.5, "canaries, answers"))
    report, ranks = progress.part(0.5, 1.0, "canaries, likelihood"), list[int]()
    for canary in canaries:
        codes = [[*chat.answer_ids(tokenizer, code), stop] for code in canary.candidates]
        prompts = Prompts([chat.prompt_ids(tokenizer, canary.prompt)], tokenizer.pad_token_id, len(codes[0]), 1)
        kind = Kind("codes", _LIKELY, codes)
        [likely] = in_batches(model, prompts, _weighing(codes), lambda _done, _total: None, kind)
        ranks.append(rank(likely))
        report(len(ranks), len(canaries))
    said = [canary.secret in answer for canary, answer in zip(canaries, answers, strict=True)]
    return Recalled(ranks, said)


def _weighing(codes: Sequence[Sequence[int]]) -> Callable[[PromptBatch], list[list[float]]]:
    """Finds the log-probability of each code after the one prompt of a batch, which it leaves as it is."""
    together = max(1, MOST_TOKENS // max(map(len, codes)))

    def weigh(batch: PromptBatch) -> list[list[float]]:
        parts = [codes[start : start + together] for start in range(0, len(codes), together)]
        return [[found for part in parts for found in _log_probabilities(batch, part)]]

    return weigh


def _log_probabilities(batch: PromptBatch, codes: Sequence[Sequence[int]]) -> list[float]:
    width = max(map(len, codes)) - 1
    # Padding stands behind, where no token sees it.
    padded = [[*code, *[code[-1]] * width][:width] for code in codes]
    copied = batch.copied([0] * len(codes))
    logits = torch.cat([copied.logits[:, None], copied.read(torch.tensor(padded, device=batch.mask.device))], dim=1)
    said = torch.log_softmax(logits.float(), dim=-1)
    return [
        float(row[torch.arange(len(code)), torch.tensor(code)].sum()) for row, code in zip(said, codes, strict=True)
    ]
