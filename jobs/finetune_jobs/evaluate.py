"""Stage evaluate: base model, tuned model and exported artifact answer the same test examples, the base model also with
examples in its prompt."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from finetune_api.dataset import TaskType
from finetune_api.evaluation import Examination, Generator
from finetune_api.export import OnRegression
from finetune_api.gates import Gates
from finetune_api.layout import REVIEW_PAGE, output_folder
from finetune_api.stages import RunRef, Stage, StageResult
from finetune_api.training import Method
from finetune_jobs.artifacts import folders
from finetune_jobs.artifacts.artifact import (
    ANSWERS,
    BASE_REF,
    BEHAVIOUR,
    METRICS,
    REFERENCE,
    REVIEW,
    Answer,
    BaseRef,
    Marks,
    read_answers,
    write_answers,
    write_references,
)
from finetune_jobs.artifacts.formats import read_alternatives
from finetune_jobs.artifacts.measurements import ELSEWHERE
from finetune_jobs.base.documents import read_json
from finetune_jobs.base.errors import require
from finetune_jobs.base.progress import Progress
from finetune_jobs.base.versions import versions
from finetune_jobs.evaluation.applicable import SCHEMA, require_classes
from finetune_jobs.evaluation.asking import (
    Paper,
    ServedAnswers,
    TrainedAnswers,
    ask_artifact,
    ask_trained,
    automation_of,
    labels_of,
    likelihoods_of,
    set_paper,
)
from finetune_jobs.evaluation.custom.exchange import hand_over
from finetune_jobs.evaluation.distances import distances, without_numbers
from finetune_jobs.evaluation.elsewhere import asker
from finetune_jobs.evaluation.findings import KeptFindings, remove_findings
from finetune_jobs.evaluation.formats import choose, may_serve, measured
from finetune_jobs.evaluation.generators.on_transformers import TransformersGenerators
from finetune_jobs.evaluation.generators.on_vllm import VllmGenerators
from finetune_jobs.evaluation.generators.protocol import Exported, Generators
from finetune_jobs.evaluation.generators.recorded import RecordedGenerators
from finetune_jobs.evaluation.measurable import DataFacts, require_measurable
from finetune_jobs.evaluation.outputs import OUTPUTS, Outputs
from finetune_jobs.evaluation.page import EvaluationSubject, as_evaluated, identify, lay_out
from finetune_jobs.evaluation.page_parts import write_page
from finetune_jobs.evaluation.passages import said_positions
from finetune_jobs.evaluation.reached import goals_reached
from finetune_jobs.evaluation.reference import SHORT, make_references, to_record
from finetune_jobs.evaluation.report import Evaluated, Probabilities, RowFacts
from finetune_jobs.evaluation.review.page import render_review
from finetune_jobs.evaluation.review.sheet import make_sheet
from finetune_jobs.exporting.adapter import write_base
from finetune_jobs.exporting.offload import load_artifact
from finetune_jobs.exporting.positions import require_same_positions
from finetune_jobs.modelling import chat
from finetune_jobs.modelling.base_model import fetch_base_model
from finetune_jobs.modelling.device import require_promised, require_quantization
from finetune_jobs.modelling.licence import licence_of
from finetune_jobs.modelling.loading import cuda_memory
from finetune_jobs.modelling.token_files import Conversation
from finetune_jobs.modelling.tokenizer import load_tokenizer, stop_token
from finetune_jobs.modelling.tuning import Tuning, read_tuning
from finetune_jobs.reports.index import index_stage
from finetune_jobs.reports.page import Fact
from finetune_jobs.runtime.runner import Context, StageOutput, run_stage
from finetune_jobs.text.placeholders import holds_placeholder
from finetune_jobs.text.schemas import schema_check

TOOLS: Final = ("torch", "transformers", "peft", "bitsandbytes", "compressed-tensors")
"""What decides, beside the models, what they say."""


@dataclass(frozen=True)
class EvaluationFiles:
    """Where an evaluation reads and writes."""

    base: Path
    """The base model."""
    tuned: Path
    """train's output."""
    exported: Sequence[Exported]
    """The model in each format, in the order in which they are tried."""
    dataset: Path
    """The prepared data set."""
    out: Path
    """The result: ``answers.jsonl``, ``reference.jsonl``, ``metrics.json``, ``behaviour.json``, ``outputs/``,
    ``report.html`` and ``report_parts.json``; with them ``review.json`` and ``review.html``."""
    findings: KeptFindings | None = None
    """Where what the models say outlives the pod; None: nowhere."""


