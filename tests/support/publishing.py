"""An evaluated run that is ready to be published, and what publish and its successors are asked."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune_api.dataset import TaskType
from finetune_api.endpoint_stages import VerifyParams
from finetune_api.finetunejob import Output
from finetune_api.stages import Params, Stage, StageInput, StageResult, Upstream
from finetune_jobs.artifacts.artifact import Answer, write_answers
from finetune_jobs.artifacts.folders import publish_folder
from finetune_jobs.artifacts.measurements import Distances
from finetune_jobs.evaluation.automation import Weighed, automate
from finetune_jobs.evaluation.estimates import measure
from finetune_jobs.publish import publish, sign_move_and_push
from finetune_jobs.runtime.runner import execute
from finetune_jobs.store.s3 import Store
from tests.support.seaweedfs import SeaweedFS
from tests.support.stages import DEPLOYMENT, context, pipeline_params, stage_input

WEIGHTS = bytes(range(256)) * 512
CONFIG = b'{"model_type": "llama", "torch_dtype": "bfloat16"}'


def answer(text: str, label: str, base: str, artifact: str, tokens: int = 30) -> Answer:
    """A recorded answer: what was expected, and what each model said."""
    messages = [{"role": "user", "content": text}]
    texts = {"label": label, "base": base, "tuned": artifact, "artifact": artifact}
    return Answer(messages=messages, **texts, max_tokens=8, prompt_tokens=tokens)


ANSWERS = [
    answer(f"payment {n}", "ab"[n % 2], base="a" if n % 4 else "I cannot say", artifact="ab"[n % 2] if n % 10 else "b")
    for n in range(40)
]


def measured(answers: Sequence[Answer]) -> dict[str, Any]:
    """What evaluate measures of recorded answers."""
    said = {model: [getattr(each, model) for each in answers] for model in ("base", "tuned", "artifact")}
    found = measure(TaskType.CLASSIFICATION, [each.label for each in answers], said, ["a", "b"])
    far = 3.4 if any(each.distinguishes_base for each in answers) else 0.0
    texts = Distances(long=False, texts=16, tuned_base=far, artifact_base=far, artifact_tuned=0.04)
    return found.model_copy(update={"distances": [texts]}).model_dump(mode="json", by_alias=True)


AUTOMATION = automate(
    [Weighed(-0.1, right=True)] * 60, [Weighed(-0.1, right=True)] * 30 + [Weighed(-3, right=False)] * 10
)
MEASUREMENTS = measured(ANSWERS) | {"automation": [each.model_dump(mode="json", by_alias=True) for each in AUTOMATION]}


def publish_input(s3: SeaweedFS, store: Store, upstream: Upstream, **fields: Any) -> StageInput:
    """What publish is asked."""
    output = Output(uri=store.uri(), name="transactions")
    params = pipeline_params([store.uri("rows.csv")], output)
    return stage_input(Stage.PUBLISH, s3.storage, output, params, upstream, **fields)


def deployment_input(s3: SeaweedFS, uri: str, stage: Stage, verify_params: VerifyParams | None = None) -> StageInput:
    """What fetch and verify are asked."""
    return StageInput(
        stage=stage, run=DEPLOYMENT, storage=s3.storage, artifact_uri=uri, params=Params(verify=verify_params)
    )


def put_upstream(store: Store, made: Path) -> Upstream:
    """Put outputs of all stages before publish into the store; their files are made in a folder."""

    def put(stage: Stage, files: dict[str, bytes], **facts: str) -> str:
        folder = made / f"made-{stage}"
        folder.mkdir()
        for name, content in files.items():
            (folder / name).write_bytes(content)
        return publish_folder(store, folder, stage, facts=facts)

    scalars = {"samples": "40", "accuracyBase": "0.25", "accuracyArtifact": "0.95"}
    metrics = {"goldenPrompts": 8, "scalars": scalars, "measurements": MEASUREMENTS, "baseLicense": "mit"}
    answers = made / "answers.jsonl"
    write_answers(answers, ANSWERS)
    return Upstream(
        source="s",
        model="m",
        dataset=put(Stage.PREPARE, {"train.jsonl": b"{}\n"}, rowsTrain="320", labels="2"),
        adapter=put(Stage.TRAIN, {"adapter_model.safetensors": b"adapter"}, steps="60"),
        export=put(Stage.EXPORT, {"config.json": CONFIG, "model.safetensors": WEIGHTS}),
        evaluation=put(
            Stage.EVALUATE, {"answers.jsonl": answers.read_bytes(), "metrics.json": json.dumps(metrics).encode()}
        ),
    )


def publish_upstream(s3: SeaweedFS, store: Store, upstream: Upstream, folder: Path) -> StageResult:
    """Publish these outputs."""
    return execute(context(publish_input(s3, store, upstream), folder), publish, after=sign_move_and_push)
