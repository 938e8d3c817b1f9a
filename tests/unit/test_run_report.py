"""The page of a run: what it takes from results of this version and of earlier ones, and when it is written."""

import json
from pathlib import Path

import pytest

from finetune_api.dataset import TaskType
from finetune_api.layout import RUN_REPORT, Lineage, output_folder, run_folder, run_report
from finetune_api.review import ReviewTerms
from finetune_api.stages import Stage, StageResult, Upstream
from finetune_api.usage import Usage
from finetune_jobs.artifacts.folders import publish_folder
from finetune_jobs.base.errors import StageError
from finetune_jobs.evaluation.page_parts import write_page
from finetune_jobs.publish import publish, sign_move_and_push
from finetune_jobs.reports.charts import Kind, LineChart
from finetune_jobs.run_report.page import RunFacts, render_run
from finetune_jobs.run_report.stored import write_run_report
from finetune_jobs.run_report.training import History, thinned, training_section
from finetune_jobs.run_report.usage import usage_section
from finetune_jobs.run_report.verdict import RunVerdict, ending_of, goals_of, verdicts_of
from finetune_jobs.runtime.runner import execute
from finetune_jobs.store.s3 import Store
from tests.support.publishing import publish_input
from tests.support.readiness import Parsed, assert_accessible, parsed_page
from tests.support.run_pages import REPORT, RUN, evaluation_parts, given, run_facts
from tests.support.seaweedfs import SeaweedFS
from tests.support.stages import RUN as PUBLISHED
from tests.support.stages import context
from tests.unit.test_jobs_artifact import WORSE, gated

pytestmark = [pytest.mark.unit, pytest.mark.slow]  # imports torch


def line(**entry: object) -> bytes:
    return json.dumps(entry).encode() + b"\n"


@pytest.mark.parametrize(
    ("log", "training", "validation"),
    [
        (b"", [], []),
        (line(loss=2.0, step=1) + line(eval_loss=1.5, step=1) + line(train_loss=9, step=1), [(1, 2.0)], [(1, 1.5)]),
        (b"no JSON\n[1]\n" + line(loss="x", step=1) + line(loss=1) + line(loss=1.0, step=2), [(2, 1.0)], []),
        (b'{"loss": NaN, "step": 1}\n{"loss": Infinity, "step": 2}\n{"loss": 1, "step": 3}\n', [(3, 1.0)], []),
    ],
    ids=["empty", "both", "faulty lines", "no numbers"],
)
def test_losses_are_read_from_the_log_and_faulty_lines_left_out(
    log: bytes, training: list[tuple[float, float]], validation: list[tuple[float, float]]
) -> None:
    found = History.read(log)
    assert (found.training, found.validation) == (training, validation)


def test_a_long_training_is_thinned_to_means_and_a_short_one_is_not() -> None:
    points = [(float(n), float(n % 2)) for n in range(1, 1001)]
    assert thinned(points, 1) == points
    assert thinned(points[:5], 2) == [(2.0, 0.5), (4.0, 0.5), (5.0, 1.0)]
    section = training_section(History(training=points, validation=[(1000.0, 0.4)]), {})
    assert section.chart
    assert section.chart.lines[0].path.count("L") < 200
    assert "mean of 5 steps" in section.text
    assert section.table
    assert section.table.rows[0].cells == ["0.5000", "0.4000"]


def test_without_a_log_there_are_facts_and_no_chart() -> None:
    section = training_section(History(), {"steps": "1200", "trainLoss": "0.1", "other": "1"})
    assert section.chart is None
    assert [(fact.name, fact.values) for fact in section.facts] == [
        ("Steps", ["1,200"]),
        ("Final training loss", ["0.1"]),
    ]


@pytest.mark.parametrize("values", [[0.0], [1.0, 1.0], [5.0, 0.001]])
def test_every_point_of_a_chart_is_inside_it(values: list[float]) -> None:
    chart = LineChart.of({Kind.TRAIN: list(enumerate(values)), Kind.VALIDATION: []}, "losses")
    [drawn] = chart.lines
    assert len(drawn.dots) == len(values)
    assert all(0 <= dot.place <= 1 and 0 <= dot.y <= chart.height for dot in drawn.dots)
    assert all(0 <= each.y <= chart.height for each in chart.grid)


def test_what_results_have_used_is_summed_and_earlier_runs_are_named() -> None:
    earlier = RUN.model_copy(update={"id": "r0"})
    made = {
        Stage.PREPARE: Lineage(run=earlier, usage=Usage(seconds=30, cpu_seconds=40)),
        Stage.TRAIN: Lineage(run=RUN, usage=Usage(seconds=3600, gpu_seconds=7200, cost_usd="5.00", energy_wh=1400.5)),
        Stage.EXPORT: Lineage(run=RUN),
    }
    section = usage_section(made, RUN)
    assert section
    assert {row.name: list(row.cells) for row in section.table.rows} == {
        "prepare, by an earlier run": ["30.0 s", "40.0 s", "–", "–", "–"],
        "train": ["1 h 00 min", "0.0 s", "2 h 00 min", "5.00", "1,400.50"],
        "export": ["–"] * 5,
        "total": ["1 h 00 min", "40.0 s", "2 h 00 min", "5.00", "1,400.50"],
    }
    assert usage_section({Stage.EXPORT: Lineage(run=RUN)}, RUN) is None


