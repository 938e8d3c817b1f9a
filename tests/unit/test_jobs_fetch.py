"""The stage fetch: every byte is verified before a server reads it, also out of a cache that pods share."""

import json
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from finetune_api.endpoint_stages import MODEL_CACHE, MODEL_CACHE_PROBLEM, CacheUse
from finetune_api.layout import MANIFEST, output_folder
from finetune_api.reasons import Reason
from finetune_api.stages import Stage, StageInput, StageResult, Upstream
from finetune_jobs.artifacts.artifact import MODEL_REF
from finetune_jobs.artifacts.folders import describe_folder, publish_folder
from finetune_jobs.base import background
from finetune_jobs.base.errors import StageError
from finetune_jobs.fetch import fetch
from finetune_jobs.publish import publish
from finetune_jobs.runtime.runner import Context, execute
from finetune_jobs.self_check import hold_models
from finetune_jobs.store.cache import HOLD_SECONDS, FolderCache
from finetune_jobs.store.s3 import Store
from tests.support.cache_times import aged, released
from tests.support.publishing import CONFIG, WEIGHTS, deployment_input, publish_input
from tests.support.seaweedfs import READER, STRANGER, SeaweedFS
from tests.support.sentences import assert_says
from tests.support.stages import context, start_process, wait_for

pytestmark = pytest.mark.unit


def test_fetch_puts_the_model_where_the_server_reads_it(s3: SeaweedFS, published: StageResult, tmp_path: Path) -> None:
    asked = deployment_input(s3, published.scalars["artifactUri"], Stage.FETCH)
    result = execute(context(asked, tmp_path), fetch)
    home = tmp_path / "models" / published.output_digest
    assert (home / "model" / "model.safetensors").read_bytes() == WEIGHTS
    assert (result.output_digest, result.scalars) == (
        published.output_digest,
        {"sizeBytes": str(len(WEIGHTS) + len(CONFIG))},
    )
    first = (home / "model" / "model.safetensors").stat().st_ino
    execute(context(asked, tmp_path), fetch)
    assert (home / "model" / "model.safetensors").stat().st_ino == first


def test_fetch_finds_one_flipped_byte(
    s3: SeaweedFS, store: Store, upstream: Upstream, published: StageResult, tmp_path: Path
) -> None:
    path = f"{output_folder(Stage.EXPORT, upstream.export)}/model.safetensors"
    store.put(path, WEIGHTS[:1000] + b"\x00" + WEIGHTS[1001:])
    with pytest.raises(StageError) as error:
        execute(context(deployment_input(s3, published.scalars["artifactUri"], Stage.FETCH), tmp_path), fetch)
    assert error.value.reason is Reason.ARTIFACT_CORRUPT
    assert_says(error.value.message, store.uri(path), "SHA-256")
    assert not (tmp_path / "models" / published.output_digest / "model").exists()


def test_fetch_takes_no_model_whose_files_no_address_pins(s3: SeaweedFS, store: Store, tmp_path: Path) -> None:
    """Who may write to the bucket could put other weights there whenever they like, and the artifact, which somebody
    has pinned or signed, would stay the same."""
    (weights := tmp_path / "weights").mkdir()
    (weights / "config.json").write_bytes(CONFIG)
    (weights / "model.safetensors").write_bytes(WEIGHTS)
    place = store.below("drafts/newest")
    place.upload_all({file.name: file for file in weights.iterdir()})
    place.put(MANIFEST, describe_folder(weights, Stage.EXPORT).model_dump_json(by_alias=True).encode())
    model = {"digest": "5" * 64, "folder": "drafts/newest", "format": "INT8", "sizeBytes": len(WEIGHTS)}
    (crafted := tmp_path / "crafted").mkdir()
    (crafted / MODEL_REF).write_text(json.dumps(model | {"baseModelUri": "s3://models/base"}))
    uri = store.uri(output_folder(Stage.PUBLISH, publish_folder(store, crafted, Stage.PUBLISH)))
    with pytest.raises(StageError) as error:
        execute(context(deployment_input(s3, uri, Stage.FETCH), tmp_path), fetch)
    assert error.value.reason is Reason.ARTIFACT_CORRUPT
    assert_says(error.value.message, MODEL_REF, "'drafts/newest'")


