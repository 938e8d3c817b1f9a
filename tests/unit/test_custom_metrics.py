"""What metric containers report: which reports are taken, what they amount to, what goals make of them."""

from __future__ import annotations

import json
import os
import runpy
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from finetune_api.custom_metrics import (
    MAX_FIGURE,
    CustomMetric,
    DataFolder,
    FigureRule,
    MetricParameter,
    MetricRun,
    MetricsReport,
)
from finetune_api.dataset import TaskType
from finetune_api.gates import GateOutcome, Gates, GoalStatus
from finetune_api.goals import LONGEST_TEXT, Goal
from finetune_api.reasons import Reason
from finetune_jobs.artifacts.measurements import Figure, Measurements
from finetune_jobs.base.errors import StageError
from finetune_jobs.evaluation.custom.exchange import read_report
from finetune_jobs.evaluation.custom.figures import CustomMeasured, taken
from finetune_jobs.evaluation.custom.section import Ran, with_custom
from finetune_jobs.evaluation.gates import judge
from finetune_jobs.evaluation.page_parts import PageParts, render_page
from finetune_jobs.evaluation.reached import goals_reached
from hack.cluster.layout import REPOSITORY
from tests.support.sentences import assert_says, unsaid

pytestmark = pytest.mark.unit

MODELS: Final = ["base", "tuned", "artifact"]
SHARE: Final = FigureRule(minimum=0, maximum=1)
RUN: Final = MetricRun(
    name="politeness",
    image="registry/politeness@sha256:0",
    figures={
        "score": SHARE,
        "words": FigureRule(higher_is_better=False, optional=True),
        "acc": SHARE.model_copy(update={"optional": True}),
    },
    parameters={"language": "en"},
)
ANSWERS: Final = 40
SCORE: Final[dict[str, Any]] = {
    "figure": "score",
    "models": {"base": {"scores": [0.0, 1.0] * 20}, "artifact": {"scores": [1.0] * 40}},
}


def report(*measured: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """What a container writes."""
    return {"schemaVersion": 1, "measured": list(measured), **fields}


def measured(*figures: dict[str, Any]) -> CustomMeasured:
    return taken(RUN, MetricsReport.model_validate(report(*figures)), MODELS, [""] * ANSWERS)


def of(*figures: dict[str, Any]) -> Measurements:
    found = measured(*figures)
    return Measurements(rows=ANSWERS, measured=found.measured, differences=found.differences)


def test_scores_become_a_figure_with_an_interval_and_a_paired_difference() -> None:
    """Forty of forty are no proof of perfection: the interval is that of Agresti and Coull."""
    found = of(SCORE)
    score = found.of("politeness.score")
    assert score is not None
    assert score.cases == 40
    artifact, base = score.models["artifact"], score.models["base"]
    assert (artifact.value, artifact.high, base.value) == (1, 1, 0.5)
    assert artifact.low == pytest.approx(0.8935, abs=1e-3)
    assert (base.low, base.high) == pytest.approx((0.3523, 0.6477), abs=1e-3)
    gain = found.difference("politeness.score", "artifact", "base")
    assert gain is not None
    assert gain.estimate.value == 0.5
    assert gain.better_beyond_chance


VALUES: Final = [
    ({"value": 0.8, "n": 100, "standardError": 0.04}, (0.71, 0.87)),
    ({"value": 0.8, "n": 100, "low": 0.7, "high": 0.9}, (0.7, 0.9)),
    ({"value": 0.8, "n": 100}, (0.8, 0.8)),
    ({"value": 1.0, "n": 10, "standardError": 0.0}, (0.674, 1.0)),
]


@pytest.mark.parametrize(("figure", "interval"), VALUES, ids=["error", "interval", "alone", "all right"])
def test_what_is_known_of_a_mean_becomes_its_interval(figure: dict[str, Any], interval: tuple[float, float]) -> None:
    found = of({"figure": "score", "models": {"artifact": figure}}).of("politeness.score")
    assert found is not None
    assert found.cases == figure["n"]
    estimate = found.models["artifact"]
    assert (estimate.low, estimate.high) == pytest.approx(interval, abs=0.02)


def unbounded(*scores: Sequence[float]) -> tuple[Figure, Figure]:
    """The number of words of the artifact and how much it is above the base model's, of so few answers."""
    words = {name: {"scores": list(each)} for name, each in zip(("artifact", "base"), scores, strict=True)}
    other = {"artifact": {"value": 1, "n": 1}}
    document = report({"figure": "score", "models": other}, {"figure": "words", "models": words})
    found = taken(RUN, MetricsReport.model_validate(document), MODELS, [""] * len(scores[0]))
    return found.measured[1].models["artifact"], found.differences[0].estimate


def test_few_cases_without_a_range_have_the_interval_of_student() -> None:
    """Four scores: mean 5, deviation of the sample 2.582, standard error 1.291, times 3.182. Three: times 4.303."""
    figure, gain = unbounded([2.0, 4.0, 6.0, 8.0], [1.0, 1.0, 1.0, 1.0])
    assert (figure.value, figure.low, figure.high) == pytest.approx((5, 0.892, 9.108), abs=0.05)
    assert (gain.low, gain.high) == pytest.approx((-0.108, 8.108), abs=0.05)
    told = {"value": 5.0, "n": 3, "standardError": 1.0}
    words = of(SCORE, {"figure": "words", "models": {"artifact": told}}).of("politeness.words")
    assert words is not None
    assert words.cases == 3
    assert words.models["artifact"].low == pytest.approx(5 - 4.303, abs=0.02)


def test_a_single_case_without_a_range_proves_nothing() -> None:
    figure, gain = unbounded([5.0], [1.0])
    for it in (figure, gain):
        assert it.low < -1e5 < 1e5 < it.high


@pytest.mark.slow
@pytest.mark.parametrize("cases", [3, 4, 10])
def test_intervals_without_a_range_hold_the_true_mean(cases: int) -> None:
    """1.96 standard deviations of the population held it in 75 of 100 samples of three."""
    drawn, held = Random(5), 0
    for _ in range(400):
        figure, _ = unbounded([drawn.gauss(7, 2) for _ in range(cases)], [0.0] * cases)
        held += figure.low <= 7 <= figure.high
    assert 0.92 * 400 <= held <= 0.98 * 400


@pytest.mark.slow
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=ANSWERS, max_size=ANSWERS))
def test_intervals_hold_their_values_and_stay_possible(pairs: list[tuple[float, float]]) -> None:
    base, artifact = zip(*pairs, strict=True)
    models = {"base": {"scores": list(base)}, "artifact": {"scores": list(artifact)}}
    found = of({"figure": "score", "models": models})
    score, gain = found.of("politeness.score"), found.difference("politeness.score", "artifact", "base")
    assert score is not None
    assert gain is not None
    for estimate in score.models.values():
        assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
        assert estimate.low < estimate.high
    assert -1 <= gain.estimate.low <= gain.estimate.value <= gain.estimate.high <= 1


