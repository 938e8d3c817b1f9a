"""All that a resource asks for is claimed: every place, server and Secret of its spec."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from finetune_api.adapterdeployment import AdapterDeploymentSpec
from finetune_api.base import ApiModel
from finetune_api.dataset import Replay, Source
from finetune_api.finetunejob import FineTuneJobSpec
from finetune_operator.adapterdeployment.claims import claims_of as deployment_claims
from finetune_operator.adapterdeployment.observe import ObservedDeployment
from finetune_operator.finetunejob.claims import claims_of
from finetune_operator.settings import Gpu, Profile
from finetune_operator.tenancy.claim import Subject
from tests.support.played_pods import GOOD
from tests.support.sentences import assert_says
from tests.support.serving import ServingCluster
from tests.support.serving_specs import pinned, uri
from tests.unit.test_adapterdeployment_adapters import VLLM

pytestmark = pytest.mark.unit


PRICED = Profile(gpu=Gpu(name="L4", memory_gib=22, peak_tflops=121, usd_per_hour=0.8))


FULL = FineTuneJobSpec.model_validate(
    {
        "profile": "gpu-l4",
        "model": {"uri": "hf://acme/base@v1", "secretKeyRef": {"name": "hub", "key": "token"}},
        "dataset": {
            "sources": [
                {"uri": "s3://data/a.csv", "storage": {"endpoint": "https://a.example", "secretRef": {"name": "a"}}},
                {"configMapKeyRef": {"name": "rows", "key": "b.csv"}},
            ],
            "benchmarks": [
                {"uri": "hf://datasets/acme/bench@v1/c.csv", "secretKeyRef": {"name": "bench", "key": "token"}}
            ],
            "replay": {"source": {"uri": "s3://data/d.jsonl", "storage": {}}},
            "pii": {"ner": {"uri": "s3://models/ner", "storage": {"secretRef": {"name": "ner"}}}},
            "distillation": {
                "teacher": {"url": "http://vllm/v1", "model": "m", "secretKeyRef": {"name": "teacher", "key": "k"}}
            },
        },
        "evaluation": {
            "metrics": [
                {"name": "brevity"},
                {"name": "suite", "data": {"uri": "s3://data/tasks", "storage": {"secretRef": {"name": "tasks"}}}},
            ],
            "baseline": {
                "endpoint": {"url": "https://o/v1", "model": "o", "secretKeyRef": {"name": "other", "key": "k"}}
            },
            "judge": {"endpoint": {"url": "https://j/v1", "model": "j", "secretKeyRef": {"name": "judge", "key": "k"}}},
        },
        "output": {
            "uri": "s3://artifacts/team",
            "name": "ft",
            "storage": {"endpoint": "http://out:9000"},
            "signing": {"secretKeyRef": {"name": "signing", "key": "k"}},
            "pushTo": [
                {"oci": {"registry": "https://r.example", "repository": "a", "secretRef": {"name": "r"}}},
                {"oci": {"registry": "http://r:5000", "repository": "a"}},
                {"huggingFace": {"repository": "a/b", "secretKeyRef": {"name": "push", "key": "k"}}},
            ],
        },
        "storage": {"endpoint": "http://store:8333", "secretRef": {"name": "s3"}},
        "tracking": {
            "mlflow": {"url": "http://mlflow", "secretRef": {"name": "mlflow"}},
            "wandb": {"secretKeyRef": {"name": "wandb", "key": "k"}},
        },
        "budget": {"maxCost": "12.50"},
    }
)


STORE: dict[str, Any] = {"storage": {"endpoint": "https://b.example", "secretRef": {"name": "b"}}}
TOKEN: dict[str, Any] = {"uri": "hf://datasets/acme/d@v1/d.csv", "secretKeyRef": {"name": "hub", "key": "token"}}
ELSEWHERE = FineTuneJobSpec.model_validate(
    {
        "profile": "gpu-l4",
        "model": {"uri": "s3://models/base"} | STORE,
        "dataset": {
            "sources": [TOKEN],
            "benchmarks": [{"uri": "s3://data/bench.csv"} | STORE],
            "replay": {"source": TOKEN},
        },
        "output": {"uri": "s3://artifacts/team", "name": "ft"} | STORE,
    }
)
"""What excludes a field of FULL."""
FULL_STORES = FULL.model_copy(
    update={
        "dataset": FULL.dataset.model_copy(
            update={"replay": Replay(source=Source.model_validate({"uri": "s3://data/d.jsonl"} | STORE))}
        )
    }
)


def test_all_that_a_job_asks_for() -> None:
    teacher, tracking = "spec.dataset.distillation.teacher", "spec.tracking"
    assert [(claim.subject, claim.field, claim.value) for claim in claims_of(FULL, PRICED)] == [
        (Subject.PROFILE, "spec.profile", "gpu-l4"),
        (Subject.OUTPUT, "spec.output.uri", "s3://artifacts/team"),
        (Subject.ENDPOINT, "spec.storage.endpoint", "http://store:8333"),
        (Subject.TRANSPORT, "spec.storage.endpoint", "http://store:8333"),
        (Subject.SECRET, "spec.storage.secretRef.name", "s3"),
        (Subject.ENDPOINT, "spec.output.storage.endpoint", "http://out:9000"),
        (Subject.TRANSPORT, "spec.output.storage.endpoint", "http://out:9000"),
        (Subject.ENDPOINT, "spec.dataset.sources[0].storage.endpoint", "https://a.example"),
        (Subject.TRANSPORT, "spec.dataset.sources[0].storage.endpoint", "https://a.example"),
        (Subject.SECRET, "spec.dataset.sources[0].storage.secretRef.name", "a"),
        (Subject.ENDPOINT, "spec.dataset.replay.source.storage.endpoint", ""),
        (Subject.ENDPOINT, "spec.dataset.pii.ner.storage.endpoint", ""),
        (Subject.SECRET, "spec.dataset.pii.ner.storage.secretRef.name", "ner"),
        (Subject.ENDPOINT, "spec.evaluation.metrics[1].data.storage.endpoint", ""),
        (Subject.SECRET, "spec.evaluation.metrics[1].data.storage.secretRef.name", "tasks"),
        (Subject.SECRET, "spec.model.secretKeyRef.name", "hub"),
        (Subject.SECRET, "spec.dataset.benchmarks[0].secretKeyRef.name", "bench"),
        (Subject.SECRET, "spec.output.signing.secretKeyRef.name", "signing"),
        (Subject.HOST, "spec.output.pushTo[0].oci.registry", "https://r.example"),
        (Subject.TRANSPORT, "spec.output.pushTo[0].oci.registry", "https://r.example"),
        (Subject.SECRET, "spec.output.pushTo[0].oci.secretRef.name", "r"),
        (Subject.HOST, "spec.output.pushTo[1].oci.registry", "http://r:5000"),
        (Subject.TRANSPORT, "spec.output.pushTo[1].oci.registry", "http://r:5000"),
        (Subject.HOST, "spec.output.pushTo[2].huggingFace.endpoint", "https://huggingface.co"),
        (Subject.TRANSPORT, "spec.output.pushTo[2].huggingFace.endpoint", "https://huggingface.co"),
        (Subject.SECRET, "spec.output.pushTo[2].huggingFace.secretKeyRef.name", "push"),
        (Subject.HOST, f"{teacher}.url", "http://vllm/v1"),
        (Subject.TRANSPORT, f"{teacher}.url", "http://vllm/v1"),
        (Subject.SECRET, f"{teacher}.secretKeyRef.name", "teacher"),
        (Subject.HOST, "spec.evaluation.baseline.endpoint.url", "https://o/v1"),
        (Subject.TRANSPORT, "spec.evaluation.baseline.endpoint.url", "https://o/v1"),
        (Subject.SECRET, "spec.evaluation.baseline.endpoint.secretKeyRef.name", "other"),
        (Subject.HOST, "spec.evaluation.judge.endpoint.url", "https://j/v1"),
        (Subject.TRANSPORT, "spec.evaluation.judge.endpoint.url", "https://j/v1"),
        (Subject.SECRET, "spec.evaluation.judge.endpoint.secretKeyRef.name", "judge"),
        (Subject.HOST, f"{tracking}.mlflow.url", "http://mlflow"),
        (Subject.TRANSPORT, f"{tracking}.mlflow.url", "http://mlflow"),
        (Subject.SECRET, f"{tracking}.mlflow.secretRef.name", "mlflow"),
        (Subject.HOST, f"{tracking}.wandb.baseUrl", "https://api.wandb.ai"),
        (Subject.TRANSPORT, f"{tracking}.wandb.baseUrl", "https://api.wandb.ai"),
        (Subject.SECRET, f"{tracking}.wandb.secretKeyRef.name", "wandb"),
        (Subject.INPUT, "spec.model.uri", "hf://acme/base@v1"),
        (Subject.INPUT, "spec.dataset.sources[0].uri", "s3://data/a.csv"),
        (Subject.INPUT, "spec.dataset.benchmarks[0].uri", "hf://datasets/acme/bench@v1/c.csv"),
        (Subject.INPUT, "spec.dataset.replay.source.uri", "s3://data/d.jsonl"),
        (Subject.INPUT, "spec.dataset.pii.ner.uri", "s3://models/ner"),
        (Subject.INPUT, "spec.evaluation.metrics[1].data.uri", "s3://data/tasks"),
        (Subject.COST, "spec.budget.maxCost", "12.50"),
    ]


def test_hardware_without_a_price_costs_nothing() -> None:
    assert Subject.COST not in {claim.subject for claim in claims_of(FULL, Profile())}


@pytest.mark.parametrize(
    "field",
    [
        re.compile(r"s3://"),
        re.compile(r"https\?://"),
        re.compile(r"secret(Key)?Ref\.name$"),
    ],
    ids=["places", "servers", "Secrets"],
)
@pytest.mark.parametrize("spec", [FineTuneJobSpec, AdapterDeploymentSpec])
def test_nothing_that_sends_data_or_keys_is_forgotten(spec: type[ApiModel], field: re.Pattern[str]) -> None:
    """Every field that takes an s3:// URI, a URL or the name of a Secret is claimed, also one that is added later."""
    jobs = (claim for each in (FULL, ELSEWHERE, FULL_STORES) for claim in claims_of(each, PRICED))
    sources = (pinned_with_keys(), channel_with_keys(), adapters_with_keys(), adapters_of_channels_with_keys())
    deployed = (claim for each in sources for claim in deployment_claims(each))
    claimed = jobs if spec is FineTuneJobSpec else deployed
    asked = {re.sub(r"\[\d+\]", "[]", claim.field) for claim in claimed}
    found = {f"spec{path}" for path in _fields(spec.model_json_schema(), field)}
    assert found
    assert found <= asked


