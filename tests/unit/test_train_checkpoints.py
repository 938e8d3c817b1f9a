"""Checkpoints against a real S3 server: beside the training, and whole or not at all."""

import json
from pathlib import Path

import pytest

from finetune_api.layout import MANIFEST
from finetune_api.reasons import Reason
from finetune_jobs.base.errors import StageError
from finetune_jobs.store.s3 import Store
from finetune_jobs.training.checkpoints import Checkpoints
from tests.support.checkpoints import (
    Gate,
    checkpoint,
    delete,
    open_gate,
    stored,
)
from tests.support.seaweedfs import SeaweedFS
from tests.support.sentences import assert_says

pytestmark = [pytest.mark.unit, pytest.mark.slow]


@pytest.fixture
def store(s3: SeaweedFS, place: str) -> Gate:
    return open_gate(Store.connect(s3.storage, place))


def test_keeping_returns_at_once_and_survives_the_trainers_clean_up(store: Gate, tmp_path: Path) -> None:
    checkpoints, work = Checkpoints(store), tmp_path / "work"
    store.open.clear()
    folder = checkpoint(work, 25)

    checkpoints.keep(work)
    delete(folder)

    assert not checkpoints.flush(0.1)
    assert checkpoints.newest_step == 0
    store.open.set()
    assert checkpoints.flush(10)
    assert checkpoints.newest_step == 25
    restored = Checkpoints(store).restore(tmp_path / "next")
    assert restored == tmp_path / "next/checkpoint-25"
    assert {file.name for file in restored.iterdir()} == {"adapter_model.safetensors", "trainer_state.json", MANIFEST}
    state = json.loads((restored / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == str(restored)


def test_the_store_holds_what_the_trainer_holds(store: Gate, tmp_path: Path) -> None:
    checkpoints, work = Checkpoints(store), tmp_path / "work"
    folders = {step: checkpoint(work, step, best=2) for step in (2, 4)}
    checkpoints.keep(work)
    assert checkpoints.flush(10)
    delete(folders[4])
    checkpoint(work, 6, best=2)
    checkpoints.keep(work)
    assert checkpoints.flush(10)

    assert stored(store) == {"attempt-1/checkpoint-2", "attempt-1/checkpoint-6"}
    assert not list((work / ".snapshots").iterdir())


def test_a_slow_store_gets_the_newest_and_delays_nobody(
    store: Gate, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints, work = Checkpoints(store), tmp_path / "work"
    store.open.clear()
    for step in (1, 2, 3):
        folder = checkpoint(work, step)
        checkpoints.keep(work)
        delete(folder)
        while checkpoints._pending and step == 1:  # until the first one is being uploaded
            pass

    assert "a checkpoint was skipped for a newer one" in caplog.text
    store.open.set()
    assert checkpoints.flush(10)
    assert stored(store) == {"attempt-1/checkpoint-3"}


def test_a_store_that_is_away_costs_one_checkpoint_only(
    store: Gate, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints, work = Checkpoints(store), tmp_path / "work"
    store.failures.append(StageError(Reason.S3_UNREACHABLE, "the endpoint did not answer in time.", retriable=True))
    checkpoint(work, 2)
    checkpoints.keep(work)
    assert checkpoints.flush(10)
    assert checkpoints.newest_step == 0
    assert_says(caplog.text, "checkpoint not saved", "the next one", "the endpoint did not answer")

    checkpoint(work, 4)
    checkpoints.keep(work)
    assert checkpoints.flush(10)
    assert checkpoints.newest_step == 4
    assert stored(store) == {"attempt-1/checkpoint-2", "attempt-1/checkpoint-4"}


def test_a_store_that_refuses_ends_the_training(store: Gate, tmp_path: Path) -> None:
    checkpoints = Checkpoints(store)
    store.failures.append(StageError(Reason.S3_ACCESS_DENIED, "the store refused the credentials."))
    checkpoint(tmp_path, 2)
    checkpoints.keep(tmp_path)
    with pytest.raises(StageError) as raised:
        checkpoints.flush(10)
    assert raised.value.reason is Reason.S3_ACCESS_DENIED
    with pytest.raises(StageError):
        checkpoints.check()


def test_an_upload_that_arrives_short_does_not_count(
    store: Gate, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = Checkpoints(store)
    store.short.append("adapter_model.safetensors")
    checkpoint(tmp_path, 2)
    checkpoints.keep(tmp_path)
    assert checkpoints.flush(10)
    assert checkpoints.newest_step == 0
    assert "adapter_model.safetensors has 8999 bytes after the upload" in caplog.text
    assert not any(entry.key.endswith(MANIFEST) for entry in store.list())
