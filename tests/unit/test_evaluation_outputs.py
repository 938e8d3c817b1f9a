"""All that models say in an evaluation is written down, of each format too, whichever is served."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from finetune_api.dataset import TaskType
from finetune_api.evaluation import Coverage, Evaluation
from finetune_api.training import Method, Training
from finetune_jobs.artifacts.artifact import ANSWERS, BEHAVIOUR, REFERENCE, read_answers
from finetune_jobs.base.progress import Progress
from finetune_jobs.evaluate import EvaluationFiles, Setting, evaluate_models
from finetune_jobs.evaluation.generate import Generated, Questions
from finetune_jobs.evaluation.generators.protocol import Exported
from finetune_jobs.evaluation.outputs import OUTPUTS, Outputs, RawOutput, RawPrompt
from finetune_jobs.modelling.canaries import CANDIDATES
from finetune_jobs.modelling.tokenizer import load_tokenizer
from finetune_jobs.modelling.tuning import Tuning
from tests.support.evaluating import CANARIES
from tests.support.training import LABELS

pytestmark = [pytest.mark.unit, pytest.mark.slow]

Lines = dict[str, dict[str, Any]]


def lines_of(path: Path) -> Iterator[dict[str, Any]]:
    """Of a file as anybody would read it."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def by_id(path: Path) -> Lines:
    """All that a model said of each thing that it was asked."""
    found: Lines = {}
    for line in lines_of(path):
        known = found.setdefault(line.pop("id"), {})
        assert not known.keys() & line.keys(), "nothing twice"
        known |= line
    return found


