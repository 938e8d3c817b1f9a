"""Who is asked, by which rules, and what that may cost."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from finetune_api.distillation import TeacherPrices, TeacherRef
from finetune_api.hashing import digest

Turns = Sequence[dict[str, Any]]
"""A conversation as OpenAI's chat API takes it: ``role`` and ``content`` of each message."""


class Askable(Protocol):
    """What is asked once, and known by a hash."""

    @property
    def identity(self) -> str:
        """Equal when the conversation and all that shapes the answer are equal: an answer to it may be used again."""
        ...

    @property
    def turns(self) -> Turns:
        """The conversation to answer; ``Terms.instruction`` stands before it."""
        ...


@dataclass(frozen=True)
class Terms:
    """How a model behind a URL is asked. Times, money and limits are as in the field of the spec."""

    server: TeacherRef
    role: str
    """What messages call the model, e.g. ``teacher``."""
    place: str
    """Field of the spec that says all this, e.g. ``spec.dataset.distillation``."""
    key_variable: str
    """Environment variable with the API key."""
    max_answer_tokens: int
    instruction: str = ""
    """System message; empty: none."""
    temperature: str | None = None
    """None: the model's own."""
    concurrency: int = 8
    requests_per_minute: int | None = None
    deadline_minutes: int | None = None
    prices: TeacherPrices | None = None
    max_cost: str | None = None
    """US dollars; None: no limit."""
    max_requests: int | None = None
    """Requests of all pods that were answered or may be charged, and those of this pod that failed; None: no limit."""

    @property
    def recipe(self) -> str:
        """Identity of all that shapes an answer besides its prompt. Filters, speed and money do not."""
        return digest(
            {
                "url": self.server.url,
                "model": self.server.model,
                "instruction": self.instruction,
                "temperature": self.temperature,
                "maxAnswerTokens": self.max_answer_tokens,
            }
        )
