"""Canonical hashes: the same value gives the same digest on any machine and in any version."""

import hashlib
import json
from typing import Any

from pydantic import BaseModel


def canonical_json(value: Any) -> bytes:
    """JSON with sorted keys and no whitespace, in UTF-8 (like RFC 8785). Models use their wire names."""
    plain = value.model_dump(mode="json", by_alias=True) if isinstance(value, BaseModel) else value
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=_dump).encode()


def without_defaults(model: BaseModel) -> Any:
    """A model as on the wire, without what has its default: the form of everything whose hash has to outlive an
    upgrade. A field that a later version adds then changes no hash of what says nothing of it.

    Another default of a known field changes no hash either: whoever changes one says what becomes of what was made
    with the old one (``RECIPE_VERSIONS``).
    """
    return model.model_dump(mode="json", by_alias=True, exclude_defaults=True)


def digest(value: Any) -> str:
    """SHA-256 of the canonical JSON, in hexadecimal."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def short(value: Any, length: int = 10) -> str:
    """The first ``length`` characters of the digest: for object names, never for content addresses."""
    return digest(value)[:length]


def _dump(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", by_alias=True)
    raise TypeError(f"{type(value).__name__} is not JSON")
