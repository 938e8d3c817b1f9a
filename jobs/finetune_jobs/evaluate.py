"""Stage evaluate: base model, tuned model and exported artifact answer the same test examples, the base model also with
examples in its prompt."""

import gc
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch

from finetune_api.dataset import TaskType
from finetune_api.finetunejob import Examination
from finetune_api.layout import EVALUATION_PAGE, output_folder
from finetune_api.stages import Stage
from finetune_api.training import Method
from finetune_jobs.artifacts import folders
from finetune_jobs.artifacts.artifact import (
    ANSWERS,
    BEHAVIOUR,
    METRICS,
    REFERENCE,
    Answer,
    Marks,
    write_answers,
    write_references,
)
from finetune_jobs.artifacts.measurements import Automation
from finetune_jobs.base.errors import require
from finetune_jobs.base.progress import Progress
from finetune_jobs.base.versions import versions
from finetune_jobs.evaluation.applicable import require_classes
from finetune_jobs.evaluation.automation import Weighed, automate
from finetune_jobs.evaluation.behaviour.comparison import Behaviour, compare_behaviour
from finetune_jobs.evaluation.behaviour.items import sets_for
from finetune_jobs.evaluation.behaviour.probe import Probe, probe_for
from finetune_jobs.evaluation.choices import MOST_LABELS, choose_labels
from finetune_jobs.evaluation.generate import (
    ROOM,
    Generated,
    Questions,
    answer_limit,
    cut,
    generate,
    generate_answers,
    thoughts_limit,
)
from finetune_jobs.evaluation.lenient import read
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
from finetune_jobs.evaluation.sample import sample
from finetune_jobs.evaluation.shots import choose_shots, with_shots
from finetune_jobs.evaluation.tasks import right_for
from finetune_jobs.exporting.offload import load_artifact
from finetune_jobs.modelling import chat
from finetune_jobs.modelling.base_model import fetch_base_model
from finetune_jobs.modelling.device import require_promised
from finetune_jobs.modelling.loading import cuda_memory, load_adapter, load_base, load_checkpoint
from finetune_jobs.modelling.token_files import Conversation, iterate_split, longest_thoughts, read_split
from finetune_jobs.modelling.tokenizer import load_tokenizer, stop_token
from finetune_jobs.modelling.tuning import Tuning, read_tuning
from finetune_jobs.reports.index import index_stage
from finetune_jobs.reports.page import Fact
from finetune_jobs.runtime.runner import Context, StageOutput, run_stage
from finetune_jobs.text.placeholders import holds_placeholder

BATCH_SIZE: Final = 16
"""Prompts in a batch."""


@dataclass(frozen=True)
class EvaluationFiles:
    """Where an evaluation reads and writes."""

    base: Path
    """The base model."""
    tuned: Path
    """train's output."""
    artifact: Path
    """export's output."""
    dataset: Path
    """The prepared data set."""
    out: Path
    """The result: ``answers.jsonl``, ``reference.jsonl``, ``metrics.json``, ``behaviour.json`` and ``report.html``."""


def evaluate(context: Context) -> StageOutput:
    """Ask and score as ``params.evaluate`` says."""
    given = context.input
    require_promised(given.hardware)
    params = require(given.params.evaluate, "params.evaluate")
    chain = given.upstream
    base, out = context.scratch / "base", context.scratch / "evaluation"
    upstream = {Stage.PREPARE: chain.dataset, Stage.TRAIN: chain.adapter, Stage.EXPORT: chain.export}
    for stage, digest in upstream.items():
        folders.fetch_folder(context.store, output_folder(stage, digest), context.scratch / stage)
    fetch_base_model(context, base)
    files = EvaluationFiles(
        base=base,
        tuned=context.scratch / Stage.TRAIN,
        artifact=context.scratch / Stage.EXPORT,
        dataset=context.scratch / Stage.PREPARE,
        out=out,
    )
    tuning = read_tuning(files.tuned, Method(params.method))
    if given.params.publish:
        require_classes(given.params.publish.gates, _labels(files.dataset))
    evaluated = evaluate_models(files, tuning, params.task.type, params.evaluation, context.progress, identify(given))
    return StageOutput(
        scalars=evaluated.scalars(),
        message=evaluated.summary(),
        folder=out,
        tools=versions("torch", "transformers", "peft", "bitsandbytes", "compressed-tensors"),
    )


