"""Sources, base model and results in three real stores, each with keys that no other store knows.

The variables of a stage are those that the operator gives its pod, so that both agree on their names.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from finetune_api.dataset import Source
from finetune_api.finetunejob import FineTuneJobSpec, Output
from finetune_api.meta import ExitCode
from finetune_api.reasons import Reason
from finetune_api.references import SecretRef
from finetune_api.stages import PIPELINE, Stage, StageInput, Upstream, input_key
from finetune_api.storage import InputStorage, Storage
from finetune_operator.finetunejob.params import params_of
from finetune_operator.resources.access import access_of
from finetune_operator.resources.environment import access_env
from tests.support.seaweedfs import SeaweedFS, User
from tests.support.sentences import assert_says
from tests.support.stages import RUN, run_process

pytestmark = [pytest.mark.unit, pytest.mark.slow]

LABELS: Final = ("refund", "question")
ROWS: Final = "".join(["text,label\n", *(f"row number {n},{LABELS[n % 2]}\n" for n in range(240))]).encode()
PLACES: Final = ("rows", "base", "results")
"""Names of the stores, their Secrets and their only users."""
NOBODY: Final = User("", "", ())


@dataclass(frozen=True)
class Stores:
    """Three servers."""

    servers: dict[str, SeaweedFS]

    def user(self, name: str) -> User:
        return User(f"key-{name}", f"secret-of-{name}", ("Admin", "Read", "Write", "List"))

    def storage(self, name: str) -> InputStorage:
        return InputStorage(endpoint=self.servers[name].endpoint, secret_ref=SecretRef(name=name))

    def spec(self, **changes: Any) -> FineTuneJobSpec:
        """A job whose own storage is that of the rows."""
        results = self.servers["results"].with_secret("results")
        given: dict[str, Any] = {
            "profile": "small",
            "model": {"uri": "s3://data/model", "storage": self.storage("base")},
            "dataset": {"sources": [{"uri": "s3://data/rows.csv"}], "columns": {"input": "text", "label": "label"}},
            "output": {"uri": "s3://data/out", "name": "made", "storage": results},
            "storage": self.servers["rows"].with_secret("rows"),
        }
        return FineTuneJobSpec.model_validate(given | changes)

    def environment(self, given: StageInput) -> dict[str, str]:
        """What the kubelet makes of the pod's variables."""
        values = {(name, key): value for name in PLACES for key, value in self.user(name).environment().items()}
        made = {}
        for variable in access_env(access_of(given)):
            reference = variable["valueFrom"]["secretKeyRef"]
            if (reference["name"], reference["key"]) in values:
                made[variable["name"]] = values[reference["name"], reference["key"]]
            else:
                assert reference.get("optional"), reference
        return made


def stage_of(spec: FineTuneJobSpec, stage: Stage, upstream: Upstream | None = None) -> StageInput:
    """The input as the operator writes it."""
    chain, params = upstream or Upstream(), params_of(spec)
    return StageInput(
        stage=stage,
        run=RUN,
        storage=spec.storage,
        output=spec.output,
        base_model_uri=spec.model.uri,
        base_model_storage=spec.model.storage,
        input_key="" if stage is Stage.RESOLVE else input_key(stage, chain, params),
        upstream=chain,
        params=params,
    )


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Iterator[Stores]:
    made = Stores({})
    with ExitStack() as running:
        for name in PLACES:
            folder = tmp_path_factory.mktemp(name)
            made.servers[name] = running.enter_context(SeaweedFS.running(folder, users=[made.user(name)]))
        rows, base = (made.servers[name].client(made.user(name)) for name in ("rows", "base"))
        rows.put_object(Bucket="data", Key="rows.csv", Body=ROWS)
        for file in tiny_llama.iterdir():
            base.upload_file(str(file), "data", f"model/{file.name}")
        yield made


