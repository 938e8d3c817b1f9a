"""Which Secrets, tokens and authorities a stage's pod gets: those of what it reads and writes, and no others."""

from __future__ import annotations

from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.references import OBJECT_NAME, SecretKeyRef, SecretRef
from finetune_api.stages import PIPELINE, RunRef, Stage, StageInput
from finetune_operator.finetunejob.output import output_of
from finetune_operator.finetunejob.params import params_of
from finetune_operator.resources.access import access_of
from finetune_operator.resources.egress import ca_volumes
from finetune_operator.resources.environment import access_env

pytestmark = pytest.mark.unit


def storage(name: str) -> dict[str, Any]:
    """A storage with a Secret and an authority of one name."""
    return {"secretRef": {"name": name}, "caBundle": {"configMapKeyRef": {"name": name, "key": "ca.crt"}}}


SPEC: Final = FineTuneJobSpec.model_validate(
    {
        "profile": "small",
        "model": {"uri": "hf://org/model@main", "secretKeyRef": {"name": "hub", "key": "model"}},
        "dataset": {
            "sources": [
                {"uri": "s3://abc/own.csv", "storage": storage("source")},
                {"uri": "s3://abc/also.csv", "storage": storage("source")},
                {"uri": "s3://abc/plain.csv"},
                {"configMapKeyRef": {"name": "rows", "key": "rows.csv"}},
            ],
            "benchmarks": [
                {"uri": "hf://datasets/org/set@main/a.csv", "secretKeyRef": {"name": "hub", "key": "data"}},
            ],
            "replay": {"source": {"uri": "s3://abc/general.jsonl", "storage": storage("replay")}},
            "pii": {"ner": {"uri": "s3://abc/names", "storage": storage("names")}},
        },
        "evaluation": {
            "baseline": {
                "endpoint": {"url": "http://o/v1", "model": "m", "secretKeyRef": {"name": "other", "key": "token"}}
            },
            "judge": {
                "endpoint": {"url": "http://j/v1", "model": "m", "secretKeyRef": {"name": "judge", "key": "token"}}
            },
        },
        "output": {
            "uri": "s3://abc/out",
            "name": "made",
            "storage": storage("output"),
            "signing": {"secretKeyRef": {"name": "signing", "key": "private.pem"}},
            "pushTo": [
                {"oci": {"registry": "https://r", "repository": "a"} | storage("registry")},
                {"huggingFace": {"repository": "a/b", "secretKeyRef": {"name": "push", "key": "token"}}},
            ],
        },
        "storage": storage("spec"),
    }
)
RESULTS: Final = ("output",)
SOURCES: Final = ("output", "source", "spec", "replay", "names")
MODEL_TOKEN: Final = ("hub/model",)
TOKENS: Final = ("hub/model", "hub/data")
NEEDED: Final[dict[Stage, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    Stage.RESOLVE: (SOURCES, TOKENS),
    Stage.PREPARE: (SOURCES, TOKENS),
    Stage.TRAIN: (RESULTS, MODEL_TOKEN),
    Stage.EXPORT: (RESULTS, MODEL_TOKEN),
    Stage.EVALUATE: (RESULTS, (*MODEL_TOKEN, "other/token")),
    Stage.PUBLISH: (
        RESULTS,
        ("signing/private.pem", "registry/username", "registry/password", "push/token", "judge/token"),
    ),
}


def input_of(stage: Stage, spec: FineTuneJobSpec = SPEC) -> StageInput:
    return StageInput(
        stage=stage,
        run=RunRef(kind="FineTuneJob", namespace="team", name="ft", uid="1", id="r1"),
        storage=spec.storage,
        output=spec.output,
        base_model_uri=spec.model.uri,
        base_model_storage=spec.model.storage,
        base_model_secret_key_ref=spec.model.secret_key_ref,
        params=params_of(spec),
    )


@pytest.mark.parametrize("stage", [Stage.RESOLVE, *PIPELINE])
def test_a_stage_gets_what_it_reads_and_writes(stage: Stage) -> None:
    access, (stores, tokens) = access_of(input_of(stage)), NEEDED[stage]
    assert tuple(each.name for each in access.stores) == stores
    assert tuple(f"{each.name}/{each.key}" for each in access.tokens) == tokens
    registries = ("registry",) if stage is Stage.PUBLISH else ()
    assert tuple(each.name for each in access.authorities) == stores + registries


def test_the_model_in_a_store_of_its_own() -> None:
    model = {"uri": "s3://abc/model", "storage": storage("model")}
    spec = FineTuneJobSpec.model_validate(SPEC.model_dump(by_alias=True, exclude_none=True) | {"model": model})
    assert [each.name for each in access_of(input_of(Stage.TRAIN, spec)).stores] == ["output", "model"]
    assert [each.name for each in access_of(input_of(Stage.PUBLISH, spec)).stores] == ["output"]


def test_no_variable_is_one_that_clients_look_for_by_themselves() -> None:
    """A store without a Secret would be shown another store's keys, and the hub's token would go wherever a client
    finds it."""
    names = [variable["name"] for variable in access_env(access_of(input_of(Stage.RESOLVE)))]
    assert len(names) == len(set(names)) == 3 * len(SOURCES) + len(TOKENS)
    assert not [name for name in names if name.startswith(("AWS_", "HF_", "HUGGING"))]


def test_every_authority_has_a_file_of_its_own() -> None:
    [volume] = ca_volumes(access_of(input_of(Stage.PREPARE)).authorities)
    paths = [each["configMap"]["items"][0]["path"] for each in volume["projected"]["sources"]]
    assert paths == [f"{name}/ca.crt" for name in SOURCES]
    assert ca_volumes(()) == []


NAMES: Final = st.from_regex(OBJECT_NAME, fullmatch=True).map(str.strip).filter(lambda name: len(name) < 40)
KEYS: Final = st.text("abzAZ09-_.", min_size=1, max_size=12).filter(lambda key: not key.startswith(".."))
REFERENCES: Final = st.builds(lambda name, key: (name, key), NAMES, KEYS)


@given(REFERENCES, REFERENCES)
def test_two_keys_never_share_a_variable(one: tuple[str, str], other: tuple[str, str]) -> None:
    variables = [SecretKeyRef.model_construct(name=name, key=key).variable for name, key in (one, other)]
    assert (variables[0] == variables[1]) == (one == other)


def test_a_variable_tells_its_secret_and_key() -> None:
    assert SecretRef(name="s3-a.b").at("AWS_ACCESS_KEY_ID").variable == "FINETUNE_SECRET.s3-a.b_AWS_ACCESS_KEY_ID"


@pytest.mark.parametrize(
    ("spec", "endpoint"),
    [
        ({}, ""),
        ({"storage": {"endpoint": "http://spec"}}, "http://spec"),
        ({"storage": {"endpoint": "http://spec"}, "output": {"storage": {"endpoint": "http://own"}}}, "http://own"),
        ({"storage": {"endpoint": "http://spec"}, "output": {"storage": {"region": "eu"}}}, ""),
    ],
)
def test_two_jobs_publish_to_one_place_only_in_one_store(spec: dict[str, Any], endpoint: str) -> None:
    """An output's storage stands for spec.storage as a whole: without an endpoint it is AWS."""
    assert output_of({"metadata": {"namespace": "team"}, "spec": spec}).endpoint == endpoint
