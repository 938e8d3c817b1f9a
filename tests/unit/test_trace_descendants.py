"""Models trained on models: what trace finds of them, and who notices that a base was withdrawn."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from finetune_api.hashing import canonical_json
from finetune_api.layout import MANIFEST, PushRecord, Withdrawal, output_folder, push_object
from finetune_api.reasons import Reason
from finetune_api.stages import Stage, StageInput, Upstream
from finetune_jobs.artifacts.ancestry import published_model, require_standing_base
from finetune_jobs.artifacts.withdrawal import withdraw
from finetune_jobs.base.errors import StageError
from finetune_jobs.publish import publish, sign_move_and_push
from finetune_jobs.resolve import resolve
from finetune_jobs.runtime.runner import execute
from finetune_jobs.store.s3 import Store
from finetune_jobs.trace import as_table, trace
from tests.support import forked
from tests.support.first_stages import given as first_stage
from tests.support.published import BASE, publish_input, put_upstream
from tests.support.seaweedfs import WRITER, SeaweedFS
from tests.support.sentences import assert_says
from tests.support.stages import RUN, context

pytestmark = [pytest.mark.unit, pytest.mark.slow]

MARK = Withdrawal(reason="erasure request 4711", by="dpo", withdrawn_at="2026-03-01T12:00:00Z")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass(frozen=True)
class PublishedArtifact:
    """A FineTuneJob's artifact."""

    chain: Upstream
    digest: str
    model: str
    """URI of its exported model, as a base model of others."""
    given: StageInput


@pytest.fixture
def without_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """A third of what publishing takes is for the pages of runs, at which these tests do not look."""
    monkeypatch.setattr("finetune_jobs.publish._report", lambda _context, _said: None)


def make(s3: SeaweedFS, store: Store, folder: Path, name: str, base: str = BASE) -> PublishedArtifact:
    """Everything of one FineTuneJob with data and sources of its own, up to its artifact."""
    run, source = RUN.model_copy(update={"name": name}), f"{len(name):064x}"
    chain = put_upstream(store, folder / f"of-{name}", name.encode(), source=source, base=base)
    given = publish_input(s3, store, chain, name=name, run=run, base_model_uri=base)
    digest = execute(context(given, folder), publish, after=sign_move_and_push).output_digest
    return PublishedArtifact(chain, digest, store.uri(output_folder(Stage.EXPORT, chain.export)), given)


def test_what_is_trained_on_a_model_contains_its_data(s3: SeaweedFS, store: Store, tmp_path: Path) -> None:
    """Over two generations, and in another place that has the same address; not in a job beside them."""
    first = make(s3, store, tmp_path, "a")
    second = make(s3, store, tmp_path, "bb", first.model)
    promoted = f"{store.uri()}-production/{output_folder(Stage.EXPORT, second.chain.export)}/"
    third = make(s3, store, tmp_path, "ccc", promoted)
    beside = make(s3, store, tmp_path, "dddd")

    answer = trace(store, first.chain.dataset)
    through = {each.digest: each.through for each in answer.found if each.stage is Stage.PUBLISH}
    assert through == {first.digest: "", second.digest: first.model, third.digest: promoted}
    assert {each.name for each in answer.channels} == {"a/stable", "bb/stable", "ccc/stable"}
    assert {third.chain.adapter, third.chain.export} <= {each.digest for each in answer.found}
    assert_says(as_table(answer), "3 published artifacts", "THROUGH", second.chain.export[:12])
    assert beside.digest not in as_table(answer)
    later = trace(store, second.chain.dataset).as_json()
    assert [each["digest"] for each in later["artifacts"] if "throughModel" not in each] == [second.digest]
    assert {each["digest"] for each in later["artifacts"]} == {second.digest, third.digest}