@dataclass(frozen=True)
class About:
    """What an evaluation is of, and what it is for."""

    subject: EvaluationSubject = field(default_factory=EvaluationSubject)
    licence: str = ""
    """Of the base model; empty: not known."""
    gates: Gates | None = None
    """What the artifact is to reach; None: by hand, nothing is published."""


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
    tuning = read_tuning(context.scratch / Stage.TRAIN, Method(params.method))
    require_quantization(tuning.quantization)  # a training that is reused may have run on another card
    fetch_base_model(context, base)
    files = EvaluationFiles(
        base=base,
        tuned=context.scratch / Stage.TRAIN,
        exported=_exported(context, chain.export),
        dataset=context.scratch / Stage.PREPARE,
        out=out,
        findings=KeptFindings.of(context.store, given, tools := versions(*TOOLS)),
    )
    about = About(identify(given), licence_of(context))
    if given.params.publish:
        gates = given.params.publish.gates
        require_classes(gates, labels_of(files.dataset))
        most, tokenizer = params.evaluation.max_samples, load_tokenizer(base)
        stop = stop_token(base, tokenizer)
        asked = DataFacts.of(files.dataset, params.task.type, most, tokenizer, stop, thoughts=tuning.thoughts)
        require_measurable(gates, asked)
        about = replace(about, gates=gates)
    fall_back = params.on_regression is OnRegression.FALL_BACK
    other = params.evaluation.baseline
    elsewhere = asker(context.store, given.run, other, context.progress, context.stopping) if other else None
    setting = Setting(params.task.type, params.evaluation, fall_back, elsewhere, params.task.answer_schema or "")
    evaluated = evaluate_models(files, tuning, setting, context.progress, about)
    write_review(out, given.run, about.subject.identity)
    return StageOutput(
        scalars=evaluated.scalars(),
        message=evaluated.summary(),
        folder=out,
        tools=tools,
    )


def _exported(context: Context, digest: str) -> list[Exported]:
    """Every format that export has made, downloaded."""
    first = context.scratch / Stage.EXPORT
    manifest = folders.fetch_folder(context.store, output_folder(Stage.EXPORT, digest), first)
    found = [Exported(manifest.facts.get("format", ""), digest, first, _base(context, first))]
    for other in read_alternatives(first):
        folder = context.scratch / f"{Stage.EXPORT}-{other.format}"
        folders.fetch_folder(context.store, output_folder(Stage.EXPORT, other.digest), folder)
        found.append(Exported(other.format, other.digest, folder, _base(context, folder)))
    return found


def _base(context: Context, exported: Path) -> Path | None:
    """The base of an exported adapter, downloaded; None for a whole model."""
    if not (exported / BASE_REF).exists():
        return None
    ref, folder = read_json(exported / BASE_REF, BaseRef), context.scratch / "exported-base"
    folders.fetch_folder(context.store, ref.folder, folder)
    return folder


@dataclass(frozen=True)
class Setting:
    """How models are tested, and which of the artifact's formats is chosen."""

    task: TaskType
    evaluation: Examination
    fall_back: bool = False
    """Whether another format is the artifact if the first is worse than the tuned model."""
    elsewhere: Callable[[Paper], list[str]] | None = None
    """Asks the model of spec.evaluation.baseline; None: there is none."""
    answer_schema: str = ""
    """JSON Schema that answers are to match; empty: there is none."""


