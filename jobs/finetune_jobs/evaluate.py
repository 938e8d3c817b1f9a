"""Stage evaluate: base model, tuned model and exported artifact answer the same test examples, the base model also with
examples in its prompt."""

import gc
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch

from finetune_api.dataset import TaskType
from finetune_api.finetunejob import Examination, OnRegression
from finetune_api.layout import EVALUATION_PAGE, REVIEW_PAGE, output_folder
from finetune_api.stages import RunRef, Stage
from finetune_api.training import Method
from finetune_jobs.artifacts import folders
from finetune_jobs.artifacts.artifact import (
    ANSWERS,
    BEHAVIOUR,
    METRICS,
    REFERENCE,
    REVIEW,
    Answer,
    read_answers,
    write_answers,
    write_references,
)
from finetune_jobs.artifacts.formats import read_alternatives
from finetune_jobs.base.errors import require
from finetune_jobs.base.progress import Progress
from finetune_jobs.base.versions import versions
from finetune_jobs.evaluation.behaviour.comparison import Behaviour, compare_behaviour
from finetune_jobs.evaluation.behaviour.items import sets_for
from finetune_jobs.evaluation.behaviour.probe import Probe, probe_for
from finetune_jobs.evaluation.formats import choose, measured
from finetune_jobs.evaluation.gates import require_classes
from finetune_jobs.evaluation.generate import Questions, answer_limit, generate_answers, thoughts_limit
from finetune_jobs.evaluation.page import identify, render_html
from finetune_jobs.evaluation.reference import (
    Passage,
    choose_references,
    log_probs,
    longest_text,
    make_passages,
    turned_log_probs,
)
from finetune_jobs.evaluation.report import Evaluated
from finetune_jobs.evaluation.review.page import render_review
from finetune_jobs.evaluation.review.sheet import make_sheet
from finetune_jobs.evaluation.sample import sample
from finetune_jobs.evaluation.shots import choose_shots, with_shots
from finetune_jobs.exporting.offload import load_artifact
from finetune_jobs.modelling import chat
from finetune_jobs.modelling.base_model import fetch_base_model
from finetune_jobs.modelling.device import require_promised
from finetune_jobs.modelling.loading import cuda_memory, load_adapter, load_base, load_checkpoint
from finetune_jobs.modelling.token_files import iterate_split, longest_thoughts, read_split
from finetune_jobs.modelling.tokenizer import load_tokenizer, stop_token
from finetune_jobs.modelling.tuning import Tuning, read_tuning
from finetune_jobs.reports.index import index_stage
from finetune_jobs.reports.page import Fact
from finetune_jobs.runtime.runner import Context, StageOutput, run_stage
from finetune_jobs.text.placeholders import holds_placeholder

BATCH_SIZE: Final = 16
"""Prompts in a batch."""


@dataclass(frozen=True)
class Exported:
    """The model in one format."""

    format: str
    digest: str
    """Of its folder in the store."""
    folder: Path


@dataclass(frozen=True)
class EvaluationFiles:
    """Where an evaluation reads and writes."""

    base: Path
    """The base model."""
    tuned: Path
    """train's output."""
    exported: Sequence["Exported"]
    """The model in each format, in the order in which they are tried."""
    dataset: Path
    """The prepared data set."""
    out: Path
    """The result: ``answers.jsonl``, ``reference.jsonl``, ``metrics.json``, ``behaviour.json`` and ``report.html``;
    with them ``review.json`` and ``review.html``."""


def evaluate(context: Context) -> StageOutput:
    """Ask and score as ``params.evaluate`` says."""
    given = context.input
    require_promised(given.hardware)
    params = require(given.params.evaluate, "params.evaluate")
    chain = given.upstream
    base, out = context.scratch / "base", context.scratch / "evaluation"
    upstream = {Stage.PREPARE: chain.dataset, Stage.TRAIN: chain.adapter}
    for stage, digest in upstream.items():
        folders.fetch_folder(context.store, output_folder(stage, digest), context.scratch / stage)
    fetch_base_model(context, base)
    files = EvaluationFiles(
        base=base,
        tuned=context.scratch / Stage.TRAIN,
        exported=_exported(context, chain.export),
        dataset=context.scratch / Stage.PREPARE,
        out=out,
    )
    tuning = read_tuning(files.tuned, Method(params.method))
    if given.params.publish:
        require_classes(given.params.publish.gates, _labels(files.dataset))
    facts = identify(given)
    setting = Setting(params.task.type, params.evaluation, fall_back=params.on_regression is OnRegression.FALL_BACK)
    evaluated = evaluate_models(files, tuning, setting, context.progress, facts)
    write_review(out, given.run, facts[0])
    return StageOutput(
        scalars=evaluated.scalars(),
        message=evaluated.summary(),
        folder=out,
        tools=versions("torch", "transformers", "peft", "bitsandbytes", "compressed-tensors"),
    )


