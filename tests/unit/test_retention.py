"""Which checkpoints go once a training has succeeded."""

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.layout import MANIFEST, run_folder
from finetune_api.tracking import Retention
from finetune_jobs.artifacts.retention import Checkpoint, checkpoints_of, remove_checkpoints, superseded
from finetune_jobs.store.s3 import Store
from tests.support.seaweedfs import READER, SeaweedFS
from tests.support.sentences import assert_says
from tests.support.stages import RUN

pytestmark = pytest.mark.unit

NOW, BEFORE = "a" * 64, "b" * 64


def checkpoint(training: str, step: int, complete: bool = True) -> Checkpoint:
    return Checkpoint(training, step, f"{training}/checkpoint-{step}", complete)


CHECKPOINTS = st.sets(
    st.builds(checkpoint, st.sampled_from(["a" * 16, "b" * 16, "c" * 16]), st.integers(1, 50), st.booleans())
)


@given(CHECKPOINTS, st.integers(0, 5), st.integers(0, 50))
def test_the_newest_and_the_best_of_the_training_stay_and_nothing_else(
    stored: set[Checkpoint], keep: int, best: int
) -> None:
    gone = superseded(stored, "a" * 16, keep, best)
    own = {each for each in stored if each.training == "a" * 16 and each.complete}
    stay = own - set(gone)
    assert set(gone) - own == stored - own
    newest = set(sorted(own)[-keep:] if keep else [])
    assert stay == newest | {each for each in own if keep and each.step == best}
    assert not superseded(stored - set(gone), "a" * 16, keep, best), "a second time there is nothing to do"


@pytest.mark.parametrize(
    ("path", "step"),
    [
        ("a" * 16 + "/checkpoint-25/adapter_model.safetensors", 25),
        ("a" * 16 + "/attempt-2/checkpoint-100/manifest.json", 100),
        ("a" * 16 + "/state.json", None),
        ("a" * 16 + "/checkpoint-25", None),
        ("elsewhere/checkpoint-25/manifest.json", None),
        ("a" * 16 + "/checkpoint-x/manifest.json", None),
    ],
)
def test_only_checkpoints_are_recognised(path: str, step: int | None) -> None:
    assert [each.step for each in checkpoints_of([path])] == ([] if step is None else [step])


def test_a_checkpoint_is_complete_with_its_manifest() -> None:
    folder = "a" * 16 + "/attempt-2-0f/checkpoint-100"
    for names, complete in ((["a", MANIFEST], True), (["a", "parts/1.json", f"parts/{MANIFEST}"], False)):
        assert [each.complete for each in checkpoints_of(f"{folder}/{name}" for name in names)] == [complete]


def fill(store: Store) -> list[str]:
    """A run with checkpoints of two trainings, and everything else that must stay."""
    run = run_folder(RUN)
    own = f"{run}/checkpoints/{NOW[:16]}"
    paths = [f"{own}/attempt-1/checkpoint-{step}/{name}" for step in (5, 10, 100) for name in ("a", MANIFEST)]
    paths += [f"{run}/checkpoints/{BEFORE[:16]}/checkpoint-7/a", f"{own}/state.json"]
    paths += [f"{run}/tracking/r1/events.out.tfevents.1", f"{run}/logs/train-r1-pod.jsonl"]
    paths += [f"runs/{RUN.name}/another-uid/checkpoints/{NOW[:16]}/checkpoint-1/a"]
    paths += [f"models/{NOW}/adapter/manifest.json"]
    for path in paths:
        store.put(path, b"content")
    return sorted(paths)


def left(store: Store) -> list[str]:
    return sorted(entry.key for entry in store.list())


@pytest.mark.parametrize(("keep", "gone"), [(100, []), (2, [5]), (1, [5, 10]), (0, [5, 10, 100])])
def test_superseded_checkpoints_are_deleted(keep: int, gone: list[int], s3: SeaweedFS, place: str) -> None:
    store = Store.connect(s3.storage, place)
    paths = fill(store)
    remove_checkpoints(store, RUN, NOW, Retention(checkpoints=keep))
    deleted = [f"/checkpoint-{step}/" for step in gone] + [BEFORE[:16]]
    assert left(store) == [path for path in paths if not (RUN.uid in path and any(part in path for part in deleted))]


