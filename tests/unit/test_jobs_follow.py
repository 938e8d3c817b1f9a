"""The stage follow against a real store: what a channel points to, whose it is, and whether it may be served."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from finetune_api.artifact_source import Channel
from finetune_api.endpoint_stages import PUBLISHED_AT, FollowParams
from finetune_api.hashing import canonical_json
from finetune_api.layout import (
    MANIFEST,
    ChannelPointer,
    NameOwner,
    Withdrawal,
    channel_object,
    output_folder,
    owner_object,
    withdrawn_object,
)
from finetune_api.reasons import Reason
from finetune_api.stages import Params, RunRef, Stage, StageInput, StageResult
from finetune_api.storage import Storage
from finetune_api.verification import WithdrawnPolicy
from finetune_jobs.artifacts.artifact import Answer, read_answers, write_answers
from finetune_jobs.base.errors import StageError
from finetune_jobs.follow import follow, lines_of
from finetune_jobs.runtime.runner import execute
from finetune_jobs.store.s3 import Store
from tests.support.seaweedfs import SeaweedFS
from tests.support.sentences import assert_says
from tests.support.stages import DEPLOYMENT, RUN, context

pytestmark = [pytest.mark.unit, pytest.mark.slow]

FIRST, SECOND = "1" * 64, "2" * 64
FACTS = ("format", "architecture", "sizeBytes", "goldenPromptTokens", "answerTokens")
MOMENT = "2026-01-02T03:04:05Z"


@pytest.fixture
def store(s3: SeaweedFS, place: str) -> Store:
    return Store.connect(s3.storage, place)


def publish(store: Store, digest: str, channel: Channel = Channel.STABLE, run: RunRef = RUN) -> None:
    """What is left of a publication, as far as it is looked at."""
    store.put(f"{output_folder(Stage.PUBLISH, digest)}/{MANIFEST}", b"{}")
    pointer = ChannelPointer(artifact_digest=digest, owner=run, updated_at=MOMENT)
    store.put(channel_object("transactions", channel), canonical_json(pointer))
    store.put_if_absent(owner_object("transactions"), canonical_json(NameOwner(owner=run, claimed_at=MOMENT)))


def look(store: Store, folder: Path, storage: Storage, **params: Any) -> StageResult | StageError:
    asked = FollowParams(uri=store.uri("").rstrip("/"), name="transactions", **params)
    given = StageInput(stage=Stage.FOLLOW, run=DEPLOYMENT, storage=storage, params=Params(follow=asked))
    try:
        return execute(context(given, folder), follow)
    except StageError as error:
        return error


def listed(store: Store) -> set[str]:
    return {each.key for each in store.list("")}


def test_where_each_channel_points(s3: SeaweedFS, store: Store, tmp_path: Path) -> None:
    publish(store, FIRST)
    publish(store, SECOND, Channel.CANDIDATE)
    before = listed(store)
    for channel, digest in ((Channel.STABLE, FIRST), (Channel.CANDIDATE, SECOND)):
        found = look(store, tmp_path, s3.storage, channel=channel)
        assert isinstance(found, StageResult)
        assert (found.output_digest, found.scalars) == (digest, {PUBLISHED_AT: MOMENT})
    publish(store, SECOND)
    moved = look(store, tmp_path, s3.storage)
    assert isinstance(moved, StageResult)
    assert moved.output_digest == SECOND
    assert listed(store) == before, "nothing is written"


def test_what_it_points_to_is_described_as_publish_did(
    s3: SeaweedFS, store: Store, published: StageResult, tmp_path: Path
) -> None:
    """Of an artifact that cannot be read nothing is known, which is no failure here."""
    digest, path = published.output_digest, f"{output_folder(Stage.PUBLISH, published.output_digest)}/model.json"
    pointer = ChannelPointer(artifact_digest=digest, owner=RUN, updated_at=MOMENT)
    store.put(channel_object("transactions", Channel.STABLE), canonical_json(pointer))
    found = look(store, tmp_path, s3.storage)
    assert isinstance(found, StageResult)
    facts = {name: published.scalars[name] for name in FACTS}
    assert found.scalars == {PUBLISHED_AT: MOMENT, **facts}
    store.put(path, b"{}")
    damaged = look(store, tmp_path, s3.storage)
    assert isinstance(damaged, StageResult)
    assert (damaged.output_digest, damaged.scalars) == (digest, {PUBLISHED_AT: MOMENT})


def test_other_ends_of_lines_in_a_text_are_no_lines(tmp_path: Path) -> None:
    answers = [Answer(messages=[], label=text, base="", tuned=text, artifact=text) for text in ("a\u2028b\x85c", "d")]
    write_answers(tmp_path / "golden", answers)
    assert read_answers(lines_of((tmp_path / "golden").read_bytes()), "golden") == answers


ELSEWHERE = RUN.model_copy(update={"namespace": "team-b"})


def test_what_may_not_be_followed(s3: SeaweedFS, store: Store, tmp_path: Path) -> None:
    nothing = look(store, tmp_path, s3.storage)
    assert isinstance(nothing, StageError)
    assert (nothing.reason, nothing.retriable) == (Reason.CHANNEL_NOT_FOUND, False)
    assert_says(nothing.message, store.uri("channels/transactions/stable.json"), "does not exist")
    publish(store, FIRST, run=ELSEWHERE)
    for channel in Channel:
        foreign = look(store, tmp_path, s3.storage, channel=channel)
        assert isinstance(foreign, StageError)
        assert foreign.reason is Reason.OUTPUT_NAME_FOREIGN, "whatever there is in the channel"
        assert_says(foreign.message, "FineTuneJob team-b/transactions", "namespace team-a")


def test_a_channel_that_another_namespace_has_from_an_earlier_version(
    s3: SeaweedFS, store: Store, tmp_path: Path
) -> None:
    publish(store, FIRST)
    publish(store, SECOND, Channel.CANDIDATE, run=ELSEWHERE)
    assert isinstance(look(store, tmp_path, s3.storage), StageResult)
    foreign = look(store, tmp_path, s3.storage, channel=Channel.CANDIDATE)
    assert isinstance(foreign, StageError)
    assert foreign.reason is Reason.OUTPUT_NAME_FOREIGN
    assert_says(foreign.message, "candidate.json", "FineTuneJob team-b/transactions", "namespace team-a")


def test_an_artifact_that_is_withdrawn_or_gone(s3: SeaweedFS, store: Store, tmp_path: Path) -> None:
    publish(store, FIRST)
    mark = Withdrawal(reason="a person asked for it", by="alex", withdrawn_at=MOMENT)
    store.put(withdrawn_object(FIRST), canonical_json(mark))
    refused = look(store, tmp_path, s3.storage)
    assert isinstance(refused, StageError)
    assert refused.reason is Reason.ARTIFACT_WITHDRAWN
    assert_says(refused.message, "alex", "a person asked for it")
    taken = look(store, tmp_path, s3.storage, withdrawn=WithdrawnPolicy.WARN)
    assert isinstance(taken, StageResult)
    assert taken.output_digest == FIRST
    store.delete(f"{output_folder(Stage.PUBLISH, FIRST)}/{MANIFEST}")
    gone = look(store, tmp_path, s3.storage)
    assert isinstance(gone, StageError)
    assert gone.reason is Reason.ARTIFACT_NOT_FOUND


def test_a_store_that_is_down_is_asked_again(store: Store, tmp_path: Path) -> None:
    down = look(store, tmp_path, Storage(endpoint="http://127.0.0.1:9"))
    assert isinstance(down, StageError)
    assert (down.reason, down.retriable) == (Reason.S3_UNREACHABLE, True)
