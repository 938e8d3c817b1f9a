"""Progress of a stage's pod: what is read, how often, and that nothing can go wrong with it."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

from finetune_api import telemetry
from finetune_operator.finetunejob import progress
from finetune_operator.finetunejob.progress import FAILURE_PAUSE, ProgressReader, Sample, parse

pytestmark = pytest.mark.unit

NOW = datetime(2026, 1, 1, tzinfo=UTC)
INTERVAL = timedelta(seconds=10)


def page(ratio: float | None, eta: float | None = None, message: str | None = None) -> str:
    """What a stage's pod really serves: written by the library that the jobs use."""
    registry = CollectorRegistry()
    Counter("finetune_train_tokens", "noise", registry=registry).inc(5)
    if ratio is not None:
        Gauge(telemetry.PROGRESS_RATIO, "done", registry=registry).set(ratio)
    if eta is not None:
        Gauge(telemetry.ETA_SECONDS, "left", registry=registry).set(eta)
    if message is not None:
        Gauge(telemetry.INFO, "words", ["message"], registry=registry).labels(message).set(1)
    return generate_latest(registry).decode()


@pytest.mark.parametrize(
    ("served", "expected"),
    [
        (page(0.426, 61.5, "step 5 of 9"), Sample("train", 42, 62, "step 5 of 9")),
        (page(0.5), Sample("train", 50)),
        (page(1.7), Sample("train", 100)),
        (page(-1.0), Sample("train", 0)),
        (page(0.1, message='a "b"\\c\nd'), Sample("train", 10, None, 'a "b"\\c d')),
        (page(0.1, message="x" * 1000), Sample("train", 10, None, "x" * 256)),
        (page(None), None),
        ("", None),
    ],
)
def test_a_page_becomes_a_sample(served: str, expected: Sample | None) -> None:
    assert parse(served, "train") == expected


@given(st.text())
def test_any_page_is_survived(served: str) -> None:
    """By the parser, or by the reader that catches ValueError."""
    with contextlib.suppress(ValueError):
        parse(f"{served}\n{telemetry.PROGRESS_RATIO} 0.1\n", "train")


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ("ok ok ok", [0, 10, 20]),
        ("no ok ok", [0, 10, 20]),
        ("no no ok ok", [0, 10, 10 + 10 * FAILURE_PAUSE, 20 + 10 * FAILURE_PAUSE]),
        ("ok no ok no", [0, 10, 20, 30]),
    ],
    ids=["every turn", "a stage that starts", "out of reach", "now and then"],
)
def test_a_pod_is_not_asked_too_often(monkeypatch: pytest.MonkeyPatch, answers: str, expected: list[int]) -> None:
    """Asked every second; after two failures in a row it is left alone for a while."""
    asked: list[int] = []
    script = iter(answers.split())

    def fetch(address: str) -> str:
        asked.append(second)
        if next(script, "ok") == "no":
            raise ConnectionRefusedError
        return page(0.5)

    monkeypatch.setattr(progress, "fetch", fetch)
    reader = ProgressReader(INTERVAL)
    for second in range(expected[-1] + 1):
        reader.read("job", "train", "10.0.0.1", NOW + timedelta(seconds=second))
    assert asked == expected


@pytest.mark.slow
def test_an_unreachable_pod_costs_nothing_but_the_progress() -> None:
    """A closed port on the loopback: refused at once, and no exception."""
    assert ProgressReader(INTERVAL).read("job", "train", "127.0.0.1", NOW) is None