def pinned_with_keys() -> ObservedDeployment:
    """An AdapterDeployment of a pinned artifact, in a store that asks for keys; it asks its clients for some, too,
    and has a way in from outside."""
    storage = {"endpoint": "http://store:8333", "secretRef": {"name": "s3"}}
    spec = pinned(GOOD)
    spec["source"]["artifact"]["storage"] = storage
    ingress = {"className": "nginx", "host": "a.example", "tlsSecretRef": {"name": "certificate"}}
    shown = {"tls": {"secretRef": {"name": "servers"}}}
    spec["access"] = {"apiKeys": {"secretRef": {"name": "clients"}}, "route": {"ingress": ingress}} | shown
    return ServingCluster(spec=spec).observe()


def channel_with_keys() -> ObservedDeployment:
    """The same of a channel, at which nobody has looked yet."""
    artifact = pinned_with_keys().resource.spec.source.artifact
    assert artifact is not None
    storage = artifact.storage.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    output = {"uri": "s3://models/team", "name": "intents", "storage": storage}
    return ServingCluster(spec={"source": {"output": output}, "runtime": "tgi-cpu"}).observe()


def adapters_with_keys() -> ObservedDeployment:
    """The same of two pinned adapters."""
    artifact = pinned_with_keys().resource.spec.source.artifact
    assert artifact is not None
    pinned_one = artifact.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    adapters = [{"name": name, "artifact": pinned_one} for name in ("fr", "de")]
    return ServingCluster(spec={"source": {"adapters": adapters}, "runtime": "tgi-cpu"}).observe()


