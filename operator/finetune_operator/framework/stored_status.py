"""The status as it is stored: what this version changes in it, and what it leaves alone because a newer one wrote it.

A status is written as the difference between what was read and what is wanted. So fields that this version does not
know stay, at every level. A status that cannot be read at all gets conditions, and nothing else of it is touched.
"""

from datetime import datetime
from typing import Any, Final

from pydantic import BaseModel, ValidationError

from finetune_api.base import Condition, ObjectMeta
from finetune_api.reasons import Reason
from finetune_operator.framework.actions import Event
from finetune_operator.framework.conditions import ConditionType, Finding, merge_conditions
from finetune_operator.framework.objects import Object

_SAYS: Final = (ConditionType.RECONCILING, ConditionType.STALLED)
"""The conditions that tell of an unreadable status. The others stay as the version that can read it left them."""


def status_patch(stored: Object, read: BaseModel, wanted: BaseModel) -> Object:
    """The JSON merge patch (RFC 7386) of a stored status, from what was read in it to what is wanted."""
    return merge_patch(sparse(stored), sparse(_plain(read)), sparse(_plain(wanted)))


def merge_patch(stored: Any, read: Any, wanted: Any) -> Object:
    """The merge patch from ``read`` to ``wanted``; empty if they are equal.

    A list is replaced as a whole: its entries that have not changed are taken as they are stored.
    """
    patch: Object = {key: None for key in read if key not in wanted and key in stored}
    for key, value in wanted.items():
        before, found = read.get(key), stored.get(key)
        if isinstance(value, dict) and isinstance(before, dict) and isinstance(found, dict):
            if nested := merge_patch(found, before, value):
                patch[key] = nested
        elif key not in read or before != value:
            known = isinstance(value, list) and isinstance(before, list) and isinstance(found, list)
            patch[key] = [_as_stored(entry, before, found) for entry in value] if known else value
    return patch


def sparse(status: Any) -> Any:
    """A status without empty strings and lists, which say nothing to people. Conditions stay whole.

    Compared like this, a field that another version wrote as empty, or that an older CRD filled in, has not changed.
    """
    if isinstance(status, list):
        return [sparse(entry) for entry in status]
    if not isinstance(status, dict) or "lastTransitionTime" in status:
        return status
    return {key: sparse(value) for key, value in status.items() if value not in ("", [])}


def unreadable_patch(stored: Object, problem: str, metadata: ObjectMeta, kind: str, now: datetime) -> Object:
    """The merge patch that says why nothing is done; empty if the status says so already."""
    conditions = _conditions(stored)
    findings = (
        Finding(ConditionType.RECONCILING, False, Reason.STATUS_UNREADABLE, "The status cannot be read."),
        Finding(ConditionType.STALLED, True, Reason.STATUS_UNREADABLE, _told(problem)),
    )
    said = merge_conditions(_readable(conditions), findings, kind, metadata.generation, now)
    others = [each for each in conditions if not isinstance(each, dict) or each.get("type") not in _SAYS]
    wanted = [*others, *map(_plain, said)]
    return {} if wanted == conditions else {"conditions": wanted}


def unreadable_event(stored: Object, problem: str) -> tuple[Event, ...]:
    """A warning, unless the status has told of it already."""
    said = {each.reason for each in _readable(_conditions(stored)) if each.type == ConditionType.STALLED}
    return () if Reason.STATUS_UNREADABLE in said else (Event("Warning", Reason.STATUS_UNREADABLE, _told(problem)),)


def _told(problem: str) -> str:
    return f"{problem}. Nothing of the status is changed, and nothing is started or deleted."


def _conditions(stored: Object) -> list[Any]:
    found = stored.get("conditions")
    return found if isinstance(found, list) else []


def _readable(conditions: list[Any]) -> list[Condition]:
    return [found for each in conditions if (found := _condition(each))]


def _condition(entry: Any) -> Condition | None:
    try:
        return Condition.model_validate(entry)
    except ValidationError:
        return None


def _as_stored(entry: Any, before: list[Any], found: list[Any]) -> Any:
    return found[before.index(entry)] if entry in before else entry


def _plain(model: BaseModel) -> Object:
    return model.model_dump(mode="json", by_alias=True, exclude_none=True)