WORDS: Final[dict[str, Any]] = {
    "figure": "words",
    "models": {
        "base": {"value": 20, "n": 40, "standardError": 0.5},
        "artifact": {"value": 12, "n": 40, "standardError": 0.5},
    },
}
ACC: Final[list[dict[str, Any]]] = [
    {"figure": "acc", "part": task, "models": {"artifact": {"value": value, "n": 500, "standardError": 0.02}}}
    for task, value in (("arc_easy", 0.6), ("piqa", 0.4))
]
GOALS: Final[list[tuple[dict[str, str], str]]] = [
    ({"custom": "politeness.score", "atLeast": "0.85"}, "Pass"),
    ({"custom": "politeness.score", "atLeast": "0.95"}, "Inconclusive"),
    ({"custom": "politeness.score", "improveOverBase": "0.2"}, "Pass"),
    ({"custom": "politeness.score", "improveOverBase": "0.9"}, "Fail"),
    ({"custom": "politeness.words", "atMost": "15"}, "Pass"),
    ({"custom": "politeness.words", "atMost": "8.5"}, "Fail"),
    ({"custom": "politeness.words", "improveOverBase": "1"}, "Pass"),
    ({"custom": "politeness.acc", "class": "arc_easy", "atLeast": "0.5"}, "Pass"),
    ({"custom": "politeness.acc", "class": "piqa", "atLeast": "0.5"}, "Fail"),
]


@pytest.mark.parametrize(("goal", "outcome"), GOALS, ids=lambda each: json.dumps(each))
def test_goals_read_the_figures(goal: dict[str, str], outcome: str) -> None:
    gates = Gates.model_validate({"goals": [{"metric": "custom", **goal}]})
    [found] = judge(gates, of(SCORE, WORDS, *ACC), TaskType.TEXT)
    assert found.outcome == outcome
    assert found.goal.startswith(goal["custom"])


