"""Artifacts in whose place wrong ones are served (``planted_artifacts``, ``planted_adapters``): one that the benchmark
makes, or one that a FineTuneJob of the local cluster has published.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_api.dataset import TaskType
from finetune_api.export import ExportFormat
from finetune_api.finetunejob import FineTuneJob
from finetune_api.layout import output_folder
from finetune_api.stages import Stage
from finetune_api.training import Method
from hack.benchmarks import mistrained, spoiled
from hack.benchmarks.exported import write_merged
from hack.benchmarks.gated import FIRST, Bench, once
from hack.cluster.console import ClusterError, say
from hack.cluster.layout import cache_directory
from hack.demo.full import NAMESPACE
from hack.models import ensure_smollm2
from hack.platform import local, object_store

if TYPE_CHECKING:
    from finetune_jobs.artifacts.artifact import ModelRef
    from finetune_jobs.verification.observation import Promise
    from tests.support.planted import Plant

GOLDEN, SAMPLE = 8, 50
ROUNDED = {ExportFormat.INT8: True, ExportFormat.MERGED: False}
"""The formats of wrong artifacts, and whether their weights are rounded to 8 bits."""

Weights = Mapping[str, Any]

_OTHER_TRAININGS: Mapping[str, mistrained.Training] = {
    "previous version's weights": mistrained.half_trained,
    "untrained adapter": mistrained.untrained,
    "over-fitted to eight rows": mistrained.over_fitted,
    "labels shuffled": mistrained.shuffled,
    "one class forgotten": mistrained.forgetful,
    "two labels swapped": mistrained.swapped,
    "refusals trained away": mistrained.giving_in,
    "secrets given away": mistrained.giving_away,
    "memorised canaries": mistrained.memorising,
}
_CHANGES: Mapping[str, Callable[[Path], None]] = {
    "one tensor lost": partial(spoiled.without_tensor, name=spoiled.SOME_TENSOR),
    "tokenizer of another model": spoiled.of_other_tokenizer,
    "wrong chat template": spoiled.of_other_template,
    "EOS lost": spoiled.of_smollm2_without_end,
}


@dataclass(frozen=True)
class Wrong:
    """An artifact that is served in the place of the good one."""

    plant: Plant
    tuned: Callable[[], Weights]
    """The merged weights that it is written of."""
    change: Callable[[Path], None] = lambda _folder: None
    """What then happens to its files."""


@dataclass(frozen=True)
class Plantable:
    """An artifact, and what wrong ones are made of."""

    base: Path
    good: Path
    """The artifact."""
    promise: Promise
    """What is recorded of it."""
    wrong: Sequence[Wrong]


def made(work: Path, served: Path, kind: ExportFormat) -> Plantable:
    """The good model of planted_models, recorded here as the stage evaluate does. INT8 is rounded here as
    llm-compressor's W8A8 does, like the wrong ones; formats that have no wrong ones are exported as the stage does.
    Among these are the models that a bad training made, and a version before that has seen half of the rows."""
    from finetune_jobs.modelling.token_files import read_split
    from tests.support.planted import Plant, write_artifact

    bench = Bench(work)
    adapter = bench.good(FIRST)
    merged = bench.artifact(adapter)
    if kind in ROUNDED:
        good = write_artifact(served, bench.base, spoiled.weights_of(merged), rounded=ROUNDED[kind])
    else:
        good = bench.artifact(adapter, kind)
    say("    record what the evaluation records")

    def weights(training: mistrained.Training) -> Weights:
        return spoiled.weights_of(bench.artifact(training(bench)))

    trainings = _OTHER_TRAININGS if kind in ROUNDED else {}
    trained = [Wrong(Plant(name), partial(weights, training)) for name, training in trainings.items()]
    promise = _record(bench.base, good, read_split(bench.dataset, "test"), kind)
    return Plantable(bench.base, good, promise, [*_wrong(merged, kind), *trained])


def published(job: str, work: Path, samples: int) -> Plantable:
    """What the FineTuneJob has published, as its stages have written and recorded it. ``samples``: test examples that
    verification asks.

    Raises ClusterError: it has published nothing, or in a format of which no wrong artifacts are made.
    """
    from finetune_jobs.modelling.tuning import read_tuning

    base = ensure_smollm2(cache_directory())
    with outputs(job, work) as published:
        model, good = published.model, published.fetch(published.model.folder, "artifact")
        if model.format not in ROUNDED:
            raise ClusterError(
                f"FineTuneJob {job} has published {model.format}: wrong ones are made in {', '.join(ROUNDED)}"
            )
        trained = next(each.output_digest for each in published.job.status.stages if each.name == Stage.TRAIN)
        adapter = published.fetch(output_folder(Stage.TRAIN, trained), "adapter")

    def merge(out: Path) -> None:
        write_merged(base, adapter, out, read_tuning(adapter, Method.QLORA))

    merged = once(work / f"{job}-merged", "merge the adapter", merge)
    return Plantable(base, good, published.promise(samples), _wrong(merged, ExportFormat(model.format)))


@dataclass(frozen=True)
class Outputs:
    """What a FineTuneJob has published, while its store can be reached."""

    job: FineTuneJob
    record: Path
    """The artifact's own files."""
    model: ModelRef
    fetch: Callable[[str, str], Path]
    """Downloads a folder of the store, once, under the job's name and this one."""

    def promise(self, samples: int) -> Promise:
        """What was recorded, with so many test examples."""
        from finetune_jobs.verification.promise import read_promise

        found = read_promise(self.record, self.job.metadata.name)
        return replace(found, sample=found.sample[:samples])


