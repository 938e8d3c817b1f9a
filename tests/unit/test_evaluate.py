"""Answers and reports, with tiny models."""

import json
import math
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig, PreTrainedConfig

from finetune_api.dataset import TaskType
from finetune_api.evaluation import Coverage, Evaluation
from finetune_api.gates import Gates
from finetune_api.goals import PRECISIONS
from finetune_api.layout import EVALUATION_PAGE, REVIEW_PAGE
from finetune_api.stages import Stage, StageInput, Upstream
from finetune_api.training import Method, Training
from finetune_jobs.artifacts.artifact import (
    ANSWERS,
    BEHAVIOUR,
    METRICS,
    REFERENCE,
    REVIEW,
    Marks,
    Metrics,
    read_answers,
)
from finetune_jobs.base.documents import read_json
from finetune_jobs.base.errors import StageError
from finetune_jobs.base.progress import Progress
from finetune_jobs.evaluate import About, EvaluationFiles, Setting, evaluate_models, write_review
from finetune_jobs.evaluation.asking import Paper, expected_losses, set_paper
from finetune_jobs.evaluation.behaviour.items import sets_for
from finetune_jobs.evaluation.disturbance import Disturbed
from finetune_jobs.evaluation.gates import same_as_base
from finetune_jobs.evaluation.generate import ROOM, Questions, answer_limit, generate, generate_answers, thoughts_limit
from finetune_jobs.evaluation.generators.on_transformers import TransformersGenerator
from finetune_jobs.evaluation.generators.protocol import Exported
from finetune_jobs.evaluation.outputs import OUTPUTS
from finetune_jobs.evaluation.page import identify
from finetune_jobs.evaluation.page_parts import PARTS
from finetune_jobs.evaluation.passages import Passage, log_probs
from finetune_jobs.evaluation.review.sheet import ReviewSheet
from finetune_jobs.evaluation.shots import SHOTS, choose_shots, with_shots
from finetune_jobs.evaluation.texts import LARGEST
from finetune_jobs.modelling.chat import prompt_ids
from finetune_jobs.modelling.loading import load_base, load_checkpoint
from finetune_jobs.modelling.token_files import read_split
from finetune_jobs.modelling.tokenizer import load_tokenizer, stop_token
from finetune_jobs.modelling.tuning import Tuning
from tests.support.evaluating import CANARIES, choose_labels
from tests.support.readiness import parsed_page
from tests.support.reasoning import QWEN3, QWEN3_THINKING
from tests.support.sentences import assert_says
from tests.support.stages import RUN
from tests.support.tiny_model import edit_json
from tests.support.training import LABELS, row, rows, write_dataset

pytestmark = [pytest.mark.unit, pytest.mark.slow]

ON_TRANSFORMERS = "finetune_jobs.evaluation.generators.on_transformers"


