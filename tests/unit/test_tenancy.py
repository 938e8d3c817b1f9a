"""Tenancy: which namespaces may use what. Rules against claims as tables, prefixes as properties, and all claims."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from finetune_api.adapterdeployment import AdapterDeploymentSpec
from finetune_api.base import ApiModel
from finetune_api.dataset import Replay, Source
from finetune_api.finetunejob import FineTuneJobSpec
from finetune_operator.adapterdeployment.blockers import claims_of as deployment_claims
from finetune_operator.adapterdeployment.observe import ObservedDeployment
from finetune_operator.finetunejob.claims import claims_of
from finetune_operator.settings import Gpu, Profile
from finetune_operator.tenancy.claim import Claim, Subject
from finetune_operator.tenancy.places import is_inside, lies_below
from finetune_operator.tenancy.rules import Tenancy, TenancyRule
from finetune_operator.tenancy.verdict import WITHOUT_RULES, tenancy_violation
from tests.support.sentences import assert_says
from tests.support.serving import GOOD, ServingCluster, pinned

pytestmark = pytest.mark.unit

PRICED = Profile(gpu=Gpu(name="L4", memory_gib=22, peak_tflops=121, usd_per_hour=0.8))
ASKED = {
    Subject.PROFILE: Claim(Subject.PROFILE, "spec.profile", "gpu-l4"),
    Subject.RUNTIME: Claim(Subject.RUNTIME, "spec.runtime", "tgi"),
    Subject.OUTPUT: Claim(Subject.OUTPUT, "spec.output.uri", "s3://models/team-a/v2"),
    Subject.INPUT: Claim(Subject.INPUT, "spec.model.uri", "hf://acme/base@v1"),
    Subject.ENDPOINT: Claim(Subject.ENDPOINT, "spec.storage.endpoint", "https://S3.example"),
    Subject.SECRET: Claim(Subject.SECRET, "spec.storage.secretRef.name", "s3-keys"),
    Subject.HOST: Claim(Subject.HOST, "spec.tracking.mlflow.url", "https://MLflow.example:5000/api"),
    Subject.TRANSPORT: Claim(Subject.TRANSPORT, "spec.tracking.mlflow.url", "https://MLflow.example:5000/api"),
    Subject.COST: Claim(Subject.COST, "spec.budget.maxCost", "25.00"),
}


def rule(*namespaces: str, **limits: Any) -> TenancyRule:
    return TenancyRule(namespaces=list(namespaces) or ["team-a"], **limits)


def said(*rules: TenancyRule, claims: list[Claim] | None = None) -> str:
    """What the rules have against team-a's claims."""
    asked = [*ASKED.values()] if claims is None else claims
    return tenancy_violation(Tenancy(rules=list(rules)), ["cpu-small"], "team-a", asked)


ALLOWED = {
    "nothing limited": [rule()],
    "a glob": [rule("team-*", profiles=["gpu-*"])],
    "everybody": [rule("*")],
    "all of it": [
        rule(
            profiles=["cpu-small", "gpu-l4"],
            runtimes=["tgi"],
            outputs=["s3://models/{namespace}"],
            inputs=["s3://data", "hf://acme"],
            endpoints=["", "https://s3.example"],
            hosts=["mlflow.example"],
            secrets=["s3-*", "mlflow"],
            max_usd_per_run=25,
        )
    ],
    "the second rule": [rule(profiles=["cpu-small"]), rule(profiles=["gpu-l4"])],
    "the rule for others is no obstacle": [rule("team-b", profiles=[]), rule()],
}
REFUSED = {
    "no rule for this namespace": (
        [rule("team-b"), rule("team-a-*")],
        "'team-a' … no tenancy rule",
    ),
    "profile": (
        [rule(profiles=["cpu-small", "gpu-a*"])],
        "spec.profile is 'gpu-l4' … 'team-a' … cpu-small or gpu-a*",
    ),
    "no profile at all": ([rule(profiles=[])], "spec.profile is 'gpu-l4' … 'team-a' … none."),
    "runtime": ([rule(runtimes=["vllm"])], "spec.runtime is 'tgi' … 'team-a' … vllm."),
    "output": (
        [rule(outputs=["s3://models/team-b", "s3://{namespace}"])],
        "spec.output.uri is 's3://models/team-a/v2' … 'team-a' … below s3://models/team-b or s3://team-a.",
    ),
    "input": (
        [rule(inputs=["s3://data"], outputs=["s3://models"])],
        "spec.model.uri is 'hf://acme/base@v1' … 'team-a' … below s3://data or s3://models.",
    ),
    "nowhere": (
        [rule(outputs=[])],
        "spec.output.uri is 's3://models/team-a/v2' … 'team-a' … none.",
    ),
    "host": (
        [rule(hosts=["*.mlflow.example", "mlflow"])],
        "spec.tracking.mlflow.url is 'https://MLflow.example:5000/api' … 'team-a' … "
        "the host *.mlflow.example or mlflow.",
    ),
    "no host at all": (
        [rule(hosts=[])],
        "spec.tracking.mlflow.url is 'https://MLflow.example:5000/api' … 'team-a' … none.",
    ),
    "secret": (
        [rule(secrets=["s3", "*.s3-keys"])],
        "spec.storage.secretRef.name is 's3-keys' … 'team-a' … s3 or *.s3-keys.",
    ),
    "store": (
        [rule(endpoints=["", "http://s3.example"])],
        "spec.storage.endpoint is 'https://S3.example' … 'team-a' … none (AWS) or http://s3.example.",
    ),
    "money": (
        [rule(max_usd_per_run=24.99)],
        "spec.budget.maxCost is '25.00' … 'team-a' … at most 24.99 USD a run.",
    ),
    "two of them": (
        [rule(profiles=["cpu-small"], runtimes=["vllm"])],
        "spec.profile is 'gpu-l4' … cpu-small. … spec.runtime is 'tgi' … vllm.",
    ),
    "rules do not add up": (
        [rule(profiles=["gpu-l4"], max_usd_per_run=10), rule(profiles=["cpu-small"], max_usd_per_run=99)],
        "spec.budget.maxCost is '25.00' … at most 10.00 USD a run. … 2 rules",
    ),
    "the nearest of several": (
        [rule(profiles=["cpu-small"], runtimes=["vllm"]), rule("*", runtimes=["vllm"])],
        "spec.runtime is 'tgi' … vllm. … 2 rules",
    ),
}


