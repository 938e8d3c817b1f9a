"""How far the same weights may be from the evaluation, by server and format: nats a token, on average over a text.

Measured with SmolLM2-135M, tuned, on texts of 40 and 1,000 tokens (docs/concepts/serving.md). What computes in the same
precision is up to 0.04 away, since 8-bit activations flip at the smallest difference, and rounding every layer's output
to float16 or bfloat16 moves them by 0.24 to 0.39. The nearest damage but wrong positions, which have their own check,
was 0.78: a middle layer without its MLP. The real vLLM 0.32, on a CPU in bfloat16, was 0.33 away from the same model
without tuning, and 0.63 without that layer (tests/vllm).
"""

from collections.abc import Mapping
from typing import Final

from finetune_api.compatibility import TGI, VLLM
from finetune_api.export import ExportFormat

_INT8: Final = 0.55
"""1.4 times the largest noise, and 0.7 of the smallest damage."""
TOLERANCES: Final[Mapping[tuple[str, str], float]] = {
    (engine, format_.value): _INT8 for engine in (TGI, VLLM) for format_ in ExportFormat
}
"""Only INT8 was measured. The others take its value until they are; what rounds no activations can only be nearer."""
_OTHERWISE: Final = _INT8


def tolerance(engine: str, format_: str) -> float:
    """Nats a token between a server of this API and the evaluation of an artifact in this format. Without an engine,
    what holds for one of which nothing is known."""
    return TOLERANCES.get((engine, format_), _OTHERWISE)
