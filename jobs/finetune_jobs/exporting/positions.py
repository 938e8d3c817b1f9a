"""Whether an artifact computes positions as its base model does, by their config.json. Pure but for reading both.

Answers to short questions may stay as they are with another rotary base, so that comparing them does not show it: with
RoPE theta × 0.1 the probabilities of short texts move about as much as in another precision (docs/concepts/serving.md).
What suffers is long texts, once the artifact is served.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from finetune_api.reasons import Reason
from finetune_jobs.base.errors import StageError

_BASE = "rope_theta"
"""By this name in both dialects of transformers, wherever it stands (``transformers_v4``)."""


def require_same_positions(base: Path, artifact: Path) -> None:
    """Raises StageError (ArtifactCorrupt) if the artifact lacks a rotary base that the base model's config.json names,
    or names different ones for readers of transformers 4 and 5. A model that names none may have no rotary positions,
    and is not looked at."""
    wanted, found = (_text_part(folder) for folder in (base, artifact))
    lacking = set(_named(wanted)) - set(_named(found))
    first, second = found.get(_BASE), (found.get("rope_parameters") or {}).get(_BASE)
    if lacking or (first is not None and second is not None and first != second):
        raise StageError(
            Reason.ARTIFACT_CORRUPT,
            f"The artifact's config.json has {_BASE} {_listed(found)}, that of its base model has {_listed(wanted)}: "
            "it would compute positions otherwise than in training. Set spec.rerun to a new value to export again.",
        )


def _text_part(folder: Path) -> dict[str, Any]:
    """Of a model that also sees or hears, what reads text."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return dict(config.get("text_config") or config)


def _named(config: Any) -> Iterator[float]:
    if isinstance(config, dict):
        for name, value in config.items():
            if name == _BASE and isinstance(value, int | float):
                yield float(value)
            yield from _named(value)


def _listed(config: dict[str, Any]) -> str:
    return " and ".join(f"{value:g}" for value in sorted(set(_named(config)))) or "nothing"
