"""Published artifacts of tiny models: their recorded answers are those of real checkpoints."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model

from finetune_api.dataset import TaskType
from finetune_api.export import ExportFormat
from finetune_api.finetunejob import Output
from finetune_api.stages import Stage, StageResult, Upstream
from finetune_api.storage import Storage
from finetune_api.training import Method
from finetune_jobs.artifacts.artifact import (
    ANSWERS,
    METRICS,
    REFERENCE,
    Answer,
    ReferenceText,
    write_answers,
    write_references,
)
from finetune_jobs.artifacts.folders import publish_folder
from finetune_jobs.evaluation.disturbance import disturbed
from finetune_jobs.evaluation.estimates import measure
from finetune_jobs.evaluation.generate import Questions, generate_answers
from finetune_jobs.evaluation.passages import log_probs, longest_text, make_passages
from finetune_jobs.evaluation.reference import make_references, to_record
from finetune_jobs.exporting.adapter import write_adapter, write_base
from finetune_jobs.exporting.offload import load_artifact
from finetune_jobs.modelling.loading import load_checkpoint
from finetune_jobs.modelling.token_files import Conversation
from finetune_jobs.modelling.tokenizer import load_tokenizer, stop_token
from finetune_jobs.modelling.tuning import Tuning
from finetune_jobs.publish import publish
from finetune_jobs.runtime.runner import execute
from finetune_jobs.store.s3 import Store
from tests.support.stages import context, pipeline_params, stage_input

PROMPTS = [[{"role": "user", "content": f"what is number {n} about?"}] for n in range(12)]
LIMIT = 6
"""Tokens of an answer."""


def answers_of(model: Path, under: Path | None = None) -> Sequence[str]:
    """The answers to the prompts of a checkpoint, or of an adapter on the one ``under`` it."""
    questions = Questions(PROMPTS, LIMIT, 4)
    return generate_answers(
        load_artifact(model, under), load_tokenizer(under or model), questions, lambda done, total: None
    )


def record(base: Path, tuned: Path, examples: Sequence[Conversation], under: Path | None = None) -> list[ReferenceText]:
    """What an evaluation records of both models."""
    tokenizer = load_tokenizer(base)
    passages = make_passages(tokenizer, examples, stop_token(base, tokenizer), longest_text(base))
    before = [log_probs(model, passage) for model in [load_checkpoint(base)] for passage in passages]
    artifact = load_artifact(tuned, under)
    after = [log_probs(artifact, passage) for passage in passages]
    numbers = to_record(passages, before, after)
    changed = {number: disturbed(artifact, passages[number]) for number in numbers}
    return make_references(passages, before, after, changed)


def publish_adapter(
    storage: Storage, place: str, folder: Path, *, base: Path, seed: int, rank: int = 4, scale: int = 8
) -> StageResult:
    """Publish an adapter of random values, and the base beside it, as export makes them. ``scale``: what its values are
    multiplied with; a real model breaks under a large one."""
    torch.manual_seed(seed)
    config = LoraConfig(r=rank, lora_alpha=scale * rank, target_modules="all-linear", init_lora_weights=False)
    trained, alone, under = folder / "trained", folder / "alone", folder / "under"
    get_peft_model(load_checkpoint(base), config).save_pretrained(trained)
    tuning = Tuning(method=Method.LORA)
    write_base(base, under, tuning)
    write_adapter(trained, alone, tuning, publish_folder(Store.connect(storage, place), under, Stage.EXPORT))
    return publish_artifact(storage, place, folder / "artifact", base=base, tuned=alone, under=under)


def publish_artifact(
    storage: Storage,
    place: str,
    folder: Path,
    *,
    base: Path,
    tuned: Path,
    exported: Path | None = None,
    under: Path | None = None,
    task: TaskType = TaskType.CLASSIFICATION,
) -> StageResult:
    """Publish ``tuned`` below the URI ``place``; the keys come from the environment. ``under``: of an exported adapter,
    the base beside it. ``task``: TEXT where another engine than transformers serves it, which may not write the same
    texts: these models have learned no labels.

    Another ``exported`` model than the one whose answers were recorded makes an artifact that promises too much.
    """
    store = Store.connect(storage, place)
    empty, evaluation = folder / "empty", folder / "evaluation"
    for each in (empty, evaluation):
        each.mkdir(parents=True)
    before, after = answers_of(base), answers_of(tuned, under)
    promised = list(zip(PROMPTS, before, after, strict=True))
    answers = {"base": before, "tuned": after, "artifact": after}
    measurements = measure(task, after, answers, []).model_dump(by_alias=True)
    write_answers(
        evaluation / ANSWERS,
        [Answer(messages=p, label=t, base=b, tuned=t, artifact=t, max_tokens=LIMIT) for p, b, t in promised],
    )
    conversations = [Conversation([*p, {"role": "assistant", "content": t}]) for p, _, t in promised]
    write_references(evaluation / REFERENCE, record(base, tuned, conversations, under))
    metrics = {"goldenPrompts": 6, "scalars": {}, "task": task, "measurements": measurements}
    (evaluation / METRICS).write_text(json.dumps(metrics))
    upstream = Upstream(
        source="s",
        model="m",
        dataset=publish_folder(store, empty, Stage.PREPARE),
        adapter=publish_folder(store, empty, Stage.TRAIN),
        export=publish_folder(store, exported or tuned, Stage.EXPORT),
        evaluation=publish_folder(store, evaluation, Stage.EVALUATE),
    )
    output = Output(uri=place, name="transactions")
    params = pipeline_params([f"{place}/rows.csv"], output)
    if under and params.publish:
        publishing = params.publish.model_copy(update={"format": ExportFormat.ADAPTER})
        params = params.model_copy(update={"publish": publishing})
    return execute(context(stage_input(Stage.PUBLISH, storage, output, params, upstream), folder), publish)
