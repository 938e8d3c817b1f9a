"""A sequence during generation: converts tokens to text and decides when to stop (criteria in TGI's order)."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from tgi_cpu.checkpoint import Vocabulary
from tgi_cpu.sampling import SamplingParameters, TokenChooser

CONTEXT_TOKENS = 5
"""Number of preceding tokens that are decoded together with a new one, so that spaces are as in the whole text."""


@dataclass(frozen=True, slots=True)
class Generation:
    """A validated request for one sequence."""

    input_ids: list[int]
    adapter_id: str | None
    max_new_tokens: int
    stop: Sequence[str]
    sampling: SamplingParameters
    top_n_tokens: int
    prefill_details: bool


@dataclass(frozen=True, slots=True)
class Token:
    """A token of the vocabulary; ``logprob`` is None for the first token of a prompt, which nothing predicts."""

    id: int
    text: str
    logprob: float | None
    special: bool


@dataclass(frozen=True, slots=True)
class Ending:
    """Facts that come with the last token. Times are ``time.monotonic()`` seconds."""

    text: str
    finish_reason: str
    generated_tokens: int
    seed: int | None
    queued: float
    started: float


@dataclass(frozen=True, slots=True)
class Step:
    """One generated token; ``prefill`` (the prompt's tokens) comes with the first one, ``ending`` with the last."""

    token: Token
    top_tokens: list[Token]
    prefill: list[Token]
    ending: Ending | None


@dataclass(slots=True)
class LiveSequence:
    """The state of a Generation between two forward passes."""

    request: Generation
    vocabulary: Vocabulary
    queued: float = field(default_factory=time.monotonic)
    started: float = 0.0
    ids: list[int] = field(init=False)
    _chooser: TokenChooser = field(init=False)
    _text: str = ""
    _prefix: int = field(init=False)
    _read: int = field(init=False)

    def __post_init__(self) -> None:
        self.ids = list(self.request.input_ids)
        self._chooser = TokenChooser(self.request.sampling)
        self._read = len(self.ids)
        self._prefix = max(0, self._read - CONTEXT_TOKENS)

    @property
    def remaining_tokens(self) -> int:
        """Number of tokens that this sequence may still generate."""
        return len(self.request.input_ids) + self.request.max_new_tokens - len(self.ids)

    def advance(self, logits: Any) -> Step:
        """Append the next token, from the logits (positions x vocabulary) of the last forward pass."""
        prompt_length = len(self.request.input_ids)
        prefill = self._prefill_tokens(logits) if len(self.ids) == prompt_length else []
        chosen, logprobs = self._chooser(self.ids, logits[-1])
        self.ids.append(chosen)
        text = self._new_text()
        self._text += text
        reason = self._finish_reason(chosen)
        ending = None
        if reason is not None:
            generated = self.ids[prompt_length:]
            ending = Ending(self._final_text(), reason, len(generated), self._chooser.seed, self.queued, self.started)
        token = Token(chosen, text, float(logprobs[chosen]), chosen in self.vocabulary.special_token_ids)
        return Step(token, self._top_tokens(logits[-1]), prefill, ending)

    def _new_text(self) -> str:
        """The text added by the newest token; empty while it ends inside a multi-byte character."""
        before = self.vocabulary.decode(self.ids[self._prefix : self._read])
        now = self.vocabulary.decode(self.ids[self._prefix :])
        if len(now) <= len(before) or now.endswith("\N{REPLACEMENT CHARACTER}"):
            return ""
        self._prefix, self._read = self._read, len(self.ids)
        return now[len(before) :]

    def _final_text(self) -> str:
        start = len(self.request.input_ids)
        context = self.ids[max(0, start - 1) : start]
        before = self.vocabulary.decode(context, skip_special_tokens=True)
        return self.vocabulary.decode(context + self.ids[start:], skip_special_tokens=True)[len(before) :]

    def _finish_reason(self, chosen: int) -> str | None:
        if self.remaining_tokens <= 0:
            return "length"
        if chosen in self.vocabulary.eos_token_ids:
            return "eos_token"
        return "stop_sequence" if any(self._text.endswith(stop) for stop in self.request.stop) else None

    def _top_tokens(self, logits: Any) -> list[Token]:
        if not self.request.top_n_tokens:
            return []
        top = torch.log_softmax(logits.float(), dim=-1).topk(self.request.top_n_tokens)
        return [self._token(i, p) for i, p in zip(top.indices.tolist(), top.values.tolist(), strict=True)]

    def _prefill_tokens(self, logits: Any) -> list[Token]:
        if not self.request.prefill_details:
            return []
        ids = self.request.input_ids
        predicted = torch.log_softmax(logits[-len(ids) :].float(), dim=-1)
        logprobs = [None, *(float(predicted[at, token]) for at, token in enumerate(ids[1:]))]
        return [self._token(token, logprob) for token, logprob in zip(ids, logprobs, strict=True)]

    def _token(self, token: int, logprob: float | None) -> Token:
        return Token(token, self.vocabulary.decode([token]), logprob, token in self.vocabulary.special_token_ids)