def _exported(context: Context, digest: str) -> list[Exported]:
    """Every format that export has made, downloaded."""
    first = context.scratch / Stage.EXPORT
    manifest = folders.fetch_folder(context.store, output_folder(Stage.EXPORT, digest), first)
    found = [Exported(manifest.facts.get("format", ""), digest, first)]
    for other in read_alternatives(first):
        folder = context.scratch / f"{Stage.EXPORT}-{other.format}"
        folders.fetch_folder(context.store, output_folder(Stage.EXPORT, other.digest), folder)
        found.append(Exported(other.format, other.digest, folder))
    return found


@dataclass(frozen=True)
class Setting:
    """How models are tested, and which of the artifact's formats is chosen."""

    task: TaskType
    evaluation: Examination
    fall_back: bool = False
    """Whether another format is the artifact if the first is worse than the tuned model."""


def evaluate_models(
    files: EvaluationFiles,
    tuning: Tuning,
    setting: Setting,
    progress: Progress,
    identity: tuple[Sequence[Fact], Sequence[Fact]] = ((), ()),
) -> Evaluated:
    """Let all models answer test examples, and write their answers.

    The base is asked in the precision in which it was trained (4-bit for QLoRA), the artifact exactly as its own files
    say. ``identity``: job, model and data, for the page. Raises StageError: ModelUnsupported, CudaOutOfMemory.
    """
    task, evaluation = setting.task, setting.evaluation
    examples = sample(read_split(files.dataset, "test"), evaluation.max_samples, task)
    labels = _labels(files.dataset)
    tokenizer = load_tokenizer(files.base)
    stop = stop_token(files.base, tokenizer)
    rendering = chat.rendering(tokenizer, thoughts=tuning.thoughts)
    truth = [
        chat.answer_text(tokenizer, example.messages, stop, example.tools, thoughts=tuning.thoughts)
        for example in examples
    ]
    limit = answer_limit(tokenizer, [*labels, *truth])
    questions = Questions(
        [example.prompt for example in examples],
        max(limit, thoughts_limit(longest_thoughts(files.dataset))) if tuning.thoughts else limit,
        BATCH_SIZE,
        tuning.thoughts,
        [example.tools for example in examples],
    )
    # A model that thinks is shown none: the thoughts of the examples are what it would have to be shown.
    shots = [] if tuning.thoughts else choose_shots(iterate_split(files.dataset, "train"), task)
    shown = replace(questions, prompts=[with_shots(each, shots) for each in questions.prompts], shared=True)
    passages = make_passages(tokenizer, examples, stop, longest_text(files.base), thoughts=tuning.thoughts)
    probe = probe_for(tokenizer, stop, sets_for(evaluation))
    paper = _Paper(tokenizer, questions, shown if shots else None, probe, passages)
    with cuda_memory("a model and one prompt"):
        heard = _ask_base_and_tuned(files, tuning, paper, progress)
        behaviour = heard.behaviour
        said: dict[str, _Said] = {}
        for number, each in enumerate(files.exported):
            _make_room()
            share = 0.3 / len(files.exported)
            piece = progress.within(0.6 + number * share, 0.6 + (number + 1) * share, f"artifact, {each.format}: ")
            said[each.format] = _ask_exported(each.folder, paper, piece)
    masked = [holds_placeholder(example.messages) for example in examples]
    found = {
        name: Evaluated.of(task, truth, heard.answers | {"artifact": each.answers}, labels, masked)
        for name, each in said.items()
    }
    evaluated = choose(found, fall_back=setting.fall_back)
    served = said[evaluated.format]
    answers = evaluated.answers
    files.out.mkdir(parents=True, exist_ok=True)
    write_references(files.out / REFERENCE, choose_references(passages, heard.likely, served.likely, served.turned))
    named = [answers.get(model, [None] * len(examples)) for model in ("base", "fewShot", "tuned", "artifact")]
    rows = zip(examples, truth, *named, strict=True)
    write_answers(
        files.out / ANSWERS,
        (
            Answer(
                messages=e.prompt,
                tools=e.tools,
                label=right,
                base=b,
                few_shot=f,
                tuned=t,
                artifact=a,
                max_tokens=questions.limit,
                thoughts=rendering.marks,
                prompt_tokens=len(chat.prompt_ids(tokenizer, e.prompt, e.tools, thoughts=tuning.thoughts)),
                # Thoughts are not in the text, and a cut text may have as many tokens as a whole one.
                stopped=not rendering.marks and len(chat.answer_ids(tokenizer, a)) < questions.limit - 1,
            )
            for e, right, b, f, t, a in rows
        ),
    )
    digests = {each.format: each.digest for each in files.exported}
    metrics = {
        "task": task.value,
        "goldenPrompts": evaluation.golden_prompts,
        "thoughts": rendering.marks and rendering.marks.model_dump(mode="json", by_alias=True),
        "closed": rendering.closed,
        **evaluated.metrics(),
        "formats": [each.model_dump(mode="json", by_alias=True) for each in measured(evaluated, digests)],
        "measurements": behaviour.added_to(evaluated.measurements).model_dump(mode="json", by_alias=True),
    }
    for name, document in ((METRICS, metrics), (BEHAVIOUR, behaviour.document())):
        (files.out / name).write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    asked = [str(example.prompt[-1].get("content") or "") for example in examples]
    quoted = [(str(shot.prompt[-1].get("content") or ""), shot.label) for shot in shots]
    page = render_html(evaluated, asked, *identity, behaviour, quoted)
    (files.out / EVALUATION_PAGE).write_text(page, encoding="utf-8")
    return evaluated