def evaluate_models(
    files: EvaluationFiles,
    tuning: Tuning,
    setting: Setting,
    progress: Progress,
    about: About | None = None,
) -> Evaluated:
    """Let all models answer test examples, and write their answers.

    The base is asked in the precision in which it was trained (4-bit for QLoRA), the artifact exactly as its own files
    say. ``about``: for the page and for the model card. Raises StageError: ModelUnsupported, CudaOutOfMemory,
    ArtifactCorrupt as ``require_same_positions``.
    """
    for each in files.exported:
        require_same_positions(files.base, each.checkpoint)
    task, evaluation = setting.task, setting.evaluation
    paper = set_paper(files.base, files.dataset, tuning, task, evaluation)
    tokenizer = paper.tokenizer
    told = setting.elsewhere(paper) if setting.elsewhere else None  # first: what it does not answer costs no GPU
    others = {ELSEWHERE: paper.taken(told)} if told else {}
    expected, kept = paper.answers(len(files.exported)), files.findings
    keeping = kept.keeping(progress, expected) if kept else nullcontext()
    with (
        cuda_memory("a model and one prompt"),
        keeping,
        Outputs(files.out / OUTPUTS) as outputs,
        RecordedGenerators(_generators(files, tuning, paper, evaluation.generator), outputs) as models,
    ):
        if told:
            outputs.begin(ELSEWHERE)
            outputs.told((paper.shown if paper.shots else paper.questions).ids, told)
        heard = ask_trained(models, paper, progress)
        said, found = dict[str, ServedAnswers](), dict[str, Evaluated]()
        for number, each in enumerate(files.exported):
            share = 0.3 / len(files.exported)
            piece = progress.within(0.6 + number * share, 0.6 + (number + 1) * share, f"artifact, {each.format}: ")
            piece.report(0.0, "loading")
            asked = ask_artifact(models.exported(each), paper, piece)
            found[each.format] = _compared(setting, paper, heard, asked, others)
            if may_serve(found, fall_back=setting.fall_back):
                asked = _disturbed(models, paper, heard.likely["base"], asked)
            said[each.format] = asked
    evaluated = choose(found, fall_back=setting.fall_back)
    served = said[evaluated.format]
    digests = {each.format: each.digest for each in files.exported}
    references = make_references(paper.passages, heard.likely["base"], served.likely, served.disturbed)
    write_references(files.out / REFERENCE, references)
    rendering = chat.rendering(tokenizer, thoughts=tuning.thoughts)
    written = {**heard.answers, **heard.wordy, **({ELSEWHERE: told} if told else {})}
    write_answers(files.out / ANSWERS, _answers(paper, written, served, rendering.marks))
    about = about or About()
    behaviour = heard.behaviour.with_artifact(paper.probe.sets.adversarial, heard.beside, served.beside)
    measurements = behaviour.added_to(evaluated.measurements)
    metrics = {
        "task": task.value,
        "goldenPrompts": evaluation.golden_prompts,
        "thoughts": rendering.marks and rendering.marks.model_dump(mode="json", by_alias=True),
        "closed": rendering.closed,
        "baseLicense": about.licence,
        "generator": models.program,
        **evaluated.metrics(),
        "formats": [each.model_dump(mode="json", by_alias=True) for each in measured(evaluated, digests)],
        "measurements": measurements.model_dump(mode="json", by_alias=True),
    }
    for name, document in ((METRICS, metrics), (BEHAVIOUR, behaviour.document())):
        (files.out / name).write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    shown = [str(example.prompt[-1].get("content") or "") for example in paper.examples]
    quoted = [(str(shot.prompt[-1].get("content") or ""), shot.label) for shot in paper.shots]
    goals = goals_reached(about.gates, measurements, task) if about.gates else []
    subject = as_evaluated(about.subject, digests[evaluated.format], models.program)
    write_page(files.out, lay_out(evaluated, shown, subject, behaviour, quoted), goals)
    return evaluated


def write_review(folder: Path, run: RunRef, facts: Sequence[Fact]) -> None:
    """The page on which people compare the answers in an evaluation's folder, and its pairs, by which votes count."""
    with (folder / ANSWERS).open(encoding="utf-8") as lines:
        sheet = make_sheet(run, read_answers(lines, ANSWERS))
    (folder / REVIEW).write_text(sheet.model_dump_json(by_alias=True, indent=1) + "\n", encoding="utf-8")
    (folder / REVIEW_PAGE).write_text(render_review(sheet, facts), encoding="utf-8")


def _generators(files: EvaluationFiles, tuning: Tuning, paper: Paper, asked: Generator) -> Generators:
    """What answers, as spec.evaluation.generator says: never another program in its place."""
    if asked is Generator.TRANSFORMERS:
        return TransformersGenerators(files.base, files.tuned, tuning, load_artifact, files.findings)
    # An answer that does not fit the model's positions is cut there, as a server cuts it.
    # Where its files name no number, it takes what is asked, or vLLM says that it does not.
    longest = min(paper.longest, said_positions(files.base) or paper.longest)
    work = files.out.with_name("vllm")
    return VllmGenerators(files.base, files.tuned, tuning, longest, work, write_base, load_artifact, files.findings)


