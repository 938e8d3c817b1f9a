"""Documents of the contract: what is damaged, or of a later form, is named and never guessed at."""

import json
from typing import Any

import pytest
from pydantic import BaseModel

from finetune_api.artifact_source import Channel
from finetune_api.layout import ChannelPointer, GatesRecord, Manifest, NameOwner, StageRecord, Withdrawal
from finetune_api.reasons import Reason
from finetune_api.stages import RunRef, StageInput
from finetune_jobs.artifacts.artifact import BaseRef, ModelRef
from finetune_jobs.base.documents import parse_json
from finetune_jobs.base.errors import StageError
from finetune_jobs.evaluation.judging.verdict import Judgement
from finetune_jobs.evaluation.review.sheet import ReviewSheet
from tests.support.sentences import assert_says

pytestmark = pytest.mark.unit

OWNER = RunRef(kind="FineTuneJob", namespace="team-a", name="mail", uid="u", id="r1")
POINTER = ChannelPointer(artifact_digest="a" * 64, owner=OWNER, updated_at="2026-11-26T00:00:00Z")
MARK = Withdrawal(reason="erasure", by="ann", withdrawn_at="2026-11-26T00:00:00Z")
GATES = GatesRecord(channel=Channel.STABLE, are_set=True, goals=[])


def changed(document: BaseModel, **changes: Any) -> bytes:
    return json.dumps(json.loads(document.model_dump_json(by_alias=True)) | changes).encode()


@pytest.mark.parametrize("document", [POINTER, MARK, GATES, NameOwner(owner=OWNER, claimed_at="")])
def test_what_a_newer_version_adds_is_ignored_and_a_later_form_refused(document: BaseModel) -> None:
    kind = type(document)
    assert parse_json(changed(document, added=1), kind, "s3://data/it.json") == document
    with pytest.raises(StageError) as error:
        parse_json(changed(document, schemaVersion=2), kind, "s3://data/it.json")
    assert error.value.reason is Reason.MANIFEST_NEWER
    assert_says(error.value.message, "s3://data/it.json has schemaVersion 2", "up to 1")


@pytest.mark.parametrize(
    "kind", [BaseRef, ChannelPointer, GatesRecord, Judgement, Manifest, ModelRef, NameOwner, ReviewSheet, StageRecord]
)
def test_a_later_form_is_named_also_where_it_lacks_every_field(kind: type[BaseModel]) -> None:
    with pytest.raises(StageError) as error:
        parse_json(b'{"schemaVersion": 99}', kind, "it.json")
    assert error.value.reason is Reason.MANIFEST_NEWER


def test_a_reason_of_its_own_stays() -> None:
    with pytest.raises(StageError) as error:
        parse_json(b'{"schemaVersion": 99}', StageInput, "the input it.json", Reason.SPEC_INVALID)
    assert error.value.reason is Reason.SPEC_INVALID
    assert_says(error.value.message, "the input it.json has schemaVersion 99")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"[]", "it.json cannot be read as ChannelPointer: the document"),
        (b"{", "it.json cannot be read as ChannelPointer: the document … JSON"),
        (b"{}", "it.json cannot be read as ChannelPointer: artifactDigest: Field required"),
        (b'{"schemaVersion": "new"}', "it.json cannot be read as ChannelPointer: schemaVersion"),
    ],
)
def test_what_is_damaged_names_the_field(content: bytes, said: str) -> None:
    with pytest.raises(StageError) as error:
        parse_json(content, ChannelPointer, "it.json")
    assert error.value.reason is Reason.ARTIFACT_CORRUPT
    assert_says(error.value.message, *said.split(" … "))
