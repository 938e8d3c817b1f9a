"""How both kinds are read: stored specs and statuses of other versions, and what a namespace offers."""

import threading
import time
from collections.abc import Callable
from typing import Final, TypeVar

from pydantic import BaseModel, ValidationError

from finetune_operator.actions import SERVICE_ACCOUNTS, Object
from finetune_operator.kube import KubeClient

M = TypeVar("M", bound=BaseModel)

ACCOUNT_SECONDS: Final = 60.0
"""How long a ServiceAccount that was found counts as being there."""


class Accounts:
    """Which ServiceAccounts exist. They are not watched; one that was found is not asked for again for a while."""

    def __init__(self, client: KubeClient, clock: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._clock = clock
        self._found: dict[tuple[str, str], float] = {}
        self._lock = threading.Lock()

    def exists(self, namespace: str, name: str) -> bool:
        """Whether the ServiceAccount is there. Raises ApiError."""
        place = (namespace, name)
        with self._lock:
            if self._found.get(place, 0.0) > self._clock():
                return True
        if self._client.get(SERVICE_ACCOUNTS, namespace, name) is None:
            return False
        with self._lock:
            self._found[place] = self._clock() + ACCOUNT_SECONDS
        return True


def parse_spec(model: type[M], raw: Object) -> tuple[M | None, str]:
    """A stored spec, or None and what is wrong with it: another version of the CRD may have let it in."""
    try:
        return model.model_validate(raw), ""
    except ValidationError as error:
        problems = [f"spec.{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors()]
        return None, "; ".join(problems)


def parse_status(model: type[M], raw: Object) -> M:
    """A stored status. One that cannot be read is started anew: everything in it can be found again."""
    try:
        return model.model_validate(raw)
    except ValidationError:
        return model()
