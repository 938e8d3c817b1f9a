"""What an evaluation keeps while it runs, and which of it a later pod may use."""

from __future__ import annotations

import logging
import math
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from finetune_api.evaluation import Generator
from finetune_api.stages import Stage, StageInput, Upstream
from finetune_jobs.artifacts.artifact import METRICS
from finetune_jobs.base.errors import StoppedError
from finetune_jobs.base.progress import Progress
from finetune_jobs.evaluation.findings import (
    FindingKind,
    KeptFindings,
    Notes,
    keep_findings,
    look_up,
    look_up_each,
    remove_findings,
)
from finetune_jobs.store.s3 import Store
from tests.support import forked, tiny_evaluation
from tests.support.evaluating import CANARIES
from tests.support.seaweedfs import READER, SeaweedFS
from tests.support.sentences import assert_says
from tests.support.stages import RUN
from tests.support.tiny_evaluation import Asked, evaluate_tiny

pytestmark = [pytest.mark.unit, pytest.mark.slow]

KIND = FindingKind("likely", TypeAdapter(list[float]), 7, answers=True)
ROWS = [[0.1, -math.inf], [1 / 3], [math.nan]]


class Model:
    """What findings are kept of."""

    def __init__(self, dtype: str = "torch.bfloat16") -> None:
        self.dtype = dtype


@contextmanager
def kept(store: Store, identity: str = "base", dtype: str = "torch.bfloat16") -> Iterator[tuple[Model, KeptFindings]]:
    """A pod with a model."""
    findings, model = KeptFindings(store), Model(dtype)
    keep_findings(model, findings, identity)
    with findings.keeping(Progress("evaluate"), 9):
        yield model, findings


@pytest.fixture
def filled(store: Store) -> Store:
    """A place where a pod has kept a batch of three rows and a batch of two."""
    with kept(store) as (model, _):
        notes = Notes(model, KIND, ["prompts"])
        notes.keep([2, 0, 1], ROWS)
        notes.keep([3, 4], ROWS[:2])
    return store


