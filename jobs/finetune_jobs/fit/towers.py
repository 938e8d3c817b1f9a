"""What a model has beside its text part, from its config.json: the part for images of the families that have one."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError

from finetune_jobs.fit.fields import LARGEST, UnknownShapeError

_Size = Annotated[int, Field(gt=0, le=LARGEST)]


@dataclass(frozen=True)
class Tower:
    """In memory and adapted, but no text passes through it."""

    parameters: int
    sides: int
    """Inputs and outputs of all its linear layers, by which an adapter grows."""


class _Vision(BaseModel):
    """The fields that shape the part for images, a SigLIP encoder; the defaults are Gemma 3's."""

    hidden_size: _Size = 1152
    num_hidden_layers: _Size = 27
    intermediate_size: _Size = 4304
    image_size: _Size = 896
    patch_size: _Size = 14
    vision_use_head: bool = True


def tower_of(config: Mapping[str, Any], text: int) -> Tower:
    """Of a SigLIP encoder and the projection from its width to that of the text part. Raises UnknownShapeError."""
    try:
        fields = _Vision.model_validate(config.get("vision_config") or {})
    except ValidationError as error:
        raise UnknownShapeError(f"vision_config does not describe its shape ({error.errors()[0]['msg']})") from None
    width, inner = fields.hidden_size, fields.intermediate_size
    mlp = 2 * width * inner + inner + width
    attention = 4 * (width * width + width)
    layer = attention + mlp + 4 * width
    patches = (fields.image_size // fields.patch_size) ** 2
    embedding = 3 * fields.patch_size**2 * width + width + patches * width
    head = width + attention + 2 * width + mlp if fields.vision_use_head else 0
    whole = fields.num_hidden_layers * layer + embedding + 2 * width + head
    sides = fields.num_hidden_layers * (8 * width + 2 * (width + inner))
    return Tower(whole + width * text + width, sides + (2 * (width + inner) if fields.vision_use_head else 0))