def test_fetch_takes_safetensors_only(s3: SeaweedFS, store: Store, upstream: Upstream, tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "pytorch_model.bin"):
        (folder / name).write_bytes(b"x")
    pickled = upstream.model_copy(update={"export": publish_folder(store, folder, Stage.EXPORT)})
    made = execute(context(publish_input(s3, store, pickled), tmp_path), publish)
    with pytest.raises(StageError, match=r"/quantized .*pytorch_model\.bin, .* run code; only safetensors") as error:
        execute(context(deployment_input(s3, made.scalars["artifactUri"], Stage.FETCH), tmp_path), fetch)
    assert error.value.reason is Reason.MODEL_UNSUPPORTED


class Pods:
    """Serving pods of one node, each with a volume of its own, and a cache that they share."""

    def __init__(self, given: StageInput, folder: Path) -> None:
        self.given, self._folder, self.cache = given, folder, folder / "cache"
        self.cache.mkdir(parents=True)

    def context(self, name: str) -> Context:
        own = self._folder / name
        own.mkdir(exist_ok=True)
        return replace(context(self.given, own), model_cache=self.cache)

    def fetch(self, name: str, **fields: Any) -> StageResult:
        return execute(replace(self.context(name), **fields), fetch)

    def model(self, name: str) -> Path:
        return self._folder / name / "models" / self.given.artifact_digest / "model"

    def kept(self) -> Path:
        """The only folder in the cache."""
        [found] = [each for each in self.cache.iterdir() if each.is_dir()]
        return found


@pytest.fixture
def pods(s3: SeaweedFS, published: StageResult, tmp_path: Path) -> Pods:
    return Pods(deployment_input(s3, published.scalars["artifactUri"], Stage.FETCH), tmp_path / "node")


def test_a_second_pod_takes_the_model_from_the_cache(pods: Pods, upstream: Upstream) -> None:
    first, second = pods.fetch("first"), pods.fetch("second")
    assert_says(first.message, "2 files", "downloaded 128.0 KiB into the cache", "every hash matches")
    assert_says(second.message, "2 files", "taken from the cache", "every hash matches")
    assert first.output_digest == second.output_digest
    assert [each.scalars[MODEL_CACHE] for each in (first, second)] == [CacheUse.DOWNLOADED, CacheUse.FOUND]
    assert MODEL_CACHE_PROBLEM not in first.scalars | second.scalars
    assert pods.kept().name == upstream.export, "by the address of its content, whatever artifact names it"
    for name in ("first", "second"):
        assert pods.model(name).resolve() == pods.kept()
        assert (pods.model(name) / "model.safetensors").read_bytes() == WEIGHTS
        assert (pods.model(name).parent / "artifact" / "manifest.json").is_file(), "what is small is each pod's own"
    assert {each.name for each in pods.kept().iterdir()} == {"config.json", "model.safetensors", "files.json"}


def test_a_byte_that_flipped_in_the_cache_is_found_and_replaced(pods: Pods, caplog: pytest.LogCaptureFixture) -> None:
    pods.fetch("first")
    released(pods.cache, pods.kept().name)
    (pods.kept() / "model.safetensors").write_bytes(WEIGHTS[:1000] + b"\x00" + WEIGHTS[1001:])
    assert_says(pods.fetch("second").message, "downloaded", "into the cache")
    assert (pods.model("first") / "model.safetensors").read_bytes() == WEIGHTS
    assert_says(caplog.text, "SHA-256 of model.safetensors")


def test_without_a_usable_cache_the_model_goes_to_the_pods_own_volume_if_it_has_room(pods: Pods) -> None:
    lost = pods.cache / "not mounted"
    size = len(WEIGHTS) + len(CONFIG)
    alone = pods.fetch("pod", model_cache=lost, models_room=size)
    assert_says(alone.message, "to the pod's own volume", "No such file or directory")
    told = (alone.scalars[MODEL_CACHE], alone.scalars[MODEL_CACHE_PROBLEM])
    assert told == (CacheUse.UNUSED, "No such file or directory")
    assert not pods.model("pod").is_symlink()
    assert (pods.model("pod") / "model.safetensors").read_bytes() == WEIGHTS
    with pytest.raises(StageError) as error:
        pods.fetch("other", model_cache=lost, models_room=size - 1)
    assert (error.value.reason, error.value.retriable) == (Reason.SCRATCH_FULL, True)
    assert_says(error.value.message, "128.0 KiB", "could not be used (No such file or directory)", "scratchSize")
    assert not pods.model("other").exists()
    pods.fetch("pod")
    assert pods.model("pod").is_symlink(), "the next attempt finds the cache again"


