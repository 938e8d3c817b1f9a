"""Copies of a published artifact on the Hugging Face hub: one commit and a tag each, never over something else."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from finetune_api.layout import FileEntry, PushRecord, Withdrawal, output_folder, push_object
from finetune_api.push import HubTarget, PushTarget
from finetune_api.reasons import Reason
from finetune_api.references import SecretKeyRef
from finetune_api.stages import Stage, Upstream
from finetune_jobs.artifacts.hub_push import HubPush
from finetune_jobs.artifacts.modelpack import FileLayer
from finetune_jobs.artifacts.withdrawal import withdraw
from finetune_jobs.base.errors import StageError
from finetune_jobs.base.progress import Progress
from finetune_jobs.store.hub_repository import HubRepository
from finetune_jobs.store.s3 import Store
from finetune_jobs.store.stored_file import open_stored
from tests.support.fake_hub import sha256
from tests.support.publish_job import PublishJob
from tests.support.published import put_upstream
from tests.support.pushed_hub import READER, TOKEN, Commit, PushedHub, Repository, pushed_hub
from tests.support.seaweedfs import SeaweedFS
from tests.support.sentences import assert_says

pytestmark = [pytest.mark.unit, pytest.mark.slow]

SECRET = SecretKeyRef(name="hub", key="token")
NAME = "acme/support"
DIGEST = "a" * 64
FILES = {"README.md", "bom.cdx.json", "config.json", "model.safetensors", ".gitattributes"}
"""What a copy has: the model and its papers, and no example of the data set."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[PushedHub]:
    monkeypatch.setenv(SECRET.variable, f"{TOKEN}\n")
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)  # between the client's own attempts
    with pushed_hub() as made:
        yield made


@pytest.fixture
def next_job(s3: SeaweedFS, store: Store, tmp_path: Path) -> PublishJob:
    """The same job, once its data have changed."""
    return PublishJob(s3, store, put_upstream(store, tmp_path / "next", b"other rows\n"), tmp_path / "next")


def target(hub: PushedHub, **fields: Any) -> PushTarget:
    place = {"endpoint": hub.url, "repository": NAME, "secret_key_ref": SECRET} | fields
    return PushTarget(hugging_face=HubTarget(**place))


@pytest.fixture
def push(hub: PushedHub, store: Store) -> Callable[..., tuple[str, bool]]:
    """One copy of two files, in place of all that publish does."""
    contents = {"model.safetensors": b"weights", "config.json": b"{}"}
    for name, content in contents.items():
        store.put(f"models/{DIGEST}/{name}", content)
    layers = [
        FileLayer(f"models/{DIGEST}", FileEntry(path=n, size=len(c), sha256=sha256(c))) for n, c in contents.items()
    ]

    def made(**fields: Any) -> tuple[str, bool]:
        place = target(hub, **fields).place
        assert isinstance(place, HubTarget)
        return HubPush(store, place, DIGEST, layers, "").make(Progress(Stage.PUBLISH, quiet=True))

    return made


