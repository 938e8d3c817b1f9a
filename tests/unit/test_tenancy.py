"""Tenancy: rules against claims, as tables, with rules and without."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from finetune_api.storage import Storage
from finetune_operator.tenancy.claim import Claim, Subject, store_claims
from finetune_operator.tenancy.rules import Tenancy, TenancyRule
from finetune_operator.tenancy.verdict import WITHOUT_RULES, tenancy_violation
from tests.support.sentences import assert_says
from tests.support.tenancy import rule, said

pytestmark = pytest.mark.unit


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
            endpoints=["AWS", "https://s3.example"],
            hosts=["mlflow.example"],
            secrets=["s3-*", "mlflow"],
            gateways=["gateways/*"],
            ingress_classes=["nginx"],
            hostnames=["*.{namespace}.example"],
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
    "many profiles": (
        [rule(profiles=[f"cpu-{number}" for number in range(20)])],
        "spec.profile is 'gpu-l4' … cpu-0 or … cpu-7 or 12 more.",
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
        [rule(endpoints=["AWS", "http://s3.example"])],
        "spec.storage.endpoint is 'https://S3.example' … 'team-a' … none (AWS) or http://s3.example.",
    ),
    "gateway": (
        [rule(gateways=["gateways/private", "{namespace}/*"])],
        "spec.access.route.httpRoute.parentRefs[0] is 'gateways/public' … gateways/private or team-a/*.",
    ),
    "ingress class": ([rule(ingress_classes=["public-*"])], "ingress.className is 'nginx' … public-*."),
    "host name": (
        [rule(hostnames=["*.other-{namespace}.example", "team-a.example"])],
        "ingress.host is 'a.team-a.example' … *.other-team-a.example or team-a.example.",
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


def test_a_store_without_an_endpoint_is_aws() -> None:
    aws = list(store_claims(Storage(), "spec.storage.endpoint", "spec.storage.secretRef.name"))
    assert said(rule(endpoints=["http://s3.example", "AWS"]), claims=aws) == said(rule(), claims=aws) == ""
    refused = said(rule(endpoints=["http://s3.example"]), claims=aws)
    assert_says(refused, "spec.storage.endpoint is not set", "'team-a'", "may use http://s3.example.")


def test_a_limit_on_money_asks_for_a_budget() -> None:
    unlimited = Claim(Subject.COST, "spec.budget.maxCost", "")
    refused = said(rule(max_usd_per_run=50), claims=[unlimited])
    assert_says(refused, "spec.budget.maxCost is not set", "'team-a'", "at most 50.00 USD a run.")
    assert said(rule(), claims=[unlimited]) == ""


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
        {"namespaces": ["a"], "endpoints": [""]},
        {"namespaces": ["a"], "endpoints": ["aws"]},
        {"namespaces": ["a"], "maxUsdPerRun": -1},
        {"namespaces": ["a"], "profile": ["cpu-small"]},
    ],
)
def test_a_rule_that_means_nothing_is_no_rule(limits: dict[str, Any]) -> None:
    """Wildcards and other placeholders in a prefix, or a misspelt limit, would allow something else than is meant."""
    with pytest.raises(ValidationError):
        TenancyRule.model_validate(limits)
