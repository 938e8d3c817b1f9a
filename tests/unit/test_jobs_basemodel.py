"""Base models from S3 and from a hub. The hub here is a small server with the same HTTP interface on loopback."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from finetune_api.finetunejob import Output
from finetune_api.reasons import Reason
from finetune_api.stages import Stage, StageInput, Upstream
from finetune_jobs.base.errors import StageError
from finetune_jobs.modelling import base_model
from finetune_jobs.modelling.base_model import fetch_base_model, find_base_model
from finetune_jobs.modelling.licence import licence_of
from finetune_jobs.store.s3 import Store
from finetune_jobs.store.transfers import download_files
from tests.support.closed_port import closed_port
from tests.support.fake_hub import COMMIT, fake_hub
from tests.support.seaweedfs import STRANGER, SeaweedFS
from tests.support.sentences import assert_says, unsaid
from tests.support.stages import Lent, context, pipeline_params, stage_input

pytestmark = [pytest.mark.unit, pytest.mark.slow]

FILES = {
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": b"weights",
    "tokenizer.json": b"{}",
    "pytorch_model.bin": b"a pickle",
    "onnx/model.onnx": b"another format",
}
COPIED = ("config.json", "model.safetensors", "tokenizer.json")


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
    given = train_input(s3, store, uri, find_base_model(Lent(store), uri).digest)
    fetch_base_model(context(given, tmp_path), tmp_path / "base")
    copied = {path.name: path.read_bytes() for path in (tmp_path / "base").iterdir()}
    assert copied == {name: FILES[name] for name in ("config.json", "model.safetensors", "tokenizer.json")}


CARD = b"---\nlicense: apache-2.0\ntags: [a]\n---\n# A model\n"


def test_the_licence_is_what_the_models_card_names(s3: SeaweedFS, store: Store, tmp_path: Path) -> None:
    """From S3; what is no card, or none that says so, names none."""
    given = context(train_input(s3, store, store.uri("model"), "m"), tmp_path)
    assert licence_of(given) == ""
    for card, licence in (
        (CARD, "apache-2.0"),
        (b"# A model", ""),
        (b"---\nlicense: [a, b]\n---\n", ""),
        (b"\xff", ""),
        (b"---\nlicense: llama3\nextra: a: b\n---\n", ""),
        (b"---\nlicense: [a\n---\n", ""),
        (b"---\nlicense: {{ license }}\n---\n", ""),
    ):
        store.put("model/README.md", card)
        assert licence_of(given) == licence


def test_a_licence_that_the_hub_does_not_tell_is_none(
    s3: SeaweedFS, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = context(train_input(s3, store, "hf://org/name@main", "m"), tmp_path)

    def with_card(answer: bytes) -> bytes:
        return json.dumps({**json.loads(answer), "cardData": {"license": "mit"}}).encode()

    for spoil, licence in ((with_card, "mit"), (bytes, ""), (lambda _answer: b"<html>", "")):
        with fake_hub(monkeypatch, "model", "org/name", FILES, spoil=spoil):
            assert licence_of(given) == licence
    with fake_hub(monkeypatch, "model", "org/name", FILES, gated=True):
        assert licence_of(given) == ""


def test_with_a_cache_a_model_is_downloaded_once(
    s3: SeaweedFS, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Train, export and evaluate find it where the first of them put it."""
    uri, cache = store.uri("model"), tmp_path / "cache"
    cache.mkdir()
    given = context(train_input(s3, store, uri, find_base_model(Lent(store), uri).digest), tmp_path)
    cached = replace(given, model_cache=cache)
    downloads: list[str] = []

    def counted(place: Store, *arguments: Any, **named: Any) -> dict[str, str]:
        downloads.append(place.uri())
        return download_files(place, *arguments, **named)

    monkeypatch.setattr(base_model, "download_files", counted)
    for stage in ("train", "export", "evaluate"):
        fetch_base_model(cached, tmp_path / stage)
        assert {name: (tmp_path / stage / name).read_bytes() for name in COPIED} == {n: FILES[n] for n in COPIED}
        assert (tmp_path / stage).resolve().parent == cache
    assert downloads == [uri]