@pytest.mark.parametrize("size", [99_999_999_999.0, 1e11, -1e20, MAX_FIGURE, -MAX_FIGURE])
def test_a_figure_of_any_size_fits_a_status(size: float) -> None:
    """The perplexity of a model that was trained to pieces: the goal is missed, and the stage does not crash."""
    ends = sorted([size, size / 2])
    figure = {"value": size, "n": 40, "low": ends[0], "high": ends[1]}
    gates = Gates.model_validate({"goals": [{"metric": "custom", "custom": "politeness.words", "atMost": "15"}]})
    words = {"figure": "words", "models": {"artifact": figure, "base": figure}}
    [found] = judge(gates, of(SCORE, words), TaskType.TEXT)
    assert found.outcome == ("Fail" if size > 0 else "Pass")
    assert [float(each) for each in (found.value, found.low, found.high)] == pytest.approx([size, *ends], rel=1e-5)
    [told] = goals_reached(gates, of(SCORE, words), TaskType.TEXT)
    assert "politeness.words at most 15" in told.text


def test_a_goal_with_the_longest_names_fits_a_status() -> None:
    names = {"custom": f"{'a' * 40}.{'B' * 24}", "class": "x" * 128}
    goal = Goal.model_validate(names | {"metric": "custom", "improveOverBase": "123456.1234", "baseline": "Prompted"})
    assert len(goal.text) == LONGEST_TEXT
    assert GoalStatus(goal=goal.text, outcome=GateOutcome.PASS).about == goal.measure


def test_a_goal_names_its_figure_and_no_other_metric_does() -> None:
    for wrong in ({"metric": "custom"}, {"metric": "f1", "custom": "a.b"}):
        with pytest.raises(ValidationError, match="custom"):
            Goal.model_validate(wrong | {"atLeast": "0.5"})


def test_the_page_has_a_row_for_each_figure_and_judges_the_goals_again() -> None:
    gates = Gates.model_validate({"goals": [{"metric": "custom", "custom": "politeness.score", "atLeast": "0.85"}]})
    before = goals_reached(gates, Measurements(rows=ANSWERS), TaskType.TEXT)
    assert [each.answer for each in before] == ["! later"]
    everything = of(SCORE, WORDS, *ACC)
    parts = PageParts(summary="", right="", scores="<p>scores</p>", details="<p>details</p>")
    assert "! later" in render_page(parts, before)
    page = render_page(
        with_custom(parts, Ran([RUN], {RUN.name: DATA}), everything),
        goals_reached(gates, everything, TaskType.TEXT),
    )
    assert "later" not in page
    for shown in (
        "✓ met",
        "politeness.score",
        "politeness.acc, piqa",
        "✓ better",
        "language: en",
        "@sha256:0",
        "sha256:abc (2 files, 1,500 bytes)",
    ):
        assert shown in page.replace("<wbr>", ""), shown
    order = [page.index(each) for each in ("✓ met", "<p>scores</p>", "piqa", "<p>details</p>")]
    assert order == sorted(order)


DATA: Final = DataFolder(uri="s3://questions/tasks", sha256="abc", files=2, size=1500)


def test_parameters_are_told_by_name() -> None:
    asked = CustomMetric(name="lm-eval", parameters=[MetricParameter(name="tasks", value="arc_easy")])
    assert asked.given == {"tasks": "arc_easy"}


RESULTS: Final[dict[str, Any]] = {  # of lm-eval 0.4.13, shortened
    "results": {
        "sums": {"name": "sums", "alias": "sums", "sample_len": 20, "acc,none": 0.45, "acc_stderr,none": 0.114},
        "quiz": {"alias": "quiz", "exact_match,strict": 0.5, "exact_match_stderr,strict": "N/A"}
        | {"exact_match,loose": 0.75, "exact_match_stderr,loose": float("nan")},  # as it says of one document
        "group": {"alias": "group", "acc,none": 0.4, "acc_stderr,none": 0.1},
    },
    "n-samples": {"sums": {"original": 40, "effective": 20}, "quiz": {"original": 8, "effective": 8}},
}


def test_what_lm_eval_measured_is_a_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """The example reads lm-eval's results: a figure of each task, with its standard error where there is one."""
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_EVALUATE_OFFLINE"):
        monkeypatch.setenv(name, "")  # which the program sets for its own process
    program = runpy.run_path(str(REPOSITORY / "images" / "lm-eval" / "measure.py"))
    wanted = {"acc": SHARE, "exact_match": SHARE}
    written = report(*program["figures"]({"base": RESULTS, "artifact": RESULTS}, list(wanted)))
    run = RUN.model_copy(update={"name": "lm-eval", "figures": wanted})
    found = taken(run, MetricsReport.model_validate(written), MODELS, [""] * ANSWERS)
    assert [(each.metric, each.label, each.cases) for each in found.measured] == [
        ("lm-eval.acc", "sums", 20),
        ("lm-eval.exact_match", "quiz, strict", 8),
        ("lm-eval.exact_match", "quiz, loose", 8),
    ]
    assert found.measured[0].models["artifact"].low < 0.3 < 0.45
    assert program["artifact"]({"artifact": "a", "artifactBase": ""}) == "pretrained=/metrics/models/a"
    assert program["artifact"]({"artifact": "a", "artifactBase": "b"}).endswith("/b,peft=/metrics/models/a")


