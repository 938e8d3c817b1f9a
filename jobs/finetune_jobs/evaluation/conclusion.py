"""The answer of an evaluation to one question, as its page shows it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Conclusion:
    """The answer to one question about two models."""

    question: str
    badge: str
    """A class of the style sheet."""
    answer: str
    text: str
    test: str
