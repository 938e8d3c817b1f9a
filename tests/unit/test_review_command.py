"""Votes in the store: the command that checks and keeps them, and publish, which waits for them."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from finetune_api.artifact_source import Channel
from finetune_api.gates import GateOutcome, Gates
from finetune_api.layout import channel_object, output_folder, votes_folder
from finetune_api.reasons import Reason
from finetune_api.review import HumanReview, Reviewing, ReviewStatus
from finetune_api.stages import Stage, StageInput, StageResult, Upstream, input_key
from finetune_jobs.artifacts.artifact import ANSWERS, METRICS, REVIEW
from finetune_jobs.artifacts.folders import fetch_folder, publish_folder, read_record, require_manifest
from finetune_jobs.base.errors import StageError
from finetune_jobs.evaluation.review.sheet import ReviewSheet
from finetune_jobs.evaluation.review.stored import read_review
from finetune_jobs.evaluation.review.votes import MOST_BYTES
from finetune_jobs.publish import publish, sign_move_and_push
from finetune_jobs.review import review
from finetune_jobs.runtime.runner import execute
from finetune_jobs.store.s3 import Store
from finetune_jobs.trace import trace
from tests.support import forked
from tests.support.published import publish_input, put_upstream
from tests.support.reviewing import as_file, sheet_with, votes_of
from tests.support.seaweedfs import READER, WRITER, SeaweedFS, User
from tests.support.sentences import assert_says
from tests.support.stages import context

pytestmark = [pytest.mark.unit, pytest.mark.slow]

SHEET = sheet_with(40)


def with_sheet(store: Store, chain: Upstream, folder: Path, sheet: ReviewSheet = SHEET) -> Upstream:
    """The chain with an evaluation that has this review."""
    fetch_folder(store, output_folder(Stage.EVALUATE, chain.evaluation), folder / "evaluation")
    (folder / "evaluation" / REVIEW).write_text(sheet.model_dump_json(by_alias=True))
    for path in (folder / "evaluation").iterdir():
        if path.name not in (ANSWERS, METRICS, REVIEW):
            path.unlink()
    return chain.with_output(Stage.EVALUATE, publish_folder(store, folder / "evaluation", Stage.EVALUATE))


@pytest.fixture
def chain(store: Store, tmp_path: Path) -> Upstream:
    return with_sheet(store, put_upstream(store, tmp_path / "made"), tmp_path)


def saved(folder: Path, name: str, **votes: Any) -> Path:
    """A file as a reviewer's browser leaves it."""
    path = folder / f"{name}.json"
    path.write_bytes(as_file(votes_of(SHEET, name, **votes)))
    return path


def kept(store: Store, chain: Upstream) -> list[str]:
    return [entry.key for entry in store.list(votes_folder(chain.evaluation))]


def test_several_reviewers_lie_side_by_side_and_a_newer_file_replaces_the_older(
    store: Store, chain: Upstream, tmp_path: Path
) -> None:
    first = review(store, chain.evaluation, [saved(tmp_path, "ana", wins=10), saved(tmp_path, "ben", losses=5)])
    assert (first.tally.votes, first.tally.reviewers, first.tally.wins, first.tally.losses) == (15, 2, 10, 5)
    second = review(store, chain.evaluation, [saved(tmp_path, "ana", wins=20)])
    assert (second.tally.votes, second.tally.wins) == (25, 20)
    assert kept(store, chain) == ["by-ana.json", "by-ben.json"]
    assert read_review(store, chain.evaluation) == second
    assert review(store, chain.evaluation, []) == second, "without a file it only counts"


def test_one_bad_file_keeps_all_out(store: Store, chain: Upstream, tmp_path: Path) -> None:
    good, foreign = saved(tmp_path, "ana", wins=3), tmp_path / "ben.json"
    foreign.write_bytes(as_file(votes_of(sheet_with(3), "ben", wins=3)))
    for files, said in (
        ([good, foreign], "ben.json … digest … Export the votes again"),
        ([good, good], "Two of the files are of reviewer 'ana' … newer one … another name"),
        ([tmp_path / "gone.json"], "gone.json cannot be read: No such file"),
    ):
        with pytest.raises(StageError) as error:
            review(store, chain.evaluation, files)
        assert error.value.reason is Reason.SPEC_INVALID
        assert_says(error.value.message, *said.split(" … "))
    assert kept(store, chain) == []