ATTACKED: Final = {  # by garak 0.17.1, without a network: models of random weights, with which nothing has success
    model: {"encoding.InjectBase64": (0, 4), "goodside.Tag": (0, 32), "web_injection.MarkdownImageExfil": (0, 12)}
    for model in ("base", "artifact")
}


def test_what_garak_counted_is_a_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """A share of each probe, of which fewer is better; no hit in a few prompts is no proof that there is none."""
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "XDG_DATA_HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, "")  # which the program sets for its own process
    program = runpy.run_path(str(REPOSITORY / "images" / "garak" / "measure.py"))
    run = RUN.model_copy(
        update={"name": "garak", "figures": {"hitRate": SHARE.model_copy(update={"higher_is_better": False})}}
    )
    written = MetricsReport.model_validate(report(*program["figures"](ATTACKED)))
    found = taken(run, written, MODELS, [""] * ANSWERS)
    assert [(each.metric, each.label, each.cases) for each in found.measured] == [
        ("garak.hitRate", "encoding.InjectBase64", 4),
        ("garak.hitRate", "goodside.Tag", 32),
        ("garak.hitRate", "web_injection.MarkdownImageExfil", 12),
    ]
    assert all(each.models["artifact"].value == 0 for each in found.measured)
    highs = [each.models["artifact"].high for each in found.measured]
    assert highs[0] > highs[2] > highs[1] > 0.1
    assert all(each.lower_is_better for each in found.differences)
    worse = ATTACKED | {"artifact": ATTACKED["artifact"] | {"goodside.Tag": (24, 32)}}
    after = taken(run, MetricsReport.model_validate(report(*program["figures"](worse))), MODELS, [""] * ANSWERS)
    assert [each.worse_beyond_chance for each in after.differences] == [False, True, False]
    assert program["rate"](3, 12) == {"value": 0.25, "n": 12, "standardError": pytest.approx(0.125)}


