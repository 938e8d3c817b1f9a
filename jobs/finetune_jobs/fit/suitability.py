"""What preflight says of the model and the cards, apart from memory: whether anything can serve the artifact, whether
the profile's card computes what training needs, and how much of a model the adapter reaches. Pure.

The facts are in ``finetune_api.compatibility`` and ``finetune_api.cards``.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from finetune_api.budget import HardwareFacts
from finetune_api.cards import NO_BFLOAT16, generation_of
from finetune_api.compatibility import QUANTIZED, Level
from finetune_api.export import ExportFormat
from finetune_api.reasons import Reason
from finetune_api.suitability import ServingFacts, Suitability, artifact_verdict, serving_verdict
from finetune_api.training import Method, Training
from finetune_jobs.base.errors import StageError
from finetune_jobs.fit.exported import require_group
from finetune_jobs.fit.families import known
from finetune_jobs.fit.fields import UnknownShapeError
from finetune_jobs.fit.rounded import as_loaded, require_trainable
from finetune_jobs.fit.shapes import read_shape

MOST_ADAPTED: Final = 0.5
"""Below this share of a model's weights in adapted layers, users are told."""
_WORDS: Final[Mapping[Level, str]] = {
    Level.REFUSED: "cannot serve the artifact",
    Level.UNKNOWN: "is not known to serve the artifact",
    Level.CAVEAT: "serves it with a difference",
}
"""What is said of a runtime, from the worst on."""


@dataclass(frozen=True)
class Advice:
    """What is to be known of a run that may start, in sentences; empty where there is nothing."""

    warnings: Sequence[str] = ()
    """What may be in vain."""
    notes: Sequence[str] = ()
    """What will be different."""

    @property
    def warning(self) -> str:
        """All warnings."""
        return " ".join(self.warnings)

    @property
    def note(self) -> str:
        """All notes."""
        return " ".join(self.notes)


def require_suitable(
    config: Mapping[str, Any],
    training: Training,
    export_format: str,
    hardware: HardwareFacts,
    runtimes: Sequence[ServingFacts] = (),
) -> Advice:
    """What is to be known; ``runtimes`` are those that the platform offers. The stand-in for trials on CPUs saves no
    training on a GPU.

    Raises StageError: GpuUnusable for a card without bfloat16, ModelUnsupported for a model that training cannot load
    or whose export nothing reads, RuntimeUnsuitable if none of the runtimes, of which there are some, can serve it.
    """
    _require_bfloat16(hardware)
    _require_loadable(config, training, hardware)
    config = as_loaded(config)
    architecture = config.get("model_type")
    architecture = architecture[:64] if isinstance(architecture, str) else ""
    exported, unreached = artifact_verdict(architecture, export_format), [*_unreached(config, training)]
    if exported.refused:
        raise StageError(Reason.MODEL_UNSUPPORTED, " ".join([exported.message, *unreached]))
    _require_groups(config, export_format)
    unreached += _untried(config, export_format)
    found = {runtime.name: serving_verdict(runtime, architecture, export_format) for runtime in runtimes}
    refused, unknown, different = (list(_of_level(found, level)) for level in _WORDS)
    spare = {runtime.name for runtime in runtimes if runtime.stands_in and hardware.has_gpu}
    if refused and all(each.refused for name, each in found.items() if name not in spare):
        trials = [f"Runtime {', '.join(map(repr, sorted(spare)))} is only for trials without a GPU."] if spare else []
        said = ("No runtime of this platform could serve the artifact.", *refused, *trials)
        raise StageError(Reason.RUNTIME_UNSUITABLE, " ".join(said))
    return Advice((*refused, *unknown, *unreached), tuple(different))


def joined(found: Mapping[str, Advice]) -> Advice:
    """What is to be known of a model in several formats, each sentence once: where it is not of the first format, it
    names the one that it is of."""
    warnings = _once({name: advice.warnings for name, advice in found.items()})
    return Advice(warnings, _once({name: advice.notes for name, advice in found.items()}))


def _once(found: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    first = next(iter(found), "")
    formats: dict[str, str] = {}
    for name, sentences in found.items():
        for sentence in sentences:
            formats.setdefault(sentence, name)
    return tuple(sentence if name == first else f"As {name}: {sentence}" for sentence, name in formats.items())


def _require_bfloat16(hardware: HardwareFacts) -> None:
    generation = generation_of(hardware.name) if hardware.has_gpu else None
    if generation in NO_BFLOAT16:
        raise StageError(
            Reason.GPU_UNUSABLE,
            f"Models train in bfloat16, which {hardware.name} of profile {hardware.profile!r} lacks, as all "
            f"{generation} GPUs do. Choose a profile with a newer generation: Ampere, Ada, Hopper or Blackwell.",
        )


def _require_loadable(config: Mapping[str, Any], training: Training, hardware: HardwareFacts) -> None:
    """What is certain to fail once a GPU has been paid for, in transformers of the version that trains."""
    kind = config.get("model_type")
    if kind in known().images:
        text = config.get("text_config")
        part = text.get("model_type") if isinstance(text, Mapping) else None
        of_text = f", of model_type {part!r}" if isinstance(part, str) and part in known().families else ""
        raise StageError(
            Reason.MODEL_UNSUPPORTED,
            f"model_type {kind!r} is a model for images and text, which transformers does not load to continue texts. "
            f"Take a checkpoint of a text model, e.g. of its text part alone{of_text}.",
        )
    require_trainable(config, training, hardware)


def _require_groups(config: Mapping[str, Any], export_format: str) -> None:
    """Of a model of unknown shape the export will say it."""
    try:
        shape = read_shape(config)
    except UnknownShapeError:
        return
    if export_format in (ExportFormat.INT4, ExportFormat.INT4_AWQ):
        require_group((matrix.inputs for matrix in shape.matrices), export_format)


def _of_level(found: Mapping[str, Suitability], level: Level) -> Iterator[str]:
    """What is said of the runtimes of a level; those of which the same is said are named together."""
    names: dict[str, list[str]] = {}
    for name, each in found.items():
        if each.level is level:
            names.setdefault(each.message, []).append(repr(name))
    for message, some in names.items():
        yield f"Runtime {', '.join(some)} {_WORDS[level]}: {message}"


def _unreached(config: Mapping[str, Any], training: Training) -> Iterator[str]:
    """A mixture of experts of which an adapter leaves most untouched."""
    try:
        shape = read_shape(config)
    except UnknownShapeError:
        return
    if training.method is Method.FULL or not shape.has_experts:
        return
    reached = shape.adapted_parameters(training.target_modules)
    share = reached / shape.parameters
    if share < MOST_ADAPTED:
        shared = " and what all tokens share" if shape.shares_feed_forward else ""
        yield (
            f"{shape.family} is a mixture of experts, which get no adapter: the adapted layers hold "
            f"{reached / 1e9:.2g} of {shape.parameters / 1e9:.3g} billion weights ({share:.1%}), attention{shared} "
            "only, which learns less than all layers. Consider a dense model."
        )


def _untried(config: Mapping[str, Any], export_format: str) -> Iterator[str]:
    """A mixture of experts of which no fact says whether its export can be read: those that were tried could not."""
    try:
        shape = read_shape(config)
    except UnknownShapeError:
        return
    if shape.has_experts and export_format in QUANTIZED:
        yield (
            f"Whether the {export_format} export of {shape.family}'s experts can be read back is not known here; that "
            "of mixtral and qwen3_moe cannot, so that their evaluation would fail."
        )