@pytest.mark.parametrize(
    ("state", "gone"),
    [(b'{"best_global_step": 5}', [10]), (b'{"best_global_step": null}', [5, 10]), (b"[", [5, 10]), (b"[]", [5, 10])],
)
def test_the_best_checkpoint_stays_beside_the_newest(state: bytes, gone: list[int], s3: SeaweedFS, place: str) -> None:
    """Whoever goes on from the newest one may end with the weights of the best."""
    store = Store.connect(s3.storage, place)
    fill(store)
    store.put(f"{run_folder(RUN)}/checkpoints/{NOW[:16]}/attempt-1/checkpoint-100/trainer_state.json", state)
    remove_checkpoints(store, RUN, NOW, Retention(checkpoints=1))
    steps = {int(path.split("/checkpoint-")[1].split("/")[0]) for path in left(store) if f"{NOW[:16]}/attempt" in path}
    assert steps == {5, 10, 100} - set(gone)


def sent(attempt: int, step: int, complete: bool = True) -> Checkpoint:
    return Checkpoint("a" * 16, step, f"{'a' * 16}/attempt-{attempt}-0f/checkpoint-{step}", complete)


@pytest.mark.parametrize(
    ("torn", "stays"),
    [
        (sent(10, 30, complete=False), True),
        (sent(10, 20, complete=False), False),
        (sent(9, 30, complete=False), False),
        (checkpoint("a" * 16, 30, complete=False), False),
        (checkpoint("b" * 16, 30, complete=False), False),
    ],
)
@pytest.mark.parametrize("keep", [0, 1, 3])
def test_what_may_still_be_on_its_way_stays(torn: Checkpoint, stays: bool, keep: int) -> None:
    """The newest attempt's, past what it has sent whole: the training that has just succeeded may be sending it."""
    stored = [sent(9, 10), sent(9, 20), sent(10, 25), torn]
    assert (torn not in superseded(stored, "a" * 16, keep)) == stays
    whole = [each for each in stored if each.complete and each not in superseded(stored, "a" * 16, keep)]
    assert whole == sorted(stored[:3], key=lambda each: each.step)[3 - keep :], "it costs no whole one"


def test_the_first_checkpoint_may_still_be_on_its_way() -> None:
    first = [sent(1, 20, complete=False), sent(1, 30, complete=False)]
    assert superseded(first, "a" * 16, keep=0) == []


def test_a_torn_checkpoint_costs_no_whole_one(s3: SeaweedFS, place: str) -> None:
    """It is newer, but the attempt was lost before all of it had been sent; the next one ended at fewer steps."""
    store = Store.connect(s3.storage, place)
    paths = fill(store)
    own = f"{run_folder(RUN)}/checkpoints/{NOW[:16]}"
    whole = f"{own}/attempt-2/checkpoint-150/{MANIFEST}"
    store.put(whole, b"content")
    for name in ("parts/1.json", "shards/1-of-2/weights.safetensors", "trainer_state.json"):
        store.put(f"{own}/attempt-1/checkpoint-200/{name}", b"{}")
    remove_checkpoints(store, RUN, NOW, Retention(checkpoints=4))
    assert left(store) == [path for path in sorted([*paths, whole]) if BEFORE[:16] not in path]


def test_a_refusal_costs_a_warning(s3: SeaweedFS, place: str, caplog: pytest.LogCaptureFixture) -> None:
    store = Store.connect(s3.storage, place)
    paths = fill(store)
    reader = Store(s3.client(READER), place)
    with caplog.at_level(logging.WARNING):
        remove_checkpoints(reader, RUN, NOW, Retention())
    assert left(store) == paths
    assert_says(caplog.text, "old checkpoints", "not deleted", store.uri())
