"""What messages may quote of a row: a value with stars in place of what looks private or secret (pure)."""

from functools import cache
from typing import Final

from finetune_api.dataset import Pii
from finetune_jobs.text.escapes import Find, finding_in_escaped
from finetune_jobs.text.pii.recognition import Recognition
from finetune_jobs.text.secrets import find_secrets

_secrets: Final = finding_in_escaped(lambda text, _before: find_secrets(text))


def redacted(text: str) -> str:
    """The text with as many stars as characters in place of each finding, whatever the spec says of personal data:
    statuses and events are read by more people than the data."""
    for finding in [*_secrets(text, ""), *_recognition()(text, "")]:
        text = f"{text[: finding.start]}{'*' * (finding.end - finding.start)}{text[finding.end :]}"
    return text


@cache
def _recognition() -> Find:
    return finding_in_escaped(Recognition(Pii()).find)