def test_each_store_is_opened_with_its_own_keys(stores: Stores, tmp_path: Path) -> None:
    """resolve and prepare read the rows and the model and write the results, each with the keys of that store alone."""
    spec = stores.spec()
    given = stage_of(spec, Stage.RESOLVE)
    resolved = run_process(given, tmp_path, NOBODY, variables=stores.environment(given))
    assert resolved.code == ExitCode.OK, resolved.result.message
    found = resolved.result.scalars
    upstream = Upstream(source=found["sourceDigest"], model=found["modelDigest"])
    given = stage_of(spec, Stage.PREPARE, upstream)
    prepared = run_process(given, tmp_path, NOBODY, variables=stores.environment(given))
    assert prepared.code == ExitCode.OK, prepared.result.message
    names = {name: _names(stores, name) for name in PLACES}
    assert any(name.startswith(f"out/datasets/{prepared.result.output_digest}/") for name in names["results"])
    assert not [name for name in names["rows"] + names["base"] if name.startswith("out/")]


@pytest.mark.parametrize(("asked", "missing"), [("model", "base"), ("dataset", "rows"), ("output", "results")])
def test_a_store_without_a_secret_is_not_shown_the_keys_of_another(
    stores: Stores, tmp_path: Path, asked: str, missing: str
) -> None:
    """Its pod's own identity is none here, although keys of other stores stand in the environment."""
    own = Storage(endpoint=stores.servers[missing].endpoint)
    changes: dict[str, dict[str, Any]] = {
        "model": {"model": {"uri": "s3://data/model", "storage": own.model_dump(exclude={"encryption"})}},
        "dataset": {"storage": own},
        "output": {"output": {"uri": "s3://data/out", "name": "made", "storage": own}},
    }
    given = stage_of(stores.spec(**changes[asked]), Stage.RESOLVE)
    variables = stores.environment(given)
    assert not any(value == stores.user(missing).key for value in variables.values())
    ended = run_process(given, tmp_path, NOBODY, variables=variables | {"AWS_EC2_METADATA_DISABLED": "true"})
    assert ended.result.reason is Reason.S3_ACCESS_DENIED
    assert_says(ended.result.message, "the pod has no S3 credentials, or they are incomplete")
    assert not any(stores.user(name).secret in str(ended) for name in PLACES)


def test_keys_of_a_secret_are_not_completed_from_elsewhere(stores: Stores, tmp_path: Path) -> None:
    """An empty key fails, although the machine's own identity would open the store."""
    given = stage_of(stores.spec(), Stage.RESOLVE)
    variables = stores.environment(given)
    variables[SecretRef(name="results").at("AWS_SECRET_ACCESS_KEY").variable] = "\n"
    ended = run_process(given, tmp_path, stores.user("results"), variables=variables)
    assert (ended.code, ended.result.reason) == (ExitCode.FATAL, Reason.SECRET_MISSING)
    assert_says(ended.result.message, "Secret 'results' must contain an access key under 'AWS_SECRET_ACCESS_KEY'")


def test_the_same_content_is_found_with_other_credentials(stores: Stores) -> None:
    """Neither a storage of a source nor its token is part of a key."""
    plain = stores.spec()
    source = Source(uri="s3://data/rows.csv", storage=stores.storage("rows"))
    moved = stores.spec(dataset={**plain.dataset.model_dump(by_alias=True), "sources": [source]}, storage=Storage())
    chain = Upstream(source="1", model="2", dataset="3", adapter="4", export="5", evaluation="6")
    for stage in PIPELINE:
        assert input_key(stage, chain, params_of(plain)) == input_key(stage, chain, params_of(moved))
    without = plain.model_copy(update={"output": Output(uri=plain.output.uri, name=plain.output.name)})
    assert input_key(Stage.PUBLISH, chain, params_of(plain)) == input_key(Stage.PUBLISH, chain, params_of(without))


def _names(stores: Stores, name: str) -> list[str]:
    pages = stores.servers[name].client(stores.user(name)).list_objects_v2(Bucket="data")
    return [str(found["Key"]) for found in pages.get("Contents", [])]
