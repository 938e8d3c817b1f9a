"""promote: a published artifact in another bucket, under the same addresses, with its signatures."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest

import finetune_jobs.promote as promoting
from finetune_api.endpoint_stages import FetchParams
from finetune_api.layout import MANIFEST, Manifest, Withdrawal, output_folder
from finetune_api.meta import ExitCode
from finetune_api.reasons import Reason
from finetune_api.stages import Params, Stage, StageInput, StageResult, Upstream
from finetune_jobs.artifacts.artifact import MODEL_REF
from finetune_jobs.artifacts.folders import describe_folder, publish_folder
from finetune_jobs.artifacts.withdrawal import withdraw
from finetune_jobs.base.errors import StageError
from finetune_jobs.fetch import fetch
from finetune_jobs.promote import promote
from finetune_jobs.publish import publish, sign_move_and_push
from finetune_jobs.runtime.runner import execute
from finetune_jobs.runtime.tools import add_store, open_store, parser
from finetune_jobs.store.s3 import Store
from finetune_jobs.trace import trace
from tests.support import forked
from tests.support.forked import NEW_MOUNTS
from tests.support.published import KEY, new_key, private_pem, public_pem, publish_input, put_upstream
from tests.support.seaweedfs import READER, WRITER, SeaweedFS
from tests.support.sentences import assert_says
from tests.support.stages import DEPLOYMENT, context

pytestmark = [pytest.mark.unit, pytest.mark.slow]

SIGNER = new_key()


@pytest.fixture
def source(s3: SeaweedFS, place: str) -> Store:
    return Store.connect(s3.storage, f"{place}/staging")


@pytest.fixture
def target(s3: SeaweedFS, place: str) -> Store:
    return Store.connect(s3.storage, f"{place}/production")


@pytest.fixture
def chain(source: Store, tmp_path: Path) -> Upstream:
    return put_upstream(source, tmp_path / "made")


@pytest.fixture
def digest(s3: SeaweedFS, source: Store, chain: Upstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A signed artifact."""
    monkeypatch.setenv(KEY.variable, private_pem(SIGNER))
    given = publish_input(s3, source, chain, signed=True)
    return execute(context(given, tmp_path), publish, after=sign_move_and_push).output_digest


def served(s3: SeaweedFS, store: Store, digest: str, folder: Path) -> StageResult:
    """What a pod of an AdapterDeployment that asks for the signature would fetch."""
    place = store.uri(output_folder(Stage.PUBLISH, digest))
    params = Params(fetch=FetchParams(public_keys=[public_pem(SIGNER)]))
    given = StageInput(stage=Stage.FETCH, run=DEPLOYMENT, storage=s3.storage, artifact_uri=place, params=params)
    return execute(context(given, folder), fetch)


def test_it_can_be_served_and_traced_there(
    s3: SeaweedFS, source: Store, target: Store, chain: Upstream, digest: str, tmp_path: Path
) -> None:
    copied = promote(source, target, digest, tmp_path / "one")
    model, published = output_folder(Stage.EXPORT, chain.export), output_folder(Stage.PUBLISH, digest)
    evaluation = output_folder(Stage.EVALUATE, chain.evaluation)
    assert copied[:2] == [model, evaluation]
    assert copied[-1] == published, "nobody finds it there before its verdicts and signatures"
    assert {path.split("/")[2] for path in copied[2:-1]} == {"provenance", "gates"}
    assert served(s3, target, digest, tmp_path).output_digest == digest
    for folder in (model, evaluation, published):
        assert target.get(f"{folder}/{MANIFEST}") == source.get(f"{folder}/{MANIFEST}")
    assert [each.digest for each in trace(target, chain.dataset).found if each.stage is Stage.PUBLISH] == [digest]
    assert not list(target.list("channels"))
    assert promote(source, target, digest, tmp_path / "two") == [], "once more, it is all there"


