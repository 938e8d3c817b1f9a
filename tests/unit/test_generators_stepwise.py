"""The likeliest whole answer, found token by token, is the one that weighing every answer finds."""

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_jobs.evaluation.generators.stepwise import TokenStep, likeliest

pytestmark = pytest.mark.unit

STOP = 9
ANSWERS = st.lists(
    st.lists(st.integers(0, 3), min_size=1, max_size=4).map(lambda tokens: (*tokens, STOP)),
    min_size=1,
    max_size=8,
)
Scores = dict[tuple[int, tuple[int, ...], int], float]
"""The log-probability of a token after a prompt and what stands behind it."""


class Model:
    """Says log-probabilities that were drawn, each as it is first asked for."""

    def __init__(self, draw: st.DataObject) -> None:
        self._draw, self._known, self.asked = draw, Scores(), 0

    def score(self, prompt: int, taken: tuple[int, ...], token: int) -> float:
        """Of few values, so that there are ties."""
        key = (prompt, taken, token)
        if key not in self._known:
            self._known[key] = -self._draw.draw(st.sampled_from([0.0, 0.25, 0.5, 2.0, 4.0]))
        return self._known[key]

    def whole(self, prompt: int, answer: Sequence[int]) -> float:
        return math.fsum(self.score(prompt, tuple(answer[:n]), token) for n, token in enumerate(answer))

    def ask(self, steps: Sequence[TokenStep]) -> list[tuple[int, float]]:
        assert steps
        self.asked += len(steps)
        found = []
        for step in steps:
            scores = {token: self.score(step.prompt, step.taken, token) for token in step.allowed}
            best = max(step.allowed, key=lambda token: (scores[token], -token))  # a program's own way with ties
            found.append((best, scores[best]))
        return found


@given(answers=ANSWERS, prompts=st.integers(0, 3), draw=st.data())
def test_it_is_what_weighing_every_answer_finds(
    answers: list[tuple[int, ...]], prompts: int, draw: st.DataObject
) -> None:
    model = Model(draw)
    found = likeliest(prompts, answers, model.ask)
    for prompt, number in enumerate(found):
        scores = [model.whole(prompt, answer) for answer in answers]
        assert number == scores.index(max(scores)), "of equally likely ones the first"


def test_most_answers_are_never_asked_about() -> None:
    """Of a hundred answers that begin differently, a sure model is asked about one, and for the next best token."""
    answers = [(token, 200, STOP) for token in range(100)]
    asked: list[TokenStep] = []

    def ask(steps: Sequence[TokenStep]) -> list[tuple[int, float]]:
        asked.extend(steps)
        return [(42, -0.01) if 42 in step.allowed else (step.allowed[0], -5.0 * (not step.taken)) for step in steps]

    assert likeliest(2, answers, ask) == [42, 42]
    assert len(asked) == 8
