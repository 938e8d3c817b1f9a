"""Copies of a published artifact in OCI registries: whole, found again by anybody, never over something else."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import httpx2
import pytest

from finetune_api.artifact_source import Channel
from finetune_api.export import ExportFormat
from finetune_api.finetunejob import Output
from finetune_api.layout import FileEntry, PushRecord, output_folder, push_object
from finetune_api.push import OciTarget, PushTarget
from finetune_api.reasons import Reason
from finetune_api.references import SecretRef
from finetune_api.stages import Stage, Upstream
from finetune_jobs.artifacts import modelpack, push
from finetune_jobs.artifacts.folders import read_manifest
from finetune_jobs.artifacts.modelpack import FileLayer, blobs_of, is_copy, pack
from finetune_jobs.artifacts.push import Copies
from finetune_jobs.base.errors import StageError
from finetune_jobs.store.s3 import Store
from tests.support import registry as registries
from tests.support.publish_job import PublishJob
from tests.support.registry import PASSWORD, USER, MemoryRegistry
from tests.support.sentences import assert_says
from tests.support.stages import RUN

pytestmark = [pytest.mark.unit]

OCI = OciTarget(registry="http://registry.test", repository="acme/support")
LOGIN = SecretRef(name="registry")


# What is packed (pure)

TYPES = {
    "model-00001-of-00002.safetensors": "application/vnd.cncf.model.weight.v1.raw",
    "config.json": "application/vnd.cncf.model.weight.config.v1.raw",
    "chat_template.jinja": "application/vnd.cncf.model.weight.config.v1.raw",
    "README.md": "application/vnd.cncf.model.doc.v1.raw",
    "LICENSE.txt": "application/vnd.cncf.model.doc.v1.raw",
    "bom.cdx.json": "application/vnd.cncf.model.doc.v1.raw",
}


def layer(path: str) -> FileLayer:
    return FileLayer("models/x", FileEntry(path=path, size=len(path), sha256=hashlib.sha256(path.encode()).hexdigest()))


@pytest.mark.parametrize(
    ("written", "config", "expected"),
    [
        (ExportFormat.MERGED, {"model_type": "qwen3", "dtype": "bfloat16"}, {"precision": "bf16"}),
        (ExportFormat.MERGED, {"torch_dtype": "float16"}, {"precision": "fp16"}),
        (
            ExportFormat.INT4,
            {"dtype": "bfloat16", "quantization_config": {"quant_method": "gptq"}},
            {"precision": "int4", "quantization": "gptq"},
        ),
        ("AddedLater", {"quantization_config": [], "model_type": 3}, {}),
    ],
)
def test_the_layout_is_modelpacks(written: str, config: dict[str, Any], expected: dict[str, str]) -> None:
    """https://github.com/modelpack/model-spec/blob/v0.0.7/docs/spec.md; the same bytes whatever the order."""
    packed = pack("support", "a" * 64, written, [layer(path) for path in TYPES], config)
    assert packed == pack("support", "a" * 64, written, [layer(path) for path in reversed(TYPES)], config)
    manifest, about = json.loads(packed.manifest), json.loads(packed.config)
    assert manifest["mediaType"] == "application/vnd.oci.image.manifest.v1+json"
    assert manifest["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"
    assert manifest["config"] == {
        "mediaType": "application/vnd.cncf.model.config.v1+json",
        "digest": f"sha256:{hashlib.sha256(packed.config).hexdigest()}",
        "size": len(packed.config),
    }
    found = {each["annotations"]["org.cncf.model.filepath"]: each["mediaType"] for each in manifest["layers"]}
    assert found == TYPES
    assert next(iter(found)).endswith(".safetensors"), "the largest come first"
    assert about["modelfs"] == {"type": "layers", "diffIds": [each["digest"] for each in manifest["layers"]]}
    fixed = {"architecture", "format", "capabilities"}
    assert {name: value for name, value in about["config"].items() if name not in fixed} == expected
    assert ("family" in about["descriptor"]) == (config.get("model_type") == "qwen3")
    assert about["descriptor"]["revision"] == "a" * 64


# Pushing what the store holds

slow = pytest.mark.slow


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> MemoryRegistry:
    """What every push of the test goes to."""
    made = MemoryRegistry()
    monkeypatch.setattr(push, "Registry", made)
    return made


@slow
def test_a_real_registry_gives_back_what_was_published(
    store: Store, chain: Upstream, job: PublishJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To a client that knows nothing of us; twice, the second time without sending anything."""
    if not registries.is_built():
        pytest.skip("the registry is not built: `make registry`")
    for reference, value in zip(OCI.model_copy(update={"secret_ref": LOGIN}).login, (USER, PASSWORD), strict=True):
        monkeypatch.setenv(reference.variable, value)
    with registries.distribution(tmp_path) as url:
        target = PushTarget(oci=OCI.model_copy(update={"registry": url, "secret_ref": LOGIN}))
        result = job.publish(target)
        tag = result.output_digest[:12]
        content = registries.pull(url, f"acme/support/manifests/{tag}")
        assert result.scalars["pushed"] == f"sha256:{hashlib.sha256(content).hexdigest()}"
        pulled = {
            each["annotations"]["org.cncf.model.filepath"]: registries.pull(url, f"acme/support/blobs/{each['digest']}")
            for each in json.loads(content)["layers"]
        }
        model, published = output_folder(Stage.EXPORT, chain.export), output_folder(Stage.PUBLISH, result.output_digest)
        expected = {name: store.get(f"{model}/{name}") for name in ("config.json", "model.safetensors")}
        expected |= {name: store.get(f"{published}/{name}") for name in ("README.md", "bom.cdx.json")}
        assert pulled == expected, "the model and its papers, and no example of the data set"
        assert job.publish(target).scalars["pushed"] == result.scalars["pushed"]
        other = PushTarget(oci=OCI.model_copy(update={"registry": url, "secret_ref": LOGIN, "repository": "Acme"}))
        with pytest.raises(StageError, match=r"127.*/Acme: .* the registry has no such repository") as error:
            job.publish(other)
        assert error.value.reason is Reason.REPOSITORY_NOT_FOUND
        job.rerun()
        assert job.publish(target).scalars["pushed"] == result.scalars["pushed"], "asked, and found"
        monkeypatch.setenv(OCI.model_copy(update={"secret_ref": LOGIN}).login[1].variable, "wrong")
        with pytest.raises(StageError) as error:
            job.publish(target)
        assert error.value.reason is Reason.REGISTRY_ACCESS_DENIED


@slow
def test_only_what_is_missing_is_sent(store: Store, job: PublishJob, memory: MemoryRegistry) -> None:
    """A pod that is lost between two blobs, then another; then a run that finds everything."""
    target = PushTarget(oci=OCI)

    def second_blob(request: httpx2.Request) -> httpx2.Response | None:
        if request.method == "PUT" and len(memory.blobs) == 1:
            raise SystemExit
        return None

    memory.fault = second_blob
    with pytest.raises(SystemExit):
        job.publish(target)
    assert not memory.tags
    assert job.resolved(target) is None, "what is published is not pushed"
    memory.fault = lambda _: None
    memory.asked.clear()
    result = job.publish(target)
    assert result.reused
    assert sum(each.startswith("POST") for each in memory.sent) == len(memory.blobs) - 1
    memory.asked.clear()
    assert job.publish(target).scalars["pushed"] == result.scalars["pushed"]
    assert memory.asked == [], "this run has noted it"
    job.rerun()
    assert job.resolved(target) is None, "publish asks the registry, to which resolve has no login"
    assert job.resolved() is not None, "nothing to ask"
    assert job.publish(target).scalars["pushed"] == result.scalars["pushed"]
    assert memory.asked
    assert memory.sent == []
    folder = output_folder(Stage.PUBLISH, result.output_digest)
    [noted] = [store.get(f"{folder}/pushes/{entry.key}") for entry in store.list(f"{folder}/pushes")]
    note = PushRecord.model_validate_json(noted or b"")
    assert (note.to, note.digest) == (OCI.reference(result.output_digest), result.scalars["pushed"])
    assert note.run == RUN
    assert read_manifest(store, folder), "the artifact is as it was"


@slow
@pytest.mark.parametrize("lost", ["everything", "the tag", "a blob"])
def test_a_new_run_sends_what_somebody_has_deleted(
    store: Store, job: PublishJob, memory: MemoryRegistry, lost: str
) -> None:
    """And nothing else: the note of the run before is not trusted."""
    target = PushTarget(oci=OCI)
    pushed = job.publish(target)
    tags, blobs = dict(memory.tags), dict(memory.blobs)
    if lost != "a blob":
        memory.tags.clear()
    if lost != "the tag":
        memory.blobs = {} if lost == "everything" else dict(list(blobs.items())[1:])
    job.rerun()
    memory.asked.clear()
    again = job.publish(target)
    assert (again.reused, again.scalars) == (True, pushed.scalars)
    assert (memory.tags, memory.blobs) == (tags, blobs)
    sent = {"everything": len(blobs), "the tag": 0, "a blob": 1}[lost]
    assert sum(each.startswith("POST") for each in memory.sent) == sent
    folder = output_folder(Stage.PUBLISH, pushed.output_digest)
    [noted] = [store.get(f"{folder}/pushes/{entry.key}") for entry in store.list(f"{folder}/pushes")]
    assert PushRecord.model_validate_json(noted or b"").run == job.run, "who pushed what is there"


@slow
def test_every_place_is_tried(store: Store, job: PublishJob, memory: MemoryRegistry) -> None:
    """One that fails costs the others nothing, and the run fails with what was first."""
    places = [PushTarget(oci=OCI.model_copy(update={"tag": tag})) for tag in ("a", "b", "c")]
    job.publish(places[1])
    memory.tags |= {"a": b"{}", "b": b"{}"}
    memory.asked.clear()
    with pytest.raises(StageError, match=r"registry\.test/acme/support:a already points to") as error:
        job.publish(*places)
    assert error.value.reason is Reason.TAG_TAKEN
    assert json.loads(memory.tags["c"])["layers"]
    assert not any(each.endswith("/b") for each in memory.asked), "this run has pushed there"
    job.rerun()
    with pytest.raises(StageError, match=r"registry\.test/acme/support:b already points to"):
        job.publish(*places[1:])


@slow
@pytest.mark.parametrize("noted", [True, False])
@pytest.mark.parametrize("changed", ["the name", "the release"])
def test_an_earlier_copy_of_the_artifact_stays(
    store: Store, job: PublishJob, memory: MemoryRegistry, changed: str, noted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manifest has the output's name, and each release may write it another way. Its files are the artifact's."""
    target = PushTarget(oci=OCI)
    pushed = job.publish(target)
    tags, blobs = dict(memory.tags), dict(memory.blobs)
    if not noted:
        store.delete(push_object(pushed.output_digest, OCI.reference(pushed.output_digest)))
    job.rerun()
    if changed == "the name":
        job.name = "renamed"
    else:
        monkeypatch.setattr(modelpack, "DOCUMENT", "application/vnd.cncf.model.doc.v2.raw")
    memory.asked.clear()
    assert job.publish(target).scalars["pushed"] == pushed.scalars["pushed"]
    assert (memory.tags, memory.blobs, memory.sent) == (tags, blobs, [])
    first = next(iter(blobs))
    del memory.blobs[first]
    job.rerun()
    assert job.publish(target).scalars["pushed"] == pushed.scalars["pushed"]
    assert (memory.tags, memory.blobs) == (tags, blobs), "what it names is sent again"


@slow
def test_a_later_release_may_push_other_files(
    job: PublishJob, memory: MemoryRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was noted beside the artifact is its copy. Its description is lost with the registry's blob."""
    target = PushTarget(oci=OCI)
    pushed = job.publish(target)
    monkeypatch.setattr("finetune_jobs.artifacts.push.SHOWN", modelpack.SHOWN[:1])
    job.rerun()
    assert job.publish(target).scalars["pushed"] == pushed.scalars["pushed"]
    [manifest] = memory.tags.values()
    job.name = "renamed"
    del memory.blobs[json.loads(manifest)["config"]["digest"]]
    job.rerun()
    with pytest.raises(StageError, match="accepted the model, but does not have all of sha256:") as error:
        job.publish(target)
    assert error.value.reason is Reason.PUSH_REFUSED
    assert list(memory.tags.values()) == [manifest]


@pytest.mark.parametrize(
    "change",
    [
        lambda found: found | {"annotations": {}},
        lambda found: found | {"layers": found["layers"][1:]},
        lambda found: found | {"layers": [None]},
        lambda found: found["layers"],
    ],
)
def test_what_is_no_copy_of_the_artifact(change: Any) -> None:
    packed = pack("support", "a" * 64, ExportFormat.MERGED, [layer(path) for path in TYPES], {})
    renamed = pack("other", "a" * 64, ExportFormat.MERGED, [layer(path) for path in TYPES], {})
    assert is_copy(renamed.manifest, "a" * 64, packed)
    assert not is_copy(renamed.manifest, "b" * 64, packed)
    assert not is_copy(json.dumps(change(json.loads(renamed.manifest))).encode(), "a" * 64, packed)


@pytest.mark.parametrize(
    "config", [{"digest": "../x", "size": 1}, {"digest": "sha256:" + "a" * 64, "size": "1"}, {}, None]
)
def test_a_manifest_that_names_no_blobs(config: Any) -> None:
    """Whoever writes to the repository may have written it: nothing is asked of the registry in its words."""
    packed = pack("support", "a" * 64, ExportFormat.MERGED, [layer(path) for path in TYPES], {})
    assert len(blobs_of(packed.manifest)) == len(TYPES) + 1
    assert blobs_of(json.dumps(json.loads(packed.manifest) | {"config": config}).encode()) == []
    assert blobs_of(b"no JSON") == []


@slow
def test_a_copy_that_fails_does_not_hide_what_was_published(
    store: Store, job: PublishJob, memory: MemoryRegistry
) -> None:
    published = job.publish()
    job.rerun()
    memory.tags[published.output_digest[:12]] = b'{"layers": []}'
    with pytest.raises(StageError) as error:
        job.publish(PushTarget(oci=OCI))
    place = store.uri(output_folder(Stage.PUBLISH, published.output_digest))
    assert_says(error.value.message, f"Published {place}, but a copy failed.", "already points to")
    assert error.value.scalars == published.scalars


@slow
def test_a_tag_that_stands_for_something_else_is_kept(job: PublishJob, memory: MemoryRegistry) -> None:
    memory.tags["v1"] = b'{"layers": []}'
    with pytest.raises(StageError) as error:
        job.publish(PushTarget(oci=OCI.model_copy(update={"tag": "v1"})))
    assert error.value.reason is Reason.TAG_TAKEN
    assert_says(
        error.value.message, "registry.test/acme/support:v1 already points to sha256:", "nothing was overwritten"
    )
    assert memory.sent == []


@slow
@pytest.mark.parametrize(
    ("lost", "said"),
    [("tags", "has nothing under the tag"), ("blobs", "does not have all of sha256:")],
)
def test_a_registry_that_loses_what_it_took(job: PublishJob, memory: MemoryRegistry, lost: str, said: str) -> None:
    """The registry is asked for everything once it has taken it."""

    def fault(request: httpx2.Request) -> httpx2.Response | None:
        if request.method == "PUT" and "/manifests/" in request.url.path:
            if lost == "tags":
                return httpx2.Response(201)
            memory.blobs.popitem()
            memory.tags[request.url.path.rpartition("/")[2]] = request.content
            return httpx2.Response(201)
        return None

    memory.fault = fault
    with pytest.raises(StageError, match=f"accepted the model, but .*{said}") as error:
        job.publish(PushTarget(oci=OCI))
    assert error.value.reason is Reason.PUSH_REFUSED


@slow
def test_bytes_that_were_changed_are_not_pushed(
    store: Store, chain: Upstream, job: PublishJob, memory: MemoryRegistry
) -> None:
    store.put(f"{output_folder(Stage.EXPORT, chain.export)}/model.safetensors", b"weights of zz\n")
    with pytest.raises(StageError, match=r"model.safetensors is not the one that its manifest lists") as error:
        job.publish(PushTarget(oci=OCI))
    assert error.value.reason is Reason.ARTIFACT_CORRUPT
    assert not memory.tags


@slow
def test_a_candidate_is_pushed_only_where_it_is_wanted(store: Store, job: PublishJob, memory: MemoryRegistry) -> None:
    digest = job.publish().output_digest
    targets = [PushTarget(oci=OCI), PushTarget(oci=OCI.model_copy(update={"tag": "next"}), candidates=True)]
    output = Output(uri=store.uri(), name="transactions", push_to=targets)
    copies = Copies(store, output, digest, Channel.CANDIDATE)
    assert copies.wanted
    made = copies.make(RUN, "2026-01-31T12:00:00Z", job.context().progress)
    assert made["pushed"].startswith("- sha256:")
    assert list(memory.tags) == ["next"]
    refused = Copies(store, output.model_copy(update={"push_to": targets[:1]}), digest, Channel.CANDIDATE)
    assert not refused.wanted