def evaluate_models(
    files: EvaluationFiles,
    tuning: Tuning,
    task: TaskType,
    evaluation: Examination,
    progress: Progress,
    identity: tuple[Sequence[Fact], Sequence[Fact]] = ((), ()),
) -> Evaluated:
    """Let all models answer test examples, and write their answers.

    The base is asked in the precision in which it was trained (4-bit for QLoRA), the artifact exactly as its own files
    say. ``identity``: job, model and data, for the page. Raises StageError: ModelUnsupported, CudaOutOfMemory.
    """
    tokenizer = load_tokenizer(files.base)
    paper = _set_paper(files, tuning, task, evaluation, tokenizer)
    with cuda_memory("a model and one prompt"):
        heard = _ask_base_and_tuned(files, tuning, paper, progress)
        _make_room()
        served = _ask_artifact(files.artifact, paper, progress)
    answers = {**heard.answers, "artifact": [each.text for each in served.answers]}
    masked = [holds_placeholder(example.messages) for example in paper.examples]
    automation = _automation(paper, served)
    evaluated = Evaluated.of(task, paper.truth, answers, paper.labels, masked, automation)
    files.out.mkdir(parents=True, exist_ok=True)
    references = choose_references(paper.passages, heard.likely, served.likely, served.turned)
    write_references(files.out / REFERENCE, references)
    rendering = chat.rendering(tokenizer, thoughts=tuning.thoughts)
    write_answers(files.out / ANSWERS, _answers(paper, heard, served, rendering.marks))
    behaviour = heard.behaviour
    metrics = {
        "task": task.value,
        "goldenPrompts": evaluation.golden_prompts,
        "thoughts": rendering.marks and rendering.marks.model_dump(mode="json", by_alias=True),
        "closed": rendering.closed,
        **evaluated.metrics(),
        "measurements": behaviour.added_to(evaluated.measurements).model_dump(mode="json", by_alias=True),
    }
    for name, document in ((METRICS, metrics), (BEHAVIOUR, behaviour.document())):
        (files.out / name).write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    asked = [str(example.prompt[-1].get("content") or "") for example in paper.examples]
    quoted = [(str(shot.prompt[-1].get("content") or ""), shot.label) for shot in paper.shots]
    page = render_html(evaluated, asked, *identity, behaviour, quoted)
    (files.out / EVALUATION_PAGE).write_text(page, encoding="utf-8")
    return evaluated


def _labels(dataset: Path) -> list[str]:
    return list(json.loads((dataset / "labels.json").read_text(encoding="utf-8")))


@dataclass(frozen=True)
class _Paper:
    """What the models are asked, and the right answers."""

    task: TaskType
    tokenizer: Any
    stop: int
    """The token that ends an answer."""
    examples: Sequence[Conversation]
    """Of the test part."""
    truth: Sequence[str]
    labels: Sequence[str]
    """The allowed ones of a classification."""
    questions: Questions
    checked: Questions | None
    """Of the validation part, for the artifact only: among its answers a threshold is chosen. None: it is not asked."""
    checked_truth: Sequence[str]
    shots: Sequence[Conversation]
    """Examples that the base model is shown; empty: it is shown none."""
    probe: Probe
    passages: Sequence[Passage]

    @property
    def shown(self) -> Questions:
        """The same questions after the examples."""
        prompts = [with_shots(each, self.shots) for each in self.questions.prompts]
        return replace(self.questions, prompts=prompts, shared=True)


def _set_paper(
    files: EvaluationFiles, tuning: Tuning, task: TaskType, evaluation: Examination, tokenizer: Any
) -> _Paper:
    examples = sample(read_split(files.dataset, "test"), evaluation.max_samples, task)
    # No threshold is sought where whole answers are hardly ever right, or follow thoughts that may go either way.
    weighed = task is not TaskType.TEXT and not tuning.thoughts
    checked = sample(read_split(files.dataset, "validation"), evaluation.max_samples, task) if weighed else []
    stop, labels = stop_token(files.base, tokenizer), _labels(files.dataset)
    truth, checked_truth = (
        [chat.answer_text(tokenizer, each.messages, stop, each.tools, thoughts=tuning.thoughts) for each in rows]
        for rows in (examples, checked)
    )
    limit = answer_limit(tokenizer, [*labels, *truth, *checked_truth])
    questions = Questions(
        [example.prompt for example in examples],
        max(limit, thoughts_limit(longest_thoughts(files.dataset))) if tuning.thoughts else limit,
        BATCH_SIZE,
        tuning.thoughts,
        [example.tools for example in examples],
    )
    others = replace(questions, prompts=[each.prompt for each in checked], tools=[each.tools for each in checked])
    return _Paper(
        task=task,
        tokenizer=tokenizer,
        stop=stop,
        examples=examples,
        truth=truth,
        labels=labels,
        questions=questions,
        checked=others if checked else None,
        checked_truth=checked_truth,
        # A model that thinks is shown none: the thoughts of the examples are what it would have to be shown.
        shots=[] if tuning.thoughts else choose_shots(iterate_split(files.dataset, "train"), task),
        probe=probe_for(tokenizer, stop, sets_for(evaluation)),
        passages=make_passages(tokenizer, examples, stop, longest_text(files.base), thoughts=tuning.thoughts),
    )


@dataclass(frozen=True)
class _Heard:
    """What base and tuned model said."""

    answers: dict[str, list[str]]
    """Of ``base``, in each way in which it was asked, and of ``tuned``."""
    wordy: list[str] | None
    """What ``verbose`` was read from."""
    behaviour: Behaviour
    likely: list[list[float]]
    """The base's log-probabilities of each passage."""


