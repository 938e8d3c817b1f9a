"""Examples as training tokens, and how those that are too long are handled (pure)."""

import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from finetune_api.dataset import TooLong
from finetune_api.reasons import Reason
from finetune_api.stages import PrepareParams
from finetune_jobs.base.errors import StageError
from finetune_jobs.examples.shapes import Message
from finetune_jobs.examples.validation import Example
from finetune_jobs.modelling import chat
from finetune_jobs.modelling.encoding import encode_conversation, require_system_message
from finetune_jobs.modelling.token_files import Conversation

_NAMED: Final = 5
_SHORTEST: Final = 8
"""Tokens of a message that truncation leaves at least: of less nothing can be understood."""
_CUT_END: Final = f"{string.whitespace}\N{REPLACEMENT CHARACTER}"
"""What a cut may leave at the end: tokens of bytes end within a character."""


class ThoughtsError(Exception):
    """A row has thoughts before an answer, and rows are being encoded without any. ``place``: file and line."""

    def __init__(self, place: str) -> None:
        super().__init__(place)
        self.place = place


@dataclass(frozen=True)
class EncodedExample:
    """An example with its tokens."""

    example: Example
    pieces: list[chat.Encoded]

    @property
    def tokens(self) -> int:
        """Tokens of the longest piece."""
        return max(len(piece.input_ids) for piece in self.pieces)

    @property
    def longest_answer(self) -> int:
        """Tokens of the longest answer to learn."""
        return max(piece.longest_answer for piece in self.pieces)


@dataclass
class Encoder:
    """Turns examples into tokens that a training takes as they are."""

    tokenizer: Any
    stop: int
    """The token that ends an answer."""
    params: PrepareParams
    thoughts: bool = False
    """Whether the model learns to think before it answers."""
    over: int = 0
    """Examples that were too long."""
    longest: int = 0
    """Tokens of the longest one, before anything was done about it."""
    left_out: int = 0
    """Exchanges of conversations that were split which were too long by themselves."""
    named: list[str] = field(default_factory=list)
    """The first ones that were too long, for the message."""
    _checked: bool = False

    def encode(self, example: Example, place: str) -> list[EncodedExample]:
        """The example; none if it is too long and dropped, several if it is split.

        Raises StageError (ModelUnsupported) when the chat template has no form for it, and ThoughtsError.
        """
        try:
            if example.has_thoughts and not self.thoughts:
                chat.rendering(self.tokenizer, thoughts=True)  # that there is one, or why not
                raise ThoughtsError(place)
            return self._fitting(example, place)
        except StageError as error:
            raise StageError(error.reason, f"{place}: {error.message}") from error

    def _fitting(self, example: Example, place: str) -> list[EncodedExample]:
        self._require_system_message(example)
        whole = self._encode(example)
        self.longest = max(self.longest, whole.tokens)
        if whole.tokens <= self.params.max_length:
            return [whole]
        self.over += 1
        if len(self.named) < _NAMED:
            self.named.append(f"{place} has {whole.tokens}")
        match self.params.dataset.cleaning.too_long:
            case TooLong.TRUNCATE:
                shorter = self._truncate(example)
                return [shorter] if shorter else []
            case TooLong.SPLIT:
                return self._split(example)
            case _:
                return []

    def require_short(self) -> None:
        """Raises StageError (DatasetInvalid) when an example was too long and spec.dataset.cleaning.tooLong is Fail."""
        if self.over and self.params.dataset.cleaning.too_long is TooLong.FAIL:
            raise StageError(
                Reason.DATASET_INVALID,
                f"{self.over} examples exceed spec.training.maxLength, {self.params.max_length} tokens "
                f"({'; '.join(self.named)}): set maxLength to {self.longest}, or set spec.dataset.cleaning.tooLong to "
                "Drop, Truncate or Split.",
            )

    def _encode(self, example: Example) -> EncodedExample:
        conversation = Conversation(example.messages, example.tools)
        loss, thoughts = self.params.loss, self.thoughts
        pieces = encode_conversation(self.tokenizer, conversation, self.stop, loss, thoughts=thoughts)
        return EncodedExample(example, pieces)

    def _require_system_message(self, example: Example) -> None:
        if not self._checked and example.messages[0]["role"] == "system":
            require_system_message(self.tokenizer, example.messages, thoughts=self.thoughts)
            self._checked = True

    def _truncate(self, example: Example) -> EncodedExample | None:
        """The example with the end of its longest question cut off, until it fits; an answer is never cut."""
        messages = example.messages
        lengths = {n: len(self._ids(m)) for n, m in enumerate(messages) if m["role"] in ("user", "tool")}
        longest = max(lengths, key=lambda n: (lengths[n], -n))
        excess = self._encode(example).tokens - self.params.max_length
        room = lengths[longest] - excess
        while room >= _SHORTEST:  # text that is cut may be tokenised a little longer than it was
            text = self.tokenizer.decode(self._ids(messages[longest])[:room]).rstrip(_CUT_END)
            shorter = [m | {"content": text} if n == longest else m for n, m in enumerate(messages)]
            made = self._encode(replace(example, messages=shorter))
            if made.tokens <= self.params.max_length:
                return made
            room -= max(1, made.tokens - self.params.max_length)
        return None

    def _split(self, example: Example) -> list[EncodedExample]:
        """The conversation in pieces of whole exchanges, each with the system message; an exchange that is too long by
        itself is left out. The pieces are a group: what one says, the others often say again."""
        example = replace(example, group=example.group or f"conversation {example.identity}")
        system, rest = _system(example.messages)
        pieces: list[EncodedExample] = []
        piece: list[Message] = []
        best: EncodedExample | None = None
        left_out = 0
        for exchange in _exchanges(rest):
            longer = self._encode(replace(example, messages=[*system, *piece, *exchange]))
            if longer.tokens > self.params.max_length and piece:
                pieces += [best] if best else []
                piece, best = [], None
                longer = self._encode(replace(example, messages=[*system, *exchange]))
            if longer.tokens <= self.params.max_length:
                piece, best = [*piece, *exchange], longer
            else:
                left_out += 1
        pieces += [best] if best else []
        self.left_out += left_out if pieces else 0
        return pieces

    def _ids(self, message: Message) -> list[int]:
        return list(self.tokenizer(message["content"], add_special_tokens=False)["input_ids"])


def _system(messages: Sequence[Message]) -> tuple[list[Message], list[Message]]:
    begin = 1 if messages[0]["role"] == "system" else 0
    return list(messages[:begin]), list(messages[begin:])


def _exchanges(messages: Sequence[Message]) -> Iterator[list[Message]]:
    """A user's question with all that follows up to the next one."""
    starts = [n for n, message in enumerate(messages) if message["role"] == "user"]
    for begin, end in zip(starts, [*starts[1:], len(messages)], strict=True):
        yield list(messages[begin:end])