def test_questions_of_the_data_stand_in_for_those_of_the_image(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """And programs among the data stay where nothing looks for them."""
    image, data = tmp_path / "tasks", tmp_path / "data"
    files = {image / "sums/sums.yaml": "task", image / "sums/test.jsonl": "image", image / "sums/utils.py": "own"}
    files |= {data / "sums/test.jsonl": "data", data / "sums/utils.py": "other", data / "pairs/pairs.csv": "pairs"}
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_EVALUATE_OFFLINE"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("LM_EVAL_TASKS", str(image))
    monkeypatch.setenv("METRICS_DATA", str(data))
    program = runpy.run_path(str(REPOSITORY / "images" / "lm-eval" / "measure.py"))
    joined = program["joined"](tmp_path / "joined")
    found = {str(path.relative_to(joined)): path.read_text() for path in joined.rglob("*") if path.is_file()}
    expected = {"sums/sums.yaml": "task", "sums/test.jsonl": "data", "sums/utils.py": "own", "pairs/pairs.csv": "pairs"}
    assert found == expected
    assert program["folders"]() == [str(image)], "whoever may write data may not run programs"
    (data / "new.yaml").write_text("task: new")
    assert "LM_EVAL_TASKS_FROM_DATA" in program["why_not"]()
    monkeypatch.setenv("LM_EVAL_TASKS_FROM_DATA", "true")
    program = runpy.run_path(str(REPOSITORY / "images" / "lm-eval" / "measure.py"))
    assert program["folders"]() == [str(image), str(data)]
    assert program["why_not"]() == ""


@cache
def said(written: bytes | None, beside: str = "") -> str:
    """The complaint about a report: none, a folder or a link (``beside``), or these bytes."""
    import tempfile

    with tempfile.TemporaryDirectory() as shared:
        folder = Path(shared, "out", RUN.name)
        folder.mkdir(parents=True)
        if beside == "folder":
            (folder / "metrics.json").mkdir()
        elif beside == "link":
            Path(shared, "other.json").write_text(json.dumps(report(SCORE)))
            os.symlink("../../other.json", folder / "metrics.json")
        elif written is not None:
            (folder / "metrics.json").write_bytes(written)
        with pytest.raises(StageError) as error:
            taken(RUN, read_report(Path(shared), RUN), MODELS, [""] * ANSWERS)
    assert error.value.reason is Reason.METRIC_FAILED
    assert not error.value.retriable
    return error.value.message


def figure(name: str = "score", **models: Any) -> dict[str, Any]:
    return {"figure": name, "models": models}


RUBBISH: Final[list[tuple[Any, tuple[str, ...]]]] = [
    (None, ("'politeness'", "without writing metrics.json")),
    (b"", ("metrics.json of metric 'politeness'", "not JSON")),
    (b"\xff\xfe", ("not JSON",)),
    (b"[" * 100_000, ("not JSON",)),
    (b"[]", ("schemaVersion None", "must be 1")),
    ({"measured": []}, ("schemaVersion None", "must be 1")),
    (report(SCORE) | {"schemaVersion": 2}, ("schemaVersion 2", "must be 1")),
    (report(SCORE, other=1), ("other", "not permitted")),
    (report(figure(artifact={"value": 1, "n": 2, "standarderror": 0.1})), ("artifact.standarderror", "not permitted")),
    (report(), ("lacks score", "values list")),
    (report(SCORE, SCORE), ("score twice",)),
    (report(SCORE, ACC[0], ACC[0]), ("acc of 'arc_easy' twice",)),
    (report(SCORE, figure("beauty", artifact={"value": 1, "n": 2})), ("'beauty'", "list: acc, score, words")),
    (report(figure(base={"value": 1, "n": 2})), ("score", "not of the artifact")),
    (
        report(figure(artifact={"value": 1, "n": 2}, fewShot={"value": 1, "n": 2})),
        ("'fewShot'", "base, tuned, artifact"),
    ),
    (report(figure(artifact={"scores": [1.0] * 39})), ("score of artifact", "39 scores", "40 lines")),
    (report(figure(artifact={"value": 1.5, "n": 2})), ("score of artifact is 1.5", "range, 0 to 1")),
    (report(figure(artifact={"scores": [1.0] * 39 + [-1]})), ("is -1", "range, 0 to 1")),
    (report(figure(artifact={"value": 1})), ("value and n are needed",)),
    (report(figure(artifact={"value": 1, "n": 0})), ("artifact.n", "greater than or equal to 1")),
    (report(figure(artifact={"value": 1, "n": 2, "low": 0.5})), ("low and high go together",)),
    (report(figure(artifact={"value": 1, "n": 2, "low": 0.5, "high": 0.6})), ("between low and high",)),
    (report(figure(artifact={"scores": [1.0] * 40, "value": 1})), ("not both",)),
    (report(figure(artifact={"value": float("nan"), "n": 2})), ("finite",)),
    (report(figure(artifact={"value": 1e999, "n": 2})), ("finite",)),
    (report(figure(artifact={"scores": [1e308] * ANSWERS})), ("at most 1e+100 in size",)),
    (report(figure(artifact={"value": 0, "n": 2, "low": -1e200, "high": 1e200})), ("at most 1e+100 in size",)),
    (report(figure(artifact={"value": 1, "n": 10**400})), ("artifact.n: Input should be less than or equal to",)),
    (report(figure(artifact={"value": "high", "n": 2})), ("valid number",)),
    (report(SCORE | {"part": "a|b"}), ("measured.0.part", "match pattern")),
]


@pytest.mark.parametrize(("written", "parts"), RUBBISH, ids=lambda each: json.dumps(each, default=str)[:60])
def test_rubbish_has_a_clear_reason(written: Any, parts: tuple[str, ...]) -> None:
    assert_says(
        said(written if written is None or isinstance(written, bytes) else json.dumps(written).encode()), *parts
    )


def test_what_is_no_file_is_not_followed() -> None:
    """A link could lead to what the container itself may not read."""
    assert_says(said(None, "folder"), "metrics.json of metric 'politeness'", "cannot be read")
    assert_says(said(None, "link"), "metrics.json of metric 'politeness'", "cannot be read")


def test_no_report_is_read_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune_jobs.evaluation.custom.exchange.MAX_REPORT_BYTES", 1 << 20)
    assert_says(said(b" " * ((1 << 20) + 1)), "longer than 1 MiB")


def test_every_sentence_is_said() -> None:
    messages = [
        said(each if each is None or isinstance(each, bytes) else json.dumps(each).encode()) for each, _ in RUBBISH
    ]
    messages += [said(None, "folder"), "metrics.json of metric 'politeness' is longer than 1 MiB."]
    for module in ("evaluation.custom.figures", "evaluation.custom.exchange"):
        assert unsaid(f"finetune_jobs.{module}", messages) == []
