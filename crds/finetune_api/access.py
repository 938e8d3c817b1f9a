"""How what a URI names is reached: fields that stand beside the URI, and that say nothing about what it is.

``storage`` overrides the spec's own for an S3 URI; ``secretKeyRef`` is the token for a URI of the Hugging Face hub.
"""

from typing import Any, Final

from pydantic import JsonValue

from finetune_api.references import SecretKeyRef
from finetune_api.rules import Rule
from finetune_api.storage import InputStorage

ACCESS_FIELDS: Final = frozenset({"storage", "secretKeyRef"})
"""Names on the wire, wherever they stand in a spec."""
_MADE: Final = frozenset({"signing"})
"""What is made with the Secret that it names: another key makes another signature."""
_AFTERWARDS: Final = frozenset({"pushTo"})
"""Where copies of a result go: they change nothing of it."""

STORAGE_FOR_S3: Final = Rule(
    "!has(self.storage) || (has(self.uri) && self.uri.startsWith('s3://'))",
    "storage says how to reach an s3:// uri: leave it out here",
)
_TOKEN_FOR_HUB: Final = Rule(
    "!has(self.secretKeyRef) || (has(self.uri) && self.uri.startsWith('hf://'))",
    "secretKeyRef is the token for an hf:// uri: name the keys of an S3 store in storage.secretRef",
)


def access_rules() -> list[JsonValue]:
    """Rules of a model with the fields ``uri``, ``storage`` and ``secretKeyRef``."""
    return [rule.as_schema() for rule in (STORAGE_FOR_S3, _TOKEN_FOR_HUB)]


def require_fitting(uri: str | None, storage: InputStorage | None, secret_key_ref: SecretKeyRef | None) -> None:
    """Raises ValueError where a field does not go with the URI, as the rules have it."""
    if storage and not (uri or "").startswith("s3://"):
        raise ValueError(STORAGE_FOR_S3.message)
    if secret_key_ref and not (uri or "").startswith("hf://"):
        raise ValueError(_TOKEN_FOR_HUB.message)


def without_access(value: Any) -> Any:
    """A part of a spec, as on the wire, without the fields that say how something is reached, and where copies go:
    what remains says what it is, whoever reads it with which credentials."""
    if isinstance(value, dict):
        kept = {name: each for name, each in value.items() if name not in ACCESS_FIELDS | _AFTERWARDS}
        return {name: each if name in _MADE else without_access(each) for name, each in kept.items()}
    return [without_access(each) for each in value] if isinstance(value, list) else value