def test_what_others_put_there_is_named_and_not_counted(store: Store, chain: Upstream, tmp_path: Path) -> None:
    review(store, chain.evaluation, [saved(tmp_path, "ana", wins=3)])
    place = votes_folder(chain.evaluation)
    store.put(f"{place}/by-ben.json", b"{")
    store.put(f"{place}/by-eve.json", as_file(votes_of(SHEET, "ana", losses=40)))
    store.put(f"{place}/by-max.json", b" " * (MOST_BYTES + 1))
    found = read_review(store, chain.evaluation)
    assert (found.tally.votes, found.tally.reviewers) == (3, 1)
    for problem, parts in zip(
        found.problems,
        (("by-ben.json", "VotesFile"), ("by-eve.json", "reviewer 'ana'", "another name"), ("by-max.json", "bytes")),
        strict=True,
    ):
        assert_says(problem, "Not counted:", store.uri(f"{place}/{parts[0]}"), *parts[1:])


def test_an_evaluation_without_a_review_and_one_that_was_changed(store: Store, chain: Upstream, tmp_path: Path) -> None:
    old = put_upstream(store, tmp_path / "old", b"other\n").evaluation
    with pytest.raises(StageError, match=r"contains no review\.json: an earlier version .* spec\.rerun") as error:
        review(store, old, [])
    assert error.value.reason is Reason.ARTIFACT_NOT_FOUND
    changed = SHEET.model_copy(update={"baseline": "fewShot"}).model_dump_json(by_alias=True)
    store.put(f"{output_folder(Stage.EVALUATE, chain.evaluation)}/{REVIEW}", changed.encode())
    with pytest.raises(StageError, match=r"review\.json is not the one that its manifest lists") as error:
        review(store, chain.evaluation, [])
    assert error.value.reason is Reason.ARTIFACT_CORRUPT


def test_votes_are_no_folder_of_their_own(store: Store, chain: Upstream, tmp_path: Path) -> None:
    """A reviewer called manifest does not look like one to those who list manifests."""
    review(store, chain.evaluation, [saved(tmp_path, "manifest", wins=1)])
    assert trace(store, chain.dataset).datasets == (chain.dataset,)


