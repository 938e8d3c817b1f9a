"""Fields of profiles, runtimes, metric containers, tenancy rules and floors, as tables for the values' reference."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

from pydantic import BaseModel

from finetune_api.custom_metrics import FigureRule
from finetune_api.verification import Objectives
from finetune_operator.settings import Gpu, MetricContainer, ModelCache, PodShape, Profile, Runtime
from finetune_operator.tenancy.floor import VerificationFloor
from finetune_operator.tenancy.rules import TenancyRule

_PLACES: Final[tuple[tuple[str, type[BaseModel]], ...]] = (
    ("profiles.<name>", Profile),
    ("profiles.<name>.gpu", Gpu),
    ("runtimes.<name>", Runtime),
    ("modelCache of a profile and of a runtime", ModelCache),
    ("Pod shape: cpu and accelerator of a profile, pod of a runtime", PodShape),
    ("metricContainers.<name>", MetricContainer),
    ("metricContainers.<name>.figures.<name>", FigureRule),
    ("tenancy.rules[]", TenancyRule),
    ("serving.verificationFloors[]", VerificationFloor),
    ("serving.verificationFloors[].objectives", Objectives),
)
_BELOW: Final = {
    "cpu": "a pod shape, see below",
    "accelerator": "a pod shape, see below",
    "pod": "a pod shape, see below",
    "gpu": "none, see below",
    "modelCache": "none, see below",
    "objectives": "none, see below",
    "figures": "required: by name, see below",
    "image": "required: registry, repository, tag and digest, as under images",
}
"""Text for the default column of fields that are objects."""


def tables() -> Iterator[str]:
    """The lines of all tables."""
    for place, model in _PLACES:
        heading = f"`{place}`" if "." in place else place
        yield from ("", f"## {heading}", "| field | default | description |", "| --- | --- | --- |")
        schema = model.model_json_schema()
        for name, field in schema["properties"].items():
            default = _BELOW.get(name) or _default(field, required=name in schema.get("required", []))
            text = " ".join(field["description"].split()).replace("|", "\\|")
            yield f"| `{name}` | {default} | {text}{_bounds(field)} |"


def _default(field: dict[str, Any], *, required: bool) -> str:
    if required:
        return "required"
    return "none" if field.get("default") is None else f"`{json.dumps(field['default'])}`"


def _bounds(field: dict[str, Any]) -> str:
    low, high = field.get("minimum"), field.get("maximum")
    if low is None:
        return ""
    return f" ({low:g} or more)" if high is None else f" ({low:g} to {high:g})"
