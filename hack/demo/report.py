"""The demo's result: a short summary for people, and ``build/demo/report.json`` with the same figures."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from finetune_api.adapterdeployment import AdapterDeployment
from finetune_api.finetunejob import FineTuneJob
from hack.demo.timing import seconds_between


@dataclass(frozen=True)
class Report:
    """Figures of one demo."""

    accuracy: dict[str, float]
    """base, fewShot (the base model with a few-shot prompt), tuned, artifact: on the test split; served: through the
    endpoint, on a sample of it."""
    goals: list[str]
    """What the artifact reached of each goal, as a sentence."""
    prompting: str
    """Whether prompting would have been enough, in a sentence; empty where the base model had no few-shot prompt."""
    rows: dict[str, int]
    """Row counts of the data set."""
    seconds: dict[str, float]
    """Per step, and ``total``."""
    endpoint: str

    def as_json(self) -> dict[str, Any]:
        """The report as it is written to the file."""
        return {
            "accuracy": self.accuracy,
            "goals": self.goals,
            "prompting": self.prompting,
            "rows": self.rows,
            "seconds": self.seconds,
            "endpoint": self.endpoint,
        }


def make(job: FineTuneJob, deployment: AdapterDeployment, seconds: dict[str, float]) -> Report:
    """Collect the figures from the status of both resources and the demo's own clock."""
    evaluation, dataset, stable = job.status.evaluation, job.status.dataset, deployment.status.stable
    if not (evaluation and dataset and stable):
        raise ValueError("the FineTuneJob or the AdapterDeployment has not finished")
    scores = evaluation.accuracy
    return Report(
        accuracy={
            "base": float(scores.base),
            **({"fewShot": float(scores.few_shot)} if scores.few_shot else {}),
            "tuned": float(scores.tuned),
            "artifact": float(scores.artifact),
            "served": float(stable.accuracy),
            "servedExpected": float(stable.expected_accuracy),
        },
        goals=[goal.sentence for goal in evaluation.goals],
        prompting=evaluation.prompting,
        rows=dataset.rows.model_dump(by_alias=True),
        seconds={key: round(value, 1) for key, value in (stage_seconds(job) | seconds).items()},
        endpoint=deployment.status.endpoint,
    )


def stage_seconds(job: FineTuneJob) -> dict[str, float]:
    """Seconds of each stage, from its first pod to its result; 0 if it did not run."""
    return {
        stage.name: round(seconds_between(stage.started_at, stage.finished_at) or 0.0, 1) for stage in job.status.stages
    }


def write(report: Report, path: Path) -> None:
    """Write the report as JSON, for programs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report.as_json(), indent=2) + "\n")


def show(report: Report, question: str, answer: str, commands: list[str], console: Console) -> None:
    """The summary for people."""
    accuracy, rows = report.accuracy, report.rows
    console.rule("[bold]Done")
    table = Table(box=None, show_header=False, pad_edge=False)
    shown = f", with few-shot examples {accuracy['fewShot']:.0%}" if "fewShot" in accuracy else ""
    table.add_row(
        "accuracy",
        f"base model {accuracy['base']:.0%}{shown}, tuned {accuracy['tuned']:.0%}, quantized artifact "
        f"{accuracy['artifact']:.0%}, through the endpoint {accuracy['served']:.0%}",
    )
    for goal in report.goals:
        table.add_row("goal", Text(goal))
    if report.prompting:
        table.add_row("prompting", Text(report.prompting))
    table.add_row(
        "rows",
        f"{rows['read']:,} read, {rows['invalid']:,} invalid and {rows['duplicates']:,} duplicates dropped; "
        f"{rows['train']:,} for training, {rows['validation']:,} for validation, {rows['test']:,} for testing",
    )
    table.add_row("seconds", ", ".join(f"{name} {value:.0f}" for name, value in report.seconds.items()))
    table.add_row("endpoint", report.endpoint)
    table.add_row("question", Text(question))
    table.add_row("answer", Text(answer, style="bold green"))
    console.print(table)
    console.print("\nTry next:")
    for command in commands:
        console.print(f"  {command}", markup=False, highlight=False, soft_wrap=True)