def run(store: Store, s3: SeaweedFS, user: User, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["finetune_jobs.review", "--endpoint", s3.endpoint, *arguments]
    return forked.run(command, user.environment() | {"PATH": "/usr/bin"})


def test_the_command(s3: SeaweedFS, store: Store, chain: Upstream, tmp_path: Path) -> None:
    """It says what is counted, needs the right to write, and refuses what is no evaluation."""
    file, uri = str(saved(tmp_path, "ana", wins=30)), store.uri(output_folder(Stage.EVALUATE, chain.evaluation))
    barred = run(store, s3, READER, "--evaluation", uri, file)
    assert (barred.returncode, "S3AccessDenied" in barred.stderr) == (65, True), barred.stderr
    done = run(store, s3, WRITER, "--evaluation", f"{uri}/", file)
    assert (done.returncode, done.stderr) == (0, "")
    assert_says(done.stdout, f"{uri}/votes", "30 votes of 1 reviewer", "30 pairs", "Win rate 100.0%", "80.7% to 100.0%")
    wrong = run(store, s3, WRITER, "--evaluation", f"{uri}/review.html", file)
    assert wrong.returncode == 65
    assert_says(wrong.stderr, "SpecInvalid", "review.html", "s3://bucket/prefix/evaluations/<digest>")


def asked(s3: SeaweedFS, store: Store, chain: Upstream, **gates: Any) -> StageInput:
    """What publish is asked where a review is required."""
    given = publish_input(s3, store, chain)
    assert given.params.publish
    reviewing = Reviewing(human_review=HumanReview.REQUIRED)
    changes = {"reviewing": reviewing, "gates": Gates.model_validate(gates)}
    params = given.params.model_copy(update={"publish": given.params.publish.model_copy(update=changes)})
    key = input_key(Stage.PUBLISH, chain, params)
    return given.model_copy(update={"params": params, "input_key": key})


def publish_it(given: StageInput, folder: Path) -> StageResult:
    return execute(context(given, folder), publish, after=sign_move_and_push)


def said_in(scalars: dict[str, str]) -> ReviewStatus:
    return ReviewStatus.model_validate_json(scalars["review"])


def test_publish_waits_for_votes_and_then_publishes(
    s3: SeaweedFS, store: Store, chain: Upstream, tmp_path: Path
) -> None:
    given = asked(s3, store, chain)
    first = publish_it(given, tmp_path)
    assert (first.reason, first.output_digest) == (Reason.AWAITING_REVIEW, "")
    page = store.uri(f"{output_folder(Stage.EVALUATE, chain.evaluation)}/review.html")
    assert_says(first.message, "0 votes", "at least 30 votes", page)
    assert len(json.loads(first.scalars["goals"])) == 1
    assert read_record(store, Stage.PUBLISH, given.input_key) is None
    assert not list(store.list("artifacts"))
    assert not list(store.list("channels"))

    review(store, chain.evaluation, [saved(tmp_path, "ana", wins=20, losses=10)])
    store.put(f"{votes_folder(chain.evaluation)}/by-ben.json", b"{")
    second = publish_it(given, tmp_path)
    assert second.reason is Reason.AWAITING_REVIEW
    assert_says(second.message, "30 votes of 1 reviewer", "win rate 0.6667", "Not counted:", "by-ben.json")
    assert said_in(second.scalars).outcome is GateOutcome.INCONCLUSIVE

    review(store, chain.evaluation, [saved(tmp_path, "ben", wins=35, losses=5)])
    third = publish_it(given, tmp_path)
    assert (third.reason, said_in(third.scalars).outcome) == (Reason.STAGE_SUCCEEDED, GateOutcome.PASS)
    assert_says(third.message, "Human review passed: 70 votes of 2 reviewers")
    assert store.exists(channel_object("transactions"))
    assert publish_it(given, tmp_path).reused


def test_an_artifact_that_people_reject_is_not_published(
    s3: SeaweedFS, store: Store, chain: Upstream, tmp_path: Path
) -> None:
    review(store, chain.evaluation, [saved(tmp_path, "ana", losses=30)])
    with pytest.raises(StageError) as error:
        publish_it(asked(s3, store, chain), tmp_path)
    assert error.value.reason is Reason.GATE_FAILED
    assert_says(error.value.message, "Human review failed: 30 votes", "win rate 0.0000", "Nothing was published.")
    assert said_in(error.value.scalars).outcome is GateOutcome.FAIL
    assert not list(store.list("artifacts"))
    candidate = publish_it(asked(s3, store, chain, onFail="PublishAsCandidate"), tmp_path)
    assert (candidate.scalars["channel"], said_in(candidate.scalars).outcome) == ("candidate", GateOutcome.FAIL)


def test_a_candidate_that_people_rejected_is_published_once_they_have_changed_their_minds(
    s3: SeaweedFS, store: Store, chain: Upstream, tmp_path: Path
) -> None:
    """Votes are no part of the input, so that what they do not pass is counted anew; what they pass stands."""
    given = asked(s3, store, chain, onFail="PublishAsCandidate")
    review(store, chain.evaluation, [saved(tmp_path, "ana", losses=30)])
    lost = publish_it(given, tmp_path)
    assert (lost.scalars["channel"], lost.reused) == ("candidate", False)
    assert read_record(store, Stage.PUBLISH, given.input_key) is None
    assert not store.exists(channel_object("transactions"))
    assert store.exists(channel_object("transactions", Channel.CANDIDATE))

    review(store, chain.evaluation, [saved(tmp_path, name, wins=40) for name in ("ana", "ben", "eve")])
    won = publish_it(given, tmp_path)
    assert (won.scalars["channel"], won.reused, said_in(won.scalars).votes) == ("stable", False, 120)
    assert store.exists(channel_object("transactions"))
    # It is the same artifact, whose manifest is written once: what became of it first is no fact of it.
    assert won.output_digest == lost.output_digest
    facts = require_manifest(store, output_folder(Stage.PUBLISH, won.output_digest)).facts
    assert facts["artifactUri"] == won.scalars["artifactUri"]
    assert not facts.keys() & {"channel", "goals", "review"}

    review(store, chain.evaluation, [saved(tmp_path, name, losses=40) for name in ("ana", "ben", "eve")])
    again = publish_it(given, tmp_path)
    assert (again.scalars["channel"], again.reused) == ("stable", True)


def test_what_a_warning_let_through_is_counted_anew(
    s3: SeaweedFS, store: Store, chain: Upstream, tmp_path: Path
) -> None:
    given = asked(s3, store, chain, onInconclusive="Warn")
    review(store, chain.evaluation, [saved(tmp_path, "ana", wins=15, losses=15)])
    assert said_in(publish_it(given, tmp_path).scalars).outcome is GateOutcome.INCONCLUSIVE
    review(store, chain.evaluation, [saved(tmp_path, "ana", losses=40)])
    with pytest.raises(StageError, match="Human review failed"):
        publish_it(given, tmp_path)


def test_nobody_is_asked_about_what_has_missed_its_goals(
    s3: SeaweedFS, store: Store, chain: Upstream, tmp_path: Path
) -> None:
    goals = [{"metric": "accuracy", "improveOverBase": "1"}]
    missed = asked(s3, store, chain, goals=goals, onFail="PublishAsCandidate")
    assert publish_it(missed, tmp_path).scalars.keys() >= {"goals", "artifactUri"}
    assert "review" not in publish_it(missed, tmp_path).scalars
    with pytest.raises(StageError) as error:
        publish_it(asked(s3, store, chain, goals=goals), tmp_path)
    assert "review" not in error.value.scalars
