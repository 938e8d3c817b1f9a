"""Keeps the base model's control tokens out of what is trained: rows with one are invalid, or it is escaped."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any, Final

from finetune_api.dataset import OnControlToken
from finetune_api.reasons import Reason
from finetune_jobs.base.errors import StageError
from finetune_jobs.examples.shapes import Message, Shaped
from finetune_jobs.modelling.control_tokens import ControlTokens
from finetune_jobs.modelling.thinking import REASONING
from finetune_jobs.reading.rows import Fault, Row
from finetune_jobs.text.pii.masking import map_texts
from finetune_jobs.text.redaction import redacted

CONTROL_TOKEN: Final = "controlToken"
"""Kind of fault of a row with a control token."""
_TEXTS: Final = ("content", REASONING, "name", "tool_call_id", "tool_calls")
"""Parts of a message that a chat template may write."""
_SHOWN: Final = 100
"""Characters of a key that are shown."""


class Guard:
    """Looks at every text that becomes tokens."""

    def __init__(self, controls: ControlTokens, rule: OnControlToken) -> None:
        self._controls = controls
        self._escapes = rule is OnControlToken.ESCAPE
        self.escaped: Counter[str] = Counter()
        """How often each token was escaped."""

    def require_plain(self, field: str, text: str) -> None:
        """Raises StageError (SpecInvalid) for a control token in a text of the spec."""
        if token := self._controls.found(text):
            raise StageError(
                Reason.SPEC_INVALID, f"{field} contains {token}, a control token of the base model. Remove it."
            )

    def rejects(self, text: str) -> bool:
        """Whether a row with this text is invalid."""
        return not self._escapes and bool(self._controls.found(text))

    def plain(self, row: Row, shaped: Shaped, *, with_label: bool) -> Shaped | Fault:
        """The conversation without control tokens, or what is wrong with it. Without ``with_label``, the last message
        is a label, which cannot be escaped: it would be another one."""
        if self._escapes:
            last = len(shaped.messages) - 1
            of_label = (REASONING,) if not with_label else _TEXTS
            messages = [self._escape(m, of_label if n == last else _TEXTS) for n, m in enumerate(shaped.messages)]
            shaped = Shaped(messages, [map_texts(tool, self._text) for tool in shaped.tools])
        for number, message in enumerate(shaped.messages):
            said = {part: message[part] for part in _TEXTS if part in message}
            if fault := self._wrong(row, said, f"messages[{number}]"):
                return fault
        return self._wrong(row, shaped.tools, "tools") or shaped

    def _wrong(self, row: Row, value: Any, place: str) -> Fault | None:
        found = ((where, self._controls.found(text)) for where, text in _walk(value, place))
        return next((self._fault(row, where, token) for where, token in found if token), None)

    def _fault(self, row: Row, place: str, token: str) -> Fault:
        """``place`` is that in the conversation; a row of another form has the token elsewhere."""
        field = next((where for where, text in _walk(row.fields, name=_public) if token in text), place)
        hint = " Remove it" if self._escapes else " Remove it, or set spec.dataset.cleaning.controlTokens to Escape"
        problem = "contains a control token of the base model, which would be trained as one"
        return Fault(row.line, field, CONTROL_TOKEN, problem, token, hint=hint)

    def _escape(self, message: Message, parts: Sequence[str]) -> Message:
        return message | {part: map_texts(message[part], self._text) for part in parts if part in message}

    def _text(self, text: str, _key: str) -> str:
        plain, tokens = self._controls.escaped(text)
        self.escaped.update(tokens)
        return plain


@lru_cache(maxsize=1 << 10)
def _public(key: str) -> str:
    """A key as reports may show it: what a tool is called with may have personal data for keys."""
    return redacted(key[:_SHOWN])


def _walk(value: Any, place: str = "", name: Callable[[str], str] = str) -> Iterator[tuple[str, str]]:
    """Every text in a JSON value, keys included, and its place in it, where keys are called by ``name``."""
    if isinstance(value, str):
        yield place, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            here = f"{place}.{name(str(key))}" if place else name(str(key))
            yield here, str(key)
            yield from _walk(inner, here, name)
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _walk(inner, f"{place}[{number}]", name)
