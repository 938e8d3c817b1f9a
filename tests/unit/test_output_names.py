"""Whose an output name is: one owner for all channels, whoever comes first to which of them."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest

from finetune_api.artifact_source import Channel
from finetune_api.hashing import canonical_json
from finetune_api.layout import ChannelPointer, channel_object
from finetune_api.reasons import Reason
from finetune_api.stages import RunRef, StageInput, Upstream
from finetune_jobs.artifacts.channel import read_channel
from finetune_jobs.base.errors import StageError
from finetune_jobs.publish import move_channel
from finetune_jobs.store.s3 import Store
from tests.support.published import publish_input
from tests.support.seaweedfs import SeaweedFS
from tests.support.sentences import assert_says
from tests.support.stages import RUN, context

pytestmark = [pytest.mark.unit, pytest.mark.slow]

ELSEWHERE = RUN.model_copy(update={"namespace": "team-b", "uid": "9c1d"})
CHAIN = Upstream(**{name: str(n) * 64 for n, name in enumerate(Upstream.model_fields, start=1)})


def asked(s3: SeaweedFS, store: Store, run: RunRef) -> StageInput:
    return publish_input(s3, store, CHAIN, run=run)


def move(given: StageInput, folder: Path, digest: str, channel: Channel) -> StageError | None:
    folder.mkdir(parents=True, exist_ok=True)
    try:
        move_channel(context(given, folder), digest, channel)
    except StageError as error:
        return error
    return None


def owners(store: Store) -> dict[str, str]:
    """The namespace of whoever each channel belongs to."""
    found = {channel: read_channel(store, "transactions", channel) for channel in Channel}
    return {channel.value: each[0].owner.namespace for channel, each in found.items() if each}


def test_two_jobs_cannot_have_a_channel_each(s3: SeaweedFS, store: Store, tmp_path: Path) -> None:
    """Both have passed resolve while the name was free; the second misses a goal and publishes a candidate."""
    ours, theirs = asked(s3, store, RUN), asked(s3, store, ELSEWHERE)
    assert move(ours, tmp_path, "1" * 64, Channel.STABLE) is None
    refused = move(theirs, tmp_path, "2" * 64, Channel.CANDIDATE)
    assert refused is not None
    assert refused.reason is Reason.OUTPUT_NAME_CONFLICT
    assert_says(refused.message, "owners/transactions.json belongs to FineTuneJob team-a/transactions", "may not")
    assert owners(store) == {"stable": "team-a"}
    for channel in Channel:
        assert move(ours, tmp_path, "3" * 64, channel) is None, "the owner goes on with both"
    assert owners(store) == {"stable": "team-a", "candidate": "team-a"}


def test_who_was_overtaken_does_not_turn_a_channel_back(
    s3: SeaweedFS, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A later run of the same job publishes between the moments in which this one reads the channel and moves it."""
    earlier, later = asked(s3, store, RUN), asked(s3, store, RUN)
    assert move(earlier, tmp_path, "1" * 64, Channel.STABLE) is None

    def read_and_be_overtaken(*where: Any) -> Any:
        found = read_channel(*where)
        with monkeypatch.context() as undisturbed:
            undisturbed.setattr("finetune_jobs.publish.read_channel", read_channel)
            assert move(later, tmp_path / "later", "3" * 64, Channel.STABLE) is None
        return found

    monkeypatch.setattr("finetune_jobs.publish.read_channel", read_and_be_overtaken)
    refused = move(earlier, tmp_path / "earlier", "2" * 64, Channel.STABLE)
    assert refused is not None
    assert (refused.reason, refused.retriable) == (Reason.S3_UNREACHABLE, True)
    assert_says(refused.message, "channels/transactions/stable.json was changed by another writer")
    standing = read_channel(store, "transactions")
    assert standing is not None
    assert standing[0].artifact_digest == "3" * 64


def race(given: Sequence[StageInput], channels: Sequence[Channel], folder: Path) -> list[StageError | None]:
    """Each moves a channel to an artifact of its own, all at the same moment."""
    start = Barrier(len(given))

    def one(number: int) -> StageError | None:
        start.wait()
        return move(given[number], folder / str(number), str(number) * 64, channels[number])

    with ThreadPoolExecutor(len(given)) as threads:
        return list(threads.map(one, range(len(given))))


@pytest.mark.parametrize(
    "channels", [[*Channel, *Channel], [Channel.CANDIDATE] * 4], ids=["for both channels", "for candidate"]
)
def test_of_jobs_that_race_for_a_name_one_gets_all_of_it(
    s3: SeaweedFS, store: Store, tmp_path: Path, channels: Sequence[Channel]
) -> None:
    runs = [RUN.model_copy(update={"namespace": f"team-{number}"}) for number in range(len(channels))]
    ends = race([asked(s3, store, run) for run in runs], channels, tmp_path)
    [won] = [number for number, error in enumerate(ends) if error is None]
    assert {error.reason for error in ends if error} == {Reason.OUTPUT_NAME_CONFLICT}
    assert owners(store) == {channels[won].value: f"team-{won}"}


def test_a_name_that_earlier_versions_left_to_two_is_that_of_stable(
    s3: SeaweedFS, store: Store, tmp_path: Path
) -> None:
    """Both were refused until somebody deleted an object. Now one of them goes on, always the same."""
    for channel, run in ((Channel.STABLE, RUN), (Channel.CANDIDATE, ELSEWHERE)):
        pointer = ChannelPointer(artifact_digest="0" * 64, owner=run, updated_at="2026-01-01T00:00:00Z")
        store.put(channel_object("transactions", channel), canonical_json(pointer))
    refused = move(asked(s3, store, ELSEWHERE), tmp_path, "2" * 64, Channel.CANDIDATE)
    assert refused is not None
    assert refused.reason is Reason.OUTPUT_NAME_CONFLICT
    assert_says(refused.message, "channels/transactions/stable.json belongs to FineTuneJob team-a/transactions")
    assert not store.exists("owners/transactions.json"), "who is refused decides nothing"
    assert move(asked(s3, store, RUN), tmp_path, "3" * 64, Channel.CANDIDATE) is None
    assert owners(store) == {"stable": "team-a", "candidate": "team-a"}


def test_a_name_is_given_away_by_deleting_what_the_message_names(s3: SeaweedFS, store: Store, tmp_path: Path) -> None:
    assert move(asked(s3, store, RUN), tmp_path, "1" * 64, Channel.STABLE) is None
    refused = move(asked(s3, store, ELSEWHERE), tmp_path, "2" * 64, Channel.STABLE)
    assert refused is not None
    places = (store.uri("owners/transactions.json"), store.uri("channels/transactions"))
    assert_says(refused.message, "gone for good", f"delete {places[0]} and what is below {places[1]}")
    store.delete("owners/transactions.json")
    store.delete(channel_object("transactions"))
    assert move(asked(s3, store, ELSEWHERE), tmp_path, "2" * 64, Channel.STABLE) is None
    assert owners(store) == {"stable": "team-b"}
