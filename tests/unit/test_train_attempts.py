"""Attempts of a training against a real S3 server: one at a time, and what a later one takes over."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from finetune_api.reasons import Reason
from finetune_jobs.base.errors import StageError
from finetune_jobs.fit.recipe import Batch
from finetune_jobs.store.s3 import Store, StoredObject
from finetune_jobs.training.checkpoints import Checkpoints
from finetune_jobs.training.ownership import STATE, Ownership, RunState
from tests.support.checkpoints import Gate, checkpoint, newest_in, open_gate, stored
from tests.support.seaweedfs import SeaweedFS
from tests.support.sentences import assert_says

pytestmark = [pytest.mark.unit, pytest.mark.slow]


@pytest.fixture
def store(s3: SeaweedFS, place: str) -> Gate:
    return open_gate(Store.connect(s3.storage, place))


def test_a_newer_attempt_takes_over_and_the_older_one_changes_nothing_any_more(store: Gate, tmp_path: Path) -> None:
    """Of two that upload the same step at the same time, the older one's files never count, and it learns why."""
    older = Checkpoints(store)
    store.open.clear()
    checkpoint(tmp_path / "older", 25)
    older.keep(tmp_path / "older")

    newer = Checkpoints(store)
    store.open.set()
    with pytest.raises(StageError, match=r"newer attempt .* taken over") as raised:
        older.flush(10)
    assert raised.value.reason is Reason.SUPERSEDED
    assert raised.value.retriable  # the pod may be started again; it must not fail the Job
    for act in (older.check, lambda: older.keep(tmp_path / "older"), lambda: older.remember_batch(Batch(1, 16))):
        with pytest.raises(StageError) as again:
            act()
        assert again.value.reason is Reason.SUPERSEDED

    assert newer.newest_step == 0
    checkpoint(tmp_path / "newer", 25)
    newer.keep(tmp_path / "newer")
    assert newer.flush(10)
    assert stored(store) == {"attempt-2/checkpoint-25"}  # what the older one left is gone
    assert Checkpoints(store).batch(Batch(8, 2)) == Batch(8, 2)