@pytest.mark.parametrize("in_parts", [False, True])
def test_a_model_is_one_private_commit_with_a_tag(
    hub: PushedHub, store: Store, chain: Upstream, job: PublishJob, in_parts: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Whole, in a repository that did not exist; the second time nothing is written, and the log says so."""
    hub.in_parts = in_parts
    caplog.set_level(logging.INFO)
    result = job.publish(target(hub))
    made = hub.repositories[NAME]
    assert made.private
    assert made.tags == {result.output_digest[:12]: made.head.id}
    assert result.scalars["pushed"] == made.head.id
    assert [each.title for each in made.commits[1:]] == [f"finetune-operator: artifact {result.output_digest}"]
    assert made.head.files.keys() == FILES
    model, published = output_folder(Stage.EXPORT, chain.export), output_folder(Stage.PUBLISH, result.output_digest)
    for folder, name in ((model, "model.safetensors"), (model, "config.json"), (published, "README.md")):
        assert made.head.files[name] == store.get(f"{folder}/{name}")
    reference = f"{hub.url.partition('://')[2]}/{NAME}@{result.output_digest[:12]}"
    note = PushRecord.model_validate_json(store.get(push_object(result.output_digest, reference)) or b"")
    assert (note.to, note.digest, note.run) == (reference, made.head.id, job.run)
    assert {each.partition(" ")[2] for each in hub.tokens if each.startswith(TOKEN)} == {"api", "acme"}
    assert TOKEN not in caplog.text
    job.rerun()
    hub.asked.clear()
    assert job.publish(target(hub)).scalars["pushed"] == made.head.id
    assert hub.written == []
    assert hub.asked, "each run asks"
    assert f"{reference}: is there already; nothing was sent" in caplog.text


def test_a_model_of_a_base_in_s3_is_taken(hub: PushedHub, job: PublishJob) -> None:
    """The hub knows base models of its own only."""
    job.base = "s3://models/qwen3-4b"
    job.publish(target(hub))
    card = hub.repositories[NAME].head.files["README.md"].decode()
    assert "base_model" not in card
    assert_says(card, "s3://models/qwen3-4b fine-tuned with")


def test_a_card_that_the_hub_rejects_is_known_before_anything_is_sent(hub: PushedHub, job: PublishJob) -> None:
    job.base = "hf://acme/the base@0123abc"
    with pytest.raises(StageError) as error:
        job.publish(target(hub))
    assert (error.value.reason, error.value.retriable) == (Reason.PUSH_REFUSED, False)
    assert_says(error.value.message, 'its metadata: "base_model" with value "acme/the base" is not valid.')
    assert hub.large == {}
    assert len(hub.repositories[NAME].commits) == 1


def test_the_next_artifact_is_the_next_commit(hub: PushedHub, job: PublishJob, next_job: PublishJob) -> None:
    """Main has its files alone; the artifact before stays under its tag."""
    first = job.publish(target(hub)).scalars["pushed"]
    repository = hub.repositories[NAME]
    repository.commits.append(Commit("a hand", repository.head.files | {"pytorch_model.bin": b"x"}, repository.head.id))
    second = next_job.publish(target(hub)).scalars["pushed"]
    assert list(repository.tags.values()) == [first, second]
    assert second == repository.head.id
    assert repository.head.files.keys() == FILES


def test_main_shows_what_was_published_last(hub: PushedHub, job: PublishJob, next_job: PublishJob) -> None:
    """Also if that is an artifact of before, whose tag stays: nothing large is sent again, and once is enough."""
    first = job.publish(target(hub)).scalars["pushed"]
    repository = hub.repositories[NAME]
    model = repository.head.files
    next_job.publish(target(hub))
    sent = dict(hub.large)
    job.rerun()
    assert job.publish(target(hub)).scalars["pushed"] == first
    assert (repository.head.files, hub.large) == (model, sent)
    assert first in repository.tags.values()
    job.rerun()
    hub.asked.clear()
    repository.commits.append(Commit("a hand", model | {"README.md": b"better"}, repository.head.id))
    assert job.publish(target(hub)).scalars["pushed"] == first
    assert hub.written == [], "what people add to its own commit stays until the next artifact"


Fault = Callable[[PushedHub], Callable[[str, str], int | None]]
Push = Callable[..., tuple[str, bool]]


@pytest.mark.parametrize("cut", ["/large/", "/commit/", "after the commit", "/tag/"])
def test_a_push_that_was_cut_off_shows_nothing_and_goes_on(hub: PushedHub, push: Push, cut: str) -> None:
    committed = cut in ("after the commit", "/tag/")

    def fault(method: str, path: str) -> int | None:
        repository = hub.repositories.get(NAME)
        done = cut == "after the commit" and repository and len(repository.commits) > 1
        if cut in path or (done and "/tree/" in path):
            raise ConnectionResetError
        return None

    hub.fault = fault
    with pytest.raises(StageError) as error:
        push()
    assert (error.value.reason, error.value.retriable) == (Reason.REGISTRY_UNREACHABLE, True)
    repository = hub.repositories[NAME]
    assert not repository.tags
    assert len(repository.head.files) == (3 if committed else 1), "all of it or nothing"
    hub.fault = lambda method, path: None
    hub.asked.clear()
    made, sent = push()
    assert sent
    assert repository.tags == {DIGEST[:12]: made}
    assert len(repository.commits) == 2
    assert any("/large/" in each for each in hub.asked) == (cut == "/large/"), "what the hub has is not sent again"
    assert push() == (made, False)


def concurrent_commit(hub: PushedHub) -> Callable[[str, str], int | None]:
    """Somebody commits while files are sent."""

    def fault(method: str, path: str) -> int | None:
        repository = hub.repositories[NAME] if "/preupload/" in path else None
        if repository and len(repository.commits) == 1:
            repository.commits.append(Commit("theirs", {"theirs.txt": b""}, repository.head.id))
        return None

    return fault


def answers(status: int, part: str) -> Fault:
    return lambda hub: lambda method, path: status if part in path else None


def forestalled(hub: PushedHub) -> Callable[[str, str], int | None]:
    """Somebody creates a repository of this name, which everybody can read, before the push does."""

    def fault(method: str, path: str) -> int | None:
        if "/create" in path:
            hub.repositories[NAME] = Repository(private=False)
        return None

    return fault


def ignores(hub: PushedHub) -> Callable[[str, str], int | None]:
    """A ``.gitignore`` of the repository, say, keeps a file out of the commit."""
    hub.ignored = "config.json"
    return lambda method, path: None


@pytest.mark.parametrize(
    ("fault", "reason", "retriable", "said"),
    [
        (concurrent_commit, Reason.REGISTRY_UNREACHABLE, True, "it was changed at the same time"),
        (answers(429, "/commit/"), Reason.REGISTRY_UNREACHABLE, True, "the hub answered 429 (its limit of requests)"),
        (answers(503, "/refs"), Reason.REGISTRY_UNREACHABLE, True, "reading its tags failed: the hub answered 503"),
        (answers(403, "/commit/"), Reason.REGISTRY_ACCESS_DENIED, False, "the hub answered 403 to the token in Secret"),
        (answers(413, "/large/"), Reason.PUSH_REFUSED, False, "sending model.safetensors failed: the hub answered 413"),
        (answers(404, "/create"), Reason.REPOSITORY_NOT_FOUND, False, "no user or organisation 'acme'"),
        (answers(200, "/refs"), Reason.PUSH_REFUSED, False, "is not a hub (JSONDecodeError)"),
        (ignores, Reason.PUSH_REFUSED, False, "its commit has different files"),
        (forestalled, Reason.PUSH_REFUSED, False, "it is public. Make it private"),
        (answers(409, "/create"), Reason.REGISTRY_ACCESS_DENIED, False, "it exists, and the hub does not show it to"),
    ],
)
def test_what_goes_wrong_has_a_reason(
    hub: PushedHub, push: Push, fault: Fault, reason: Reason, retriable: bool, said: str
) -> None:
    hub.fault = fault(hub)
    with pytest.raises(StageError) as error:
        push()
    assert (error.value.reason, error.value.retriable) == (reason, retriable)
    assert_says(error.value.message, f"{hub.url.partition('://')[2]}/{NAME}", said)
    assert not any(each.tags for each in hub.repositories.values()), "nothing is shown as whole"


@pytest.mark.parametrize(
    ("token", "repository", "said"),
    [
        (READER, "acme/support", "creating it failed: the hub answered 403 to the token in Secret 'hub' (key 'token')"),
        (TOKEN, "theirs/support", "creating it failed: the hub answered 403"),
        (TOKEN, "theirs/public", "the hub answered 403"),
        (TOKEN, "theirs/private", "it exists, and the hub does not show it to the token in Secret 'hub'"),
        ("hf_expired", "acme/support", "looking for it failed: the hub answered 401"),
    ],
)
def test_a_token_that_may_not_write(
    hub: PushedHub, push: Push, monkeypatch: pytest.MonkeyPatch, token: str, repository: str, said: str
) -> None:
    monkeypatch.setenv(SECRET.variable, token)
    hub.repositories = {"theirs/public": Repository(private=False), "theirs/private": Repository()}
    with pytest.raises(StageError) as error:
        push(repository=repository, public=True)
    assert error.value.reason is Reason.REGISTRY_ACCESS_DENIED
    assert_says(error.value.message, repository, said)
    assert token not in error.value.message


OTHER = {".gitattributes": b"", "config.json": b"{}", "model.safetensors": b"theirs"}


@pytest.mark.parametrize(
    ("before", "fields", "reason", "said"),
    [
        (Repository(commits=[Commit("x", OTHER)]), {}, Reason.PUSH_REFUSED, "it contains other files (config.json)"),
        (Repository(private=False), {}, Reason.PUSH_REFUSED, "it is public. Make it private"),
        (Repository(), {"tag": "main"}, Reason.TAG_TAKEN, "already points to a branch, 'main',"),
        (Repository(tags={"v1": Repository().head.id}), {"tag": "v1"}, Reason.TAG_TAKEN, "nothing was overwritten"),
    ],
)
def test_what_is_there_is_kept(
    hub: PushedHub, push: Push, before: Repository, fields: dict[str, Any], reason: Reason, said: str
) -> None:
    hub.repositories[NAME] = before
    with pytest.raises(StageError) as error:
        push(**fields)
    assert error.value.reason is reason
    assert_says(error.value.message, NAME, said)
    assert hub.written == []


def test_a_public_repository_has_to_be_asked_for(hub: PushedHub, push: Push) -> None:
    push(public=True)
    assert not hub.repositories[NAME].private
    hub.repositories[NAME] = Repository(private=True)
    push(public=True)
    assert hub.repositories[NAME].private, "it stays as people have made it"


def test_bytes_that_were_changed_are_not_pushed(hub: PushedHub, store: Store, push: Push) -> None:
    place = f"models/{DIGEST}/model.safetensors"
    file = open_stored(store, place)
    content = store.get(place) or b""
    assert (file.read(3), file.seek(-2, 2), file.read()) == (content[:3], len(content) - 2, content[-2:])
    changed = bytes(reversed(content))
    store.put(place, changed)
    file.seek(0)
    with pytest.raises(StageError, match="was changed while it was read") as error:
        file.read()
    assert error.value.reason is Reason.ARTIFACT_CORRUPT
    with pytest.raises(StageError, match=r"model.safetensors is not the one that its manifest lists") as error:
        push()
    assert error.value.reason is Reason.ARTIFACT_CORRUPT
    assert len(hub.repositories[NAME].commits) == 1
    store.delete(place)
    with pytest.raises(StageError, match=r"model.safetensors is missing"):
        open_stored(store, place)


def test_a_withdrawn_artifact_is_not_pushed(hub: PushedHub, store: Store, job: PublishJob) -> None:
    digest = job.publish().output_digest
    withdraw(store, digest, Withdrawal(reason="erasure", by="me", withdrawn_at="2026-01-31T12:00:00Z"))
    job.rerun()
    with pytest.raises(StageError) as error:
        job.publish(target(hub))
    assert error.value.reason is Reason.ARTIFACT_WITHDRAWN
    assert hub.asked == []


@pytest.mark.parametrize("name", ["pytorch_model.bin", "modeling_x.py", "a/Weights.PT"])
def test_what_can_run_code_is_not_pushed(store: Store, name: str, hub: PushedHub) -> None:
    place = target(hub).place
    assert isinstance(place, HubTarget)
    layer = FileLayer("models/x", FileEntry(path=name, size=1, sha256="0" * 64))
    with pytest.raises(StageError, match=f"{name} can run code when it is loaded") as error:
        HubPush(store, place, "a" * 64, [layer], "").make(Progress(Stage.PUBLISH))
    assert error.value.reason is Reason.PUSH_REFUSED
    assert hub.asked == []


def test_a_hub_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """A closed port, as a network policy makes one; a name that the hub's client does not take; a Secret without a
    token."""
    place = HubTarget(endpoint="http://127.0.0.1:1", repository=NAME, secret_key_ref=SECRET)
    with pytest.raises(StageError, match=r"the hub at http://127.0.0.1:1: cannot be reached \(ConnectError\)") as error:
        HubRepository.connect(place, {SECRET.variable: TOKEN}).is_private()
    assert (error.value.reason, error.value.retriable) == (Reason.REGISTRY_UNREACHABLE, True)
    odd = place.model_copy(update={"repository": "acme/x.git"})
    with pytest.raises(StageError, match=r"pushTo.huggingFace: 'acme/x.git' is not a repository name") as error:
        HubRepository.connect(odd, {SECRET.variable: TOKEN}).is_private()
    assert error.value.reason is Reason.SPEC_INVALID
    with pytest.raises(StageError, match="Secret 'hub' must contain a token for the hub under 'token'") as error:
        HubRepository.connect(place, {})
    assert error.value.reason is Reason.SECRET_MISSING
