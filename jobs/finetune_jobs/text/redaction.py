"""What messages may quote of a row: a value with stars in place of what looks private or secret (pure)."""

from functools import cache

from finetune_api.dataset import Pii
from finetune_jobs.text.pii.recognition import Recognition
from finetune_jobs.text.secrets import find_secrets


def redacted(text: str) -> str:
    """The text with as many stars as characters in place of each finding, whatever the spec says of personal data:
    statuses and events are read by more people than the data."""
    for finding in [*find_secrets(text), *_recognition().find(text)]:
        text = f"{text[: finding.start]}{'*' * (finding.end - finding.start)}{text[finding.end :]}"
    return text


@cache
def _recognition() -> Recognition:
    return Recognition(Pii())
