"""Withdrawn artifacts: the mark, the command that sets it, and everybody who heeds it."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from finetune_api.endpoint_stages import REPLACED_WITHDRAWN, AdapterRef, VerifyParams
from finetune_api.layout import StageRecord, Withdrawal, channel_object, output_folder, withdrawn_object
from finetune_api.reasons import Reason
from finetune_api.stages import PIPELINE, Outcome, Params, Stage, StageInput, StageResult, Upstream, input_key
from finetune_api.verification import WithdrawnPolicy
from finetune_jobs.artifacts.folders import publish_record
from finetune_jobs.artifacts.withdrawal import MAX_WORDS, in_words, read_withdrawal, withdraw
from finetune_jobs.base.errors import StageError
from finetune_jobs.fetch import fetch
from finetune_jobs.publish import publish, sign_move_and_push
from finetune_jobs.resolve import find_results
from finetune_jobs.runtime.runner import execute
from finetune_jobs.store.s3 import Store
from finetune_jobs.verify import look_at_replaced, verify
from tests.support import forked
from tests.support.published import publish_input, put_upstream
from tests.support.seaweedfs import READER, WRITER, SeaweedFS, User
from tests.support.sentences import assert_says
from tests.support.stages import DEPLOYMENT, context

pytestmark = [pytest.mark.unit, pytest.mark.slow, pytest.mark.usefixtures("own_client")]

MARK = Withdrawal(reason="erasure request 4711", by="dpo", withdrawn_at="2026-03-01T12:00:00Z")
SAID = "withdrawn by dpo on 2026-03-01: erasure request 4711"


@pytest.fixture
def asked(s3: SeaweedFS, store: Store, tmp_path: Path) -> StageInput:
    """The input of publish."""
    return publish_input(s3, store, put_upstream(store, tmp_path / "made"))


@pytest.fixture
def digest(asked: StageInput, tmp_path: Path) -> str:
    """A published artifact."""
    return execute(context(asked, tmp_path), publish, after=sign_move_and_push).output_digest


def serving_input(s3: SeaweedFS, store: Store, digest: str, stage: Stage, **params: Any) -> StageInput:
    place = store.uri(output_folder(Stage.PUBLISH, digest))
    return StageInput(stage=stage, run=DEPLOYMENT, storage=s3.storage, artifact_uri=place, params=Params(**params))


def test_the_first_mark_stands(store: Store, digest: str) -> None:
    assert read_withdrawal(store, digest) is None
    noted = withdraw(store, digest, MARK)
    assert noted == MARK.model_copy(update={"models": noted.models})
    assert withdraw(store, digest, MARK.model_copy(update={"reason": "other"})) == noted
    assert in_words(MARK) == SAID
    assert len(in_words(MARK.model_copy(update={"reason": "x" * 5000}))) <= MAX_WORDS


def test_what_is_not_published_cannot_be_withdrawn(store: Store) -> None:
    with pytest.raises(StageError, match="nothing is published there") as error:
        withdraw(store, "0" * 64, MARK)
    assert error.value.reason is Reason.ARTIFACT_NOT_FOUND
    assert list(store.list("artifacts")) == []


@pytest.mark.parametrize("broken", ["manifest.json", "model.json"])
def test_a_damaged_artifact_can_be_withdrawn(store: Store, digest: str, broken: str) -> None:
    store.put(f"{output_folder(Stage.PUBLISH, digest)}/{broken}", b"{")
    assert withdraw(store, digest, MARK).models == []
    assert read_withdrawal(store, digest) == MARK


def test_a_mark_that_nobody_can_read_is_a_mark(store: Store, digest: str) -> None:
    store.put(withdrawn_object(digest), b"?")
    mark = read_withdrawal(store, digest)
    assert mark is not None
    assert_says(in_words(mark), "withdrawn:", withdrawn_object(digest), "cannot be read")


@pytest.mark.parametrize("policy", WithdrawnPolicy)
def test_a_rollout_is_refused_or_warned(
    s3: SeaweedFS, store: Store, digest: str, tmp_path: Path, policy: WithdrawnPolicy
) -> None:
    """By verify, which runs for candidates only: a pod that replaces one of what serves is not held up."""
    withdraw(store, digest, MARK)
    params = VerifyParams(
        endpoint="http://127.0.0.1:9", samples=1, min_agreement_percent=75, timeout_seconds=0, withdrawn=policy
    )
    with pytest.raises(StageError) as error:
        execute(context(serving_input(s3, store, digest, Stage.VERIFY, verify=params), tmp_path), verify)
    refused = error.value.reason is Reason.ARTIFACT_WITHDRAWN
    assert refused is (policy is WithdrawnPolicy.REFUSE), "with Warn, it goes on to ask the server, which is not there"
    if refused:
        assert_says(error.value.message, f"artifacts/{digest} was {SAID}")


def test_a_verification_tells_of_what_serves_until_then(
    s3: SeaweedFS, store: Store, digest: str, tmp_path: Path
) -> None:
    """Also that it was not withdrawn; what it cannot know, it does not say."""

    def told(*uris: str) -> dict[str, str]:
        replaced = [AdapterRef(name=f"a{number}", uri=each, digest=digest) for number, each in enumerate(uris)]
        params = VerifyParams(
            endpoint="http://x", samples=1, min_agreement_percent=75, timeout_seconds=0, replaced=replaced
        )
        given = serving_input(s3, store, digest, Stage.VERIFY, verify=params)
        return look_at_replaced(context(given, tmp_path), params)

    here = store.uri(output_folder(Stage.PUBLISH, digest))
    nowhere = f"s3://no-such-bucket/{output_folder(Stage.PUBLISH, digest)}"
    assert told() == told(nowhere) == told(here, nowhere) == {}
    assert told(here) == {REPLACED_WITHDRAWN: ""}
    withdraw(store, digest, MARK)
    assert told(here) == told(here, nowhere) == {REPLACED_WITHDRAWN: f"{SAID} (adapter 'a0')"}


def test_fetch_reports_a_mark_and_goes_on(s3: SeaweedFS, store: Store, digest: str, tmp_path: Path) -> None:
    given = serving_input(s3, store, digest, Stage.FETCH)
    assert "withdrawn" not in execute(context(given, tmp_path), fetch).scalars
    withdraw(store, digest, MARK)
    assert execute(context(given, tmp_path), fetch).scalars["withdrawn"] == SAID


def test_no_name_points_to_it_again(store: Store, asked: StageInput, digest: str, tmp_path: Path) -> None:
    """A run over the same data finds the results of all stages, but has to publish, and may not."""
    chain = asked.upstream
    for stage, output in zip(PIPELINE, (chain.dataset, chain.adapter, chain.export, chain.evaluation), strict=False):
        result = StageResult(
            stage=stage, outcome=Outcome.SUCCEEDED, reason=Reason.STAGE_SUCCEEDED, output_digest=output
        )
        publish_record(store, stage, input_key(stage, chain, asked.params), StageRecord(result=result))
    sources = Upstream(source=chain.source, model=chain.model)
    assert tuple(each.stage for each in find_results(context(asked, tmp_path), sources)) == PIPELINE
    withdraw(store, digest, MARK)
    assert tuple(each.stage for each in find_results(context(asked, tmp_path), sources)) == PIPELINE[:-1]
    store.delete(channel_object("transactions"))
    with pytest.raises(StageError) as error:
        execute(context(asked, tmp_path), publish, after=sign_move_and_push)
    assert error.value.reason is Reason.ARTIFACT_WITHDRAWN
    assert_says(error.value.message, f"artifacts/{digest} was {SAID}")
    assert not store.exists(channel_object("transactions"))


def run_command(user: User, *arguments: str) -> subprocess.CompletedProcess[str]:
    return forked.run(["finetune_jobs.withdraw", *arguments], user.environment() | {"PATH": "/usr/bin"})


def test_the_command(s3: SeaweedFS, store: Store, digest: str) -> None:
    place = store.uri(output_folder(Stage.PUBLISH, digest))
    common = ("--endpoint", s3.endpoint, "--by", "dpo", "--reason", "erasure request 4711")
    wrong = run_command(WRITER, "--artifact", store.uri("models/x"), *common)
    assert wrong.returncode == 65
    assert_says(wrong.stderr, "SpecInvalid", "s3://bucket/prefix/artifacts/<digest>")
    barred = run_command(READER, "--artifact", place, *common)
    assert barred.returncode == 65
    assert_says(barred.stderr, "S3AccessDenied", withdrawn_object(digest))
    done = run_command(WRITER, "--artifact", place, *common)
    assert (done.returncode, done.stderr) == (0, "")
    assert_says(done.stdout, f"{place} is withdrawn by dpo on ", ": erasure request 4711")
    mark = read_withdrawal(store, digest)
    assert mark is not None
    assert (mark.by, mark.reason) == ("dpo", "erasure request 4711")
