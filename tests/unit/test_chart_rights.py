"""Who may do what by the chart: roles of the operator and of users, and what the network lets through."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from finetune_api import meta
from finetune_operator.framework.objects import HTTP_ROUTES, INGRESSES, Resource
from finetune_operator.rbac import FORMER_ROUTE_RULES, LEASE_RULE, ROUTE_RULES, RULES
from finetune_operator.settings import Lease
from hack.cluster.layout import REPOSITORY
from tests.support.chart import KEPT, NAMESPACE, NAMESPACED, RUNNERS, of_kind, render, rules, settings

pytestmark = [pytest.mark.unit, pytest.mark.slow]


_LEAST_RULES = {(rule.api_group, rule.name, rule.verbs) for rule in RULES}
FORMER = {resource: (rule.api_group, rule.name, rule.verbs) for resource, rule in FORMER_ROUTE_RULES.items()}
EXPECTED_RULES = _LEAST_RULES | {*FORMER.values()}
RIGHTS = {"secrets", "roles", "clusterroles", "rolebindings", "clusterrolebindings"}
"""Kinds that would give more than the roles do."""


def test_the_operator_may_do_what_it_does_and_no_more() -> None:
    objects = render()
    (binding,) = of_kind(objects, "ClusterRoleBinding")
    roles = {each["metadata"]["name"]: each for each in of_kind(objects, "ClusterRole")}
    (account,) = of_kind(objects, "ServiceAccount")
    (deployment,) = of_kind(objects, "Deployment")
    assert rules(roles[binding["roleRef"]["name"]]) == EXPECTED_RULES
    assert binding["subjects"] == [
        {"kind": "ServiceAccount", "name": account["metadata"]["name"], "namespace": NAMESPACE}
    ]
    assert deployment["spec"]["template"]["spec"]["serviceAccountName"] == account["metadata"]["name"]


@pytest.mark.parametrize(("value", "resource"), [("httpRoutes", HTTP_ROUTES), ("ingresses", INGRESSES)])
def test_ways_in_from_outside_take_rights_only_where_they_are_offered(value: str, resource: Resource) -> None:
    rule = ROUTE_RULES[resource]
    for arguments in ((), NAMESPACED):
        chosen = f"serving.{value}.enabled=true,serving.formerRoutes=Keep"
        objects = render(*arguments, "--set", chosen)
        found = of_kind(objects, "Role", "ClusterRole")
        roles = [each for each in found if each["metadata"]["name"] == "finetune-operator"]
        assert roles
        for role in roles:
            assert rules(role) == _LEAST_RULES | {(rule.api_group, rule.name, rule.verbs)}
        assert settings(objects).serving.routes == settings(objects).serving.watched_routes == (resource,)


def test_those_made_before_may_be_deleted_and_no_other_made() -> None:
    objects = render("--set", "serving.httpRoutes.enabled=true")
    [role] = [each for each in of_kind(objects, "ClusterRole") if each["metadata"]["name"] == "finetune-operator"]
    offered = ROUTE_RULES[HTTP_ROUTES]
    expected = {(offered.api_group, offered.name, offered.verbs), FORMER[INGRESSES]}
    assert rules(role) == _LEAST_RULES | expected
    assert "create" not in FORMER[INGRESSES][2]
    assert settings(objects).serving.watched_routes == (HTTP_ROUTES, INGRESSES)


def test_listed_namespaces_get_roles_and_nothing_is_cluster_wide() -> None:
    objects = render(*NAMESPACED)
    bound = {(each["metadata"]["namespace"], each["roleRef"]["name"]) for each in of_kind(objects, "RoleBinding")}
    roles = [each for each in of_kind(objects, "Role") if each["metadata"]["namespace"] != NAMESPACE]
    assert of_kind(objects, "ClusterRoleBinding") == []
    own = (NAMESPACE, "finetune-operator-lease")
    assert bound == {("team-a", "finetune-operator"), ("team-b", "finetune-operator"), own}
    assert {each["metadata"]["namespace"] for each in roles} == {"team-a", "team-b"}
    for role in roles:
        assert rules(role) == EXPECTED_RULES
    assert settings(objects).namespaces == ["team-a", "team-b"]


def test_replicas_share_the_lease_that_they_may_write() -> None:
    objects = render("--set", "operator.replicas=3,fullnameOverride=mine")
    (deployment,) = of_kind(objects, "Deployment")
    (role,) = of_kind(objects, "Role")
    shared = settings(objects).lease
    assert deployment["spec"]["replicas"] == 3
    assert shared == Lease(namespace=NAMESPACE, name="mine")
    assert role["metadata"]["namespace"] == NAMESPACE
    assert {verb for _, _, verbs in rules(role) for verb in verbs} == set(LEASE_RULE.verbs)
    assert {(group, resource) for group, resource, _ in rules(role)} == {(LEASE_RULE.api_group, LEASE_RULE.name)}
    assert [each.get("resourceNames") for each in role["rules"] if each["verbs"] != ["create"]] == [["mine"]]


@pytest.mark.parametrize("arguments", [(), NAMESPACED], ids=["all namespaces", "some"])
def test_roles_are_named_after_the_instance_whatever_the_release_is_called(arguments: tuple[str, ...]) -> None:
    """So Helm refuses a second release that would handle the same resources."""

    def roles(*values: str) -> set[str]:
        objects = render("--set", "fullnameOverride=x", *arguments, *values)
        named = [each["metadata"]["name"] for each in of_kind(objects, "ClusterRole", "Role")]
        bound = [each["roleRef"]["name"] for each in of_kind(objects, "ClusterRoleBinding", "RoleBinding")]
        assert set(bound) <= set(named)
        return {name for name in bound if name != "x-lease"}

    assert roles() == {"finetune-operator"}
    assert roles("--set", "operator.instance=canary") == {"finetune-operator-canary"}
    assert settings(render("--set", "operator.instance=canary")).instance == "canary"


def test_two_releases_of_one_name_share_the_roles_of_users_only() -> None:
    """By namespace, as the guide separates them; without these roles, no object has two owners."""

    def identities(namespace: str, *values: str) -> set[tuple[str, str, str]]:
        chosen = f"crds.enabled=false,watchNamespaces={{{namespace}-jobs}},runner.namespaces={{{namespace}-jobs}}"
        found = render("--namespace", namespace, "--set", chosen, *values)
        return {(each["kind"], each["metadata"].get("namespace", ""), each["metadata"]["name"]) for each in found}

    users = {("ClusterRole", "", f"finetune-operator-{each}") for each in ("view", "edit")}
    assert identities("team-a") & identities("team-b") == users
    without = ("--set", "rbac.aggregateToDefaultRoles=false")
    assert identities("team-a") & identities("team-b", *without) == set()


@pytest.mark.parametrize("arguments", [(), NAMESPACED, RUNNERS])
def test_no_role_reaches_secrets_shells_or_rights(arguments: tuple[str, ...]) -> None:
    for role in of_kind(render(*arguments), "Role", "ClusterRole"):
        for group, resource, verbs in rules(role):
            assert resource.split("/")[0] not in RIGHTS
            assert resource not in {"pods/exec", "pods/attach", "pods/portforward", "serviceaccounts/token"}
            assert "*" not in {group, resource, *verbs}
            assert not {"escalate", "bind", "impersonate"} & set(verbs)


def test_users_roles_join_the_clusters_own() -> None:
    roles = {each["metadata"]["name"]: each for each in of_kind(render(), "ClusterRole")}
    view, edit = roles["finetune-operator-view"], roles["finetune-operator-edit"]
    assert view["metadata"]["labels"]["rbac.authorization.k8s.io/aggregate-to-view"] == "true"
    assert edit["metadata"]["labels"]["rbac.authorization.k8s.io/aggregate-to-edit"] == "true"
    assert edit["metadata"]["labels"]["rbac.authorization.k8s.io/aggregate-to-admin"] == "true"
    assert {resource for _, resource, _ in rules(view)} == {meta.FINETUNEJOBS, meta.ADAPTERDEPLOYMENTS}
    without = render("--set", "rbac.aggregateToDefaultRoles=false")
    assert [each["metadata"]["name"] for each in of_kind(without, "ClusterRole")] == ["finetune-operator"]


def test_runner_namespaces_get_an_account_and_policies() -> None:
    objects = render(*RUNNERS, "--set", "runner.annotations.example\\.com/role=x")
    own = [each for each in objects if each["metadata"].get("namespace") == "team-a"]
    (account,) = of_kind(own, "ServiceAccount")
    policies = {each["metadata"]["name"]: each["spec"] for each in of_kind(own, "NetworkPolicy")}
    assert account["metadata"]["name"] == "finetune-runner"
    assert account["metadata"]["annotations"] == KEPT | {"example.com/role": "x"}
    assert all(each["metadata"]["annotations"] == KEPT for each in of_kind(own, "NetworkPolicy"))
    assert account["automountServiceAccountToken"] is False
    assert policies["finetune-stages"]["podSelector"] == {"matchLabels": {meta.LABEL_ROLE: "stage"}}
    (ingress,) = policies["finetune-stages"]["ingress"]
    assert ingress["ports"] == [{"protocol": "TCP", "port": meta.METRICS_PORT}]
    training = {meta.LABEL_ROLE: "stage", meta.LABEL_STAGE: "train"}
    assert policies["finetune-training"]["podSelector"] == {"matchLabels": training}
    assert policies["finetune-training"]["ingress"] == [{"from": [{"podSelector": {"matchLabels": training}}]}]
    assert policies["finetune-egress"]["policyTypes"] == ["Egress"]
    blocks = [to["ipBlock"] for rule in policies["finetune-egress"]["egress"] for to in rule["to"] if "ipBlock" in to]
    assert blocks == [
        {"cidr": "0.0.0.0/0", "except": ["169.254.169.254/32"]},
        {"cidr": "::/0", "except": ["fd00:ec2::254/128"]},
    ]
    open_egress = render(*RUNNERS, "--set-json", "runner.networkPolicy.blockedCidrs=[]")
    assert "finetune-egress" not in {each["metadata"]["name"] for each in of_kind(open_egress, "NetworkPolicy")}


def test_prometheus_may_read_the_metrics_of_stages_where_the_values_say_so(tmp_path: Path) -> None:
    """Beside the operator, on the same port, and as the guide to tracking names it."""
    guide = (REPOSITORY / "docs" / "how-to" / "track.md").read_text()
    example = next(block for block in re.findall(r"```yaml\n(.*?)```", guide, re.DOTALL) if "metricsFrom" in block)
    (tmp_path / "values.yaml").write_text(example)
    policies = of_kind(render(*RUNNERS, "--values", str(tmp_path / "values.yaml")), "NetworkPolicy")
    (policy,) = (each for each in policies if each["metadata"]["name"] == "finetune-stages")
    (ingress,) = policy["spec"]["ingress"]
    operator, prometheus = ingress["from"]
    assert operator["namespaceSelector"] == {"matchLabels": {"kubernetes.io/metadata.name": NAMESPACE}}
    assert yaml.safe_load(example)["runner"]["networkPolicy"]["metricsFrom"] == [prometheus]


def test_the_operator_reaches_dns_api_server_and_progress_only() -> None:
    (policy,) = of_kind(render("--set", "networkPolicy.apiServerPorts={8443}"), "NetworkPolicy")
    assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
    assert "ingress" not in policy["spec"]
    dns, api_server, progress = policy["spec"]["egress"]
    assert {port["port"] for port in dns["ports"]} == {53}
    assert [port["port"] for port in api_server["ports"]] == [8443]
    assert [port["port"] for port in progress["ports"]] == [meta.METRICS_PORT]
    (peer,) = progress["to"]
    assert peer["podSelector"]["matchLabels"] == {meta.LABEL_MANAGED_BY: meta.MANAGED_BY}