def _compared(
    setting: Setting, paper: Paper, heard: TrainedAnswers, served: ServedAnswers, others: Mapping[str, Sequence[str]]
) -> Evaluated:
    """What a format as the artifact is worth. ``others``: answers of models beside base and tuned."""
    likely = {**heard.likely, "artifact": served.likely}
    found = Evaluated.of(
        setting.task,
        paper.read(paper.truth),
        paper.read_all({**heard.answers, **others, "artifact": [each.text for each in served.answers]}),
        paper.labels,
        RowFacts([holds_placeholder(example.messages) for example in paper.examples], paper.groups),
        Probabilities(
            automation_of(paper, served),
            likelihoods_of(paper, {**heard.losses, "artifact": served.losses}),
            distances([each.long for each in paper.passages], likely),
            without_numbers(likely),
        ),
    )
    if not setting.answer_schema:
        return found
    return found.matched(schema_check(setting.answer_schema, SCHEMA), paper.groups)


def _disturbed(models: Generators, paper: Paper, base: Sequence[list[float]], said: ServedAnswers) -> ServedAnswers:
    """With what the format that is loaded finds under changes, which is recorded of the artifact. At the end: another
    program may have to load it for that. ``base``: the base model's log-probabilities of the passages, which decide
    those that are recorded."""
    numbers = to_record(paper.passages, base, said.likely)
    disturbed = models.disturbed([paper.passages[number] for number in numbers], noisy=SHORT)
    return replace(said, disturbed=dict(zip(numbers, disturbed, strict=True)))


def _answers(
    paper: Paper, written: Mapping[str, Sequence[str]], served: ServedAnswers, marks: Marks | None
) -> Iterator[Answer]:
    """What each model answered to each test example, with the words around it."""
    limit, tokenizer, thoughts = paper.questions.limit, paper.tokenizer, paper.questions.thoughts
    none = [None] * len(paper.examples)
    named = [written.get(model, none) for model in ("fewShot", "verbose", "constrained", ELSEWHERE)]
    for e, right, artifact, base, tuned, few_shot, verbose, constrained, endpoint in zip(
        paper.examples, paper.truth, served.answers, written["base"], written["tuned"], *named, strict=True
    ):
        prompt, ids = _sent(tokenizer, e, thoughts=thoughts)
        yield Answer(
            messages=e.prompt,
            tools=e.tools,
            group=e.group,
            prompt=prompt,
            calls=paper.calls,
            label=right,
            base=base,
            few_shot=few_shot,
            verbose=verbose,
            constrained=constrained,
            endpoint=endpoint,
            tuned=tuned,
            artifact=artifact.text,
            max_tokens=limit,
            thoughts=marks,
            prompt_tokens=len(ids),
            # Those of a model that thinks end when a server's thoughts are as short, which is not known.
            stopped=artifact.ended and not marks,
            log_probability=artifact.log_probability if paper.checked is not None else None,
        )


def _sent(tokenizer: Any, example: Conversation, *, thoughts: bool) -> tuple[str, list[int]]:
    """What a server is sent instead of the messages, and the tokens of the prompt. Nothing, where it renders the chat
    as it was trained; one about tools it would not: each server does that in its own way."""
    ids = chat.prompt_ids(tokenizer, example.prompt, example.tools, thoughts=thoughts)
    about_tools = example.tools or any(each["role"] == "tool" or each.get("tool_calls") for each in example.prompt)
    return chat.as_sent(tokenizer, ids) if about_tools else ("", ids)


def index_and_hand_over(context: Context, result: StageResult) -> StageResult:
    """What follows an evaluation, made or reused: its place in the index, and what metric containers read of it. What
    was kept on the way is not needed any more."""
    remove_findings(context.store, context.input.run)
    if runs := context.input.hands_over:
        hand_over(context, result, runs)
    return index_stage(context, result)


def main() -> None:
    """Entry point of ``python -m finetune_jobs.evaluate``."""
    run_stage(Stage.EVALUATE, evaluate, after=index_and_hand_over)


if __name__ == "__main__":
    main()
