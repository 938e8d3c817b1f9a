"""The tokens with which a chat template marks turns, calls and thoughts, where they stand in the text of a row.

A tokenizer cannot tell the ``<|im_end|>`` of its template from one that a user wrote: both become the same token, and
the row would teach a second end of a turn.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from finetune_jobs.modelling.thinking import MARKS

_SHORTEST: Final = 3
"""Characters of a control token at least: ``<s>`` is one, a line break that is a token of its own is none."""
_PASSES: Final = 4
"""A token may come out of what was made of another."""


@dataclass(frozen=True)
class ControlTokens:
    """What a text must not hold."""

    names: frozenset[str]
    normalise: Callable[[str], str] | None = None
    """What the tokenizer does to a text before it looks for some of them."""

    @classmethod
    def of(cls, tokenizer: Any) -> "ControlTokens":
        """A tokenizer's special tokens, and those added tokens that its chat template writes: some call ``<tool_call>``
        and ``<think>`` ordinary. Other added tokens are words or markup. What marks thoughts need not be a token: the
        template itself and reasoning parsers look for its text."""
        template = str(tokenizer.chat_template or "")
        added = list(tokenizer.added_tokens_decoder.values())
        control = [token for token in added if _is_name(token.content) and (token.special or token.content in template)]
        marks = (mark for pair in MARKS for mark in pair if mark in template)
        names = frozenset([*(token.content for token in control), *marks])
        normalizer: Any = getattr(getattr(tokenizer, "backend_tokenizer", None), "normalizer", None)
        if normalizer is None or not any(token.normalized for token in control):
            return cls(names)
        return cls(names, normalizer.normalize_str)

    def found(self, text: str) -> str:
        """The first control token in a text; empty: it has none."""
        if not self.names:
            return ""
        match = self._pattern.search(text)
        if match is None and self.normalise:
            match = self._pattern.search(self.normalise(text))
        return match[0] if match else ""

    def escaped(self, text: str) -> tuple[str, list[str]]:
        """The text with a space in each control token, which makes it ordinary, and those tokens. What only the
        tokenizer's own normalisation makes a token stays."""
        tokens: list[str] = []

        def escape(match: re.Match[str]) -> str:
            tokens.append(match[0])
            return f"{match[0][0]} {match[0][1:]}"

        for _ in range(_PASSES):
            changed = self._pattern.sub(escape, text) if self.names else text
            if changed == text:
                break
            text = changed
        return text, tokens

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile("|".join(re.escape(name) for name in sorted(self.names, key=lambda name: (-len(name), name))))


NO_CONTROL_TOKENS: Final = ControlTokens(frozenset())
"""Of no tokenizer."""


def _is_name(content: str) -> bool:
    return len(content.strip()) >= _SHORTEST and not content.isalnum()
