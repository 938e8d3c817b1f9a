"""A store that fails at one of publish's last writes: a clear reason, nothing half published, and a retry completes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from finetune_api.artifact_source import Channel
from finetune_api.layout import Withdrawal, output_folder
from finetune_api.reasons import Reason
from finetune_api.stages import Stage, StageInput, StageResult, Upstream, input_key
from finetune_api.storage import Storage
from finetune_jobs.artifacts.channel import read_channel
from finetune_jobs.artifacts.folders import read_record, require_manifest
from finetune_jobs.artifacts.signature import require_signature
from finetune_jobs.artifacts.withdrawal import read_withdrawal, withdraw
from finetune_jobs.base.errors import StageError
from finetune_jobs.publish import publish, sign_move_and_push
from finetune_jobs.runtime.runner import execute
from finetune_jobs.store.s3 import Store
from tests.support.forgetful_store import forgetful
from tests.support.published import KEY, new_key, private_pem, public_pem, publish_input
from tests.support.seaweedfs import ADMIN, SeaweedFS
from tests.support.sentences import assert_says
from tests.support.stages import context

pytestmark = [pytest.mark.unit, pytest.mark.slow]

LAST_WRITES: Final = {
    "a file": r"/artifacts/[0-9a-f]{64}/README\.md",
    "the manifest": r"/artifacts/[0-9a-f]{64}/manifest\.json",
    "the record": r"/keys/publish/",
    "the verdict": r"/artifacts/[0-9a-f]{64}/gates/",
    "the signature": r"/artifacts/[0-9a-f]{64}/provenance/",
    "the name": r"/owners/transactions\.json",
    "the channel": r"/channels/transactions/stable\.json",
}
"""In the order in which publish makes them."""


class Fault:
    """Which writes fail, while a test wants it."""

    def __init__(self) -> None:
        self.pattern = ""
        self.failed = 0

    def __call__(self, path: str) -> bool:
        fails = bool(self.pattern and re.search(self.pattern, path))
        self.failed += fails
        return fails


@pytest.fixture(autouse=True)
def without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client asks a store that fails as often as ever, one time right after the other."""
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0)


@pytest.fixture
def fault() -> Fault:
    return Fault()


@pytest.fixture
def endpoint(s3: SeaweedFS, fault: Fault) -> Iterator[str]:
    """A store that fails as ``fault`` says, in front of the real one."""
    with forgetful(s3.endpoint, ADMIN, ignores=(), fails=fault) as url:
        yield url


def content(store: Store) -> dict[str, str]:
    """Every object with its ETag."""
    return {each.key: each.etag for each in store.list()}


def test_a_store_that_fails_at_each_last_write_in_turn(
    s3: SeaweedFS,
    store: Store,
    chain: Upstream,
    endpoint: str,
    fault: Fault,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each attempt comes one write further than the one before, and the last one to the end."""
    key = new_key()
    monkeypatch.setenv(KEY.variable, private_pem(key))
    given = publish_input(s3, store, chain, signed=True)
    given = given.model_copy(update={"storage": Storage(endpoint=endpoint)})
    before: dict[str, str] = {}
    for number, (write, pattern) in enumerate(LAST_WRITES.items()):
        fault.pattern, fault.failed = pattern, 0
        with pytest.raises(StageError) as error:
            run(given, tmp_path)
        assert fault.failed > 0, write
        assert (error.value.reason, error.value.retriable) == (Reason.S3_UNREACHABLE, True)
        assert_says(error.value.message, store.uri(), "failed", "the store answered 500 InternalError")
        assert re.search(pattern, error.value.message), f"it names the object: {write}"
        nothing_half_published(store, number, given)
        before = nothing_overwritten(store, before)

    fault.pattern = ""
    digest = run(given, tmp_path).output_digest
    require_manifest(store, output_folder(Stage.PUBLISH, digest))
    require_signature(store, digest, [public_pem(key)])
    pointer = read_channel(store, "transactions")
    assert pointer is not None
    assert pointer[0].artifact_digest == digest
    nothing_overwritten(store, before)
    assert run(given, tmp_path).reused


def nothing_overwritten(store: Store, before: dict[str, str]) -> dict[str, str]:
    """What there is now; all that was there before, but for the page that each run writes anew, is what it was."""
    after = content(store)
    kept = {name: tag for name, tag in before.items() if not name.endswith("index.html")}
    assert {name: after.get(name) for name in kept} == kept
    return after


def run(given: StageInput, folder: Path) -> StageResult:
    return execute(context(given, folder), publish, after=sign_move_and_push)


def nothing_half_published(store: Store, failed: int, given: StageInput) -> None:
    """Whatever comes after the write that failed is not there: readers find the artifact whole, or none."""
    order = list(LAST_WRITES)
    digests = {key.split("/")[1] for key in content(store) if re.match(r"artifacts/.*manifest\.json$", key)}
    assert len(digests) == (failed > order.index("the manifest"))
    key = input_key(Stage.PUBLISH, given.upstream, given.params)
    assert (read_record(store, Stage.PUBLISH, key) is not None) == (failed > order.index("the record"))
    signed = [key for key in content(store) if "/provenance/" in key]
    assert bool(signed) == (failed > order.index("the signature"))
    assert [read_channel(store, "transactions", channel) for channel in Channel] == [None, None]


def test_a_mark_that_cannot_be_written_is_none(
    store: Store, chain: Upstream, s3: SeaweedFS, endpoint: str, fault: Fault, tmp_path: Path
) -> None:
    digest = run(publish_input(s3, store, chain), tmp_path).output_digest
    through = Store.connect(Storage(endpoint=endpoint), store.uri())
    mark = Withdrawal(reason="erasure request 4711", by="dpo", withdrawn_at="2026-03-01T12:00:00Z")
    fault.pattern = r"/withdrawn\.json"
    with pytest.raises(StageError) as error:
        withdraw(through, digest, mark)
    assert (error.value.reason, error.value.retriable) == (Reason.S3_UNREACHABLE, True)
    assert read_withdrawal(store, digest) is None
    fault.pattern = ""
    assert withdraw(through, digest, mark).by == "dpo"