def adapters_of_channels_with_keys() -> ObservedDeployment:
    """The same of two adapters that follow channels, at which nobody has looked yet."""
    output = channel_with_keys().resource.spec.source.output
    assert output is not None
    followed = output.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    adapters = [{"name": name, "output": followed} for name in ("fr", "de")]
    return ServingCluster(spec={"source": {"adapters": adapters}, "runtime": "tgi-cpu"}).observe()


@pytest.mark.parametrize(
    ("observed", "kind"), [(adapters_with_keys, "artifact"), (adapters_of_channels_with_keys, "output")]
)
def test_every_adapter_is_claimed_where_it_stands_in_the_spec(
    observed: Callable[[], ObservedDeployment], kind: str
) -> None:
    found = [each.field for each in deployment_claims(observed()) if each.subject is Subject.INPUT]
    assert sorted(found) == [f"spec.source.adapters[{number}].{kind}.uri" for number in range(2)]


def _fields(schema: dict[str, Any], wanted: re.Pattern[str]) -> Iterator[str]:
    """Paths of the fields whose name or pattern matches."""

    def walk(node: Any, path: str) -> Iterator[str]:
        if reference := node.get("$ref"):
            node = schema["$defs"][reference.rpartition("/")[2]]
        if wanted.search(node.get("pattern", "")) or wanted.search(path):
            yield path
        for option in node.get("anyOf", []):
            yield from walk(option, path)
        for name, child in node.get("properties", {}).items():
            yield from walk(child, f"{path}.{name}")
        if "items" in node:
            yield from walk(node["items"], f"{path}[]")

    return walk(schema, "")


def test_an_earlier_revision_of_the_same_artifact_is_claimed_with_its_own_keys() -> None:
    """A pinned adapter whose keys the spec has changed since, and to which it goes back."""

    def spec(secret: str, **more: Any) -> dict[str, Any]:
        storage = {"endpoint": "https://s3.example", "secretRef": {"name": secret}}
        adapters = [{"name": "fr", "artifact": {"uri": uri(GOOD), "storage": storage}}]
        return {"source": {"adapters": adapters}, "runtime": "vllm", "keepLastGood": "0s"} | more

    cluster = ServingCluster(spec=spec("former"), settings=VLLM)
    cluster.settle()
    cluster.spec = spec("present", rollbackTo=cluster.traffic())
    claimed = {claim.value: claim.field for claim in deployment_claims(cluster.observe())}
    assert claimed["present"] == "spec.source.adapters[0].artifact.storage.secretRef.name"
    assert_says(claimed["former"], "Secret", "earlier revision's")