def test_what_was_kept_is_found_as_it_was(filled: Store, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    progress, findings, model = Progress("evaluate"), KeptFindings(filled), Model()
    keep_findings(model, findings, "base")
    notes = Notes(model, KIND, ["prompts"])
    with findings.keeping(progress, 9):
        assert str(notes.find([2, 0, 1])) == str(ROWS), "to the last digit, and what is no number too"
        assert notes.find([3, 4]) == ROWS[:2]
        assert "resumed" not in caplog.text, "not before something is computed"
        progress.report(0.5, "base model")
        assert notes.find([5]) is None
        assert progress.eta_seconds is None, "what was kept says nothing of the time that the rest takes"
        assert notes.find([6]) is None
    assert caplog.text.count("resumed: 5 of 9 answers kept") == 1
    (info,) = (s for m in progress.collect() for s in m.samples if s.name.endswith("info"))
    assert info.labels["message"] == "resumed: 5 of 9 answers kept"


@pytest.mark.parametrize(
    ("pod", "kind", "prompts", "batch"),
    [
        ({"identity": "tuned"}, KIND, ["prompts"], [3, 4]),
        ({"dtype": "torch.float32"}, KIND, ["prompts"], [3, 4]),
        ({}, FindingKind("chosen", KIND.form, 7), ["prompts"], [3, 4]),
        ({}, FindingKind("likely", KIND.form, 8), ["prompts"], [3, 4]),
        ({}, KIND, ["prompts", "another"], [3, 4]),
        ({}, KIND, ["prompts"], [4, 3]),
        ({}, KIND, ["prompts"], [3]),
        ({}, None, ["prompts"], [3, 4]),
    ],
    ids=["model", "dtype", "kind", "what decides", "prompts", "order", "batch", "not kept"],
)
def test_what_was_asked_otherwise_is_not_used(
    filled: Store, pod: dict[str, str], kind: FindingKind[list[float]] | None, prompts: list[str], batch: list[int]
) -> None:
    with kept(filled, **pod) as (model, findings):
        assert Notes(model, kind, prompts).find(batch) is None
        assert findings.reused == 0
    with kept(filled) as (model, _):
        assert Notes(model, KIND, ["prompts"]).find([3, 4]) == ROWS[:2]


def test_a_model_of_which_nothing_is_kept_is_always_asked() -> None:
    model, numbers = Model(), count()
    keep_findings(model, None, "base")
    assert [look_up(model, KIND, "text", lambda: [float(next(numbers))]) for _ in range(2)] == [[0.0], [1.0]]


def test_an_answer_that_was_given_stays_whatever_is_asked_beside_it(store: Store) -> None:
    """Of a program that decides by itself what shares a batch, and says something else in another one."""
    asked = list[list[int]]()

    def answered(name: str, rows: list[str]) -> list[list[float]]:
        def compute(left: Sequence[int]) -> list[list[float]]:
            asked.append(list(left))
            return [[float(len(left))] for _ in left]

        with kept(store) as (model, _):
            return look_up_each(model, FindingKind(name, KIND.form), rows, compute)

    assert answered("said", ["a", "b"]) == [[2.0], [2.0]]
    assert answered("said", ["c", "b", "d", "e", "a"]) == [[3.0], [2.0], [3.0], [3.0], [2.0]]
    assert answered("said", ["e"]) == [[3.0]]
    assert answered("otherwise", ["e"]) == [[1.0]]
    assert asked == [[0, 1], [0, 2, 3], [0]], "nothing that is known, and no empty question"


@pytest.mark.parametrize(
    ("damage", "left"),
    [
        (lambda content: content[: len(content) - 20], 1),
        (lambda content: content[:40], 0),
        (lambda content: content.replace(b"0.1", b"0.2", 1), 1),
        (lambda _: b"\x00\xff\n[1]\n{}\n", 0),
    ],
    ids=["truncated", "truncated early", "one digit", "other content"],
)
def test_what_is_damaged_is_ignored_with_a_warning(
    filled: Store, damage: Any, left: int, caplog: pytest.LogCaptureFixture
) -> None:
    (chunk,) = filled.list()
    filled.put(chunk.key, damage(filled.get(chunk.key)))
    with kept(filled) as (model, _):
        notes = Notes(model, KIND, ["prompts"])
        found = [batch for batch in ([2, 0, 1], [3, 4]) if notes.find(batch)]
        assert len(found) == left
        notes.keep([2, 0, 1], ROWS)
    assert_says(caplog.text, f"{chunk.uri}:", "damaged lines dropped", "asked again")
    with kept(filled) as (model, _):
        assert Notes(model, KIND, ["prompts"]).find([2, 0, 1]), "kept anew, beside what is damaged"


def test_a_pod_that_is_told_to_stop_keeps_what_it_has(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    """SIGTERM is raised wherever the evaluation is (``runtime.runner``). What was asked twice is no damage."""

    def pod() -> None:
        with kept(store) as (model, _):
            for _ in range(2):
                Notes(model, KIND, ["prompts"]).keep([3, 4], ROWS[:2])
            raise StoppedError

    with pytest.raises(StoppedError):
        pod()
    with kept(store) as (model, _):
        assert Notes(model, KIND, ["prompts"]).find([3, 4]) == ROWS[:2]
    assert not caplog.text


def test_a_store_that_refuses_costs_what_could_not_be_kept(
    s3: SeaweedFS, place: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name, value in READER.environment().items():
        monkeypatch.setenv(name, value)
    with kept(Store.connect(s3.storage, place)) as (model, _):
        Notes(model, KIND, ["prompts"]).keep([0], ROWS[:1])
    assert_says(caplog.text, "keeping what the models answer failed", "the stage continues")
    with kept(Store.connect(s3.storage, "s3://no-such-bucket/x")):
        assert_says(caplog.text, "earlier pods", "not used", "no-such-bucket")


def test_another_recipe_has_another_place_and_a_result_ends_all(store: Store) -> None:
    given = StageInput(stage=Stage.EVALUATE, run=RUN, input_key="a" * 64, upstream=Upstream(export="e" * 64))
    tools = {"torch": "2"}

    def knows(asked: StageInput, tools: dict[str, str]) -> bool:
        findings, model = KeptFindings.of(store, asked, tools), Model()
        keep_findings(model, findings, "base")
        return bool(Notes(model, KIND, "prompts").find([0]))

    findings, model = KeptFindings.of(store, given, tools), Model()
    keep_findings(model, findings, "base")
    with findings.keeping(Progress("evaluate"), 1):
        Notes(model, KIND, "prompts").keep([0], ROWS[:1])
    assert knows(given, tools)
    assert not knows(given.model_copy(update={"input_key": "b" * 64}), tools)
    assert not knows(given.model_copy(update={"upstream": Upstream(export="f" * 64)}), tools)
    assert not knows(given.model_copy(update={"run": RUN.model_copy(update={"uid": "1"})}), tools)
    assert not knows(given, {"torch": "3"})
    assert knows(given.model_copy(update={"run": RUN.model_copy(update={"id": "another"})}), tools)
    assert not knows(given.model_copy(update={"reuse": False}), tools), "another run may have kept it"
    store.put("runs/transactions/0b8a/index.html", b"")
    remove_findings(store, RUN)
    assert [entry.key for entry in store.list()] == ["runs/transactions/0b8a/index.html"]


# A pod that is killed


def _wait_until(condition: Any, seconds: float = 400) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.2)


@pytest.mark.timeout(1800)  # with vLLM's stand-in some seven processes start, which import torch
@pytest.mark.parametrize("generator", Generator)
def test_after_a_killed_pod_the_rest_is_asked_and_the_result_is_the_same(
    s3: SeaweedFS,
    place: str,
    store: Store,
    model_folder: Path,
    tmp_path: Path,
    vllm: Path,
    generator: Generator,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """``kill -9`` between two batches or within one: every file is that of a quiet evaluation, byte for byte. Of vLLM
    too, as long as its answers do not depend on what shares a batch: in its place is one that answers one by one."""
    out = str(tmp_path / "killed")
    arguments = [tiny_evaluation.__file__, s3.endpoint, place, str(model_folder), out, generator.value]
    pod = forked.start(arguments, os.environ, tmp_path / "log")
    try:
        _wait_until(lambda: len(list(store.list())) > 3 or pod.poll() is not None)
    finally:
        pod.send_signal(signal.SIGKILL)
    assert pod.wait(30) == -signal.SIGKILL, "it was not done"
    quiet, resumed, findings = Asked(), Asked(), KeptFindings(store)
    with quiet.counting():
        evaluate_tiny(model_folder, tmp_path / "quiet", None, generator)
    caplog.set_level(logging.INFO)
    with resumed.counting():
        evaluate_tiny(model_folder, tmp_path / "resumed", findings, generator)
    assert 0 < findings.reused <= quiet.rows - resumed.rows < quiet.rows
    assert f"resumed: {findings.reused} of " in caplog.text
    if generator is Generator.TRANSFORMERS:
        # What is asked of canaries' codes is no answer: each question is one more row.
        assert f" of {quiet.rows - 2 * len(CANARIES)} answers kept" in caplog.text
    written = (path for path in (tmp_path / "quiet").rglob("*") if path.is_file())
    files = sorted(str(path.relative_to(tmp_path / "quiet")) for path in written)
    assert len(files) == 6 + 4
    assert not (tmp_path / "killed" / METRICS).exists()

    runs = ["resumed"]
    if generator is Generator.TRANSFORMERS:  # what is kept is looked up by the same code
        again = Asked()
        with again.counting():
            evaluate_tiny(model_folder, tmp_path / "again", KeptFindings(store), generator)
        assert again.rows == 0, "a pod that is lost while it publishes asks nothing"
        runs.append("again")
    for run in runs:
        for name in files:
            assert (tmp_path / run / name).read_bytes() == (tmp_path / "quiet" / name).read_bytes(), (run, name)