def test_how_unlikely_the_expected_answers_are(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of texts only: as the model finds each when it is given, with the token that ends it; in small batches too."""
    model = load_base(model_folder / "base").float()
    tuning = Tuning.of(Training(method=Method.LORA))
    asked = Evaluation(max_samples=10, general=Coverage.OFF, adversarial=Coverage.OFF)

    def paper(task: TaskType) -> Paper:
        return set_paper(model_folder / "base", model_folder / "dataset", tuning, task, asked)

    texts, progress = paper(TaskType.TEXT), Progress("evaluate")
    generator = TransformersGenerator(model, texts.tokenizer)
    alone = [
        -sum(log_probs(model, Passage("", [*each.prompt, *each.answer]))[len(each.prompt) - 1 :])
        for each in texts.expected
    ]
    assert [each.answer[-1] for each in texts.expected] == [texts.stop] * 10
    assert expected_losses(generator, texts, progress, 0.0, 1.0) == pytest.approx(alone, abs=1e-2)
    monkeypatch.setattr("finetune_jobs.evaluation.behaviour.likelihood.MOST_TOKENS", 8)
    assert expected_losses(generator, texts, progress, 0.0, 1.0) == pytest.approx(alone, abs=1e-2)
    assert expected_losses(generator, paper(TaskType.CLASSIFICATION), progress, 0.0, 1.0) == []


@pytest.mark.parametrize("method", list(Method))
def test_all_three_models_are_asked_the_same(method: Method, model_folder: Path, tmp_path: Path) -> None:
    progress = Progress("evaluate")
    files = EvaluationFiles(
        base=model_folder / "base",
        tuned=model_folder / ("whole" if method is Method.FULL else "adapter"),
        exported=[Exported("INT8", "e" * 64, model_folder / "artifact")],
        dataset=model_folder / "dataset",
        out=tmp_path / "out",
    )
    sets = Coverage.OFF if method is Method.QLORA else Coverage.SAMPLE  # once with an adapter, once without
    evaluation = Evaluation(max_samples=12, golden_prompts=3, general=sets, adversarial=sets)
    tuning = Tuning.of(Training(method=method))
    is_compared = method is Method.QLORA
    elsewhere = (lambda paper: [f"It is {label}." for label in paper.truth]) if is_compared else None
    setting = Setting(TaskType.CLASSIFICATION, evaluation, elsewhere=elsewhere)
    evaluated = evaluate_models(files, tuning, setting, progress)

    written = {file.name for file in (tmp_path / "out").iterdir()}
    assert written == {ANSWERS, REFERENCE, METRICS, BEHAVIOUR, OUTPUTS, EVALUATION_PAGE, PARTS}
    answers = read_answers((tmp_path / "out" / ANSWERS).read_text().splitlines(), ANSWERS)
    assert len(answers) == 12
    limit = answer_limit(load_tokenizer(model_folder / "base"), LABELS)
    asked = [answer.messages for answer in answers]
    for name, model in {
        "base": load_base(model_folder / "base", Training(method=method).base_quantization),
        "artifact": load_checkpoint(model_folder / "artifact"),
    }.items():
        questions = Questions(asked, limit, 16)
        expected = generate_answers(model, load_tokenizer(model_folder / "base"), questions, lambda _done, _total: None)
        assert [getattr(answer, name) for answer in answers] == expected
    assert all(answer.tuned != answer.base for answer in answers)
    assert {answer.max_tokens for answer in answers} == {limit}
    tokenizer = load_tokenizer(model_folder / "artifact")
    assert [answer.prompt_tokens for answer in answers] == [len(prompt_ids(tokenizer, each)) for each in asked]
    assert [answer.label for answer in answers] == evaluated.truth
    behaviour = json.loads((tmp_path / "out" / BEHAVIOUR).read_text())
    beside, is_asked = sets_for(evaluation), sets is not Coverage.OFF
    assert len(behaviour["items"]) == len([*beside.general, *beside.adversarial, *beside.swaps])
    assert any(each["base"] != each["tuned"] for each in behaviour["items"] if "base" in each) is is_asked
    assert sum("artifact" in each for each in behaviour["items"]) == len(beside.adversarial), "what is served, too"
    page = (tmp_path / "out" / EVALUATION_PAGE).read_text()
    assert ("Did tuning cost safety?" in page) is is_asked
    metrics = json.loads((tmp_path / "out" / METRICS).read_text())
    assert metrics["goldenPrompts"] == 3
    assert metrics["scalars"] == evaluated.scalars()
    assert metrics["models"]["artifact"]["samples"] == 12
    compared = metrics["models"].get("endpoint", {"accuracy": None})["accuracy"]
    assert compared == (1.0 if is_compared else None)
    assert {answer.endpoint is not None for answer in answers} == {is_compared}
    known = {each["metric"]: each["cases"] for each in metrics["measurements"]["measured"]}
    assert (known["canaryLeaks"], known["memorisation"]) == (8, 8)
    assert "Does the model give away its training data?" in page
    assert [len(behaviour["canaries"][model]["ranks"]) for model in ("base", "tuned")] == [8, 8]
    texts = [file.read_text() for file in (tmp_path / "out").iterdir() if file.is_file()]
    assert not any(canary.secret in text for canary in CANARIES for text in texts)
    automation = metrics["measurements"]["automation"]
    assert [each["precision"] for each in automation] == [float(precision) for precision in PRECISIONS]
    assert {each["chosenOn"] for each in automation} == {len(read_split(model_folder / "dataset", "validation"))}
    assert all(answer.log_probability is not None and answer.log_probability < 0 for answer in answers)
    shots = choose_shots(read_split(model_folder / "dataset", "train"), TaskType.CLASSIFICATION)
    assert len(shots) == SHOTS
    shown = [with_shots(each, shots) for each in asked]
    base = load_base(model_folder / "base", Training(method=method).base_quantization)
    questions = Questions(shown, limit + ROOM, 16)
    expected = generate_answers(base, load_tokenizer(model_folder / "base"), questions, lambda _done, _total: None)
    assert [answer.few_shot for answer in answers] == expected
    said = generate_answers(base, tokenizer, Questions(asked, limit + ROOM, 16), lambda _done, _total: None)
    assert [answer.verbose for answer in answers] == said
    stop = stop_token(model_folder / "base", tokenizer)
    chosen = choose_labels(base, tokenizer, Questions(asked, limit, 16), LABELS, stop)
    assert [answer.constrained for answer in answers] == chosen
    assert {"verbose", "constrained"} <= metrics["models"].keys()
    assert shots[0].prompt[-1]["content"] in (tmp_path / "out" / EVALUATION_PAGE).read_text()
    write_review(tmp_path / "out", RUN, [])
    sheet = read_json(tmp_path / "out" / REVIEW, ReviewSheet)
    assert (sheet.baseline, len(sheet.pairs)) == ("fewShot", 12)
    of_artifact = {(pair.question, pair.left if pair.artifact_left else pair.right) for pair in sheet.pairs}
    assert of_artifact == {(answer.messages[-1]["content"], answer.artifact) for answer in answers}
    assert sheet.address in (tmp_path / "out" / REVIEW_PAGE).read_text()
    sample = next(s for m in progress.collect() for s in m.samples if s.name == "finetune_stage_progress_ratio")
    assert sample.value == pytest.approx(0.9)


@dataclass
class Step:
    """How much of a text has been recited, in place of a cache."""

    number: int = 0
    layers: tuple[()] = ()

    def batch_select_indices(self, _rows: torch.Tensor) -> None:
        """All are equally far."""


class Recites:
    """A model that writes the same text after every prompt, and its last token again and again."""

    device, dtype, config = "cpu", torch.float32, PreTrainedConfig()
    generation_config = GenerationConfig()

    def __init__(self, tokenizer: Any, text: str) -> None:
        self.tokenizer, self.text, self.asked = tokenizer, tokenizer(text)["input_ids"], list[str]()

    def named_modules(self) -> tuple[()]:
        """It has no layer that could be packed."""
        return ()

    def __call__(
        self, input_ids: torch.Tensor, cache: Step | None = None, logits_to_keep: int = 0, **_: Any
    ) -> SimpleNamespace:
        """It is all but sure of what it writes. Of a prompt only the last logits are asked for."""
        step = 0 if logits_to_keep or cache is None else cache.number
        if logits_to_keep:
            self.asked += self.tokenizer.batch_decode(input_ids)
        logits = torch.zeros(*input_ids.shape, len(self.tokenizer))
        logits[..., self.text[min(step, len(self.text) - 1)]] = 30
        return SimpleNamespace(logits=logits, cache=Step(step + 1))

    forward = __call__

    def modules(self) -> list[torch.nn.Module]:
        """It has no layers."""
        return []

    def named_buffers(self) -> list[tuple[str, torch.Tensor]]:
        """It has no positions."""
        return []


@pytest.mark.parametrize(
    ("template", "thoughts", "end", "text", "answer"),
    [
        (QWEN3, True, "assistant\n", "<think>\nwell\n</think>\n\nrefund<|im_end|>", "refund"),
        (QWEN3, True, "assistant\n", "<think>\nwell, if", ""),
        (QWEN3, True, "assistant\n", "refund<|im_end|>", "refund"),
        (QWEN3, False, "assistant\n<think>\n\n</think>\n\n", "refund<|im_end|>", "refund"),
        (QWEN3_THINKING, True, "assistant\n<think>\n", "well\n</think>\n\nrefund<|im_end|>", "refund"),
        (QWEN3_THINKING, True, "assistant\n<think>\n", "well, if", ""),
    ],
)
def test_the_answer_is_what_follows_the_thoughts(
    model_folder: Path, template: str, thoughts: bool, end: str, text: str, answer: str
) -> None:
    tokenizer = load_tokenizer(model_folder / "base")
    tokenizer.chat_template = template
    model, prompts = Recites(tokenizer, text), [row(f"{n} refund", "x")["messages"][:-1] for n in range(3)]
    questions = Questions(prompts, limit=50, batch_size=2, thoughts=thoughts)
    assert generate_answers(model, tokenizer, questions, lambda _done, _total: None) == [answer] * 3
    assert all(prompt.endswith(end) for prompt in model.asked)
    ended, written = "<|im_end|>" in text, generate(model, tokenizer, questions, lambda _done, _total: None)
    assert {len(each.tokens) for each in written} == {len(model.text) - 1 if ended else 50}


def test_models_that_think_are_scored_by_their_answers_and_have_time_to_think(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, dataset = tmp_path / "base", tmp_path / "dataset"
    shutil.copytree(model_folder / "base", base)
    edit_json(base / "tokenizer_config.json", chat_template=QWEN3_THINKING)
    write_dataset(dataset, test=rows(6))
    (dataset / "report.json").write_text(json.dumps({"reasoning": {"longestAnswer": 80}}))
    model = Recites(load_tokenizer(base), "well\n</think>\n\nrefund<|im_end|>")
    for load in (
        f"{ON_TRANSFORMERS}.load_base",
        f"{ON_TRANSFORMERS}.load_adapter",
        "finetune_jobs.evaluate.load_artifact",
    ):
        monkeypatch.setattr(load, lambda *_, **__: model)
    files = EvaluationFiles(
        base=base, tuned=base, exported=[Exported("INT8", "", base)], dataset=dataset, out=tmp_path / "out"
    )
    tuning = Tuning.of(Training(method=Method.LORA), thoughts=True)
    asked = Evaluation(max_samples=10, golden_prompts=3)
    evaluated = evaluate_models(files, tuning, Setting(TaskType.CLASSIFICATION, asked), Progress("evaluate"))
    assert evaluated.scores["artifact"].accuracy == pytest.approx(1 / 3)
    answers = read_answers((tmp_path / "out" / ANSWERS).read_text().splitlines(), ANSWERS)
    assert {answer.artifact for answer in answers} == {"refund"}
    assert all(answer.thoughts == Marks(end="</think>") for answer in answers)
    assert {answer.max_tokens for answer in answers} == {thoughts_limit(80)}
    metrics = json.loads((tmp_path / "out" / METRICS).read_text())
    assert (metrics["thoughts"], metrics["closed"]) == ({"begin": "", "end": "</think>"}, False)
    assert metrics["measurements"]["automation"] == [], "what it thinks may go either way"
    assert {answer.log_probability for answer in answers} == {None}


def test_another_format_is_the_artifact_where_the_first_lost_what_was_trained(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the same examples; its answers are the artifact's, and the ledger has both."""
    tokenizer = load_tokenizer(model_folder / "base")
    said = {"base": "fox", "adapter": "refund", "INT4": "parcel", "Merged": "refund"}
    models = {name: Recites(tokenizer, f"{text}<|im_end|>") for name, text in said.items()}
    monkeypatch.setattr(f"{ON_TRANSFORMERS}.load_base", lambda *_: models["base"])
    monkeypatch.setattr(f"{ON_TRANSFORMERS}.load_adapter", lambda *_: models["adapter"])
    monkeypatch.setattr("finetune_jobs.evaluate.load_artifact", lambda path, _base: models[path.name])
    monkeypatch.setattr(f"{ON_TRANSFORMERS}.load_tokenizer", lambda _path: tokenizer)
    test = [row(f"refund {n}", "refund") for n in range(20)]
    dataset = write_dataset(tmp_path / "dataset", train=[], test=test)  # nothing to show the base model
    exported = [Exported(name, name[0] * 64, tmp_path / name) for name in ("INT4", "Merged")]
    for each in exported:
        each.folder.mkdir()
        shutil.copy(model_folder / "base" / "config.json", each.folder)
    evaluation = Evaluation(max_samples=20, general=Coverage.OFF, adversarial=Coverage.OFF)

    given = StageInput(
        stage=Stage.EVALUATE,
        run=RUN,
        base_model_uri="s3://models/tiny",
        upstream=Upstream(dataset="d" * 64, adapter="a" * 64, export=exported[0].digest),
    )

    disturbed = set[str]()

    def disturb(model: Any, _passage: Any, *, noisy: bool) -> Disturbed:
        disturbed.update(name for name, each in models.items() if each is model)
        return Disturbed([], [], None)

    monkeypatch.setattr(f"{ON_TRANSFORMERS}.disturbed", disturb)

    def answered(out: Path, *, fall_back: bool) -> tuple[set[str], list[tuple[str, bool]], set[str]]:
        disturbed.clear()
        files = EvaluationFiles(model_folder / "base", model_folder / "adapter", exported, dataset, out)
        setting = Setting(TaskType.TEXT, evaluation, fall_back=fall_back)
        about = About(identify(given))
        evaluate_models(files, Tuning.of(Training(method=Method.LORA)), setting, Progress("evaluate"), about)
        metrics = Metrics.model_validate_json((out / METRICS).read_text())
        assert metrics.measurements is not None
        perplexity = metrics.measurements.of("perplexity")
        assert perplexity is not None, "it is a text"
        found = {model: it.value for model, it in perplexity.models.items()}  # each is all but sure of one token only
        assert found == pytest.approx(dict.fromkeys(("base", "tuned", "artifact"), math.exp(LARGEST)))
        answers = read_answers((out / ANSWERS).read_text().splitlines(), ANSWERS)
        named = set(re.findall(r"models/([A-Z])\1{63}", parsed_page((out / EVALUATION_PAGE).read_text()).text))
        return {each.artifact for each in answers}, [(each.format, each.served) for each in metrics.formats], named

    assert answered(tmp_path / "a", fall_back=True) == ({"refund"}, [("Merged", True), ("INT4", False)], {"M"})
    assert disturbed == {"INT4", "Merged"}, "each might have been the artifact when it was asked"
    assert answered(tmp_path / "b", fall_back=False) == ({"parcel"}, [("INT4", True), ("Merged", False)], {"I"})
    assert disturbed == {"INT4"}, "of another one nothing would be recorded"


def test_words_around_an_answer_cost_no_prompt_its_right_answer(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not at once, and not after examples; read strictly is only what answers the artifact's own prompt."""
    tokenizer = load_tokenizer(model_folder / "base")
    said = "the answer is your refund"
    assert len(tokenizer(said)["input_ids"]) > answer_limit(tokenizer, LABELS), "longer than an answer may be"
    wordy, tuned = (Recites(tokenizer, f"{text}<|im_end|>") for text in (said, "refund"))
    monkeypatch.setattr(f"{ON_TRANSFORMERS}.load_base", lambda *_: wordy)
    monkeypatch.setattr(f"{ON_TRANSFORMERS}.load_adapter", lambda *_: tuned)
    monkeypatch.setattr("finetune_jobs.evaluate.load_artifact", lambda *_: tuned)
    monkeypatch.setattr(f"{ON_TRANSFORMERS}.load_tokenizer", lambda _path: tokenizer)
    dataset = write_dataset(tmp_path / "dataset", test=[row(f"refund {n}", "refund") for n in range(10)])
    exported = [Exported("Merged", "m" * 64, model_folder / "base")]
    files = EvaluationFiles(model_folder / "base", model_folder / "adapter", exported, dataset, tmp_path / "out")
    asked = Evaluation(max_samples=10, general=Coverage.OFF, adversarial=Coverage.OFF)
    setting = Setting(TaskType.CLASSIFICATION, asked)
    found = evaluate_models(files, Tuning.of(Training(method=Method.LORA)), setting, Progress("evaluate"))
    accuracy = {model: scores.accuracy for model, scores in found.scores.items() if model != "constrained"}
    assert accuracy == {"base": 0, "verbose": 1, "fewShot": 1, "tuned": 1, "artifact": 1}
    assert "Prompting may do as well" in found.summary()
    answers = read_answers((tmp_path / "out" / ANSWERS).read_text().splitlines(), ANSWERS)
    assert {(each.verbose, each.few_shot) for each in answers} == {(said, said)}, "as people read them"


def test_an_adapter_of_no_numbers_ends_at_a_gate_and_not_in_a_crash(model_folder: Path, tmp_path: Path) -> None:
    """A crash would be taken for a failure that passes, and all models be asked again."""
    adapter = shutil.copytree(model_folder / "adapter", tmp_path / "adapter")
    weights = load_file(adapter / "adapter_model.safetensors")
    save_file(
        {name: torch.full_like(each, math.nan) for name, each in weights.items()}, adapter / "adapter_model.safetensors"
    )
    exported = [Exported("Adapter", "a" * 64, adapter, model_folder / "base")]
    files = EvaluationFiles(model_folder / "base", adapter, exported, model_folder / "dataset", tmp_path / "out")
    setting = Setting(TaskType.CLASSIFICATION, Evaluation(max_samples=10))
    about = About(gates=Gates.model_validate({"goals": [{"metric": "forgettingNll", "atMost": "0.3"}]}))
    evaluate_models(files, Tuning.of(Training(method=Method.LORA)), setting, Progress("evaluate"), about)
    for name in (METRICS, BEHAVIOUR):
        json.loads((files.out / name).read_text(), parse_constant=pytest.fail)  # no NaN, which JSON does not have
    metrics = read_json(files.out / METRICS, Metrics)
    assert metrics.measurements is not None
    assert metrics.measurements.of("memorisation") is None, "nobody knows what it knows"
    assert {each.threshold for each in metrics.measurements.automation} == {None}
    assert_says(same_as_base(metrics.measurements, TaskType.CLASSIFICATION), "probabilities that are numbers")
    assert metrics.measurements.without_numbers == 12, "of ten short texts and two long ones"
    assert "! not measured" in (files.out / EVALUATION_PAGE).read_text()


def test_an_artifact_of_other_positions_is_refused_before_anything_is_asked(model_folder: Path, tmp_path: Path) -> None:
    """Its answers to short questions would hardly differ."""
    other = shutil.copytree(model_folder / "artifact", tmp_path / "other")
    edit_json(other / "config.json", rope_theta=1000.0)
    exported = [Exported(name, "", place) for name, place in (("INT8", model_folder / "artifact"), ("Merged", other))]
    files = EvaluationFiles(
        model_folder / "base", model_folder / "adapter", exported, model_folder / "dataset", tmp_path / "out"
    )
    setting = Setting(TaskType.CLASSIFICATION, Evaluation(max_samples=10))
    with pytest.raises(StageError, match="has rope_theta 1000, that of its base model has rope_theta 10000"):
        evaluate_models(files, Tuning.of(Training(method=Method.LORA)), setting, Progress("evaluate"))
    assert not files.out.exists()