@pytest.mark.parametrize("rules", ALLOWED.values(), ids=ALLOWED.keys())
def test_allowed(rules: list[TenancyRule]) -> None:
    assert said(*rules) == ""


@pytest.mark.parametrize(("rules", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_refused_with_field_value_and_what_is_allowed(rules: list[TenancyRule], words: str) -> None:
    assert_says(said(*rules), *words.split(" … "))
    assert said(*rules).count(" is '") == words.count(" is '"), "what is allowed is not named"


def test_what_may_be_written_may_be_read() -> None:
    own = Claim(Subject.INPUT, "spec.source.artifact.uri", "s3://models/team-a/artifacts/" + "0" * 64)
    assert said(rule(inputs=[], outputs=["s3://models/{namespace}"]), claims=[own]) == ""
    assert said(rule(inputs=["s3://models"], outputs=[]), claims=[own]) == ""


def test_a_limit_on_money_asks_for_a_budget() -> None:
    unlimited = Claim(Subject.COST, "spec.budget.maxCost", "")
    refused = said(rule(max_usd_per_run=50), claims=[unlimited])
    assert_says(refused, "spec.budget.maxCost is empty", "'team-a'", "at most 50.00 USD a run.")
    assert said(rule(), claims=[unlimited]) == ""


# Without rules


PRICED_CLAIM = Claim(Subject.COST, "spec.budget.maxCost", "1")


@pytest.mark.parametrize(
    ("claims", "words"),
    [
        ([Claim(Subject.PROFILE, "spec.profile", "cpu-small")], ""),
        ([Claim(Subject.TRANSPORT, "spec.storage.endpoint", "https://s3.example")], ""),
        ([Claim(Subject.SECRET, "spec.storage.secretRef.name", "any")], ""),
        (
            [Claim(Subject.PROFILE, "spec.profile", "gpu-l4"), PRICED_CLAIM],
            "spec.profile is 'gpu-l4' … 'team-a' … cpu-small.",
        ),
        (
            [Claim(Subject.TRANSPORT, "spec.storage.endpoint", "http://s3.example")],
            "spec.storage.endpoint is 'http://s3.example' … 'team-a' … https:// outside of the cluster.",
        ),
    ],
)
def test_without_rules_money_and_plain_http_are_closed(claims: list[Claim], words: str) -> None:
    refused = said(claims=claims)
    assert bool(refused) == bool(words)
    if words:
        assert_says(refused, *words.split(" … "), WITHOUT_RULES)
    assert tenancy_violation(Tenancy(open=True), [], "team-a", claims) == ""


def test_open_is_for_platforms_without_rules() -> None:
    with pytest.raises(ValidationError) as error:
        Tenancy(open=True, rules=[rule()])
    assert_says(str(error.value), "open allows everything", "remove one of them")


# Hosts and http://


INSIDE = ["store", "store.team.svc", "s3.storage.svc.cluster.local", "db-0.db.team.svc", "a"]
OUTSIDE = [
    *("s3.example", "another.store", "store.svc.example", "store.team.svc.", ".svc", "xsvc.cluster.local"),
    *("10.0.0.1", "134744072", "0x08080808", "127.0.0.1", "1.2.3.4.nip.io", "store.team.pod.cluster.local", "-a", ""),
]


@pytest.mark.parametrize("host", INSIDE)
def test_only_the_clusters_dns_answers(host: str) -> None:
    assert is_inside(host)


@pytest.mark.parametrize("host", OUTSIDE)
def test_others_may_answer(host: str) -> None:
    """Also a number, which the C library takes for an address."""
    assert not is_inside(host)


HTTP: dict[str, tuple[str, dict[str, Any], str]] = {
    "inside": ("http://MLflow.team.svc:5000/x", {}, ""),
    "outside": ("http://mlflow.example", {}, "https:// outside of the cluster."),
    "an address": ("http://134744072/v1", {}, "https:// outside of the cluster."),
    "excepted": ("http://mlflow.example:5000/x", {"insecure_hosts": ["*.example"]}, ""),
    "another one is": (
        "http://mlflow.example",
        {"insecure_hosts": ["*.corp", "s3"]},
        "https:// outside of the cluster, or http:// to *.corp or s3.",
    ),
    "a store that is listed so": ("http://S3.example:9000", {"endpoints": ["http://s3.example:9000"]}, ""),
    "listed with https": (
        "http://s3.example",
        {"endpoints": ["https://s3.example"]},
        "https:// outside of the cluster.",
    ),
    "encrypted": ("https://s3.example", {}, ""),
}


@pytest.mark.parametrize(("url", "limits", "words"), HTTP.values(), ids=HTTP.keys())
def test_keys_cross_a_network_encrypted(url: str, limits: dict[str, Any], words: str) -> None:
    refused = said(rule(**limits), claims=[Claim(Subject.TRANSPORT, "spec.storage.endpoint", url)])
    assert bool(refused) == bool(words)
    if words:
        assert_says(refused, f"spec.storage.endpoint is '{url}'", "'team-a'", words)


# Prefixes

BELOW = [
    ("s3://a/team1", "s3://a/team1"),
    ("s3://a/team1/", "s3://a/team1"),
    ("s3://a/team1", "s3://a/team1/"),
    ("s3://a/team1/x/y.csv", "s3://a/team1"),
    ("s3://a/team1/*.csv", "s3://a/team1"),
    ("s3://a/team1/..x/.y/z.", "s3://a/team1"),
    ("s3://a/x", "s3://a"),
    ("s3://a/x", "s3://"),
    ("hf://acme/base@v1", "hf://"),
    ("hf://acme/base@v1", "hf://acme"),
    ("hf://acme/base@v1", "hf://acme/base"),
    ("hf://acme/base@v1", "hf://acme/base@v1"),
    ("hf://datasets/acme/rows@v1/a.csv", "hf://datasets/acme/rows"),
]
NOT_BELOW = [
    ("s3://a/team10/x", "s3://a/team1"),
    ("s3://a/team1.csv", "s3://a/team1"),
    ("s3://a/*", "s3://a/team1"),
    ("s3://a/team*", "s3://a/team1"),
    ("s3://a", "s3://a/team1"),
    ("s3://a/", "s3://a/team1"),
    ("s3://ab/team1", "s3://a"),
    ("s3://b/a/team1", "s3://a/team1"),
    ("s3://a/Team1/x", "s3://a/team1"),
    ("s3://a/team1/x/../y", "s3://a/team1"),
    ("s3://a/team1/./x", "s3://a/team1"),
    ("s3://a/team1/x//y", "s3://a/team1"),
    ("s3://a/team1//", "s3://a/team1"),
    ("s3://a/team1/..", "s3://a/team1"),
    ("s3://a/team1/../team10/x", "s3://a/team1"),  # is in team10 for a store that resolves ".."
    ("s3://a/team10/../team1/x", "s3://a/team1"),  # is in team10 for a store that does not
    ("s3://a//team1/x", "s3://a/team1"),  # a key may begin with a slash
    ("s3://a/x//team1/../../team1", "s3://a/team1"),
    ("s3://a/team1//../../team1/x", "s3://a/team1/x"),
    ("s3://a/../b/x", "s3://"),
    ("hf://../base@v1", "hf://"),
    ("hf://acme/../base@v1", "hf://"),
    ("s3://a/team1/../../b/x", "s3://a"),
    ("s3://a/..", "s3://a"),
    ("hf://acme/base@v1", "s3://acme"),
    ("hf://acme/base@v1", "hf://acme/base@v2"),
    ("hf://acme/base2@v1", "hf://acme/base"),
    ("hf://acme-evil/base@v1", "hf://acme"),
]


@pytest.mark.parametrize(("uri", "prefix"), BELOW)
def test_below(uri: str, prefix: str) -> None:
    assert lies_below(uri, prefix)


@pytest.mark.parametrize(("uri", "prefix"), NOT_BELOW)
def test_not_below(uri: str, prefix: str) -> None:
    assert not lies_below(uri, prefix)


NAMES = st.text("ab1-", min_size=1, max_size=3)
PATHS = st.lists(NAMES, max_size=4).map("/".join)
WILD_PATHS = st.lists(st.one_of(NAMES, st.sampled_from(["", ".", "..", "*"])), max_size=6).map("/".join)


@given(PATHS, WILD_PATHS)
def test_whatever_the_path_it_ends_below_the_prefix_in_both_readings(prefix: str, path: str) -> None:
    """The oracles are a store's own: a key begins with the prefix and a slash; a file system has the path inside."""
    below = lies_below(f"s3://bucket/{path}", f"s3://bucket/{prefix}")
    if below and prefix:
        assert f"{path.strip('/')}/".startswith(f"{prefix}/")
        assert f"{_walk(path)}/".startswith(f"/bucket/{prefix}/")
    elif below:
        assert f"{_walk(path)}/".startswith("/bucket/")


@given(PATHS.filter(bool), PATHS)
def test_all_that_is_below_is_found_to_be(prefix: str, path: str) -> None:
    assert lies_below(f"s3://bucket/{prefix}/{path}", f"s3://bucket/{prefix}")


@given(PATHS.filter(bool), NAMES, PATHS)
def test_a_name_that_goes_on_is_another_one(prefix: str, more: str, path: str) -> None:
    assert not lies_below(f"s3://bucket/{prefix}{more}/{path}", f"s3://bucket/{prefix}")


def _walk(path: str) -> str:
    """Where a file system gets by walking down a path from the bucket's folder, step by step."""
    place = ["bucket"]
    for step in path.split("/"):
        if step == "..":
            place = place[:-1]
        elif step not in ("", "."):
            place = [*place, step]
    return "/" + "/".join(place)


@pytest.mark.parametrize(
    "limits",
    [
        {"namespaces": []},
        {"namespaces": ["Team"]},
        {"namespaces": ["a"], "outputs": ["s3://models/*"]},
        {"namespaces": ["a"], "outputs": ["models/team"]},
        {"namespaces": ["a"], "outputs": ["s3://models/../team"]},
        {"namespaces": ["a"], "outputs": ["s3://models//team"]},
        {"namespaces": ["a"], "inputs": ["s3://./team"]},
        {"namespaces": ["a"], "hosts": ["https://mlflow.example"]},
        {"namespaces": ["a"], "secrets": ["S3"]},
        {"namespaces": ["a"], "outputs": ["s3://models/{name}"]},
        {"namespaces": ["a"], "endpoints": ["s3.example"]},
        {"namespaces": ["a"], "maxUsdPerRun": -1},
        {"namespaces": ["a"], "profile": ["cpu-small"]},
    ],
)
def test_a_rule_that_means_nothing_is_no_rule(limits: dict[str, Any]) -> None:
    """Wildcards and other placeholders in a prefix, or a misspelt limit, would allow something else than is meant."""
    with pytest.raises(ValidationError):
        TenancyRule.model_validate(limits)


# Claims

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
        "output": {"uri": "s3://artifacts/team", "name": "ft", "storage": {"endpoint": "http://out:9000"}},
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
        (Subject.SECRET, "spec.model.secretKeyRef.name", "hub"),
        (Subject.SECRET, "spec.dataset.benchmarks[0].secretKeyRef.name", "bench"),
        (Subject.HOST, f"{teacher}.url", "http://vllm/v1"),
        (Subject.TRANSPORT, f"{teacher}.url", "http://vllm/v1"),
        (Subject.SECRET, f"{teacher}.secretKeyRef.name", "teacher"),
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
    claimed = jobs if spec is FineTuneJobSpec else deployment_claims(pinned_with_keys())
    asked = {re.sub(r"\[\d+\]", "[]", claim.field) for claim in claimed}
    found = {f"spec{path}" for path in _fields(spec.model_json_schema(), field)}
    assert found
    assert found <= asked


def pinned_with_keys() -> ObservedDeployment:
    """An AdapterDeployment of a pinned artifact, in a store that asks for keys."""
    storage = {"endpoint": "http://store:8333", "secretRef": {"name": "s3"}}
    spec = pinned(GOOD)
    spec["source"]["artifact"]["storage"] = storage
    return ServingCluster(spec=spec).observe()


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
