"""Validation of a model's responses: an answer, or what is wrong with it (pure).

The form is that of OpenAI's API reference, "The chat completion object". Servers that call themselves compatible leave
out ``usage`` and sometimes more, and a proxy in between answers with pages of HTML.
"""

import json
import re
from dataclasses import dataclass
from typing import Any, Final

from finetune_jobs.chat_api.money import Tokens, estimate_tokens

CUT: Final = "length"
"""``finish_reason`` of an answer that reached ``maxAnswerTokens``."""
FILTERED: Final = "content_filter"
"""``finish_reason`` of an answer that the server's own filter took away."""
REFUSED: Final = "refusal"
"""Our ``finish`` of an answer that came in ``message.refusal``."""
_FENCE: Final = re.compile(r"```[a-zA-Z]*[^\S\n]*\n(.*)```", re.DOTALL)


@dataclass(frozen=True)
class ModelAnswer:
    """A model's answer as it came."""

    text: str
    finish: str
    """Why it ended: the ``finish_reason``, or REFUSED."""
    tokens: Tokens

    @property
    def is_whole(self) -> bool:
        """Whether the model has said what it wanted to say, and was willing to."""
        return self.finish not in (CUT, FILTERED, REFUSED)


class AttemptError(Exception):
    """A request gave no answer. The text continues after what the model is called, e.g. "the teacher", and contains
    nothing that the server sent."""

    def __init__(
        self,
        kind: str,
        problem: str,
        *,
        wait: float | None = None,
        busy: bool = False,
        refused: bool = False,
        charged: bool = False,
    ) -> None:
        super().__init__(problem)
        self.kind = kind
        """Name of the class of faults, for counting."""
        self.wait = wait
        """Seconds that the model asks to wait (Retry-After)."""
        self.busy = busy
        """The model is busy (429): the prompt is not the problem."""
        self.refused = refused
        """The model does not take this request, and will not take it later."""
        self.charged = charged
        """The model may have worked, and may charge for it."""


def read_answer(content: bytes, estimate: Tokens) -> ModelAnswer:
    """The answer in the body of a response with status 200.

    ``estimate`` stands for the prompt's tokens where the server does not count. Raises AttemptError.
    """
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        raise AttemptError("teacherRubbish", "sent a response that is not JSON", charged=True) from None
    choice = _first_choice(body)
    message = choice.get("message")
    if not isinstance(message, dict):
        raise _wrong_shape("choices[0].message")
    refusal = message.get("refusal")
    text = refusal if refusal else message.get("content", "")
    if text is None:
        text = ""  # with content_filter, and where tools were called
    if not isinstance(text, str):
        raise _wrong_shape("text in choices[0].message.content")
    finish = REFUSED if refusal else str(choice.get("finish_reason") or "stop")[:40]
    if any("\ud800" <= character <= "\udfff" for character in text + finish):
        raise AttemptError("teacherRubbish", "sent an unpaired surrogate, which is not valid text", charged=True)
    return ModelAnswer(text, finish, _tokens(body, text, estimate))


def without_fence(text: str) -> str:
    """JSON without the fence of Markdown that many models put around it."""
    fenced = _FENCE.fullmatch(text)
    return fenced[1].strip() if fenced else text


def _first_choice(body: Any) -> dict[str, Any]:
    choices = body.get("choices") if isinstance(body, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise _wrong_shape("choices[0]")
    return choices[0]


def _tokens(body: dict[str, Any], text: str, estimate: Tokens) -> Tokens:
    usage = body.get("usage")
    if isinstance(usage, dict):
        read, written = usage.get("prompt_tokens"), usage.get("completion_tokens")
        if isinstance(read, int) and isinstance(written, int) and read >= 0 and written >= 0:
            return Tokens(int(read), int(written))
    return Tokens.guessed(estimate.input, estimate_tokens(text))


def _wrong_shape(missing: str) -> AttemptError:
    return AttemptError("teacherRubbish", f"sent JSON without {missing}", charged=True)
