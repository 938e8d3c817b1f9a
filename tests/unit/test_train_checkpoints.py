"""Checkpoints against a real S3 server: beside the training, whole or not at all, and of one attempt only."""

import json
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from finetune_api.layout import MANIFEST
from finetune_api.reasons import Reason
from finetune_jobs.base.errors import StageError
from finetune_jobs.fit.recipe import Batch
from finetune_jobs.store.s3 import Store
from finetune_jobs.training.checkpoints import Checkpoints
from finetune_jobs.training.ownership import STATE, Ownership, RunState
from finetune_jobs.training.team import Team
from tests.support.seaweedfs import SeaweedFS
from tests.support.sentences import assert_says

pytestmark = [pytest.mark.unit, pytest.mark.slow]


class Gate(Store):
    """A store whose uploads wait for ``open``, and fail or shorten files as told."""

    def __init__(self, client: Any, uri: str, shared: "Gate | None" = None) -> None:
        super().__init__(client, uri)
        self.open: threading.Event = shared.open if shared else threading.Event()
        self.failures: list[StageError] = shared.failures if shared else []
        self.short: list[str] = shared.short if shared else []

    def at(self, uri: str) -> "Gate":
        return Gate(self._client, uri, self)

    def upload_all(self, files: Mapping[str, Path], advance: Any = None) -> None:
        assert self.open.wait(30)
        if self.failures:
            raise self.failures.pop()
        super().upload_all(files, advance)
        for path in set(self.short) & set(files):
            self.short.remove(path)
            self.put(path, files[path].read_bytes()[:-1])


@pytest.fixture
def store(s3: SeaweedFS, place: str) -> Gate:
    gate = Gate(Store.connect(s3.storage, place)._client, place)
    gate.open.set()
    return gate


def checkpoint(work: Path, step: int, *, best: int = 0) -> Path:
    folder = work / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(b"weights %d" % step * 1000)
    (folder / "training_args.bin").write_bytes(b"a pickle")
    state = {"global_step": step, "best_model_checkpoint": str(work / f"checkpoint-{best or step}")}
    (folder / "trainer_state.json").write_text(json.dumps(state))
    return folder


def delete(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()


def stored(store: Store) -> set[str]:
    """Folders, without the tokens of the attempts."""
    folders = {entry.key.rpartition("/")[0] for entry in store.list() if entry.key != STATE}
    return {re.sub(r"^(attempt-[0-9]+)-[0-9a-f]+", r"\1", folder) for folder in folders}


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


@dataclass(frozen=True)
class OfTwo(Team):
    """One of two processes of a divided training; both are in this one, and what they tell each other is ``said``."""

    size: int = 2
    said: dict[str, Any] = field(default_factory=dict)

    def any(self, *flags: bool) -> tuple[bool, ...]:
        return tuple(flag or self.said.get("slow", False) for flag in flags)

    def collect(self, content: bytes) -> list[bytes]:
        if self.first:
            self.said["content"] = content
        return [self.said["content"], content]


def begin_two(store: Gate, other: Gate) -> list[Checkpoints]:
    """The checkpoints of two processes, each of which reaches the store in its own way."""
    said: dict[str, Any] = {}
    return [Checkpoints(each, "", OfTwo(rank=rank, said=said)) for rank, each in enumerate((store, other))]


def divided_checkpoint(work: Path, step: int) -> None:
    """Both are in one pod, and write to the same folder."""
    folder = checkpoint(work, step)
    for rank in range(2):
        (folder / f"shards/{rank}-of-2").mkdir(parents=True)
        (folder / f"shards/{rank}-of-2/weights.safetensors").write_bytes(b"%d" % rank * 1000)


@pytest.fixture
def other(store: Gate) -> Gate:
    """The way of a second process to the same store."""
    gate = Gate(store._client, store.uri())
    gate.open.set()
    return gate


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


def newest_in(store: Store) -> int:
    """The newest step that an attempt would resume from now."""
    state = RunState.model_validate_json(store.get(STATE) or b"")
    return max((int(place.rpartition("-")[2]) for place in state.checkpoints), default=0)


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
    delete_all(tmp_path / "checkpoint-10")
    divided_checkpoint(tmp_path, 20)
    both[1].keep(tmp_path, divided=True)

    assert both[0].flush(30)

    assert newest_in(store) == 0
    assert_says(caplog.text, "process 1 could not send its part of checkpoint-10", "sent a newer one")


def delete_all(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()


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
