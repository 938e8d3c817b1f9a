"""The client of each engine's servers."""

from collections.abc import Callable, Mapping
from typing import Final

from finetune_api.compatibility import TGI, VLLM
from finetune_jobs.verification.engine import ModelServer
from finetune_jobs.verification.tgi import TgiServer
from finetune_jobs.verification.vllm import VllmServer

SERVERS: Final[Mapping[str, Callable[[str], ModelServer]]] = {TGI: TgiServer, VLLM: VllmServer}
"""By the engine's name in a runtime; each is made with the server's URL."""