@pytest.fixture(scope="module")
def evaluated(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluation of a model in two formats, of which the first is served, beside another one behind a URL."""
    out = tmp_path_factory.mktemp("outputs") / "out"
    formats = [
        Exported("INT8", "e" * 64, model_folder / "artifact"),
        Exported("Adapter", "f" * 64, model_folder / "adapter", model_folder / "base"),
    ]
    files = EvaluationFiles(model_folder / "base", model_folder / "adapter", formats, model_folder / "dataset", out)
    asked = Evaluation(max_samples=10, general=Coverage.SAMPLE, adversarial=Coverage.SAMPLE)
    setting = Setting(TaskType.CLASSIFICATION, asked, elsewhere=lambda paper: ["Refund."] * len(paper.examples))
    evaluate_models(files, Tuning.of(Training(method=Method.LORA)), setting, Progress("evaluate"))
    return out


def test_every_model_has_a_file_with_all_that_it_was_asked(evaluated: Path) -> None:
    found = {path.name.removesuffix(".jsonl.gz"): by_id(path) for path in (evaluated / OUTPUTS).iterdir()}
    assert found.keys() == {"prompts", "base", "tuned", "INT8", "Adapter", "endpoint"}
    answers = read_answers((evaluated / ANSWERS).read_text().splitlines(), ANSWERS)
    items = json.loads((evaluated / BEHAVIOUR).read_text())["items"]
    tests = {f"test/{number}" for number in range(len(answers))}
    sets = {name: {key for key in found["tuned"] if key.startswith(f"{name}/")} for name in ("general", "adversarial")}
    assert {key.partition("/")[2] for each in sets.values() for key in each} == {
        each["id"] for each in items if each["category"] != "bias"
    }
    bias = {f"bias/{each['id']}/{n}" for each in items if each["category"] == "bias" for n in (0, 1)}
    canaries = {f"canaries/{number}" for number in range(len(CANARIES))}
    texts = {key for key in found["prompts"] if key.startswith("texts/")}
    validation = {key for key in found["prompts"] if key.startswith("validation/")}
    assert len(texts) >= len((evaluated / REFERENCE).read_text().splitlines())
    assert validation
    beside = sets["general"] | sets["adversarial"] | bias | canaries | texts
    asked_of_base = {f"{name}/{n}" for name in ("testWithRoom", "testWithExamples") for n in range(len(answers))}
    assert found["base"].keys() == asked_of_base | beside
    assert found["tuned"].keys() == tests | beside
    for exported in ("INT8", "Adapter"):
        assert found[exported].keys() == tests | validation | sets["adversarial"] | texts
    assert found["prompts"].keys() == set().union(*(each.keys() for each in found.values())) - bias
    assert [each["text"] for each in found["endpoint"].values()] == ["Refund."] * len(answers)


def test_it_is_what_the_figures_were_made_of(evaluated: Path, model_folder: Path) -> None:
    """The format that is served, and the one that is not, whose answers stand nowhere else."""
    base, tuned, int8, adapter, prompts = (
        by_id(evaluated / OUTPUTS / f"{name}.jsonl.gz") for name in ("base", "tuned", "INT8", "Adapter", "prompts")
    )
    tokenizer = load_tokenizer(model_folder / "base")
    for number, answer in enumerate(read_answers((evaluated / ANSWERS).read_text().splitlines(), ANSWERS)):
        row = f"test/{number}"
        assert prompts[row]["messages"] == answer.messages
        assert prompts[f"testWithExamples/{number}"]["messages"][-1] == answer.messages[-1]
        assert prompts[row]["maxTokens"] == answer.max_tokens
        assert int8[row]["text"].strip() == int8[row].get("answer", int8[row]["text"]) == answer.artifact
        assert int8[row]["logProbability"] == answer.log_probability
        assert tuned[row]["text"].strip() == answer.tuned
        assert adapter[row]["logProbability"] < 0
        assert base[f"testWithRoom/{number}"]["label"] == answer.constrained in LABELS
        for said in (int8[row], base[f"testWithRoom/{number}"], adapter[row]):
            assert tokenizer.decode(said["tokens"], skip_special_tokens=True) == said["text"]
            assert said["ended"] in (True, False)
    assert any(int8[row]["text"] != adapter[row]["text"] for row in int8 if row.startswith("test/"))
    for item in json.loads((evaluated / BEHAVIOUR).read_text())["items"]:
        if item["category"] == "bias":
            assert [base[f"bias/{item['id']}/{n}"]["loss"] for n in (0, 1)] == item["baseLosses"]
        elif f"adversarial/{item['id']}" in tuned:
            assert int8[f"adversarial/{item['id']}"]["text"].strip() == item["artifact"]
    assert all(len(tuned[f"canaries/{n}"]["logProbabilities"]) == CANDIDATES for n in range(len(CANARIES)))
    reference = json.loads((evaluated / REFERENCE).read_text().splitlines()[0])
    [text] = [key for key, each in prompts.items() if each.get("text") == reference["text"]]
    assert (base[text]["logProbabilities"], int8[text]["logProbabilities"]) == (
        reference["base"],
        reference["artifact"],
    )


def test_thoughts_are_kept_and_the_answer_behind_them(tmp_path: Path) -> None:
    said = Generated("Refund", [5, 6], -0.5, False, "<think>hm</think>\n\nRefund")
    questions = Questions([[{"role": "user", "content": "back?"}]], 9, 1, ids=["test/0"])
    with Outputs(tmp_path) as outputs:
        outputs.begin("tuned")
        outputs.wrote(questions, [said], weighed=False)
    [line] = lines_of(tmp_path / "tuned.jsonl.gz")
    assert RawOutput.model_validate(line) == RawOutput(
        id="test/0", text=said.written, answer="Refund", tokens=[5, 6], ended=False
    )
    [line] = lines_of(tmp_path / "prompts.jsonl.gz")
    assert RawPrompt.model_validate(line) == RawPrompt(
        id="test/0", messages=[{"role": "user", "content": "back?"}], max_tokens=9
    )


def test_what_a_model_finds_impossible_is_told_from_what_it_was_not_asked(tmp_path: Path) -> None:
    found = [-0.5, -math.inf, math.nan]
    with Outputs(tmp_path) as outputs:
        outputs.begin("tuned")
        outputs.weighed(found)
    [line] = lines_of(tmp_path / "tuned.jsonl.gz")
    assert line["logProbabilities"] == [-0.5, "-Infinity", "NaN"]
    read = RawOutput.model_validate(line).log_probabilities
    assert read is not None
    assert (read[:2], math.isnan(read[2])) == (found[:2], True)


def test_what_has_no_name_is_not_left_out_silently(tmp_path: Path) -> None:
    said = Generated("Refund", [5], 0.0, True, "Refund")
    with Outputs(tmp_path) as outputs:
        outputs.begin("base")
        with pytest.raises(ValueError, match="longer"):
            outputs.wrote(Questions([[]], 9, 1), [said], weighed=False)


def test_the_time_is_not_in_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor their place: an evaluation that is made again has the same address."""
    for moment, name in enumerate(("one", "two")):
        monkeypatch.setattr("time.time", lambda moment=moment: 1e9 * (moment + 1))
        with Outputs(tmp_path / name) as outputs:
            outputs.begin("base")
            outputs.weighed([-0.5])
    for name in ("base", "prompts"):
        one, two = ((tmp_path / each / f"{name}.jsonl.gz").read_bytes() for each in ("one", "two"))
        assert one == two
