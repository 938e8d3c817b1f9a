"""The client of each engine's servers."""

from collections.abc import Callable, Mapping
from typing import Final

from finetune_api.compatibility import TGI, VLLM
from finetune_api.reasons import Reason
from finetune_jobs.base.errors import StageError
from finetune_jobs.verification.engine import AdapterHost, ModelServer
from finetune_jobs.verification.tgi import TgiServer
from finetune_jobs.verification.vllm import VllmAdapters, VllmServer

SERVERS: Final[Mapping[str, Callable[..., ModelServer]]] = {TGI: TgiServer, VLLM: VllmServer}
"""By the engine's name in a runtime; each is made with the server's URL, the key that its clients need, and the name of
an adapter or none."""


HOSTS: Final[Mapping[str, Callable[[str], AdapterHost]]] = {VLLM: VllmAdapters}
"""The engines whose servers load adapters while they run; each is made with the server's URL."""


def client_of(engine: str, endpoint: str, *, key: str = "", adapter: str = "") -> ModelServer:
    """The client of a server, or of one of the adapters on it; ``key``: that of a client, where they need one. Raises
    StageError (CandidateFailed)."""
    if engine not in SERVERS:
        raise StageError(
            Reason.CANDIDATE_FAILED,
            f"This image knows the engines {', '.join(SERVERS)} and not {engine!r}: set images.data of the chart's "
            "values to the image that was built with the chart.",
            retriable=False,
        )
    return SERVERS[engine](endpoint, key=key, adapter=adapter)
