"""The part of preflight that reads: the base model's config.json, and what it means for the stage's answer.

Fail-open: an unreadable config.json costs the estimate, never the run; the stage that loads the model reports what is
wrong with it.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from huggingface_hub.errors import OfflineModeIsEnabled

from finetune_api.budget import HardwareFacts, Verdict
from finetune_api.references import SecretKeyRef
from finetune_api.stages import Stage, StageInput
from finetune_api.training import Training
from finetune_jobs.base.errors import StageError, require
from finetune_jobs.fit.admission import Admission, admit, admit_rest
from finetune_jobs.fit.disk import WITH_MODEL
from finetune_jobs.fit.exported import weight_bytes
from finetune_jobs.fit.fitting import After
from finetune_jobs.fit.suitability import Advice, joined, require_suitable
from finetune_jobs.modelling.base_model import BaseModel
from finetune_jobs.store.hub import CLIENT_ERROR, hub_client
from finetune_jobs.store.places import Places

CONFIG: Final = "config.json"
CPUINFO: Final = Path("/proc/cpuinfo")
MAX_WARNING: Final = 900
"""Longest warning, in characters: results are short (MAX_RESULT_BYTES)."""


def preflight(
    given: StageInput, places: Places, model: BaseModel, scratch: Path, *, done: Collection[Stage] = ()
) -> Admission:
    """Whether the run's training and what follows it fit the profile, but for the stages whose results are reused: of
    a training that is done, only whether what follows fits. Raises StageError: FitRefused, and as
    ``require_suitable``."""
    if given.hardware is None or Stage.EVALUATE in done:
        return Admission(None, None, "")
    trained = Stage.TRAIN in done
    config = _read_config(given, places, model, scratch)
    if config is None:
        unknown = f"Memory and time are unknown: {model.uri} has no readable {CONFIG}."
        return Admission(None, None, "" if trained else unknown)
    training = require(given.params.train, "params.train").training
    advice, after = _advice(config, training, given), _after(given, model, done)
    bfloat16 = given.hardware.has_gpu or computes_bfloat16(_cpu_flags())
    asked = (config, training, given.hardware, given.alternatives)
    if trained:
        admission = admit_rest(*asked, after=after, bfloat16=bfloat16)
    else:
        admission = admit(*asked, after=after, bfloat16=bfloat16)
        admission = replace(admission, message=f"{admission.message} {advice.note}".rstrip())
    return replace(admission, warning=f"{admission.warning} {advice.warning}".strip())


def facts(admission: Admission, hardware: HardwareFacts | None) -> dict[str, str]:
    """The admission as scalars of resolve (docs/reference/stages.md)."""
    if hardware is None or not (admission.message or admission.warning or admission.evaluation_gpus > 1):
        return {}
    warning = admission.warning[:MAX_WARNING]
    found = {"fitWarning": warning, "fitVerdict": (Verdict.FITS if admission.memory else Verdict.UNKNOWN).value}
    if admission.memory:
        found["fitGib"] = f"{admission.memory.gib:.2f}"
        found["fitAvailableGib"] = f"{hardware.memory_gib:.2f}" if hardware.memory_gib else ""
    if admission.evaluation_gpus > 1:
        found["fitEvaluationGpus"] = str(admission.evaluation_gpus)
    if admission.forecast:
        pace = admission.forecast.pace
        found["fitTokensPerSecond"] = f"{pace.tokens_per_second:.1f}"
        found["fitPassSeconds"] = f"{pace.pass_seconds:.3f}"
        found["fitLoadSeconds"] = f"{pace.load_seconds:.0f}"
        found["fitAnswerSeconds"] = f"{pace.answer_seconds:.3f}"
        found["fitBesideSeconds"] = f"{pace.beside_seconds:.1f}"
        found["fitTransferSeconds"] = f"{pace.transfer_seconds:.0f}"
        found["fitValidationTokens"] = str(pace.validation_tokens)
    return {name: value for name, value in found.items() if value}


def _advice(config: Mapping[str, Any], training: Training, given: StageInput) -> Advice:
    """Of each format. All must be possible; a runtime is needed only for those that may be served."""
    hardware, servable = require(given.hardware, "hardware"), _servable(given)
    return joined(
        {
            name: require_suitable(config, training, name, hardware, given.runtimes if name in servable else ())
            for name in _formats(given)
        }
    )


def computes_bfloat16(flags: frozenset[str]) -> bool:
    """Whether a CPU with these flags computes in bfloat16, as ``modelling.device.precision`` will find: with
    AVX512-BF16, AMX or Arm's bf16. What is unknown is taken for one that does."""
    return not flags or bool(flags & {"avx512_bf16", "amx_tile", "bf16"})


def _cpu_flags() -> frozenset[str]:
    """Of this pod's CPU; empty if unknown. The pods of a profile without GPUs often run on the same kind, but need not:
    resolve is placed as the profile's small stages are, not as its training."""
    try:
        lines = CPUINFO.read_text(errors="replace").splitlines()
    except OSError:
        return frozenset()
    names = (line.partition(":") for line in lines)
    return next(
        (frozenset(said.split()) for name, _, said in names if name.strip() in ("flags", "Features")), frozenset()
    )


def _after(given: StageInput, model: BaseModel, done: Collection[Stage]) -> After:
    exported = [weight_bytes(each) for each in _formats(given)]
    left = [stage for stage in WITH_MODEL if stage not in done]
    after = After(exported=exported, stages=left, downloaded=model.size)
    if given.params.evaluate is None:
        return after
    return replace(after, evaluation=given.params.evaluate.evaluation, task=given.params.evaluate.task.type)


def _formats(given: StageInput) -> list[str]:
    """Those of the exported model, in the order in which they are tried."""
    if given.params.export:
        return [each.value for each in given.params.export.export.formats]
    return [given.params.publish.format if given.params.publish else ""]


def _servable(given: StageInput) -> list[str]:
    """Those of ``_formats`` that may become the artifact."""
    return [each.value for each in given.params.export.export.servable] if given.params.export else _formats(given)


def _read_config(given: StageInput, places: Places, model: BaseModel, scratch: Path) -> Mapping[str, Any] | None:
    try:
        if model.revision:
            content: bytes | None = _from_hub(model, given.base_model_secret_key_ref, scratch)
        else:
            content = places.open(model.uri, given.base_model_storage).get(CONFIG)
        found = json.loads(content or b"null")
    except (StageError, OSError, ValueError, RecursionError, CLIENT_ERROR, OfflineModeIsEnabled):
        return None
    return found if isinstance(found, dict) else None


def _from_hub(model: BaseModel, secret: SecretKeyRef | None, scratch: Path) -> bytes:
    repo = model.uri.removeprefix("hf://").partition("@")[0]
    hub = hub_client(secret)
    return Path(hub.hf_hub_download(repo, CONFIG, revision=model.revision, local_dir=scratch)).read_bytes()