def test_a_model_that_does_not_fit_is_not_downloaded(
    s3: SeaweedFS, store: Store, upstream: Upstream, published: StageResult, tmp_path: Path
) -> None:
    """For good: the next pod would have the same volume. What an interrupted attempt has downloaded counts once."""
    asked = context(deployment_input(s3, published.scalars["artifactUri"], Stage.FETCH), tmp_path)
    size, home = len(WEIGHTS) + len(CONFIG), tmp_path / "models" / published.output_digest
    with pytest.raises(StageError) as error:
        execute(replace(asked, models_room=size), fetch)
    beside = sum(each.stat().st_size for each in home.rglob("*") if each.is_file())
    assert (error.value.reason, error.value.retriable) == (Reason.SCRATCH_FULL, False)
    model = store.uri(output_folder(Stage.EXPORT, upstream.export))
    assert_says(error.value.message, model, "has 128.0 KiB, beside", "the pod's volume has 128.0 KiB (scratchSize)")
    assert {each.name for each in home.iterdir()} == {"artifact"}
    begun = home / ".model.partial"
    begun.mkdir()
    (begun / "model.safetensors").write_bytes(WEIGHTS[:1000])
    execute(replace(asked, models_room=size + beside), fetch)
    assert (home / "model" / "model.safetensors").read_bytes() == WEIGHTS
    execute(replace(asked, models_room=size + beside), fetch)


def test_the_cache_serves_nobody_whom_the_store_would_not(pods: Pods, monkeypatch: pytest.MonkeyPatch) -> None:
    pods.fetch("first")
    for name, value in STRANGER.environment().items():
        monkeypatch.setenv(name, value)
    with pytest.raises(StageError) as error:
        pods.fetch("stranger")
    assert error.value.reason is Reason.S3_ACCESS_DENIED
    assert not pods.model("stranger").exists()


def test_what_a_running_pod_reads_is_not_removed(pods: Pods) -> None:
    """Its self-check holds it, however long ago it was fetched, and says so again and again."""
    pods.fetch("pod")
    key = pods.kept().name
    lock = pods.cache / f"{key}.lock"
    released(pods.cache, key, unused=9 * 3600)
    hold_models(pods.model("pod").parent.parent, FolderCache(pods.cache))
    deadline = time.monotonic() + 60
    while time.time() - lock.stat().st_mtime > 3600 and time.monotonic() < deadline:
        time.sleep(0.05)
    aged(lock, 9 * 3600)
    full = FolderCache(pods.cache, limit=1)
    assert full.folder("another", 1, lambda _: {}) is None
    assert pods.kept().name == key
    released(pods.cache, key, unused=9 * 3600)
    full.folder("another", 1, lambda _: {})
    assert not (pods.cache / key).exists()


def test_a_hold_that_fails_again_and_again_is_tried_within_the_hour(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not used for an hour may be removed, so the pauses must not grow as those of other work do."""
    pauses: list[float] = []
    events: list[threading.Event] = []

    class Pausing(threading.Event):
        """Does not wait; at the tenth time the work is told to end."""

        def __init__(self) -> None:
            super().__init__()
            events.append(self)

        def wait(self, timeout: float | None = None) -> bool:
            pauses.append(timeout or 0.0)
            if len(pauses) == 10:
                for event in events:
                    event.set()
            return self.is_set()

    model = tmp_path / "models" / "digest" / "model"
    model.parent.mkdir(parents=True)
    model.symlink_to(tmp_path / "cache" / "key")
    before = set(threading.enumerate())
    monkeypatch.setattr(background, "threading", SimpleNamespace(Event=Pausing, Thread=threading.Thread))
    hold_models(tmp_path / "models", FolderCache(tmp_path / "cache"))
    for thread in set(threading.enumerate()) - before:
        thread.join(60)
    assert pauses == [HOLD_SECONDS] * 10


@pytest.mark.slow
def test_of_two_programs_that_start_at_the_same_time_one_downloads(pods: Pods, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
    started = [
        start_process(
            pods.given, each, READER, "--models", str(each / "models"), "--model-cache", str(pods.cache), fresh=True
        )
        for each in folders
    ]
    ended = [wait_for(process, each) for process, each in zip(started, folders, strict=True)]
    assert [each.code for each in ended] == [0, 0]
    said = [each.result.message for each in ended]
    assert sorted("taken from the cache" in each for each in said) == [False, True], said
    assert sorted("128.0 KiB into the cache" in each for each in said) == [False, True], said
