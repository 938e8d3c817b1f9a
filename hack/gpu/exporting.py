"""The artifact of a training in every format: exported, then asked the same questions as base and adapter."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from finetune_api.dataset import Task
from finetune_api.evaluation import Evaluation
from finetune_api.export import WHOLE_MODELS, Export, ExportFormat
from finetune_api.finetunejob import Output
from finetune_api.meta import ExitCode
from finetune_api.stages import EvaluateParams, ExportParams, Params, PublishParams, Stage, StageInput, Upstream
from hack import environments
from hack.cluster.console import ClusterError
from hack.gpu.bench import Bench
from hack.gpu.check import Check, skipped
from tests.support.stages import pipeline_params, stage_input
from tests.support.training import BASE

LOSS = 0.1
"""Share of right answers that rounding may cost on as few questions."""


def formats(bench: Bench) -> Iterator[Check]:
    """Each format of an artifact is made, and answers like the adapter."""
    try:
        quantizer = environments.quantize()
    except ClusterError as error:
        yield skipped("export", f"the quantizer's environment cannot be made: {error}")
        return
    trained = bench.run(bench.input_of(bench.training(learning_rate="1e-3", max_steps=48), "exported"))
    if trained.code != ExitCode.OK:
        yield Check("export", "training", trained.result.message, "an end", False)
        return
    chain = bench.upstream.with_output(Stage.TRAIN, trained.result.output_digest)
    for kind in WHOLE_MODELS:
        made = evaluated(bench, kind, chain, quantizer)
        if isinstance(made, str):
            yield Check("export", kind.value, made, "an artifact and a score", False)
            continue
        _, score = made
        found = " → ".join(f"{name.lower()} {value:.0%}" for name, value in score.items())
        yield Check("export", kind.value, found, "artifact like tuned", score["Artifact"] >= score["Tuned"] - LOSS)


def evaluated(
    bench: Bench, kind: ExportFormat, chain: Upstream, quantizer: Path
) -> tuple[Upstream, dict[str, float]] | str:
    """An artifact of this format: the chain with it and its evaluation, and the shares of right answers; or why there
    is none."""
    params = params_of(bench, kind)
    exported = bench.run(input_of(bench, Stage.EXPORT, params, chain), python=quantizer)
    if exported.code != ExitCode.OK:
        return exported.result.message
    chain = chain.with_output(Stage.EXPORT, exported.result.output_digest)
    asked = bench.run(input_of(bench, Stage.EVALUATE, params, chain))
    if asked.code != ExitCode.OK:
        return asked.result.message
    score = {name: float(asked.result.scalars[f"accuracy{name}"]) for name in ("Base", "Tuned", "Artifact")}
    return chain.with_output(Stage.EVALUATE, asked.result.output_digest), score


def params_of(bench: Bench, kind: ExportFormat) -> Params:
    """Of the stages from export on."""
    output = Output(uri=bench.store.uri(), name="exported")
    export = ExportParams(export=Export(format=kind), method="QLoRA")
    evaluate = EvaluateParams(evaluation=Evaluation(max_samples=24), task=Task(), method="QLoRA")
    publish = PublishParams(output=output, format=kind.value)
    parts = {"export": export, "evaluate": evaluate, "publish": publish}
    return pipeline_params([], output).model_copy(update=parts)


def input_of(bench: Bench, stage: Stage, params: Params, chain: Upstream) -> StageInput:
    """What the operator would write for one of them."""
    output = Output(uri=bench.store.uri(), name="exported")
    return stage_input(stage, bench.server.storage, output, params, chain, base_model_uri=bench.store.uri(BASE))
