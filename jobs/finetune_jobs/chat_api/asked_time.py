"""How long the pods of a run have asked a model, so that a deadline holds for all of them together.

Each pod writes its own seconds under a name of its own, and a later one adds them up. So the clocks of two pods are
never compared, the time between two pods does not count, and no pod overwrites what another has written.
"""

import logging
import time
import uuid
from typing import Annotated

from pydantic import Field, ValidationError

from finetune_api.base import WireModel
from finetune_api.layout import run_folder
from finetune_api.stages import RunRef
from finetune_jobs.store.s3 import Store

log = logging.getLogger(__name__)


class AskedSeconds(WireModel):
    """Content of a pod's object."""

    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]


class AskedTime:
    """The time of one run and recipe. ``save`` may be called from another thread."""

    def __init__(self, store: Store) -> None:
        """Raises StageError as Store."""
        self._store, self._name = store, f"{uuid.uuid4().hex}.json"
        self._began: float | None = None
        self._saved = 0.0
        self.earlier = sum(map(self._read, [entry.key for entry in store.list()]))
        """Seconds of earlier pods."""

    @classmethod
    def of(cls, store: Store, run: RunRef, purpose: str, recipe: str) -> "AskedTime":
        """The time of a FineTuneJob's run, beside the answers that it is spent on (``Journal.of``). A later run starts
        at zero. Raises StageError as Store."""
        return cls(store.below(f"{run_folder(run)}/{purpose}/{recipe}/asked/{run.id}"))

    def begin(self) -> None:
        """From now on this pod asks."""
        self._began = time.monotonic()

    def save(self, every: float = 0.0) -> None:
        """Write this pod's seconds, unless they were written less than ``every`` seconds ago. Raises StageError as
        Store."""
        if self._began is None:
            return
        seconds = time.monotonic() - self._began
        if seconds - self._saved >= every:
            self._store.put(self._name, AskedSeconds(seconds=seconds).model_dump_json(by_alias=True).encode())
            self._saved = seconds

    def _read(self, key: str) -> float:
        try:
            return AskedSeconds.model_validate_json(self._store.get(key) or b"").seconds
        except ValidationError:
            log.warning("%s is damaged; the time that it tells is not counted", self._store.uri(key))
            return 0.0
