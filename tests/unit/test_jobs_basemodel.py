"""Base models from S3 and from a hub. The hub here is a small server with the same HTTP interface on loopback."""

from pathlib import Path

import pytest
from huggingface_hub import constants

from finetune_api.finetunejob import Output
from finetune_api.reasons import Reason
from finetune_api.stages import Stage, StageInput, Upstream
from finetune_jobs.base.errors import StageError
from finetune_jobs.modelling.base_model import fetch_base_model, find_base_model
from finetune_jobs.store.s3 import Store
from hack.cluster.layout import free_port
from tests.support.fake_hub import COMMIT, fake_hub
from tests.support.seaweedfs import SeaweedFS
from tests.support.sentences import unsaid
from tests.support.stages import context, pipeline_params, stage_input

pytestmark = [pytest.mark.unit, pytest.mark.slow]

FILES = {
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": b"weights",
    "tokenizer.json": b"{}",
    "pytorch_model.bin": b"a pickle",
    "onnx/model.onnx": b"another format",
}


@pytest.fixture
def store(s3: SeaweedFS, place: str) -> Store:
    found = Store.connect(s3.storage, place)
    for name, content in FILES.items():
        found.put(f"model/{name}", content)
    return found


def train_input(s3: SeaweedFS, store: Store, model: str, digest: str) -> StageInput:
    output = Output(uri=store.uri("out"), name="transactions")
    params = pipeline_params([store.uri("rows.csv")], output)
    upstream = Upstream(source="s", model=digest, dataset="d")
    return stage_input(Stage.TRAIN, s3.storage, output, params, upstream, base_model_uri=model)


def test_a_model_in_s3_is_copied_without_pickles(s3: SeaweedFS, store: Store, tmp_path: Path) -> None:
    uri = store.uri("model")
    given = train_input(s3, store, uri, find_base_model(store, uri).digest)
    fetch_base_model(context(given, tmp_path), tmp_path / "base")
    copied = {path.name: path.read_bytes() for path in (tmp_path / "base").iterdir()}
    assert copied == {name: FILES[name] for name in ("config.json", "model.safetensors", "tokenizer.json")}


def test_a_model_that_changed_since_the_run_began(s3: SeaweedFS, store: Store, tmp_path: Path) -> None:
    uri = store.uri("model")
    given = train_input(s3, store, uri, find_base_model(store, uri).digest)
    store.put("model/model.safetensors", b"other weights")
    with pytest.raises(StageError) as error:
        fetch_base_model(context(given, tmp_path), tmp_path / "base")
    assert (error.value.reason, error.value.message) == (Reason.MODEL_NOT_FOUND, CHANGED.format(uri=uri))


CHANGED = (
    "The version of {uri} that this run began with is gone: its files were changed meanwhile. Set spec.rerun to a new "
    "value to use the new version."
)


def test_a_model_that_is_deleted_while_it_is_copied(s3: SeaweedFS, store: Store, tmp_path: Path) -> None:
    uri = store.uri("model")
    given = context(train_input(s3, store, uri, find_base_model(store, uri).digest), tmp_path)
    given.progress.report = lambda *_: store.delete("model/tokenizer.json")  # type: ignore[method-assign] # in between
    with pytest.raises(StageError) as error:
        fetch_base_model(given, tmp_path / "base")
    assert (error.value.reason, error.value.message) == (Reason.MODEL_NOT_FOUND, f"{uri}/tokenizer.json{DELETED}")


DELETED = " was deleted while the model was being copied."
REFUSED = [
    ([], Reason.MODEL_NOT_FOUND, " holds no files."),
    (
        ["model.safetensors", "tokenizer.json"],
        Reason.MODEL_NOT_FOUND,
        " holds no config.json, so it is no model (found: model.safetensors, tokenizer.json).",
    ),
    (["config.json", "tokenizer.json"], Reason.MODEL_UNSUPPORTED, " holds no weights; *.safetensors are needed."),
    (
        ["config.json", "pytorch_model.bin", "model.pt"],
        Reason.MODEL_UNSUPPORTED,
        " holds only pickles (model.pt, pytorch_model.bin), which can run code when opened; *.safetensors are needed.",
    ),
]


@pytest.mark.parametrize(("files", "reason", "problem"), REFUSED)
def test_a_folder_without_a_usable_model(store: Store, files: list[str], reason: Reason, problem: str) -> None:
    for name in files:
        store.put(f"other/{name}", b"content")
    with pytest.raises(StageError) as error:
        find_base_model(store, store.uri("other"))
    assert (error.value.reason, error.value.message) == (reason, f"{store.uri('other')}{problem}")


NO_URI = "'hf://org/model' is neither s3://bucket/prefix nor hf://organisation/name@revision."


def test_what_is_no_place_of_a_model(store: Store) -> None:
    with pytest.raises(StageError) as error:
        find_base_model(store, "hf://org/model")
    assert (error.value.reason, error.value.message) == (Reason.SPEC_INVALID, NO_URI)


def test_a_model_of_the_hub_is_pinned_to_its_commit(
    s3: SeaweedFS, store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with fake_hub(monkeypatch, "model", "org/model", FILES):
        found = find_base_model(store, "hf://org/model@main")
        assert found.revision == COMMIT
        assert find_base_model(store, f"hf://org/model@{COMMIT}").digest == found.digest
        given = train_input(s3, store, "hf://org/model@main", found.digest)
        fetch_base_model(context(given, tmp_path), tmp_path / "base")
    copied = {path.name: path.read_bytes() for path in (tmp_path / "base").iterdir() if path.is_file()}
    assert copied == {name: FILES[name] for name in ("config.json", "model.safetensors", "tokenizer.json")}


NOT_GIVEN = [
    (
        "hf://org/model@main",
        True,
        Reason.GATED_MODEL_UNAUTHORIZED,
        " is gated, and the pod has no token with access to it.",
    ),
    ("hf://org/none@main", False, Reason.MODEL_NOT_FOUND, " does not exist on the hub, or is private."),
    ("hf://org/model@v9", False, Reason.MODEL_NOT_FOUND, ": the model has no such revision."),
]


@pytest.mark.parametrize(("uri", "gated", "reason", "problem"), NOT_GIVEN)
def test_a_model_that_the_hub_does_not_give(
    store: Store, monkeypatch: pytest.MonkeyPatch, uri: str, gated: bool, reason: Reason, problem: str
) -> None:
    with fake_hub(monkeypatch, "model", "org/model", FILES, gated=gated), pytest.raises(StageError) as error:
        find_base_model(store, uri)
    assert (error.value.reason, error.value.message, error.value.retriable) == (reason, f"{uri}{problem}", False)


def test_a_hub_that_is_away_is_worth_a_retry(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(StageError) as error:
        find_base_model(store, "hf://org/model@main")
    message = f"hf://org/model@main{AWAY.format(hub=constants.ENDPOINT)}"
    assert (error.value.message, error.value.retriable) == (message, True)


AWAY = ": the hub at {hub} cannot be reached (ConnectError). Without access to the hub, copy the model to S3."


def test_every_sentence_about_a_place_of_a_model_is_tested() -> None:
    messages = [*(problem for *_, problem in REFUSED), *(problem for *_, problem in NOT_GIVEN)]
    assert unsaid("finetune_jobs.modelling.base_model", [*messages, CHANGED, DELETED, NO_URI, AWAY]) == []
