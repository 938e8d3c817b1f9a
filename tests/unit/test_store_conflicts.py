"""Conditional writes that meet others, or whose answer is lost: tried again, and taken for what they are."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

import pytest

from finetune_api.layout import MANIFEST, output_folder, owner_object
from finetune_api.reasons import Reason
from finetune_api.stages import Stage, Upstream
from finetune_api.storage import Storage
from finetune_jobs.artifacts.channel import claim_name, read_channel
from finetune_jobs.artifacts.folders import publish_folder
from finetune_jobs.base.errors import StageError
from finetune_jobs.publish import move_channel
from finetune_jobs.store.s3 import Store
from tests.support.forgetful_store import Refusal, forgetful
from tests.support.published import publish_input
from tests.support.seaweedfs import ADMIN, SeaweedFS
from tests.support.sentences import assert_says
from tests.support.stages import RUN, context

pytestmark = [pytest.mark.unit, pytest.mark.slow]

CONFLICT: Final = Refusal(409, "ConditionalRequestConflict")
"""What AWS answers to a conditional write that meets another one: try again."""
LOST_ANSWER: Final = Refusal(500, "InternalError", arrives=True)

CHAIN: Final = Upstream(**{name: str(n) * 64 for n, name in enumerate(Upstream.model_fields, start=1)})

Faulty = Callable[[Refusal, int], AbstractContextManager[str]]


@pytest.fixture(autouse=True)
def without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0)
    monkeypatch.setattr("finetune_jobs.store.s3._PAUSES", (0.0,) * 4)


@pytest.fixture
def faulty(s3: SeaweedFS) -> Faulty:
    """A store in front of the real one that answers the first so many writes with a refusal."""

    def start(refusal: Refusal, times: int) -> AbstractContextManager[str]:
        left = iter(range(times))
        return forgetful(s3.endpoint, ADMIN, (), lambda _path: next(left, None) is not None, refusal)

    return start


def test_a_conflict_of_writes_is_tried_again(store: Store, place: str, faulty: Faulty) -> None:
    with faulty(CONFLICT, 1) as endpoint:
        assert connected(endpoint, place).put_if_absent("key", b"first")
    content, etag = store.get_tagged("key") or (b"", "")
    assert content == b"first"
    with faulty(CONFLICT, 1) as endpoint:
        assert connected(endpoint, place).replace("key", b"second", etag)
    assert store.get("key") == b"second"


def test_a_conflict_that_stays_is_a_failure_that_passes(store: Store, place: str, faulty: Faulty) -> None:
    with faulty(CONFLICT, 1_000) as endpoint, pytest.raises(StageError) as error:
        connected(endpoint, place).put_if_absent("key", b"first")
    assert (error.value.reason, error.value.retriable) == (Reason.S3_UNREACHABLE, True)
    assert_says(error.value.message, "key failed: the store answered 409 ConditionalRequestConflict")
    assert not store.exists("key")


def test_a_conflict_that_another_writer_won_is_lost(store: Store, place: str, faulty: Faulty) -> None:
    store.put("key", b"another's")
    with faulty(CONFLICT, 1_000) as endpoint:
        busy = connected(endpoint, place)
        assert not busy.put_if_absent("key", b"first")
        assert not busy.replace("key", b"second", '"an earlier one"')
        assert not busy.replace("none", b"second", '"an earlier one"')
    assert store.get("key") == b"another's"


def test_a_conflict_leaves_no_name_without_owner_and_no_folder_without_manifest(
    store: Store, place: str, faulty: Faulty, tmp_path: Path
) -> None:
    with faulty(CONFLICT, 1) as endpoint:
        claim_name(connected(endpoint, place), "transactions", RUN, "2026-01-31T12:00:00Z")
    assert store.exists(owner_object("transactions"))
    with faulty(CONFLICT, 1) as endpoint:
        (tmp_path / "empty").mkdir()
        digest = publish_folder(connected(endpoint, place), tmp_path / "empty", Stage.PREPARE)
    assert store.exists(f"{output_folder(Stage.PREPARE, digest)}/{MANIFEST}")


def test_a_channel_that_was_moved_without_an_answer_is_moved(
    s3: SeaweedFS, store: Store, faulty: Faulty, tmp_path: Path
) -> None:
    """The client writes again, and the store refuses that: the channel is not what it was."""
    asked = publish_input(s3, store, CHAIN)
    claim_name(store, "transactions", RUN, "2026-01-31T12:00:00Z")
    for digest in ("1" * 64, "2" * 64):  # the first write, and a change
        with faulty(LOST_ANSWER, 1) as endpoint:
            given = asked.model_copy(update={"storage": Storage(endpoint=endpoint)})
            move_channel(context(given, tmp_path), digest)
        pointer = read_channel(store, "transactions")
        assert pointer is not None
        assert pointer[0].artifact_digest == digest


def connected(endpoint: str, place: str) -> Store:
    return Store.connect(Storage(endpoint=endpoint), place)
