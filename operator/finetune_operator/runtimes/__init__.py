"""Model servers: one module per engine, behind the protocol ``EngineModule``."""

from collections.abc import Mapping
from typing import Final

from finetune_operator.runtimes import tgi, vllm
from finetune_operator.runtimes.plan import EngineModule, ServedModel, ServingPlan
from finetune_operator.settings import Engine, Runtime

ENGINES: Final[Mapping[Engine, EngineModule]] = {Engine.TGI: tgi, Engine.VLLM: vllm}
"""The module of each engine."""


def serving_plan(runtime: Runtime, model: ServedModel) -> ServingPlan:
    """How a runtime serves a model."""
    return ENGINES[runtime.engine].render(runtime, model)