def test_the_cache_serves_nobody_whom_the_store_would_not(
    s3: SeaweedFS, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Access, and whether it is still the model of the run, are asked each time; another place is another key."""
    uri, cache = store.uri("model"), tmp_path / "cache"
    cache.mkdir()
    model = find_base_model(Lent(store), uri)
    given = replace(context(train_input(s3, store, uri, model.digest), tmp_path), model_cache=cache)
    fetch_base_model(given, tmp_path / "first")
    for name, content in FILES.items():
        store.put(f"elsewhere/{name}", content)
    elsewhere = replace(given, input=given.input.model_copy(update={"base_model_uri": store.uri("elsewhere")}))
    fetch_base_model(elsewhere, tmp_path / "elsewhere")
    assert (tmp_path / "elsewhere").resolve() != (tmp_path / "first").resolve()
    store.put("model/model.safetensors", b"other weights")
    with pytest.raises(StageError, match="changed"):
        fetch_base_model(given, tmp_path / "second")
    for name, value in STRANGER.environment().items():
        monkeypatch.setenv(name, value)
    stranger = context(given.input, tmp_path)
    with pytest.raises(StageError) as error:
        fetch_base_model(replace(stranger, model_cache=cache), tmp_path / "third")
    assert error.value.reason is Reason.S3_ACCESS_DENIED


def test_without_room_in_the_cache_the_model_is_downloaded_to_scratch(
    s3: SeaweedFS, store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    uri = store.uri("model")
    given = context(train_input(s3, store, uri, find_base_model(Lent(store), uri).digest), tmp_path)
    fetch_base_model(replace(given, model_cache=tmp_path / "not mounted"), tmp_path / "base")
    assert {path.name for path in (tmp_path / "base").iterdir()} == set(COPIED)
    assert not (tmp_path / "base").is_symlink()
    assert "is not used" in caplog.text


def changed(s3: SeaweedFS, store: Store, folder: Path) -> StageError:
    """What copying ends in when the model is another one than the run started with."""
    uri = store.uri("model")
    given = train_input(s3, store, uri, find_base_model(Lent(store), uri).digest)
    store.put("model/model.safetensors", b"other weights")
    with pytest.raises(StageError) as error:
        fetch_base_model(context(given, folder), folder / "base")
    return error.value


def test_a_model_that_changed_since_the_run_started(s3: SeaweedFS, store: Store, tmp_path: Path) -> None:
    error = changed(s3, store, tmp_path)
    assert error.reason is Reason.MODEL_NOT_FOUND
    assert_says(error.message, store.uri("model"), "files", "changed.", "Set spec.rerun")


def deleted(s3: SeaweedFS, store: Store, tmp_path: Path) -> StageError:
    """What copying ends in when a file goes meanwhile."""
    uri = store.uri("model")
    given = context(train_input(s3, store, uri, find_base_model(Lent(store), uri).digest), tmp_path)
    given.progress.report = lambda *_: store.delete("model/tokenizer.json")  # type: ignore[method-assign] # in between
    with pytest.raises(StageError) as error:
        fetch_base_model(given, tmp_path / "base")
    return error.value


def test_a_model_that_is_deleted_while_it_is_copied(s3: SeaweedFS, store: Store, tmp_path: Path) -> None:
    error = deleted(s3, store, tmp_path)
    assert error.reason is Reason.MODEL_NOT_FOUND
    assert_says(error.message, f"{store.uri('model')}/tokenizer.json", "deleted")


REFUSED = [
    ([], Reason.MODEL_NOT_FOUND, "no files."),
    (
        ["small/config.json", "small/model.safetensors", "large/config.json"],
        Reason.MODEL_NOT_FOUND,
        "no files, only folders: large, small.",
    ),
    (
        ["model.safetensors", "tokenizer.json"],
        Reason.MODEL_NOT_FOUND,
        "no config.json (found: model.safetensors, tokenizer.json)",
    ),
    (["config.json", "tokenizer.json"], Reason.MODEL_UNSUPPORTED, "no weights; … *.safetensors"),
    (
        ["config.json", "pytorch_model.bin", "model.pt"],
        Reason.MODEL_UNSUPPORTED,
        "pickles (model.pt, pytorch_model.bin), … run code … *.safetensors",
    ),
    (
        ["adapter_config.json", "adapter_model.safetensors"],
        Reason.MODEL_UNSUPPORTED,
        "adapter_config.json: … an adapter, not a model. Set spec.model.uri",
    ),
    (
        ["adapter_config.json", "adapter_model.safetensors", "config.json", "model.safetensors"],
        Reason.MODEL_UNSUPPORTED,
        "adapter_config.json: … an adapter beside the model. Copy the model without",
    ),
]


def refused(store: Store, name: str, files: list[str]) -> StageError:
    """What a folder with these files ends in."""
    for file in files:
        store.put(f"{name}/{file}", b"content")
    return not_found(store, store.uri(name))


def not_found(store: Store, uri: str) -> StageError:
    """What looking at this model ends in."""
    with pytest.raises(StageError) as error:
        find_base_model(Lent(store), uri)
    return error.value


@pytest.mark.parametrize(("files", "reason", "parts"), REFUSED)
def test_a_folder_without_a_usable_model(store: Store, files: list[str], reason: Reason, parts: str) -> None:
    error = refused(store, "other", files)
    assert error.reason is reason
    assert_says(error.message, store.uri("other"), *parts.split(" … "))


def test_what_is_no_place_of_a_model(store: Store) -> None:
    error = not_found(store, "hf://org/model")
    assert error.reason is Reason.SPEC_INVALID
    assert_says(error.message, "'hf://org/model'", "s3://bucket/prefix", "hf://organisation/name@revision")


def test_a_model_of_the_hub_is_pinned_to_its_commit(
    s3: SeaweedFS, store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with fake_hub(monkeypatch, "model", "org/model", FILES):
        found = find_base_model(Lent(store), "hf://org/model@main")
        assert found.revision == COMMIT
        assert find_base_model(Lent(store), f"hf://org/model@{COMMIT}").digest == found.digest
        given = train_input(s3, store, "hf://org/model@main", found.digest)
        fetch_base_model(context(given, tmp_path), tmp_path / "base")
        (tmp_path / "cache").mkdir()
        cached = replace(context(given, tmp_path), model_cache=tmp_path / "cache")
        for again in ("cached", "again"):
            fetch_base_model(cached, tmp_path / again)
    for folder in ("base", "cached", "again"):
        copied = {path.name: path.read_bytes() for path in (tmp_path / folder).iterdir() if path.name in FILES}
        assert copied == {name: FILES[name] for name in COPIED}
    assert (tmp_path / "again").resolve() == (tmp_path / "cached").resolve() != tmp_path / "cached"


NOT_GIVEN = [
    (
        "hf://org/model@main",
        True,
        Reason.GATED_MODEL_UNAUTHORIZED,
        "gated, … names no token",
    ),
    ("hf://org/none@main", False, Reason.MODEL_NOT_FOUND, "does not exist … private"),
    ("hf://org/model@v9", False, Reason.MODEL_NOT_FOUND, "no such revision"),
]


@pytest.mark.parametrize(("uri", "gated", "reason", "parts"), NOT_GIVEN)
def test_a_model_that_the_hub_does_not_give(
    store: Store, monkeypatch: pytest.MonkeyPatch, uri: str, gated: bool, reason: Reason, parts: str
) -> None:
    with fake_hub(monkeypatch, "model", "org/model", FILES, gated=gated):
        error = not_found(store, uri)
    assert (error.reason, error.retriable) == (reason, False)
    assert_says(error.message, uri, *parts.split(" … "))


def test_a_hub_that_is_away_is_worth_a_retry(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with closed_port() as port:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
        error = not_found(store, "hf://org/model@main")
    assert_says(
        error.message, "hf://org/model@main", f"{constants.ENDPOINT}", "(ConnectError).", "copy the model to S3"
    )
    assert error.retriable


def test_every_sentence_about_a_place_of_a_model_is_tested(
    s3: SeaweedFS, store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    errors = [refused(store, f"other-{row}", files) for row, (files, *_) in enumerate(REFUSED)]
    errors += [not_found(store, "hf://org/model"), deleted(s3, store, tmp_path)]
    errors.append(changed(s3, store, tmp_path))
    with closed_port() as port:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
        errors.append(not_found(store, "hf://org/model@main"))
    assert unsaid("finetune_jobs.modelling.base_model", [error.message for error in errors]) == []
