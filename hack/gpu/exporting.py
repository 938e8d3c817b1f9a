"""The artifact of a training in every format: exported, then asked the same questions as base and adapter."""

from __future__ import annotations

from collections.abc import Iterator

from finetune_api.dataset import Task
from finetune_api.finetunejob import WHOLE_MODELS, Evaluation, Export, ExportFormat, Output
from finetune_api.meta import ExitCode
from finetune_api.stages import EvaluateParams, ExportParams, Params, Stage, StageInput, Upstream
from hack import environments
from hack.gpu.bench import Bench
from hack.gpu.check import Check
from tests.support.stages import pipeline_params, stage_input
from tests.support.training import BASE

LOSS = 0.1
"""Share of right answers that rounding may cost on as few questions."""


def formats(bench: Bench) -> Iterator[Check]:
    """Each format of an artifact is made, and answers like the adapter."""
    training = bench.training(learning_rate="1e-3", max_steps=48)
    trained = bench.run(bench.input_of(training, "exported"))
    if trained.code != ExitCode.OK:
        yield Check("export", "training", trained.result.message, "an end", False)
        return
    chain = bench.upstream.with_output(Stage.TRAIN, trained.result.output_digest)
    quantizer = environments.quantize()
    for kind in WHOLE_MODELS:
        params = _params(bench, kind)
        exported = bench.run(_input(bench, Stage.EXPORT, params, chain), python=quantizer)
        if exported.code != ExitCode.OK:
            yield Check("export", kind.value, exported.result.message, "an artifact", False)
            continue
        with_artifact = chain.with_output(Stage.EXPORT, exported.result.output_digest)
        evaluated = bench.run(_input(bench, Stage.EVALUATE, params, with_artifact))
        if evaluated.code != ExitCode.OK:
            yield Check("export", kind.value, evaluated.result.message, "a score", False)
            continue
        score = {name: float(evaluated.result.scalars[f"accuracy{name}"]) for name in ("Base", "Tuned", "Artifact")}
        found = " → ".join(f"{name.lower()} {value:.0%}" for name, value in score.items())
        yield Check("export", kind.value, found, "artifact like tuned", score["Artifact"] >= score["Tuned"] - LOSS)


def _params(bench: Bench, kind: ExportFormat) -> Params:
    params = pipeline_params([], Output(uri=bench.store.uri(), name="exported"))
    export = ExportParams(export=Export(format=kind), method="QLoRA")
    evaluate = EvaluateParams(evaluation=Evaluation(max_samples=24), task=Task(), method="QLoRA")
    return params.model_copy(update={"export": export, "evaluate": evaluate})


def _input(bench: Bench, stage: Stage, params: Params, chain: Upstream) -> StageInput:
    output = Output(uri=bench.store.uri(), name="exported")
    return stage_input(stage, bench.server.storage, output, params, chain, base_model_uri=bench.store.uri(BASE))
