"""Reads stored specs and statuses, also those of other versions, and checks for ServiceAccounts."""

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Final, Generic, TypeVar

from pydantic import BaseModel, ValidationError

from finetune_api.base import REFUSE_RETIRED, ObjectMeta, unknown_fields
from finetune_api.reasons import Reason
from finetune_operator.framework.cache import Cache
from finetune_operator.framework.client import KubeClient
from finetune_operator.framework.objects import SERVICE_ACCOUNTS, Object

logger = logging.getLogger(__name__)

M = TypeVar("M", bound=BaseModel)

P = TypeVar("P", bound=BaseModel)
S = TypeVar("S", bound=BaseModel)

ACCOUNT_SECONDS: Final = 60.0
"""How long a ServiceAccount counts as existing after it was found."""
MISSING_SECONDS: Final = 10.0
"""How long it counts as missing: many jobs of a namespace ask for the same one."""


class StatusUnreadable(ValueError):  # noqa: N818 - reported in the status, not an error of the operator
    """A stored status that this version cannot read; the message names the fields."""


@dataclass(frozen=True)
class Unplanned(Generic[P, S]):
    """A custom resource for which nothing can be planned: its children are left as they are."""

    metadata: ObjectMeta
    status: S
    reason: Reason
    """SpecInvalid (the stored spec is not valid for this version of the operator) or ApiCallsFail."""
    problem: str
    """What is wrong with the spec, or what the API says."""
    spec: P | None = None
    """None if it is not valid."""


class ServiceAccounts:
    """Which ServiceAccounts exist. The cache knows those that are watched; other answers are kept for a while."""

    def __init__(self, client: KubeClient, cache: Cache, clock: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._cache = cache
        self._clock = clock
        self._answers: dict[tuple[str, str], tuple[bool, float]] = {}
        """Whether it exists, and until when the answer holds."""
        self._lock = threading.Lock()

    def exists(self, namespace: str, name: str) -> bool:
        """Whether the ServiceAccount exists. Raises ApiError."""
        if self._cache.get(SERVICE_ACCOUNTS, namespace, name) is not None:
            return True
        place = (namespace, name)
        with self._lock:
            known, until = self._answers.get(place, (False, 0.0))
            if until > self._clock():
                return known
        found = self._client.get(SERVICE_ACCOUNTS, namespace, name) is not None
        with self._lock:
            self._answers[place] = (found, self._clock() + (ACCOUNT_SECONDS if found else MISSING_SECONDS))
        return found


def parse_spec(model: type[M], raw: Object) -> tuple[M | None, str]:
    """A stored spec, or None and what is wrong with it: another version of the CRD may have accepted it.

    Fields that this version does not know are ignored. They are not typing errors, because the API server drops fields
    that its CRD lacks: they belong to a newer CRD, which fills in their defaults in every object.
    """
    with suppress(ValidationError):  # almost none has unknown fields, or is not valid
        return model.model_validate(raw, extra="forbid", context=REFUSE_RETIRED), ""
    try:
        spec = model.model_validate(raw, extra="ignore", context=REFUSE_RETIRED)
    except ValidationError as error:
        return None, "; ".join(_problems("spec", error))
    for place in unknown_fields(model, raw):
        with _TELLING:
            _tell_unknown(model.__name__, ".".join(part for part in place if isinstance(part, str)))
    return spec, ""


def parse_status(model: type[M], raw: Object) -> M:
    """A stored status; words and fields of a newer version are no fault in it. Raises StatusUnreadable."""
    try:
        return model.model_validate(raw, extra="ignore")
    except ValidationError as error:
        raise StatusUnreadable("; ".join(_problems("status", error))) from error


def _problems(root: str, error: ValidationError) -> list[str]:
    return [f"{'.'.join(map(str, (root, *problem['loc'])))}: {problem['msg']}" for problem in error.errors()]


_TELLING: Final = threading.Lock()
"""Workers that read several objects at once would each call a function whose answer is not cached yet."""


@cache
def _tell_unknown(model: str, field: str) -> None:
    """Log each field once, not once per object."""
    kind = model.removesuffix("Spec")
    logger.warning("%s: spec.%s is ignored: the CRDs are newer than this operator, which does not know it", kind, field)
