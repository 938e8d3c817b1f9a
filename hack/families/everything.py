"""All causal language models of transformers: those that can be described, and why others cannot."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from transformers import AutoConfig, logging
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

from finetune_jobs.fit.families import Family
from finetune_jobs.fit.shapes import WITH_IMAGES, describe
from hack.families import sizes
from hack.families.derive import derive
from hack.families.models import LeftOutError, build, config_of, parameters
from hack.families.proof import Small

_OTHER_TASKS: Final[Mapping[str, Mapping[str, Any]]] = {
    "it fills gaps in texts and does not continue them": MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    "it is a part of a model that also has an encoder": MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
}


def everything() -> dict[str, Any]:
    """What the file holds, without its stamp."""
    _be_quiet()
    families: dict[str, Family] = {}
    texts: dict[str, str] = {}
    left_out: dict[str, str] = {}
    causal = sorted(set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - set(WITH_IMAGES))
    for kind in sorted(causal, key=_text_part):  # families of texts alone come first
        with _reason(kind, left_out):
            _require_task(kind)
            if part := _text_part(kind):
                texts[kind] = _same_as(part, kind, families)
            else:
                families[kind] = derive(kind)
        sys.stdout.write(f"{kind}: {left_out.get(kind, 'read')}\n")
        sys.stdout.flush()
    images = sorted(set(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES) - set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))
    return {
        "families": {
            kind: family.model_dump(mode="json", exclude_defaults=True) for kind, family in sorted(families.items())
        },
        "texts": dict(sorted(texts.items())),
        "images": images,
        "left_out": dict(sorted(left_out.items())),
    }


def told(kind: str) -> Any:
    """What is found of one family: as in the file, or why it is left out."""
    _be_quiet()
    found: dict[str, Any] = {}
    left_out: dict[str, str] = {}
    with _reason(kind, left_out):
        _require_task(kind)
        found = derive(kind).model_dump(mode="json", exclude_defaults=True)
    return left_out.get(kind, found)


def _be_quiet() -> None:
    """transformers warns of many configs that are only tried."""
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()


@contextmanager
def _reason(kind: str, left_out: dict[str, str]) -> Iterator[None]:
    """Notes why a family is left out, instead of raising."""
    try:
        yield
    except LeftOutError as reason:
        left_out[kind] = str(reason)
    except Exception as error:  # noqa: BLE001 # whatever a config or a model raises
        left_out[kind] = f"no small model of it can be built here ({type(error).__name__})"


def _require_task(kind: str) -> None:
    """Raises LeftOutError for what is no model that continues texts."""
    for reason, models in _OTHER_TASKS.items():
        if kind in models:
            raise LeftOutError(reason)


def _text_part(kind: str) -> str:
    """The ``model_type`` of the text part of a config that has several; empty for any other."""
    try:
        part = getattr(AutoConfig.for_model(kind), "text_config", None)
    except Exception:  # noqa: BLE001 # whatever a config raises without its fields
        return ""
    return getattr(part, "model_type", "")


def _same_as(part: str, kind: str, families: Mapping[str, Family]) -> str:
    """``part``, if that is all that transformers' causal model has of the family. Raises LeftOutError."""
    if part not in families:
        raise LeftOutError(f"its text part, {part}, is not known")
    fields = Small.of(part).fields(sizes.READ)
    model = build(config_of(kind, {"text_config": {"model_type": part, **fields}}))
    if parameters(model) != describe(families[part], fields, part).parameters:
        raise LeftOutError("it has more than its text part")
    return part