def test_it_is_copied_without_its_evaluation_where_that_was_deleted(
    source: Store, target: Store, chain: Upstream, digest: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    evaluation = output_folder(Stage.EVALUATE, chain.evaluation)
    for entry in source.list(evaluation):
        source.delete(f"{evaluation}/{entry.key}")
    assert output_folder(Stage.PUBLISH, digest) in promote(source, target, digest, tmp_path)
    assert not list(target.list("evaluations"))
    assert_says(caplog.text, source.uri(evaluation), "was deleted", "not copied")


def test_it_is_copied_without_its_evaluation_where_that_has_to_stay(
    s3: SeaweedFS, source: Store, target: Store, digest: str, tmp_path: Path
) -> None:
    """Its examples may not be for those who may read the other bucket. The model serves without."""
    assert output_folder(Stage.PUBLISH, digest) in promote(source, target, digest, tmp_path, with_evaluation=False)
    assert not list(target.list("evaluations"))
    assert served(s3, target, digest, tmp_path).output_digest == digest


def test_an_artifact_of_a_release_that_did_not_name_its_evaluation(
    source: Store, target: Store, chain: Upstream, digest: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    published = output_folder(Stage.PUBLISH, digest)
    manifest = source.get(f"{published}/{MANIFEST}") or b""
    source.put(f"{published}/{MANIFEST}", manifest.replace(chain.evaluation.encode(), b""))
    assert published in promote(source, target, digest, tmp_path)
    assert not list(target.list("evaluations"))
    assert_says(caplog.text, "does not name its evaluation", "not copied")


def test_what_was_changed_is_not_copied(
    source: Store, target: Store, chain: Upstream, digest: str, tmp_path: Path
) -> None:
    """The artifact does not exist in the target before its model is complete there."""
    source.put(f"{output_folder(Stage.EXPORT, chain.export)}/model.safetensors", b"weights of nobody")
    with pytest.raises(StageError) as error:
        promote(source, target, digest, tmp_path)
    assert error.value.reason is Reason.ARTIFACT_CORRUPT
    assert list(target.list()) == []


@pytest.mark.parametrize("whose", ["model", "base"])
def test_an_artifact_names_nothing_but_models(source: Store, target: Store, tmp_path: Path, whose: str) -> None:
    """Who may write to the staging bucket must not write pointers of the production bucket by somebody's keys."""
    (pointers := tmp_path / "pointers").mkdir()
    (pointers / "stable.json").write_text("{}")
    named, digest = "channels/transactions", "5" * 64
    elsewhere = "../channels/transactions"
    source.put(f"{named}/stable.json", b"{}")
    manifest = describe_folder(pointers, Stage.EXPORT).model_dump_json(by_alias=True).encode()
    source.put(f"{named}/{MANIFEST}", manifest)
    (crafted := tmp_path / "crafted").mkdir()
    model = {"digest": digest, "folder": named, "format": "INT8", "sizeBytes": 2, "baseModelUri": "s3://models/base"}
    if whose == "base":
        model |= {"folder": output_folder(Stage.EXPORT, digest), "base": {"digest": elsewhere, "rank": 8}}
    (crafted / MODEL_REF).write_text(json.dumps(model))
    published = publish_folder(source, crafted, Stage.PUBLISH)
    with pytest.raises(StageError) as error:
        promote(source, target, published, tmp_path)
    assert error.value.reason is Reason.ARTIFACT_CORRUPT
    assert_says(error.value.message, MODEL_REF, "digest" if whose == "base" else named)
    assert list(target.list()) == []


def test_an_artifact_names_no_evaluation_elsewhere(
    source: Store, target: Store, digest: str, chain: Upstream, tmp_path: Path
) -> None:
    """The lineage is no part of an artifact's address: who may write to the bucket can change it."""
    published = output_folder(Stage.PUBLISH, digest)
    source.put(f"evaluations/plain/{MANIFEST}", Manifest(stage=Stage.EVALUATE, files=[]).model_dump_json().encode())
    manifest = source.get(f"{published}/{MANIFEST}") or b""
    source.put(f"{published}/{MANIFEST}", manifest.replace(chain.evaluation.encode(), b"plain"))
    with pytest.raises(StageError) as error:
        promote(source, target, digest, tmp_path)
    assert error.value.reason is Reason.ARTIFACT_CORRUPT
    assert_says(error.value.message, published, "'plain'")
    assert list(target.list()) == []


def test_what_was_withdrawn_is_not_copied(source: Store, target: Store, digest: str, tmp_path: Path) -> None:
    withdraw(source, digest, Withdrawal(reason="licence", by="legal", withdrawn_at="2026-03-01T12:00:00Z"))
    with pytest.raises(StageError, match="withdrawn by legal on 2026-03-01: licence") as error:
        promote(source, target, digest, tmp_path)
    assert error.value.reason is Reason.ARTIFACT_WITHDRAWN
    assert list(target.list()) == []


def test_what_is_withdrawn_meanwhile_is_not_copied(
    source: Store, target: Store, digest: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights may take an hour."""

    def slow(*given: Any) -> bool:
        withdraw(source, digest, Withdrawal(reason="licence", by="legal", withdrawn_at="2026-03-01T12:00:00Z"))
        return copy(*given)

    copy = promoting._copy
    monkeypatch.setattr(promoting, "_copy", slow)
    with pytest.raises(StageError, match="withdrawn by legal"):
        promote(source, target, digest, tmp_path)
    assert not target.exists(f"{output_folder(Stage.PUBLISH, digest)}/{MANIFEST}")


def test_the_command_has_keys_for_each_store(
    s3: SeaweedFS, source: Store, target: Store, digest: str, tmp_path: Path
) -> None:
    """Those that read the one may not write to it, nor to the other."""
    asked = ["--artifact", source.uri(output_folder(Stage.PUBLISH, digest)), "--to", target.uri()]
    asked += ["--endpoint", s3.endpoint, "--to-endpoint", s3.endpoint]

    def run(variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
        environment = READER.environment() | {"PATH": "/usr/bin", "TMPDIR": str(tmp_path)} | variables
        return forked.run(["finetune_jobs.promote", *asked], environment)

    barred = run({})
    assert (barred.returncode, "S3AccessDenied" in barred.stderr) == (65, True), barred.stderr
    done = run({f"TO_{name}": value for name, value in WRITER.environment().items()})
    assert (done.returncode, done.stderr) == (0, "")
    assert_says(done.stdout, target.uri(f"artifacts/{digest}"), "is complete: 5 of its parts were copied")


@pytest.mark.parametrize(
    ("given", "lacking"), [("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"), ("SECRET_ACCESS_KEY", "ACCESS_KEY_ID")]
)
def test_half_a_pair_of_keys_is_none(given: str, lacking: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor are those of the other store used in its place."""
    monkeypatch.setenv(f"TO_AWS_{given}", "key")
    options = parser("promote", "")
    add_store(options, "to-")
    with pytest.raises(StageError) as error:
        open_store(options.parse_args([]), "s3://production", "to-")
    assert error.value.reason is Reason.SECRET_MISSING
    assert_says(error.value.message, f"TO_AWS_{lacking} is empty", f"TO_AWS_{given}", "set both, or neither")


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ("--endpoint=localhost:8333", ("--endpoint is 'localhost:8333'", "URL", "without a path")),
        ("--endpoint=http://localhost:8333/", ("--endpoint is 'http://localhost:8333/'", "without a path")),
        ("--to-endpoint=s3.example.com", ("--to-endpoint is 's3.example.com'", "URL")),
        ("--to-region=EU West", ("--to-region is 'EU West'", "eu-central-1")),
    ],
)
def test_an_option_that_is_none_is_said(given: str, parts: tuple[str, ...]) -> None:
    options = parser("promote", "")
    add_store(options, "to-")
    prefix = "to-" if given.startswith("--to-") else ""
    with pytest.raises(StageError) as error:
        open_store(options.parse_args([given]), "s3://models", prefix)
    assert error.value.reason is Reason.SPEC_INVALID
    assert_says(error.value.message, *parts)


PROGRAM: Final = """
import subprocess, sys
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "none", sys.argv.pop(1)], check=True)
from finetune_jobs.promote import main
main()
"""


def test_a_disk_that_is_too_small_is_said(
    s3: SeaweedFS, source: Store, target: Store, digest: str, tmp_path: Path
) -> None:
    """On a volume with room for one page of a file."""
    (tmp_path / "program.py").write_text(PROGRAM)
    (volume := tmp_path / "volume").mkdir()
    asked = ["--artifact", source.uri(output_folder(Stage.PUBLISH, digest)), "--to", target.uri()]
    asked += ["--endpoint", s3.endpoint, "--to-endpoint", s3.endpoint]
    command = [str(tmp_path / "program.py"), str(volume), *asked]
    environment = os.environ | WRITER.environment() | {"TMPDIR": str(volume)}
    process = forked.start(command, environment, within=NEW_MOUNTS)
    _, said = process.communicate(timeout=300)
    assert process.wait() == ExitCode.FATAL
    assert said.decode() == (
        f"ScratchFull: The disk that holds {volume} is full. Set TMPDIR to a folder on a larger one.\n"
    )