@pytest.mark.parametrize(
    ("said", "answer", "uri"),
    [
        (RunVerdict({}, "b"), "✓ published", "s3://a"),
        (RunVerdict({"channel": "candidate"}, "b"), "! candidate", "s3://a"),
        (RunVerdict({}, why="Missed f1."), "✕ stopped", ""),
        (RunVerdict({}, why="2 votes.", waits=True), "! waiting", ""),
    ],
)
def test_how_a_run_ended(said: RunVerdict, answer: str, uri: str) -> None:
    ending = ending_of(said, "s3://a" if said.artifact else "")
    assert (ending.answer, ending.artifact) == (answer, uri)
    assert said.why in ending.text


@pytest.mark.parametrize("scalars", [{}, {"goals": "no JSON"}, {"goals": "[]"}, {"judge": "{", "review": "[]"}])
def test_goals_and_verdicts_of_another_version_are_left_out(scalars: dict[str, str]) -> None:
    assert goals_of(scalars, ["accuracy at least 0.9"]) == []
    assert verdicts_of(scalars, ReviewTerms()) == []


def test_the_page_has_every_part_and_is_accessible() -> None:
    page = parsed_page(render_run(given(), run_facts()))
    for text in (
        "! candidate",
        "✓ met",
        "EMAIL_ADDRESS",
        "training loss",
        "gpu-large: 2 × NVIDIA H100",
        "What people prefer",
    ):
        assert text in page.text, text
    assert "Prompting would not have been enough" in page.text
    assert page.text.count("Goals") == 1, "those of the evaluation's page are not shown again"
    assert all(target.startswith("../../../") for target in page.values("a", "href"))
    assert_accessible(page)


def test_results_of_an_earlier_version_give_a_page_that_says_what_is_missing() -> None:
    facts = RunFacts(ending=ending_of(RunVerdict({}, "b"), "s3://a"), manifests={}, folders={})
    text = parsed_page(render_run(given(), facts)).text
    for said in (
        *(
            "No goal was judged.",
            "has no record of its rows",
            "recorded no losses",
            "was made by an earlier version",
        ),
        *("Neither people nor a judge model", "Not measured"),
    ):
        assert said in text


def page_of(store: Store) -> Parsed:
    return parsed_page((store.get(run_report(PUBLISHED)) or b"").decode())


def test_publish_writes_the_page_and_the_index_links_it(store: Store, published: StageResult) -> None:
    """The results are those of an earlier version: no log, no page of the evaluation."""
    page = page_of(store)
    assert store.uri(f"artifacts/{published.output_digest}") in page.text
    assert "✓ published" in page.texts
    assert "✓ met" in page.texts
    index = Parsed((store.get(f"{run_folder(PUBLISHED)}/index.html") or b"").decode())
    assert index.values("a", "href")[0].endswith(run_report(PUBLISHED))
    assert not [file for file in store.list(f"artifacts/{published.output_digest}") if file.key == RUN_REPORT]


def test_a_run_that_a_gate_stops_has_its_page_too(
    s3: SeaweedFS, store: Store, upstream: Upstream, tmp_path: Path
) -> None:
    asked = gated(s3, store, upstream, WORSE, tmp_path)
    with pytest.raises(StageError):
        execute(context(asked, tmp_path), publish, after=sign_move_and_push)
    page = page_of(store)
    assert {"✕ stopped", "✕ missed", "accuracy not worse than the base model's"} <= set(page.texts)
    assert "Nothing was published" in page.text


def test_what_the_stages_wrote_is_on_the_page(s3: SeaweedFS, store: Store, upstream: Upstream, tmp_path: Path) -> None:
    def put(stage: Stage, name: str, content: str) -> str:
        folder = tmp_path / f"with-{stage}"
        folder.mkdir()
        (folder / name).write_text(content)
        return publish_folder(store, folder, stage, facts={"steps": "60"})

    log = (line(loss=2.25, step=1) + line(eval_loss=1.75, step=1)).decode()
    evaluation = tmp_path / "evaluation"
    evaluation.mkdir()
    write_page(evaluation, evaluation_parts(TaskType.CLASSIFICATION), [])
    chain = upstream.model_copy(
        update={
            "dataset": put(Stage.PREPARE, "report.json", json.dumps(REPORT)),
            "adapter": put(Stage.TRAIN, "train_log.jsonl", log),
            "evaluation": publish_folder(store, evaluation, Stage.EVALUATE),
        }
    )
    write_run_report(context(publish_input(s3, store, chain), tmp_path), chain, RunVerdict({}, why="Missed."))
    text = page_of(store).text
    for said in ("near duplicates dropped", "2.2500", "1.7500", "60", "What each step changed", "Worst answers"):
        assert said in text
    assert "report.html" in " ".join(page_of(store).values("a", "href")), "the evaluation's own page is linked"


def test_a_log_that_was_changed_costs_the_page_and_not_the_stage(
    s3: SeaweedFS, store: Store, upstream: Upstream, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "log"
    folder.mkdir()
    (folder / "train_log.jsonl").write_bytes(line(loss=1.0, step=1))
    chain = upstream.model_copy(update={"adapter": publish_folder(store, folder, Stage.TRAIN)})
    store.put(f"{output_folder(Stage.TRAIN, chain.adapter)}/train_log.jsonl", line(loss=2.0, step=1))
    write_run_report(context(publish_input(s3, store, chain), tmp_path), chain, RunVerdict({}))
    assert "the report of the run was not written" in caplog.text
    assert "train_log.jsonl is not the one that its manifest lists" in caplog.text
    assert not store.exists(run_report(PUBLISHED))
