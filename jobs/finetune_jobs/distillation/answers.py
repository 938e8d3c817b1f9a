"""Validation of a teacher's responses: an answer, or what is wrong with it (pure).

The form is that of OpenAI's API reference, "The chat completion object". Servers that call themselves compatible leave
out ``usage`` and sometimes more, and a proxy in between answers with pages of HTML.
"""

import json
from dataclasses import dataclass
from typing import Any, Final

from finetune_jobs.distillation.money import Tokens, estimate_tokens

CUT: Final = "length"
"""``finish_reason`` of an answer that reached ``maxAnswerTokens``."""
FILTERED: Final = "content_filter"
"""``finish_reason`` of an answer that the server's own filter took away."""
REFUSED: Final = "refusal"
"""Our ``finish`` of an answer that came in ``message.refusal``."""


@dataclass(frozen=True)
class TeacherAnswer:
    """A teacher's answer as it came."""

    text: str
    finish: str
    """Why it ended: the ``finish_reason``, or REFUSED."""
    tokens: Tokens


class AttemptError(Exception):
    """A request gave no answer. The text continues after "the teacher" and contains nothing that the server sent."""

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
        """Seconds that the teacher asks to wait (Retry-After)."""
        self.busy = busy
        """The teacher is busy (429): the prompt is not the problem."""
        self.refused = refused
        """The teacher does not take this request, and will not take it later."""
        self.charged = charged
        """The teacher may have worked, and may charge for it."""


def read_answer(content: bytes, estimate: Tokens) -> TeacherAnswer:
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
    return TeacherAnswer(text, finish, _tokens(body, text, estimate))


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
