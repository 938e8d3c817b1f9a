"""What every kubelet that a test plays does: it follows the pods of a namespace in a thread of its own."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from typing import Self

from finetune_operator.framework.client import Selection, StreamClient
from finetune_operator.framework.objects import PODS, Object
from tests.support.watched import Watched


class PlayedKubelet(ABC):
    """Takes each pod that ``selector`` selects one step further, again and again. Use as a context manager."""

    def __init__(self, api: StreamClient, namespace: str, selector: str) -> None:
        self._api = api
        self._namespace = namespace
        self._watched = Watched(api, Selection(PODS, namespace, selector))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._trouble: BaseException | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(10)
        if self._trouble is not None:
            raise self._trouble

    def _run(self) -> None:
        try:
            with self._watched:
                while not self._stop.wait(0.05):
                    for pod in self._watched.all():
                        self._step(pod)
        except BaseException as error:  # noqa: BLE001 - told to the test when it leaves the context
            self._trouble = error

    @abstractmethod
    def _step(self, pod: Object) -> None:
        """What happens to a pod next."""

    def _write(self, pod: Object, status: Object) -> None:
        """Raises ApiError."""
        written = self._api.patch_status(PODS, self._namespace, pod["metadata"]["name"], {"status": status})
        self._watched.written(written)
