"""trace: which models contain a data set, from what stands in a real store."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from finetune_api.layout import MANIFEST, Manifest, Withdrawal, output_folder, run_folder
from finetune_api.reasons import Reason
from finetune_api.stages import Stage, Upstream
from finetune_jobs.artifacts.withdrawal import withdraw
from finetune_jobs.base.errors import StageError
from finetune_jobs.publish import publish, sign_move_and_push
from finetune_jobs.runtime.runner import execute
from finetune_jobs.store.s3 import Store
from finetune_jobs.trace import as_table, trace
from tests.support import forked
from tests.support.published import publish_input, put_upstream
from tests.support.seaweedfs import READER, SeaweedFS
from tests.support.sentences import assert_says
from tests.support.stages import RUN, context

pytestmark = [pytest.mark.unit, pytest.mark.slow]

MARK = Withdrawal(reason="erasure request 4711", by="dpo", withdrawn_at="2026-03-01T12:00:00Z")


def put(s3: SeaweedFS, store: Store, folder: Path, rows: str, name: str) -> tuple[Upstream, str]:
    """Everything of one FineTuneJob, up to its artifact; returns the addresses, and the artifact's."""
    chain = put_upstream(store, folder / f"{name}-{rows}", rows.encode())
    given = publish_input(s3, store, chain, name=name, run=RUN.model_copy(update={"name": name}))
    return chain, execute(context(given, folder), publish, after=sign_move_and_push).output_digest


def test_it_names_what_contains_a_data_set_and_nothing_else(s3: SeaweedFS, store: Store, tmp_path: Path) -> None:
    """One job made two versions; two jobs arrived at the same data; a third has other data."""
    old, first = put(s3, store, tmp_path, "old", "cards")
    new, second = put(s3, store, tmp_path, "new", "cards")
    _, third = put(s3, store, tmp_path, "old", "loans")
    _, other = put(s3, store, tmp_path, "else", "mail")
    withdraw(store, first, MARK)

    before, after = trace(store, old.dataset).as_json(), trace(store, new.dataset).as_json()
    assert {each["digest"] for each in before["artifacts"]} == {first, third}
    assert {each["digest"] for each in before["models"]} == {old.adapter, old.export, old.evaluation}
    assert before["channels"] == [{"name": "loans/stable", "artifact": third, "owner": "team-a/loans"}]
    assert before["jobs"] == ["team-a/cards", "team-a/loans", "team-a/transactions"], "the parts are transactions'"
    marks = {each["digest"]: each.get("withdrawn") for each in before["artifacts"]}
    assert marks == {first: "withdrawn by dpo on 2026-03-01: erasure request 4711", third: None}
    assert [each["digest"] for each in after["artifacts"]] == [second]
    assert [each["name"] for each in after["channels"]] == ["cards/stable"]
    assert other not in json.dumps([before, after])


def test_two_jobs_that_share_their_models_are_both_named(s3: SeaweedFS, store: Store, tmp_path: Path) -> None:
    """The second reused everything but its own artifact."""
    chain = put_upstream(store, tmp_path / "made")
    for name in ("first", "again"):
        given = publish_input(s3, store, chain, name=name, run=RUN.model_copy(update={"name": name}))
        execute(context(given, tmp_path), publish, after=sign_move_and_push)
    answer = trace(store, chain.dataset).as_json()
    assert sorted(each["job"] for each in answer["artifacts"]) == ["team-a/again", "team-a/first"]
    assert [each["name"] for each in answer["channels"]] == ["again/stable", "first/stable"]


def test_a_data_set_may_be_gone_and_its_models_still_be_there(s3: SeaweedFS, store: Store, tmp_path: Path) -> None:
    chain, digest = put(s3, store, tmp_path, "rows", "cards")
    assert_says(as_table(trace(store, chain.dataset)), "still in the store", "1 published artifact.")
    store.delete(f"{output_folder(Stage.PREPARE, chain.dataset)}/{MANIFEST}")
    table = as_table(trace(store, chain.dataset)).splitlines()
    assert table[0] == f"Data set {chain.dataset[:12]} (no longer in the store): 1 published artifact."
    assert table[1].split() == ["STAGE", "DIGEST", "JOB", "CHANNELS", "THROUGH", "WITHDRAWN"]
    assert ["publish", digest[:12], "team-a/cards", "cards/stable", "-", "-"] in [line.split() for line in table]
    assert_says(as_table(trace(store, "0" * 64)), "no longer in the store", "no model below this URI contains it.")


def test_what_is_left_of_the_runs_is_named(s3: SeaweedFS, store: Store, tmp_path: Path) -> None:
    """Checkpoints hold trained weights, and the answers of a teacher quote prompts: an erasure has to reach them."""
    chain, _ = put(s3, store, tmp_path, "rows", "cards")
    put(s3, store, tmp_path, "else", "mail")
    cards, mail = (run_folder(RUN.model_copy(update={"name": name})) for name in ("cards", "mail"))
    for entry in list(store.list("runs")):
        store.delete(f"runs/{entry.key}")
    assert trace(store, chain.dataset).runs == (), "nothing stands there"
    for place in (cards, mail, run_folder(RUN)):
        store.put(f"{place}/checkpoints/0b8a/attempt-1-x/checkpoint-8/model.safetensors", b"weights")
    found = trace(store, chain.dataset)
    assert found.runs == (store.uri(cards), store.uri(run_folder(RUN))), "the parts are transactions'"
    assert found.as_json()["runs"] == list(found.runs)
    assert f"Run: {store.uri(cards)}" in as_table(found).splitlines()


def test_an_answer_that_would_not_be_whole_is_none(s3: SeaweedFS, store: Store, tmp_path: Path) -> None:
    chain, digest = put(s3, store, tmp_path, "rows", "cards")
    with pytest.raises(StageError, match=r"'12ab' is not the digest of a data set: 64 hexadecimal digits"):
        trace(store, "12ab")
    place = f"artifacts/{digest}/{MANIFEST}"
    whole = store.get(place) or b""
    newer = Manifest.model_validate_json(whole).model_copy(update={"schema_version": 2})
    for content, reason in ((newer.model_dump_json(by_alias=True).encode(), Reason.MANIFEST_NEWER), (b"{", None)):
        store.put(place, content)
        with pytest.raises(StageError) as error:
            trace(store, chain.dataset)
        assert error.value.reason is (reason or Reason.ARTIFACT_CORRUPT)
        assert store.uri(place) in error.value.message


def test_the_command(s3: SeaweedFS, store: Store, tmp_path: Path) -> None:
    chain, digest = put(s3, store, tmp_path, "rows", "cards")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = ["finetune_jobs.trace", "--endpoint", s3.endpoint, "--uri", store.uri(), *arguments]
        return forked.run(command, READER.environment() | {"PATH": "/usr/bin"})

    done = run("--dataset", chain.dataset, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert [each["digest"] for each in json.loads(done.stdout)["artifacts"]] == [digest]
    assert_says(run("--dataset", chain.dataset).stdout, digest[:12], "cards/stable")
    wrong = run("--dataset", "12ab")
    assert (wrong.returncode, wrong.stdout) == (65, "")
    assert_says(wrong.stderr, "SpecInvalid", "is not the digest")
