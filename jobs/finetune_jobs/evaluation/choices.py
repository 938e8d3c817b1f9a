"""A base model that must answer with one of the allowed labels: the one that it finds likeliest as the whole answer.

What a prompt with guided decoding would get at best. The model writes nothing: it is given each label, and says how
likely that is. What the prompts have in common is computed once, and what follows once for each prompt; the labels then
share it.
"""

import copy
from collections.abc import Iterator, Sequence
from typing import Any, Final

import torch

from finetune_jobs.evaluation.generate import Answered, Beginning, Questions, common_beginning
from finetune_jobs.modelling import chat

TOGETHER: Final = 32
"""Labels in a batch, as long as they fit the GPU's memory."""
MOST_LABELS: Final = 200
"""Among more labels, the choice would cost more than all other answers; then it is not asked."""


def choose_labels(
    model: Any, tokenizer: Any, questions: Questions, labels: Sequence[str], stop: int, answered: Answered
) -> list[str]:
    """The likeliest label for each prompt; of equally likely ones the first.

    A label's likelihood is that of its tokens and of ``stop``, which ends the answer: otherwise "card" would never be
    less likely than "card payment". Raises torch.OutOfMemoryError if one prompt does not fit the GPU's memory.
    """
    tools = questions.tools or [()] * len(questions.prompts)
    encoded = [chat.prompt_ids(tokenizer, *each) for each in zip(questions.prompts, tools, strict=True)]
    choices = [[*chat.answer_ids(tokenizer, label), stop] for label in labels]
    beginning = common_beginning(model, encoded)
    chosen: list[str] = []
    for number, prompt in enumerate(encoded, start=1):
        scores = _scores(model, prompt, beginning, choices, tokenizer.pad_token_id)
        chosen.append(labels[max(range(len(labels)), key=scores.__getitem__)])
        answered(number, len(encoded))
    return chosen


def _scores(
    model: Any, prompt: Sequence[int], beginning: Beginning | None, choices: Sequence[Sequence[int]], pad: int
) -> list[float]:
    """The log-probability of each choice after a prompt."""
    known = beginning.length if beginning else 0
    with torch.inference_mode():
        read = model(
            input_ids=torch.tensor([prompt[known:]], device=model.device),
            cache=copy.deepcopy(beginning.cache) if beginning else None,
            use_cache=True,
        )
        first = torch.log_softmax(read.logits[0, -1].float(), dim=-1)
        found: list[float] = []
        size = TOGETHER
        while len(found) < len(choices):
            batch = choices[len(found) : len(found) + size]
            scores = _of_batch(model, read.cache, first, batch, pad)
            if scores is None:
                size = len(batch) // 2
            else:
                found += scores
    return found


def _of_batch(
    model: Any, cache: Any, first: torch.Tensor, batch: Sequence[Sequence[int]], pad: int
) -> list[float] | None:
    """None if several choices do not fit the memory. Padding stands behind, where no token sees it."""
    width = max(len(each) for each in batch)
    tokens = torch.tensor([[*each, *[pad] * (width - len(each))] for each in batch], device=first.device)
    try:
        shared = copy.deepcopy(cache)
        shared.batch_repeat_interleave(len(batch))
        logits = model(input_ids=tokens[:, :-1], cache=shared, use_cache=True).logits
        rest = torch.log_softmax(logits.float(), dim=-1).gather(2, tokens[:, 1:, None])[..., 0]
    except torch.OutOfMemoryError:
        if len(batch) == 1:
            raise
    else:
        starts = first[tokens[:, 0]].tolist()
        return list(_sums(starts, rest, [len(each) - 1 for each in batch]))
    torch.cuda.empty_cache()  # the failed attempt's memory is free by now
    return None


def _sums(starts: Sequence[float], rest: torch.Tensor, lengths: Sequence[int]) -> Iterator[float]:
    for start, row, length in zip(starts, rest.double().cpu(), lengths, strict=True):
        yield start + float(row[:length].sum())
