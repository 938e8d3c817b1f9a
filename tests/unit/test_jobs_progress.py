"""The progress of a stage: what its metrics page shows, and what the operator reads there."""

from __future__ import annotations

import re

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from finetune_api import telemetry
from finetune_jobs.base.progress import Measurement, Progress
from finetune_operator.finetunejob.progress import Sample, parse

pytestmark = pytest.mark.unit


def scrape(progress: Progress) -> str:
    registry = CollectorRegistry()
    registry.register(progress)
    return generate_latest(registry).decode()


def test_progress_shows_what_is_known() -> None:
    seconds = iter(range(0, 1000, 10))
    progress = Progress("train", clock=lambda: next(seconds))
    assert telemetry.ETA_SECONDS not in scrape(progress)
    progress.report(0.2, "step 2 of 10")
    progress.report(0.4, "step 4 of 10")
    progress.record(Measurement(4, 10, loss=1.5, tokens=4096))
    lines = scrape(progress).splitlines()
    assert f"{telemetry.PROGRESS_RATIO} 0.4" in lines
    assert f"{telemetry.ETA_SECONDS} 30.0" in lines
    assert f'{telemetry.INFO}{{message="step 4 of 10",stage="train"}} 1.0' in lines
    assert f"{telemetry.STEP_LOSS} 1.5" in lines
    assert f"{telemetry.TOKENS} 4096.0" in lines
    assert not any(line.startswith(telemetry.EVAL_LOSS) for line in lines)


def test_every_metric_has_its_help_and_its_type() -> None:
    progress = Progress("train", clock=iter(range(9)).__next__)
    progress.report(0.2)
    progress.report(0.4)
    progress.record(Measurement(1, 9, 2.0, 2.5, 1e-4, 0.5, tokens=64, tokens_per_second=8.0, gpu_memory_bytes=1024))
    lines = scrape(progress).splitlines()
    for name, help_text in telemetry.HELP.items():
        assert f"# HELP {name} {help_text}" in lines
        assert f"# TYPE {name} {'counter' if name == telemetry.TOKENS else 'gauge'}" in lines
        assert any(line.startswith((f"{name} ", f"{name}{{")) for line in lines), name


def test_a_part_of_the_work_moves_its_share() -> None:
    progress = Progress("fetch", clock=lambda: 0.0)
    part = progress.part(0.2, 0.6, "downloading")
    part(50, 100)
    assert f"{telemetry.PROGRESS_RATIO} 0.4" in scrape(progress)
    part(0, 0)
    assert f"{telemetry.PROGRESS_RATIO} 0.6" in scrape(progress)


def test_followers_hear_of_every_measurement() -> None:
    heard: list[Measurement] = []

    class Follower:
        def measured(self, measurement: Measurement) -> None:
            heard.append(measurement)

    progress = Progress("train")
    progress.record(Measurement(1, 9, loss=2.0))
    progress.follow(Follower())
    progress.record(Measurement(2, 9, loss=1.5))
    progress.record(Measurement(2, 9, validation_loss=1.75))
    assert heard == [Measurement(2, 9, loss=1.5), Measurement(2, 9, validation_loss=1.75)]
    lines = scrape(progress).splitlines()
    assert f"{telemetry.STEP_LOSS} 1.5" in lines
    assert f"{telemetry.EVAL_LOSS} 1.75" in lines
    assert f"# HELP {telemetry.STEP} {telemetry.HELP[telemetry.STEP]}" in lines


def test_the_operator_reads_a_page_with_every_metric() -> None:
    seconds = iter(range(0, 1000, 10))
    progress = Progress("train", clock=lambda: next(seconds))
    progress.report(0.2, "step 1 of 9")
    progress.report(0.4, "step 2 of 9")
    every = dict.fromkeys(("loss", "learning_rate", "gradient_norm", "tokens_per_second"), 1e-9)
    progress.record(Measurement(2, 9, validation_loss=float("nan"), tokens=10, gpu_memory_bytes=2**40, **every))
    assert all(name in scrape(progress) for name in telemetry.HELP)
    assert parse(scrape(progress), "train") == Sample("train", 40, 30, "step 2 of 9")


def test_metrics_have_names_that_the_operator_and_prometheus_read() -> None:
    """The operator's reader knows names of lower-case letters; ``_total`` is for counters."""
    names = [value for name, value in vars(telemetry).items() if name.isupper() and isinstance(value, str)]
    assert set(names) == set(telemetry.HELP)
    assert all(re.fullmatch(r"finetune_[a-z_]+", name) for name in names)
    assert [name for name in names if name.endswith("_total")] == [telemetry.TOKENS]