def test_sources_stand_for_every_data_set_made_of_them(s3: SeaweedFS, store: Store, tmp_path: Path) -> None:
    first, other = make(s3, store, tmp_path, "a"), make(s3, store, tmp_path, "bb")
    by_data, by_source = trace(store, first.chain.dataset).as_json(), trace(store, first.chain.source).as_json()
    assert by_source["artifacts"] == by_data["artifacts"]
    assert (by_source["datasets"], by_source["dataset"]["published"]) == ([first.chain.dataset], True)
    assert_says(as_table(trace(store, first.chain.source)), "Sources 000000000000", first.chain.dataset[:12])
    assert other.digest not in str(by_source)


def pushed(store: Store, digest: str, to: str, copy: str) -> None:
    record = PushRecord(to=to, digest=copy, run=RUN, pushed_at="2026-02-01T00:00:00Z")
    store.put(push_object(digest, to), canonical_json(record))


def test_copies_are_named_and_those_on_a_hub_may_be_base_models(s3: SeaweedFS, store: Store, tmp_path: Path) -> None:
    first = make(s3, store, tmp_path, "a")
    pushed(store, first.digest, "huggingface.co/acme/support@v1", COMMIT)
    pushed(store, first.digest, "ghcr.io/acme/support:v1", "sha256:" + "7" * 64)
    by_tag = make(s3, store, tmp_path, "bb", "hf://acme/support@v1")
    by_commit = make(s3, store, tmp_path, "ccc", f"hf://acme/support@{COMMIT}")
    by_branch = make(s3, store, tmp_path, "eeeee", "hf://acme/support@main")  # which each push moves
    make(s3, store, tmp_path, "dddd", "hf://acme/support@v2")
    make(s3, store, tmp_path, "ffffff", "hf://acme/other@main")

    answer = trace(store, first.chain.dataset).as_json()
    copies = (by_tag, by_commit, by_branch)
    assert {each["digest"] for each in answer["artifacts"]} == {first.digest, *(each.digest for each in copies)}
    [own] = [each for each in answer["artifacts"] if each["digest"] == first.digest]
    assert [each["to"] for each in own["copies"]] == ["ghcr.io/acme/support:v1", "huggingface.co/acme/support@v1"]
    assert_says(as_table(trace(store, first.chain.dataset)), f"Copy of {first.digest[:12]}: ghcr.io/acme/support:v1")

    place = store.uri(output_folder(Stage.PUBLISH, first.digest))
    command = ["finetune_jobs.withdraw", "--endpoint", s3.endpoint, "--artifact", place, "--by", "dpo"]
    done = forked.run([*command, "--reason", "erasure request 4711"], WRITER.environment() | {"PATH": "/usr/bin"})
    assert done.returncode == 0
    assert_says(done.stdout, "is withdrawn by dpo", "Not reached", "ghcr.io/acme/support:v1", f"sha256:{'7' * 64}")
    assert_says(done.stdout, "huggingface.co/acme/support@v1", COMMIT)


@pytest.mark.usefixtures("without_pages")
def test_a_withdrawn_base_ends_what_is_trained_on_it(s3: SeaweedFS, store: Store, tmp_path: Path) -> None:
    """Also two generations later, and when the files of the first are erased, as its page says."""
    first = make(s3, store, tmp_path, "a")
    second = make(s3, store, tmp_path, "bb", first.model)
    third = make(s3, store, tmp_path, "ccc", second.model)
    beside = make(s3, store, tmp_path, "dddd")
    withdraw(store, first.digest, MARK)
    own = (f"The base model {first.model} is that of", f"artifacts/{first.digest}", "was withdrawn by dpo")
    generation_later = (
        "on which the base model",
        second.model,
        "was withdrawn by dpo on 2026-03-01: erasure request 4711",
    )
    ends(second, tmp_path, *own)
    ends(third, tmp_path, *generation_later)
    for folder in (output_folder(Stage.PUBLISH, first.digest), output_folder(Stage.EXPORT, first.chain.export)):
        store.delete(f"{folder}/{MANIFEST}")
    ends(second, tmp_path, *own)
    ends(third, tmp_path, *generation_later)
    execute(context(beside.given, tmp_path), publish, after=sign_move_and_push)


