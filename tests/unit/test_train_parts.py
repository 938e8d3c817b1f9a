"""Checkpoints that several processes send in parts, against a real S3 server: all of the parts count, or none."""

from pathlib import Path
from typing import cast

import pytest

from finetune_api.reasons import Reason
from finetune_jobs.base.errors import StageError
from finetune_jobs.store.s3 import Store
from finetune_jobs.training.checkpoints import Checkpoints
from finetune_jobs.training.ownership import STATE
from tests.support.checkpoints import Gate, OfTwo, begin_two, delete, divided_checkpoint, newest_in, open_gate, stored
from tests.support.seaweedfs import SeaweedFS
from tests.support.sentences import assert_says

pytestmark = [pytest.mark.unit, pytest.mark.slow]


@pytest.fixture
def store(s3: SeaweedFS, place: str) -> Gate:
    return open_gate(Store.connect(s3.storage, place))


@pytest.fixture
def other(store: Gate) -> Gate:
    """The way of a second process to the same store."""
    return open_gate(store)


def test_shards_count_once_all_of_them_are_there(store: Gate, other: Gate, tmp_path: Path) -> None:
    """Each process sends its own, beside the training. What was sent of a checkpoint before the first process came to
    it stays."""
    both, work = begin_two(store, other), tmp_path / "work"
    other.open.clear()
    divided_checkpoint(work, 10)
    for each in both:
        each.keep(work, divided=True)
    assert not both[0].flush(0.1)
    assert newest_in(store) == 0

    other.open.set()
    assert all(each.flush(30) for each in both)
    store.open.clear()
    divided_checkpoint(work, 20)
    for each in both:
        each.keep(work, divided=True)
    assert both[1].flush(30)
    assert newest_in(store) == 10
    store.open.set()
    assert both[0].flush(30)

    assert newest_in(store) == 20
    restored = Checkpoints(store).restore(tmp_path / "next")
    assert restored == tmp_path / "next/checkpoint-20"
    found = {path.relative_to(restored).as_posix() for path in restored.rglob("*.safetensors")}
    assert found == {"adapter_model.safetensors", *(f"shards/{rank}-of-2/weights.safetensors" for rank in range(2))}
    assert not list((work / ".snapshots").iterdir())


@pytest.mark.parametrize("lost", [0, 1])
def test_a_torn_checkpoint_is_never_resumed_from(lost: int, store: Gate, other: Gate, tmp_path: Path) -> None:
    """One of two processes is killed before it has sent its shard. What the other one sent is deleted later."""
    both, work = begin_two(store, other), tmp_path / "work"
    divided_checkpoint(work, 10)
    for each in both:
        each.keep(work, divided=True)
    assert all(each.flush(30) for each in both)
    divided_checkpoint(work, 20)
    both[1 - lost].keep(work, divided=True)
    both[1 - lost].flush(0.5)
    while not any("checkpoint-20/" in entry.key for entry in store.list()):
        pass

    again = begin_two(store, other)
    restored = [each.restore(tmp_path / "next") for each in again]

    assert restored == [tmp_path / "next/checkpoint-10"] * 2
    divided_checkpoint(tmp_path / "next", 20)
    for each in again:
        each.keep(tmp_path / "next", divided=True)
    assert all(each.flush(30) for each in again)
    assert newest_in(store) == 20
    # What waits for the lost one in this process must end.
    store.put(f"{both[0]._folder}/checkpoint-30/parts/1.json", b"")
    assert both[1 - lost].flush(30)
    assert {place.partition("/")[0] for place in stored(store) if "checkpoint-20" in place} == {"attempt-2"}


def test_a_part_of_an_attempt_that_had_the_same_number_is_none(store: Gate, other: Gate, tmp_path: Path) -> None:
    """Where the state is lost, numbers begin again. What an attempt of before has sent, or still sends, of a checkpoint
    of the same step is not taken for this one's: the rows of two trainings would be mixed."""
    before = begin_two(store, other)
    divided_checkpoint(tmp_path / "before", 10)
    before[1].keep(tmp_path / "before", divided=True)
    assert before[1].flush(30)
    store.delete(STATE)

    both = begin_two(store, other)
    divided_checkpoint(tmp_path / "now", 10)
    both[0].keep(tmp_path / "now", divided=True)

    assert both[0].attempt == before[0].attempt
    assert not both[0].flush(1.5)
    assert newest_in(store) == 0
    both[1].keep(tmp_path / "now", divided=True)
    assert all(each.flush(30) for each in both)
    assert newest_in(store) == 10


def test_a_store_that_is_away_for_one_process_costs_no_checkpoint(
    store: Gate, other: Gate, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The first one waits for the part, so that it is sent again."""
    both = begin_two(store, other)
    other.failures.append(StageError(Reason.S3_UNREACHABLE, "the endpoint did not answer in time.", retriable=True))
    divided_checkpoint(tmp_path, 10)
    for each in both:
        each.keep(tmp_path, divided=True)

    assert all(each.flush(30) for each in both)

    assert newest_in(store) == 10
    assert_says(caplog.text, "checkpoint not saved, trying again:", "did not answer")


def test_a_part_that_was_passed_over_is_not_waited_for(
    store: Gate, other: Gate, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    both = begin_two(store, other)
    divided_checkpoint(tmp_path, 10)
    both[0].keep(tmp_path, divided=True)
    delete(tmp_path / "checkpoint-10")
    divided_checkpoint(tmp_path, 20)
    both[1].keep(tmp_path, divided=True)

    assert both[0].flush(30)

    assert newest_in(store) == 0
    assert_says(caplog.text, "process 1 could not send its part of checkpoint-10", "sent a newer one")


def test_all_processes_skip_a_checkpoint_or_none_does_and_the_last_one_is_never_skipped(
    store: Gate, other: Gate, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    both = begin_two(store, other)
    divided_checkpoint(tmp_path, 10)
    cast("OfTwo", both[0]._team).said["slow"] = True  # in another process one is waiting
    for each in both:
        each.keep(tmp_path, divided=True)
        assert each.flush(0)
    assert_says(caplog.text, "slower than the training: a checkpoint was skipped")
    assert not stored(store)

    for each in both:
        each.keep(tmp_path, divided=True, last=True)
    assert all(each.flush(30) for each in both)
    assert newest_in(store) == 10
