"""Whether an artifact computes positions as its base model does, by their config.json. Pure but for reading both.

Answers to short questions may stay as they are with another rotary base, so that comparing them does not show it: with
RoPE theta × 0.1 the probabilities of short texts move about as much as in another precision (docs/concepts/serving.md).
What suffers is long texts, once the artifact is served.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from finetune_api.reasons import Reason
from finetune_jobs.base.errors import StageError
from finetune_jobs.exporting.transformers_v4 import rotary_v4

_NAMES: Final = {
    **dict.fromkeys(("rope_theta", "rope_local_base_freq", "rotary_emb_base"), "rope_theta"),
    **dict.fromkeys(("partial_rotary_factor", "rotary_pct"), "partial_rotary_factor"),
    "factor": "factor",
}
"""Numbers that decide positions, by their names in both dialects of transformers: the name of version 5."""
_SCALINGS: Final = ("rope_scaling", "rope_parameters")
"""Where a ``factor`` is one of positions."""
_REMEDY: Final = "Set spec.rerun to a new value to export again."

_Number = tuple[str, float]


def require_same_positions(base: Path, artifact: Path) -> None:
    """Raises StageError (ArtifactCorrupt) if the artifact lacks a rotary base, a scaling's factor or a share of turned
    dimensions that the base model's config.json names, or if readers with transformers 4 would not find what those with
    5 do. A model that names none may have no rotary positions, and is not looked at."""
    wanted, found = (_text_part(folder) for folder in (base, artifact))
    if set(_named(wanted)) - set(_named(found)):
        raise StageError(
            Reason.ARTIFACT_CORRUPT,
            f"The artifact's config.json has {_listed(found)}, that of its base model has {_listed(wanted)}: "
            f"it would compute positions otherwise than in training. {_REMEDY}",
        )
    for name, value in rotary_v4(found).items():
        if found.get(name) != value:
            raise StageError(
                Reason.ARTIFACT_CORRUPT,
                f"The artifact's config.json has {name} {_said(found.get(name))} where its rope_parameters have "
                f"{_said(value)}: servers that read with transformers 4 would compute positions otherwise than in "
                f"training. {_REMEDY}",
            )


def _text_part(folder: Path) -> dict[str, Any]:
    """Of a model that also sees or hears, what reads text."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return dict(config.get("text_config") or config)


def _named(config: Any, *, scaling: bool = False) -> Iterator[_Number]:
    if isinstance(config, dict):
        for name, value in config.items():
            if name in _NAMES and isinstance(value, int | float) and (scaling or name != "factor"):
                yield _NAMES[name], float(value)
            yield from _named(value, scaling=scaling or name in _SCALINGS)


def _listed(config: dict[str, Any]) -> str:
    numbers = sorted(set(_named(config)))
    return (
        ", ".join(
            f"{name} {' and '.join(f'{value:g}' for of, value in numbers if of == name)}"
            for name in dict.fromkeys(_NAMES.values())
            if any(of == name for of, _ in numbers)
        )
        or "no rope_theta"
    )


def _said(value: Any) -> str:
    return "nothing" if value is None else json.dumps(value)