def ends(job: PublishedArtifact, folder: Path, *parts: str) -> None:
    """Publishing it again ends with this sentence about a withdrawal."""
    with pytest.raises(StageError) as error:
        execute(context(job.given, folder), publish, after=sign_move_and_push)
    assert error.value.reason is Reason.ARTIFACT_WITHDRAWN
    assert_says(error.value.message, *parts)


def test_a_base_of_the_base_may_be_out_of_reach(
    s3: SeaweedFS, store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It was promoted from a bucket that these keys cannot read, or that is gone. The base itself must be readable."""
    far = f"s3://no-such-bucket/models/{'1' * 64}/quantized"
    folder = tmp_path / "second"
    chain = put_upstream(store, folder, base=far)
    base = store.uri(output_folder(Stage.EXPORT, chain.export))
    require_standing_base(store.at, store, base)
    assert_says(caplog.text, f"whether {far}, on which {base} was trained, was withdrawn is unknown", "does not exist")
    with pytest.raises(StageError) as error:
        require_standing_base(store.at, store, far)
    assert error.value.reason is Reason.BUCKET_NOT_FOUND


@pytest.mark.usefixtures("without_pages")
@pytest.mark.parametrize("revision", ["v1", COMMIT])
def test_a_copy_of_a_withdrawn_artifact_ends_what_is_trained_on_it(
    s3: SeaweedFS, store: Store, tmp_path: Path, revision: str
) -> None:
    """And what was trained on that. Main stands for another copy by now."""
    first, beside = make(s3, store, tmp_path, "a"), make(s3, store, tmp_path, "dddd")
    pushed(store, first.digest, "huggingface.co/acme/support@v1", COMMIT)
    pushed(store, beside.digest, "huggingface.co/acme/support@v2", COMMIT[::-1])
    second = make(s3, store, tmp_path, "bb", f"hf://acme/support@{revision}")
    pushed(store, second.digest, "huggingface.co/acme/next@v1", COMMIT)
    third = make(s3, store, tmp_path, "ccc", "hf://acme/next@v1")
    standing = {"e" * 5: "v2", "f" * 6: COMMIT[::-1], "g" * 7: "main"}
    others = [make(s3, store, tmp_path, name, f"hf://acme/support@{at}") for name, at in standing.items()]
    withdraw(store, first.digest, MARK)
    ends(
        second,
        tmp_path,
        f"The base model hf://acme/support@{revision} is that of",
        first.digest,
        "was withdrawn by dpo",
    )
    ends(third, tmp_path, first.digest, "on which the base model hf://acme/next@v1 was trained", "was withdrawn by dpo")
    for job in others:
        execute(context(job.given, tmp_path), publish, after=sign_move_and_push)


@pytest.mark.usefixtures("without_pages")
def test_resolve_notices_before_anything_is_spent(s3: SeaweedFS, stocked: Store, tmp_path: Path) -> None:
    results = stocked.below("out")
    first = make(s3, results, tmp_path, "a")
    asked = first_stage(stocked, Stage.RESOLVE, s3.storage).model_copy(update={"base_model_uri": first.model})
    withdraw(results, first.digest, MARK)
    with pytest.raises(StageError) as error:
        execute(context(asked, tmp_path), resolve)
    assert error.value.reason is Reason.ARTIFACT_WITHDRAWN
    assert_says(error.value.message, first.model, "was withdrawn by dpo on 2026-03-01: erasure request 4711")


@pytest.mark.parametrize(
    ("uri", "known"),
    [
        (f"s3://m/team/models/{'1' * 64}/quantized", ("s3://m/team", Stage.EXPORT, "1" * 64)),
        (f"s3://m/models/{'1' * 64}/adapter/", ("s3://m", Stage.TRAIN, "1" * 64)),
        (f"s3://m/models/{'1' * 64}/other", None),
        ("s3://m", None),
        ("s3://m/models/llama-3-8b/quantized", None),  # somebody's own folder, whose other folders are none of ours
        ("hf://acme/base@0123", None),
        ("", None),
    ],
)
def test_the_address_in_a_base_models_uri(uri: str, known: tuple[str, Stage, str] | None) -> None:
    assert published_model(uri) == known
