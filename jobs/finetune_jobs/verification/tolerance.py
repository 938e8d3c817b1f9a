"""How far the same weights may be from the evaluation: nats a token, on average over a text.

How far rounding moves a model differs with its size, its tuning and its format, so the evaluation measures that on the
artifact itself, and a multiple of it is allowed. The table by server and format is for artifacts without a measurement.
It was chosen from right servers alone, with SmolLM2-135M (docs/concepts/serving.md, docs/benchmarks.md). What counts
there is whether a format rounds activations to 8 bits. If it does, the smallest difference flips a rounding, and that
spreads: another precision was up to 0.39 away. If it does not, up to 0.06.
"""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Final

from finetune_api.compatibility import TGI, VLLM
from finetune_api.export import ExportFormat
from finetune_jobs.artifacts.artifact import ReferenceText
from finetune_jobs.evaluation.distances import distance

_MARGIN: Final = 1.5
"""How much further away a server may be than what was measured. Of nine pairs of right servers in INT8, whose distances
go furthest apart, the largest was 1.3 times it."""
_LEAST: Final = 0.05
"""Nats a token that are always allowed: other kernels, other caches."""
_MOST: Final = 2.0
"""Of the usual tolerance. A model that rounding moves further proves little, and is asked for by ``maxDistance``."""

_ROUNDED: Final = 0.55
"""INT8: 1.4 times the largest, 0.39, of emulations without tuning; the real vLLM 0.32, on a CPU in bfloat16, was 0.33
away, and its emulation 0.36. Of a tuned model, measured later, emulations were up to 0.498 away (evaluated in bfloat16,
served in float16): the tolerance is 1.1 times that. FP8: 1.7 times the largest, 0.31, of emulations without tuning, 1.6
times that of the tuned model, 0.34; with fixed scales of activations, which was not measured, as much."""
_EXACT: Final = 0.25
"""3.9 times the largest, 0.063, of emulations without tuning. So wide, because no engine and no tuned model was
measured, though in INT8 neither was further away than its emulation. AWQ rounds as INT4 does, to other values."""
_BY_FORMAT: Final[Mapping[ExportFormat, float]] = {
    ExportFormat.INT8: _ROUNDED,
    ExportFormat.FP8: _ROUNDED,
    ExportFormat.FP8_STATIC: _ROUNDED,
    ExportFormat.W8A16: _EXACT,
    ExportFormat.INT4: _EXACT,
    ExportFormat.INT4_AWQ: _EXACT,
    ExportFormat.MERGED: _EXACT,
    ExportFormat.ADAPTER: _EXACT,
}
TOLERANCES: Final[Mapping[tuple[str, str], float]] = {
    (engine, format_.value): _BY_FORMAT[format_] for engine in (TGI, VLLM) for format_ in ExportFormat
}
"""The same for both engines until their kernels are measured."""
_OTHERWISE: Final = max(_BY_FORMAT.values())


def tolerance(engine: str, format_: str) -> float:
    """Nats a token between a server of this API and the evaluation of an artifact in this format. Without an engine,
    the widest for the format: what holds for one of which nothing is known."""
    of_format = [known for (_, name), known in TOLERANCES.items() if name == format_]
    return TOLERANCES.get((engine, format_), max(of_format, default=_OTHERWISE))


def measured_tolerance(texts: Sequence[ReferenceText], usual: float) -> float:
    """The same for an artifact with these records, from what those show that are for its weights; ``usual`` where
    nothing was measured of them.

    Engines without kernels for 8-bit activations compute with 16 bits instead, so that is a right server, too.
    """
    shown = [each for each in texts if each.of_weights]
    noises = [each.noise for each in shown if each.noise is not None]
    if not noises or len(noises) < len(shown):
        return usual
    unrounded = [distance(each.artifact, each.straight) for each in shown if each.straight]
    moved = max(fmean(noises), fmean(unrounded or [0.0]))
    return round(min(max(_LEAST, _MARGIN * moved), _MOST * usual), 3)
