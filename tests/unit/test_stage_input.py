"""Inputs that an operator of an earlier version wrote: read as they were meant, or refused with the field."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from finetune_api.meta import INPUT_DIGEST_VARIABLE
from finetune_api.reasons import Reason
from finetune_api.stages import Stage, StageInput
from finetune_api.storage import Addressing, Encryption, EncryptionAlgorithm, Storage
from finetune_jobs.base.errors import StageError
from finetune_jobs.runtime.commandline import example_input
from finetune_jobs.runtime.runner import results_root
from finetune_jobs.runtime.stage_input import read_input

pytestmark = pytest.mark.unit


def read(folder: Path, document: dict[str, Any]) -> StageInput:
    """What a stage makes of an input file."""
    path = folder / "input.json"
    path.write_text(json.dumps(document))
    return read_input(Stage(document["stage"]), str(path))


def flat(stage: Stage) -> dict[str, Any]:
    """An example input as it was up to prepare's recipe 8: the data set's fields beside the others."""
    document: dict[str, Any] = json.loads(example_input(stage).model_dump_json(by_alias=True))
    prepare = document["params"]["prepare"]
    document["params"]["prepare"] = {**prepare.pop("dataset"), **prepare}
    return document | {"inputKey": "0" * 64}


@pytest.mark.parametrize("stage", [Stage.RESOLVE, Stage.PREPARE])
def test_fields_of_the_data_set_may_stand_beside_the_others(stage: Stage, tmp_path: Path) -> None:
    given = read(tmp_path, flat(stage))
    assert given.params.prepare == example_input(stage).params.prepare
    assert given.input_key == "0" * 64


def test_an_unknown_field_beside_them_is_refused(tmp_path: Path) -> None:
    document = flat(Stage.PREPARE)
    document["params"]["prepare"]["addedLater"] = 3
    with pytest.raises(StageError, match=r"has params\.prepare\.addedLater \(3\)") as caught:
        read(tmp_path, document)
    assert caught.value.reason is Reason.SPEC_INVALID


def test_a_pod_takes_the_input_that_the_operator_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever may write ConfigMaps can put another one under its name: with another teacher for the key, or another
    place for the results, than the rules of tenancy were applied to."""
    document = json.loads(example_input(Stage.PREPARE).model_dump_json(by_alias=True))
    monkeypatch.setenv(INPUT_DIGEST_VARIABLE, hashlib.sha256(json.dumps(document).encode()).hexdigest())
    assert read(tmp_path, document).stage is Stage.PREPARE
    document["output"]["uri"] = "s3://theirs"
    with pytest.raises(StageError, match=r"input\.json is not the one that the operator wrote") as caught:
        read(tmp_path, document)
    assert caught.value.reason is Reason.SPEC_INVALID


def test_parameters_without_a_data_set_are_refused(tmp_path: Path) -> None:
    document = flat(Stage.PREPARE)
    document["params"]["prepare"] = {"maxLength": 64}
    with pytest.raises(StageError, match=r"params\.prepare\.dataset: Field required") as caught:
        read(tmp_path, document)
    assert caught.value.reason is Reason.SPEC_INVALID


@pytest.mark.parametrize("stage", [Stage.FETCH, Stage.VERIFY])
def test_the_digest_may_stand_in_the_uri_only(stage: Stage, tmp_path: Path) -> None:
    document = json.loads(example_input(stage).model_dump_json(by_alias=True))
    del document["artifactDigest"]
    assert read(tmp_path, document) == example_input(stage)
    assert results_root(read(tmp_path, document)) == "s3://models/team-a"


def test_a_storage_of_an_earlier_version_means_the_same(tmp_path: Path) -> None:
    """Where AWS had an empty endpoint, and addressing was a boolean; its other fields stay."""
    document = json.loads(example_input(Stage.PREPARE).model_dump_json(by_alias=True))
    earlier = {"endpoint": "", "region": "eu-west-1", "pathStyle": False}
    given = read(tmp_path, document | {"storage": earlier | {"encryption": {"algorithm": "aws:kms", "kmsKeyId": ""}}})
    kms = Encryption(algorithm=EncryptionAlgorithm.KMS)
    assert given.storage == Storage(region="eu-west-1", addressing=Addressing.VIRTUAL_HOST, encryption=kms)


@pytest.mark.parametrize(
    ("uri", "digest"), [("s3://models/team-a", ""), ("s3://models/team-a", "0" * 64), ("s3://m/artifacts/1", "2")]
)
def test_an_artifact_that_is_not_where_its_digest_says_is_refused(uri: str, digest: str, tmp_path: Path) -> None:
    document = json.loads(example_input(Stage.FETCH).model_dump_json(by_alias=True))
    given = read(tmp_path, document | {"artifactUri": uri, "artifactDigest": digest})
    with pytest.raises(StageError, match="names neither an output nor an artifact") as caught:
        results_root(given)
    assert caught.value.reason is Reason.SPEC_INVALID