def test_an_older_attempt_that_tidies_up_late_deletes_nothing_of_the_newer_one(
    store: Gate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newer one takes over, and saves a checkpoint, after the older one's last write and before it looks for what
    no longer counts."""
    another = open_gate(store)

    def late(path: str = "") -> Iterator[StoredObject]:
        monkeypatch.undo()
        newer = Checkpoints(another)
        checkpoint(tmp_path / "newer", 50)
        newer.keep(tmp_path / "newer")
        assert newer.flush(10)
        return store.list(path)

    older = Checkpoints(store)
    monkeypatch.setattr(store, "list", late)
    checkpoint(tmp_path / "older", 25)
    older.keep(tmp_path / "older")
    assert older.flush(20)

    assert stored(store) == {"attempt-2/checkpoint-50"}
    assert newest_in(store) == 50


def test_an_attempt_takes_over_what_it_resumed_from_without_uploading_it_again(store: Gate, tmp_path: Path) -> None:
    first = Checkpoints(store)
    checkpoint(tmp_path / "first", 25)
    first.keep(tmp_path / "first")
    assert first.flush(10)

    second = Checkpoints(store)
    second.restore(tmp_path / "second")
    checkpoint(tmp_path / "second", 50, best=25)
    second.keep(tmp_path / "second")
    assert second.flush(10)

    assert (first.attempt, second.attempt) == (1, 2)
    assert stored(store) == {"attempt-1/checkpoint-25", "attempt-2/checkpoint-50"}


def test_what_memory_was_found_to_hold_is_remembered(store: Gate) -> None:
    Checkpoints(store).remember_batch(Batch(2, 8))
    later = Checkpoints(store)
    assert later.batch(Batch(8, 2)) == Batch(2, 8)
    assert later.batch(Batch(4, 2)) == Batch(4, 2)  # of another step size: not what was found out


def test_a_new_run_pays_for_itself_and_goes_on_from_what_is_there(store: Gate, tmp_path: Path) -> None:
    """What a training may cost is said for one run; its pods share that, a later run begins anew."""
    checkpoints = Checkpoints(store, "r1")
    checkpoint(tmp_path, 5)
    checkpoints.keep(tmp_path)
    assert checkpoints.flush(30)
    checkpoints.remember_seconds(40.0)
    assert Checkpoints(store, "r1").seconds == 40.0
    later = Checkpoints(store, "r2")
    assert (later.seconds, later.newest_step) == (0.0, 5)


def test_a_run_that_reuses_nothing_goes_on_from_its_own_checkpoints_only(store: Gate, tmp_path: Path) -> None:
    """What memory was found to hold is no result: it still counts. What does not count any more is deleted."""
    earlier = Checkpoints(store, "r1")
    checkpoint(tmp_path / "r1", 60)
    earlier.keep(tmp_path / "r1")
    assert earlier.flush(30)
    earlier.remember_batch(Batch(2, 8))

    first = Checkpoints(store, "r2", reuse=False)
    assert first.restore(tmp_path / "first") is None
    assert first.batch(Batch(8, 2)) == Batch(2, 8)
    checkpoint(tmp_path / "first", 5)
    first.keep(tmp_path / "first")
    assert first.flush(30)
    assert stored(store) == {"attempt-2/checkpoint-5"}
    second = Checkpoints(store, "r2", reuse=False)
    assert second.restore(tmp_path / "second") == tmp_path / "second/checkpoint-5"


def test_a_state_that_cannot_be_read_costs_time_only(store: Gate, caplog: pytest.LogCaptureFixture) -> None:
    store.put(STATE, b'{"attempt": "many"}')
    assert Checkpoints(store).attempt == 1
    assert_says(caplog.text, "state ignored:", store.uri(STATE), "RunState: attempt")


class Deaf(Store):
    """A store that may lose its answer to a conditional write: botocore repeats it, and may be answered then or not."""

    loses = ""

    def replace(self, path: str, content: bytes, etag: str) -> bool:
        written = super().replace(path, content, etag)
        if self.loses == "first":
            return super().replace(path, content, etag)
        if self.loses == "all":
            raise StageError(Reason.S3_UNREACHABLE, "the endpoint did not answer in time.", retriable=True)
        return written


def test_a_lost_answer_is_no_other_attempt(store: Gate) -> None:
    """Whether a repetition is answered or none: the next write finds what the lost one left."""
    deaf = Deaf(store._client, store.uri())
    owner = Ownership(deaf, "r1")
    deaf.loses = "first"
    owner.update(seconds=10.0)
    deaf.loses = "all"
    with pytest.raises(StageError, match="did not answer"):
        owner.update(seconds=20.0)
    deaf.loses = ""
    owner.update(batch_size=4)
    assert RunState.model_validate_json(store.get(STATE) or b"") == owner.state
    assert (owner.state.attempt, owner.state.seconds, owner.state.batch_size) == (1, 10.0, 4)

    Ownership(store, "r1")
    with pytest.raises(StageError) as raised:
        owner.update(batch_size=2)
    assert raised.value.reason is Reason.SUPERSEDED


def test_attempts_that_begin_together_get_different_numbers(store: Gate) -> None:
    owners: list[Ownership] = []
    superseded: list[StageError] = []

    def begin() -> None:
        try:
            owners.append(Ownership(store))
        except StageError as error:
            superseded.append(error)

    threads = [threading.Thread(target=begin) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    numbers = [owner.state.attempt for owner in owners]
    assert len(set(numbers)) == len(numbers)
    assert all(error.reason is Reason.SUPERSEDED for error in superseded)
    final = RunState.model_validate_json(store.get(STATE) or b"")
    assert final.attempt == 5
    newest = max(owners, key=lambda owner: owner.state.attempt)
    assert newest.state.attempt == 5
    newest.update(batch_size=4, gradient_accumulation=4)
    for owner in owners:
        if owner is not newest:
            with pytest.raises(StageError):
                owner.update(batch_size=1)


def test_an_attempt_whose_number_another_has_got_writes_nothing_more(store: Gate) -> None:
    before = Ownership(store)
    store.delete(STATE)
    now = Ownership(store)
    assert before.state.attempt == now.state.attempt
    with pytest.raises(StageError) as refusal:
        before.update(seconds=1.0)
    assert refusal.value.reason is Reason.SUPERSEDED
    now.update(seconds=2.0)
    assert now.state.seconds == 2.0