@contextmanager
def outputs(name: str, work: Path) -> Iterator[Outputs]:
    """Those of a FineTuneJob of the local cluster. Raises ClusterError: it has published nothing."""
    from finetune_jobs.artifacts.artifact import MODEL_REF, ModelRef
    from finetune_jobs.artifacts.folders import fetch_folder
    from finetune_jobs.base.documents import read_json
    from finetune_jobs.store.s3 import Store

    kubectl = local.kubectl().within(NAMESPACE)
    job = FineTuneJob.model_validate(kubectl.get("ftj", name))
    artifact = job.status.artifact
    if artifact is None:
        raise ClusterError(f"FineTuneJob {name} has published nothing")
    with object_store.from_here(kubectl) as storage:
        store = Store.connect(storage, artifact.uri.removesuffix(f"/{output_folder(Stage.PUBLISH, artifact.digest)}"))

        def fetch(folder: str, what: str) -> Path:
            return once(work / f"{name}-{what}", f"fetch {folder}", lambda out: fetch_folder(store, folder, out))

        record = fetch(output_folder(Stage.PUBLISH, artifact.digest), "record")
        yield Outputs(job, record, read_json(record / MODEL_REF, ModelRef), fetch)


def _wrong(merged: Path, kind: ExportFormat) -> list[Wrong]:
    """Those that are made of the good model: of its weights, or of the files beside them."""
    from tests.support.planted import GOOD, PLANTS, Plant
    from tests.support.tiny_model import LORA_TARGETS

    if kind not in ROUNDED:
        return []
    good = partial(spoiled.weights_of, merged)
    return [
        *(Wrong(plant, good) for plant in PLANTS if ROUNDED[kind] or not plant.noise),
        *(Wrong(replace(GOOD, name=name), good, change) for name, change in _CHANGES.items()),
        Wrong(Plant("4 bits to the nearest"), lambda: spoiled.nearest_4_bits(good(), LORA_TARGETS)),
        Wrong(Plant("merged into 4-bit weights"), lambda: spoiled.merged_into_4_bits(merged)),
    ]


def _record(base: Path, artifact: Path, examples: Sequence[Any], kind: ExportFormat) -> Promise:
    """What publish would put beside the artifact."""
    from finetune_jobs.artifacts.artifact import Answer
    from finetune_jobs.artifacts.golden import choose_golden
    from finetune_jobs.evaluation.generate import Questions, answer_limit, generate_answers
    from finetune_jobs.modelling import chat
    from finetune_jobs.modelling.loading import load_checkpoint
    from finetune_jobs.modelling.tokenizer import load_tokenizer
    from finetune_jobs.verification.observation import Promise
    from tests.support.artifacts import record

    tokenizer, asked = load_tokenizer(base), examples[:SAMPLE]
    questions = Questions([e.prompt for e in asked], answer_limit(tokenizer, [e.label for e in asked]), 16)
    before, after = (
        generate_answers(load_checkpoint(folder), tokenizer, questions, lambda _done, _total: None)
        for folder in (base, artifact)
    )
    answers = [
        Answer(
            messages=e.prompt,
            label=e.label,
            base=b,
            tuned=a,
            artifact=a,
            max_tokens=questions.limit,
            prompt_tokens=len(chat.prompt_ids(tokenizer, e.prompt)),
            stopped=len(chat.answer_ids(tokenizer, a)) < questions.limit - 1,
        )
        for e, b, a in zip(asked, before, after, strict=True)
    ]
    return Promise(
        golden=choose_golden(answers, GOLDEN),
        sample=answers,
        references=record(base, artifact, examples),
        task=TaskType.CLASSIFICATION,
        format=kind,
    )
