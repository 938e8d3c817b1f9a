"""Whether a live object is as desired. The API server adds defaults, and others may add fields of their own."""

import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any, Final

from finetune_api.hashing import digest
from finetune_operator.framework.actions import Apply, Create
from finetune_operator.framework.objects import Object, Resource

_ATOMIC: Final = frozenset({"selector", "podSelector", "nodeSelector"})
_QUANTITY: Final = re.compile(r"^(\d+(?:\.\d+)?)(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$")
_DECIMAL: Final = {"m": Decimal("0.001")} | {unit: Decimal(1000) ** n for n, unit in enumerate("kMGTPE", start=1)}
_BINARY: Final = {f"{unit}i": Decimal(1024) ** n for n, unit in enumerate("KMGTPE", start=1)}
_UNITS: Final = {"": Decimal(1)} | _DECIMAL | _BINARY


def ensure(
    resource: Resource, desired: Object, live: Object | None, *, whole_lists: bool = False
) -> tuple[Create | Apply, ...]:
    """The actions that make an object as desired; none if it is. ``whole_lists``: as in ``holds``.

    A missing one is created rather than applied: if somebody else's object of this name appears in between, creating
    fails, while applying would take it over.
    """
    if live is None:
        return (Create(resource, desired),)
    # An object that came in a list names neither its version nor its kind.
    content = {field: value for field, value in desired.items() if field not in ("apiVersion", "kind")}
    return () if holds(live, content, whole_lists=whole_lists) else (Apply(resource, desired),)


def ensure_exists(resource: Resource, live: Object | None, render: Callable[[], Object]) -> tuple[Create, ...]:
    """The same for objects that never change once they exist, immutable ConfigMaps and Jobs: rendered where missing."""
    return (Create(resource, render()),) if live is None else ()


def holds(live: Any, desired: Any, *, whole_lists: bool = False) -> bool:
    """Whether every field of ``desired`` has its value in ``live``; a missing value is as good as an empty one.

    The API server drops some empty values, for example those of variables.

    This follows how server-side apply merges (``x-kubernetes-map-type`` and ``-list-type`` of the API): of a list of
    named items (containers, variables, volumes), each desired item must be present; other lists, and selectors, are
    compared as a whole, so that an addition to them counts as a change. ``whole_lists``: so is every list, as kinds
    have it whose lists are atomic.
    """
    if live == desired:  # most parts of most objects: one comparison instead of one for each field below
        return True
    if isinstance(desired, dict):
        fields = live if isinstance(live, dict) else {}
        return all(
            fields.get(key) == want if key in _ATOMIC else holds(fields.get(key), want, whole_lists=whole_lists)
            for key, want in desired.items()
        )
    if isinstance(desired, list):
        items = live if isinstance(live, list) else []
        if whole_lists:
            pairs = zip(items, desired, strict=False)
            return len(items) == len(desired) and all(holds(have, want, whole_lists=True) for have, want in pairs)
        if desired and all(isinstance(want, dict) and "name" in want for want in desired):
            return all(any(holds(have, want) for have in items) for want in desired)
        return not desired and not items
    if desired == "":
        return live is None
    return _same_quantity(live, desired)


def has_content(live: Object, desired: Object) -> bool:
    """The same of what a ConfigMap holds, of which the cache keeps hashes."""
    known = live.get("data") or {}
    return all(known.get(name) == digest(text) for name, text in desired["data"].items())


def is_fixed(live: Object) -> bool:
    """Whether the API server refuses to change what a ConfigMap holds: because it is immutable, or may be since the
    same keys are in its ``binaryData``. None that others have left alone is either."""
    return bool(live.get("immutable") or live.get("binaryData"))


def _same_quantity(live: Any, desired: Any) -> bool:
    """The API server rewrites quantities to their canonical form, e.g. 1024Mi to 1Gi."""
    have, want = quantity(live), quantity(desired)
    return have is not None and have == want


def quantity(value: Any) -> Decimal | None:
    """A Kubernetes quantity, e.g. 500m or 8Gi, as a number; None for anything else."""
    match = _QUANTITY.match(str(value))
    return Decimal(match[1]) * _UNITS[match[2] or ""] if match else None
