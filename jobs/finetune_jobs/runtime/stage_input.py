"""The input of a stage: read from its file, checked against this version's fields, and given its key."""

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from finetune_api import __version__
from finetune_api.base import unknown_fields
from finetune_api.meta import INPUT_DIGEST_VARIABLE
from finetune_api.reasons import Reason
from finetune_api.stages import PIPELINE, Stage, StageInput, input_key
from finetune_jobs.base.documents import parse_json
from finetune_jobs.base.errors import StageError

log = logging.getLogger(__name__)

_NOTHING: Final[tuple[Any, ...]] = (None, "", [], {})
"""Values of a field that request nothing."""


def read_input(stage: Stage, path: str) -> StageInput:
    """The input of a stage, with its key. Raises StageError (SpecInvalid)."""
    place = f"the input {path}"
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise StageError(Reason.SPEC_INVALID, f"{place} cannot be read: {error.strerror}.") from None
    _require_written(content, place, os.environ)
    given = parse_json(content, StageInput, place, Reason.SPEC_INVALID)
    if given.stage != stage:
        raise StageError(Reason.SPEC_INVALID, f"{place} is for stage {given.stage}, this is {stage}.")
    _require_known(given, json.loads(content), place)
    return _with_key(given, place)


def _require_written(content: bytes, place: str, environment: Mapping[str, str]) -> None:
    """A pod takes the input that the operator has checked, and no other one. Outside of one nobody names any."""
    expected = environment.get(INPUT_DIGEST_VARIABLE, "")
    if expected and hashlib.sha256(content).hexdigest() != expected:
        raise StageError(
            Reason.SPEC_INVALID,
            f"{place} is not the one that the operator wrote: somebody has replaced the pod's ConfigMap.",
        )


def _require_known(given: StageInput, content: Any, place: str) -> None:
    """Fields that only a newer version knows are ignored, unless they are part of a key: every later run would take a
    result without them, stored under that key, for one with them.
    """
    for field, value in unknown_fields(StageInput, content).items():
        name = ".".join(map(str, field))
        if _is_keyed(given.stage, field) and value not in _NOTHING:
            raise StageError(
                Reason.SPEC_INVALID,
                f"{place} has {name} ({value!r}), which version {__version__} of this stage does not know, and which "
                f"can change its result. If operator {given.operator_version or '(unknown)'} wrote it, use images of "
                f"that version in the chart's values.",
            )
        log.warning("%s has %s, which version %s does not know: ignored", place, name, __version__)


def _is_keyed(stage: Stage, field: tuple[str | int, ...]) -> bool:
    """Whether a field goes into a key that the stage makes or looks up: resolve looks up those of all stages."""
    keyed = PIPELINE if stage is Stage.RESOLVE else (stage,) if stage in PIPELINE else ()
    return field[0] == "params" and field[1] in keyed


def _with_key(given: StageInput, place: str) -> StageInput:
    """An input written by hand needs no key: it is computed from the rest."""
    if given.stage not in PIPELINE or given.input_key:
        return given
    if getattr(given.params, given.stage.value) is None:
        raise StageError(Reason.SPEC_INVALID, f"{place} has no params.{given.stage}.")
    try:
        key = input_key(given.stage, given.upstream, given.params)
    except ValueError as error:
        raise StageError(Reason.SPEC_INVALID, f"{place} lacks addresses in upstream: {error}.") from None
    return given.model_copy(update={"input_key": key})
