"""The likeliest of several whole answers, found from a program that only says which of some tokens is likeliest next.

A best-first search in the tree of the answers' tokens. An answer is never likelier than its beginning is, and of the
tokens that may follow a beginning none is likelier than the one that the program has named. So what is expanded next is
always what may still be the likeliest, and the first whole answer that comes up is the likeliest of all. Most answers
are never asked about. Pure functions, no model.
"""

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class TokenStep:
    """A question to the program: which of ``allowed`` is likeliest after a prompt and ``taken``?"""

    prompt: int
    """Number of the prompt."""
    taken: tuple[int, ...]
    allowed: tuple[int, ...]
    """At least one token."""


AskSteps = Callable[[Sequence[TokenStep]], Sequence[tuple[int, float]]]
"""The likeliest of the allowed tokens of each step, and its log-probability among all tokens."""


@dataclass(frozen=True, order=True)
class _Candidate:
    """Answers that begin alike, of which none is likelier than a bound. The best comes first; of equally good ones what
    a named token begins, then the one with the first answer."""

    cost: float
    """The negative of the bound."""
    unnamed: bool
    """Whether it is a whole answer, or what goes on with none of the tokens named so far: these are as good as the last
    one at best, so that one is followed first."""
    first: int
    """Number of the first of these answers."""
    taken: tuple[int, ...]
    allowed: tuple[int, ...]
    """Tokens that may follow; empty: it is a whole answer, and the bound its log-probability."""
    spent: float
    """The negative log-probability of ``taken``."""


def likeliest(prompts: int, answers: Sequence[Sequence[int]], ask: AskSteps) -> list[int]:
    """Of each prompt, the number of the answer that follows it with the highest probability, the first of equally
    likely ones. ``answers``: tokens with the one that ends the answer, so that none is the beginning of another."""
    tree = _Tree(answers)
    root = tree.beginning((), 0.0)
    open_ = {prompt: [root] for prompt in range(prompts)}
    found: dict[int, int] = {}
    while open_:
        best = {prompt: heapq.heappop(heap) for prompt, heap in open_.items()}
        for prompt, candidate in best.items():
            if not candidate.allowed:
                found[prompt] = candidate.first
                del open_[prompt]
        steps = [TokenStep(prompt, best[prompt].taken, best[prompt].allowed) for prompt in open_]
        for step, (token, log_probability) in zip(steps, ask(steps) if steps else [], strict=True):
            for candidate in tree.expanded(best[step.prompt], token, log_probability):
                heapq.heappush(open_[step.prompt], candidate)
    return [found[prompt] for prompt in range(prompts)]


class _Tree:
    """The answers, by how they begin."""

    def __init__(self, answers: Sequence[Sequence[int]]) -> None:
        self._first: dict[tuple[int, ...], int] = {(): 0}
        self._next: dict[tuple[int, ...], list[int]] = {}
        for number, answer in enumerate(map(tuple, answers)):
            for length, token in enumerate(answer):
                begin = answer[:length]
                if token not in self._next.setdefault(begin, []):
                    self._next[begin].append(token)
                self._first.setdefault(answer[: length + 1], number)

    def beginning(self, taken: tuple[int, ...], spent: float) -> _Candidate:
        """All answers that begin so; it may be one, as a whole."""
        allowed = tuple(self._next.get(taken, ()))
        return _Candidate(spent, not allowed, self._first[taken], taken, allowed, spent)

    def expanded(self, candidate: _Candidate, token: int, log_probability: float) -> list[_Candidate]:
        """What is known once the program has named a token: how likely what begins with it is at most, and that all
        that goes on with another one is no likelier than that."""
        taken, cost = candidate.taken, candidate.spent - log_probability
        found = [self.beginning((*taken, token), cost)]
        if rest := tuple(each for each in candidate.allowed if each != token):
            first = min(self._first[(*taken, each)] for each in rest)
            found.append(_Candidate(cost, True, first, taken, rest, candidate.spent))
        return found
