"""What a model knows of the canaries among its training examples: how likely it finds each code beside others, and
whether it writes it when asked."""

from collections.abc import Sequence
from math import isnan
from typing import Any, Final

from finetune_jobs.base.progress import Progress
from finetune_jobs.evaluation.behaviour.exposure import Recalled, rank
from finetune_jobs.evaluation.generate import Questions, numbered
from finetune_jobs.evaluation.generators.protocol import Generator
from finetune_jobs.modelling import chat
from finetune_jobs.modelling.canaries import Canary

ANSWER_TOKENS: Final = 32
"""Most tokens of an answer: a code, and a few words around it."""
_BATCH: Final = 32


def questions_about(canaries: Sequence[Canary]) -> Questions:
    """What is asked about each; a code is shorter than an answer may be."""
    ids = numbered("canaries", len(canaries))
    return Questions([canary.prompt for canary in canaries], ANSWER_TOKENS, _BATCH, ids=ids)


def recall(generator: Generator, tokenizer: Any, stop: int, canaries: Sequence[Canary], progress: Progress) -> Recalled:
    """What a model knows of each; progress goes from 0 to 1. ``stop`` is the token that ends an answer.

    A code's likelihood is that of its tokens and of ``stop``, after the very tokens that were trained before it. Raises
    as ``Generator``.
    """
    if not canaries:
        return Recalled((), ())
    answers = generator.write(questions_about(canaries), progress.part(0.0, 0.5, "canaries, answers"))
    report, ranks, unknown = progress.part(0.5, 1.0, "canaries, likelihood"), list[int](), 0
    for canary in canaries:
        codes = [[*chat.answer_ids(tokenizer, code), stop] for code in canary.candidates]
        likely = generator.weigh(chat.prompt_ids(tokenizer, canary.prompt), codes)
        ranks.append(rank(likely))
        unknown += any(map(isnan, likely))
        report(len(ranks), len(canaries))
    said = [canary.secret in answer.text for canary, answer in zip(canaries, answers, strict=True)]
    return Recalled(ranks, said, unknown)
