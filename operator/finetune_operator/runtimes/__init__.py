"""Model servers: one module per engine, which renders a ``ServingPlan``."""

from collections.abc import Callable, Mapping
from typing import Final

from finetune_operator.runtimes import tgi
from finetune_operator.runtimes.plan import ServingPlan
from finetune_operator.settings import Engine, Runtime

_RENDER: Final[Mapping[Engine, Callable[[Runtime, str], ServingPlan]]] = {Engine.TGI: tgi.render}


def serving_plan(runtime: Runtime, model_path: str) -> ServingPlan:
    """How ``runtime`` serves the model in the folder ``model_path`` of its pod."""
    return _RENDER[runtime.engine](runtime, model_path)
