"""The label that a model must choose is its likeliest answer."""

import random
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune_jobs.evaluation.choices import Choices, likeliest
from finetune_jobs.evaluation.generate import Questions
from finetune_jobs.evaluation.passages import Passage, log_probs
from finetune_jobs.modelling.chat import answer_ids, prompt_ids
from finetune_jobs.modelling.loading import load_base
from finetune_jobs.modelling.tokenizer import load_tokenizer, stop_token
from tests.support.evaluating import choose_labels
from tests.support.training import row

pytestmark = [pytest.mark.unit, pytest.mark.slow]


def test_the_label_that_a_model_must_choose_is_the_likeliest_answer(model_folder: Path) -> None:
    """As each alone after each prompt, with the token that ends it: labels share a beginning, and prompts do."""
    model, tokenizer = load_base(model_folder / "base").float(), load_tokenizer(model_folder / "base")
    stop = stop_token(model_folder / "base", tokenizer)
    labels = ["refund", "refund my parcel", "question", "other fox", "the", "capital"]
    prompts = [row(f"{n} {text}", "x")["messages"][:-1] for n, text in enumerate(["refund", "what", "parcel " * 9])]
    expected = dict[tuple[str, str], list[str]]()
    for pair in combinations(labels, 2):
        for ids in [prompt_ids(tokenizer, prompt) for prompt in prompts]:
            whole = [Passage("", [*ids, *answer_ids(tokenizer, label), stop]) for label in pair]
            sums = [sum(log_probs(model, passage)[len(ids) - 1 :]) for passage in whole]
            expected.setdefault(pair, []).append(pair[sums.index(max(sums))])
    questions = Questions(prompts, limit=10, batch_size=4)
    for pair, best in expected.items():
        assert choose_labels(model, tokenizer, questions, pair, stop) == best
    chosen = choose_labels(model, tokenizer, questions, labels, stop)
    assert all(best[n] == label for n, label in enumerate(chosen) for pair, best in expected.items() if label in pair)

    forward, most = model.forward, 2

    def limited(**inputs: Any) -> Any:
        if len(inputs["input_ids"]) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return forward(**inputs)

    model.forward = limited
    assert choose_labels(model, tokenizer, questions, labels, stop) == chosen
    most = 0
    with pytest.raises(torch.OutOfMemoryError):
        choose_labels(model, tokenizer, questions, labels, stop)


class RandomTable:
    """A batch of prompts to each of which a model that knows no words answers as a random table says."""

    def __init__(self, rows: Sequence[int], sharpness: float) -> None:
        self.rows, self.sharpness, self.given = rows, sharpness, list[int]()
        self.mask = torch.ones(len(rows), 1, dtype=torch.long)
        self.logits = torch.stack([self.after(row, ()) for row in rows])

    def after(self, row: int, tokens: Sequence[int]) -> torch.Tensor:
        """Logits of the token that follows."""
        chosen = torch.Generator().manual_seed(hash((row, *tokens)) % 2**31)
        return torch.randn(6, generator=chosen) * self.sharpness

    def copied(self, rows: Sequence[int]) -> "RandomTable":
        """Of these prompts."""
        self.given += rows
        return RandomTable([self.rows[row] for row in rows], self.sharpness)

    def read(self, tokens: torch.Tensor) -> torch.Tensor:
        """The logits after each of the tokens."""
        return torch.stack(
            [
                torch.stack([self.after(row, given[: n + 1]) for n in range(len(given))])
                for row, given in zip(self.rows, tokens.tolist(), strict=True)
            ]
        )


@pytest.mark.parametrize("sharpness", [0.1, 1.0, 8.0])
def test_a_choice_is_the_likeliest_of_all_though_not_all_are_read(sharpness: float) -> None:
    """Sequences of random tokens, with common beginnings and of one token only; 0 ends each."""
    chosen = random.Random(1)
    lengths = (0, 1, 1, 2, 2, 3, 3, 4)
    tokens = [[*(chosen.randint(1, 3) for _ in range(length)), 0] for length in lengths]
    batch = RandomTable(range(40), sharpness)

    def likelihood(prompt: int, choice: Sequence[int]) -> float:
        steps = [torch.log_softmax(batch.after(prompt, choice[:n]), dim=-1)[token] for n, token in enumerate(choice)]
        return float(sum(steps))

    found = likeliest(batch, Choices.of(tokens))  # type: ignore[arg-type]
    for prompt, choice in enumerate(found):
        every = [likelihood(prompt, each) for each in tokens]
        assert every[choice] == pytest.approx(max(every), abs=1e-4)
    unlike = {tuple(each) for each in tokens if len(each) > 1}
    assert 0 < len(batch.given) < 40 * len(unlike)
