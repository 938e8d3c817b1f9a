"""The stage fetch: every byte is verified before a server reads it."""

from pathlib import Path

import pytest

from finetune_api.layout import output_folder
from finetune_api.reasons import Reason
from finetune_api.stages import Stage, StageResult, Upstream
from finetune_jobs.artifacts.folders import publish_folder
from finetune_jobs.base.errors import StageError
from finetune_jobs.fetch import fetch
from finetune_jobs.publish import publish
from finetune_jobs.runtime.runner import execute
from finetune_jobs.store.s3 import Store
from tests.support.publishing import CONFIG, WEIGHTS, deployment_input, publish_input
from tests.support.seaweedfs import SeaweedFS
from tests.support.sentences import assert_says
from tests.support.stages import context

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