def _ask_base_and_tuned(files: EvaluationFiles, tuning: Tuning, paper: _Paper, progress: Progress) -> _Heard:
    """Both use one loaded base where possible; returning frees its memory before the artifact is loaded."""
    progress.report(0.0, "loading the base model")
    model = load_base(files.base, tuning.quantization)
    tokenizer, questions, probe = paper.tokenizer, paper.questions, paper.probe
    found, wordy = _ask_base(model, paper, progress)
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
    return _Heard(found, wordy, compare_behaviour(probe.sets, seen_before, seen_after, probe.note), likely)


def _ask_base(model: Any, paper: _Paper, progress: Progress) -> tuple[dict[str, list[str]], list[str] | None]:
    """The base model's answers by the way in which it was asked; and what it said with room for a sentence, as it is.

    Not with room, and not for a choice, where models think: an answer then has room enough, and no label is likely
    before the thoughts.
    """
    tokenizer, questions = paper.tokenizer, paper.questions
    report = progress.part(0.05, 0.15, "base model")
    if questions.thoughts:
        return {"base": generate_answers(model, tokenizer, questions, report)}, None
    said = generate(model, tokenizer, replace(questions, limit=questions.limit + ROOM), report)
    wordy = [each.text for each in said]
    found = {
        "base": [cut(tokenizer, each, questions.limit) for each in said],
        "verbose": [read(paper.task, text, paper.labels) for text in wordy],
    }
    if paper.shots:
        report = progress.part(0.15, 0.2, "base model, shown examples")
        found["fewShot"] = generate_answers(model, tokenizer, paper.shown, report)
    if paper.task is TaskType.CLASSIFICATION and 1 < len(paper.labels) <= MOST_LABELS:
        report = progress.part(0.2, 0.25, "base model, choosing a label")
        found["constrained"] = choose_labels(model, tokenizer, questions, paper.labels, paper.stop, report)
    return found, wordy


@dataclass(frozen=True)
class _Served:
    """What the artifact said."""

    answers: Sequence[Generated]
    checked: Sequence[Generated]
    """To the questions of the validation part."""
    likely: list[list[float]]
    """Its log-probabilities of each passage."""
    turned: list[tuple[list[float], list[float]]]


def _ask_artifact(folder: Path, paper: _Paper, progress: Progress) -> _Served:
    progress.report(0.6, "loading the artifact")
    model, tokenizer = load_artifact(folder), load_tokenizer(folder)
    checked: list[Generated] = []
    if paper.checked is not None:
        report = progress.part(0.6, 0.7, "artifact, validation part")
        checked = generate(model, tokenizer, paper.checked, report, weighed=True)
    report = progress.part(0.7, 0.9, "artifact")
    answers = generate(model, tokenizer, paper.questions, report, weighed=paper.checked is not None)
    return _Served(
        answers,
        checked,
        [log_probs(model, passage) for passage in paper.passages],
        [turned_log_probs(model, passage) for passage in paper.passages],
    )


def _automation(paper: _Paper, served: _Served) -> list[Automation]:
    """What needs no person; nothing, if no validation examples were asked."""
    right = right_for(paper.task)

    def weighed(truth: Sequence[str], answers: Sequence[Generated]) -> list[Weighed]:
        return [Weighed(a.log_probability, right(t, a.text)) for t, a in zip(truth, answers, strict=True)]

    if paper.checked is None:
        return []
    return automate(weighed(paper.checked_truth, served.checked), weighed(paper.truth, served.answers))


def _answers(paper: _Paper, heard: _Heard, served: _Served, marks: Marks | None) -> Iterator[Answer]:
    """What each model answered to each test example."""
    limit, tokenizer, thoughts = paper.questions.limit, paper.tokenizer, paper.questions.thoughts
    none = [None] * len(paper.examples)
    named = [heard.answers.get(model, none) for model in ("base", "fewShot", "constrained", "tuned")]
    for e, right, artifact, wordy, base, few_shot, constrained, tuned in zip(
        paper.examples, paper.truth, served.answers, heard.wordy or none, *named, strict=True
    ):
        yield Answer(
            messages=e.prompt,
            tools=e.tools,
            label=right,
            base=base,
            few_shot=few_shot,
            verbose=wordy,
            constrained=constrained,
            tuned=tuned,
            artifact=artifact.text,
            max_tokens=limit,
            thoughts=marks,
            prompt_tokens=len(chat.prompt_ids(tokenizer, e.prompt, e.tools, thoughts=thoughts)),
            # Thoughts are not in the text, and a cut text may have as many tokens as a whole one.
            stopped=not marks and len(chat.answer_ids(tokenizer, artifact.text)) < limit - 1,
            log_probability=artifact.log_probability if paper.checked is not None else None,
        )


def _make_room() -> None:
    """A deleted model may survive in reference cycles, and its memory in the allocator."""
    gc.collect()
    torch.cuda.empty_cache()


def main() -> None:
    """Entry point of ``python -m finetune_jobs.evaluate``."""
    run_stage(Stage.EVALUATE, evaluate, after=index_stage)


if __name__ == "__main__":
    main()