def write_review(folder: Path, run: RunRef, facts: Sequence[Fact]) -> None:
    """The page on which people compare the answers in an evaluation's folder, and its pairs, by which votes count."""
    with (folder / ANSWERS).open(encoding="utf-8") as lines:
        sheet = make_sheet(run, read_answers(lines, ANSWERS))
    (folder / REVIEW).write_text(sheet.model_dump_json(by_alias=True, indent=1) + "\n", encoding="utf-8")
    (folder / REVIEW_PAGE).write_text(render_review(sheet, facts), encoding="utf-8")


def _labels(dataset: Path) -> list[str]:
    return list(json.loads((dataset / "labels.json").read_text(encoding="utf-8")))


@dataclass(frozen=True)
class _Paper:
    """What base and tuned model are asked."""

    tokenizer: Any
    questions: Questions
    shown: Questions | None
    """The same questions after examples, for the base only; None: it is shown none."""
    probe: Probe
    passages: Sequence[Passage]


@dataclass(frozen=True)
class _Heard:
    """What they said."""

    answers: dict[str, list[str]]
    """Of ``base``, of ``fewShot`` if it was asked, and of ``tuned``."""
    behaviour: Behaviour
    likely: list[list[float]]
    """The base's log-probabilities of each passage."""


def _ask_base_and_tuned(files: EvaluationFiles, tuning: Tuning, paper: _Paper, progress: Progress) -> _Heard:
    """Both use one loaded base where possible; returning frees its memory before the artifact is loaded."""
    progress.report(0.0, "loading the base model")
    model = load_base(files.base, tuning.quantization)
    tokenizer, questions, probe = paper.tokenizer, paper.questions, paper.probe
    found = {"base": generate_answers(model, tokenizer, questions, progress.part(0.05, 0.15, "base model"))}
    if paper.shown is not None:
        report = progress.part(0.15, 0.25, "base model, shown examples")
        found["fewShot"] = generate_answers(model, tokenizer, paper.shown, report)
    likely = [log_probs(model, passage) for passage in paper.passages]
    seen_before = probe.ask(model, progress, 0.25, 0.35, "base model")
    if tuning.is_adapter:
        model = load_adapter(model, files.tuned)
    else:
        del model  # before the other one needs its memory
        _make_room()
        model = load_checkpoint(files.tuned)
    found["tuned"] = generate_answers(model, tokenizer, questions, progress.part(0.35, 0.5, "tuned model"))
    seen_after = probe.ask(model, progress, 0.5, 0.6, "tuned model")
    return _Heard(found, compare_behaviour(probe.sets, seen_before, seen_after, probe.note), likely)


@dataclass(frozen=True)
class _Said:
    """What the model in one format said."""

    answers: list[str]
    likely: list[list[float]]
    """Its log-probabilities of each passage."""
    turned: list[tuple[list[float], list[float]]]
    """``turned_log_probs`` of each."""


def _ask_exported(folder: Path, paper: _Paper, progress: Progress) -> _Said:
    """Exactly as its own files say; returning frees its memory."""
    progress.report(0.0, "loading")
    model = load_artifact(folder)
    answers = generate_answers(model, load_tokenizer(folder), paper.questions, progress.part(0.1, 1.0, "answers"))
    likely = [log_probs(model, passage) for passage in paper.passages]
    return _Said(answers, likely, [turned_log_probs(model, passage) for passage in paper.passages])


def _make_room() -> None:
    """A deleted model may survive in reference cycles, and its memory in the allocator."""
    gc.collect()
    torch.cuda.empty_cache()


def main() -> None:
    """Entry point of ``python -m finetune_jobs.evaluate``."""
    run_stage(Stage.EVALUATE, evaluate, after=index_stage)


if __name__ == "__main__":
    main()
