"""The Helm chart's objects: the operator's pod and when it restarts, monitoring, the CRDs, the rules as policies."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from finetune_api import meta
from finetune_operator.controller import STOP_SECONDS
from finetune_operator.framework import lease
from finetune_operator.resources.deployment import SERVER
from hack.cluster.layout import REPOSITORY
from hack.manifests.__main__ import generate, stale
from tests.support.chart import CHART, KEPT, NAMESPACE, helm, of_kind, render
from tests.support.pages import blocks
from tests.support.sentences import assert_says

pytestmark = [pytest.mark.unit, pytest.mark.slow]

MONITORED = (
    *("--api-versions", "monitoring.coreos.com/v1/PodMonitor"),
    *("--api-versions", "monitoring.coreos.com/v1/PrometheusRule"),
)
"""A cluster with the Prometheus operator's CRDs."""
ALL_MONITORS = tuple(
    argument
    for each in ("podMonitor", "alerts", "endpoints.podMonitor", "endpoints.rules")
    for argument in ("--set", f"metrics.{each}.enabled=true")
)


def test_generated_files_are_up_to_date() -> None:
    assert stale(generate()) == []


def test_lint_finds_nothing() -> None:
    done = helm("lint", "--strict", str(CHART))
    assert done.returncode == 0, done.stdout + done.stderr


def test_monitoring_is_there_if_it_is_asked_for(tmp_path: Path) -> None:
    """The values of the guide: who may scrape, what is scraped, and alerts on metrics that exist."""
    assert of_kind(render(), "PodMonitor", "PrometheusRule") == []
    guide = REPOSITORY / "docs" / "how-to" / "operate.md"
    (example,) = (block for block in blocks(guide, "yaml") if "podMonitor" in block)
    (tmp_path / "values.yaml").write_text(example)
    objects = render("--values", str(tmp_path / "values.yaml"), *MONITORED)
    (deployment,) = of_kind(objects, "Deployment")
    (monitor,) = of_kind(objects, "PodMonitor")
    (rule,) = of_kind(objects, "PrometheusRule")
    (policy,) = of_kind(objects, "NetworkPolicy")
    ports = {
        each["name"]: each["containerPort"] for each in deployment["spec"]["template"]["spec"]["containers"][0]["ports"]
    }
    assert [each["port"] for each in monitor["spec"]["podMetricsEndpoints"]] == ["metrics"]
    assert (
        monitor["spec"]["selector"]["matchLabels"].items()
        <= deployment["spec"]["template"]["metadata"]["labels"].items()
    )
    assert monitor["metadata"]["labels"]["release"] == rule["metadata"]["labels"]["release"] == "kube-prometheus-stack"
    (ingress,) = policy["spec"]["ingress"]
    assert [each["port"] for each in ingress["ports"]] == [ports["metrics"]]
    assert ingress["from"] == yaml.safe_load(example)["networkPolicy"]["metricsFrom"]
    (group,) = rule["spec"]["groups"]
    asked = {name for each in group["rules"] for name in re.findall(r"finetune_\w+", each["expr"])}
    known = re.findall(r"^\| `(finetune_operator_\w+)", guide.read_text(), re.MULTILINE)
    assert {name.removesuffix("_count") for name in asked} <= set(known)
    assert all(f'namespace="{NAMESPACE}"' in each["expr"] for each in group["rules"])
    leaders = [each["expr"] for each in group["rules"] if "finetune_operator_leader" in each["expr"]]
    pods = {re.search(r'pod=~"([^"]+)"', each)[1] for each in leaders}  # type: ignore[index]
    replica, other = (
        f"{name}-7c9d8b6f5-x2x7k" for name in (deployment["metadata"]["name"], "finetune-operator-canary")
    )
    assert [(bool(re.fullmatch(each, replica)), re.fullmatch(each, other)) for each in pods] == [(True, None)]
    alerts = re.findall(r"^\| `(Finetune\w+)`", guide.read_text(), re.MULTILINE)
    assert [each["alert"] for each in group["rules"]] == alerts


def test_endpoints_are_monitored_if_it_is_asked_for(tmp_path: Path) -> None:
    """The values of the guide: the pods of every endpoint, rules, dashboards; and the guide names what is recorded."""
    guide = REPOSITORY / "docs" / "how-to" / "monitor.md"
    (example,) = blocks(guide, "yaml")
    (tmp_path / "values.yaml").write_text(example)
    objects = render("--values", str(tmp_path / "values.yaml"), *MONITORED)
    (monitor,) = of_kind(objects, "PodMonitor")
    (rule,) = of_kind(objects, "PrometheusRule")
    (boards,) = (each for each in of_kind(objects, "ConfigMap") if each["metadata"]["name"].endswith("-dashboards"))
    spec = monitor["spec"]
    assert spec["namespaceSelector"] == {"any": True}
    assert spec["selector"] == {"matchLabels": {meta.LABEL_ROLE: SERVER}}
    # "http" is the port of clients where pods have a proxy; "metrics" is fetch's in every pod.
    assert [each["port"] for each in spec["podMetricsEndpoints"]] == ["http", *["server-metrics"] * 3]
    pod_label = "__meta_kubernetes_pod_label_"
    *servers, proxy, certificate = spec["podMetricsEndpoints"]
    for each, name in ((proxy, "proxy"), (certificate, "certificate")):
        assert each["path"] == "/proxy/metrics"
        assert each["relabelings"][-1] == {"targetLabel": "endpoint", "replacement": name}
    assert certificate["params"] == {"scope": ["frontend"], "about": ["certificate"]}
    for endpoint in (*servers, proxy, certificate):
        named = {
            each["targetLabel"]: each["sourceLabels"][0]
            for each in endpoint["relabelings"]
            if each.get("action") != "drop" and "sourceLabels" in each
        }
        assert named == {
            name: pod_label + re.sub(r"[^a-z]", "_", label)
            for name, label in (("adapterdeployment", meta.LABEL_OWNER_NAME), ("revision", meta.LABEL_REVISION))
        }
    for endpoint in servers:
        assert (endpoint["relabelings"][0]["action"], endpoint["relabelings"][0]["regex"]) == (
            "drop",
            str(meta.CLIENT_PORT),
        )
    (group,) = rule["spec"]["groups"]
    recorded = {each["record"] for each in group["rules"] if "record" in each}
    page = guide.read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(finetune_endpoint:[a-z0-9_:]+)", page, re.MULTILINE)) == recorded
    alerts = [each["alert"] for each in group["rules"] if "alert" in each]
    assert re.findall(r"^\| `(Finetune\w+)`", page, re.MULTILINE) == alerts
    titles = [json.loads(text)["title"] for text in boards["data"].values()]
    assert [title for title in titles if f"`{title}`" not in page] == []
    assert boards["metadata"]["labels"]["grafana_dashboard"] == "1"
    chosen = ("--set", "metrics.endpoints.podMonitor.namespaces={team-a}")
    only = render("--values", str(tmp_path / "values.yaml"), *chosen, *MONITORED)
    assert of_kind(only, "PodMonitor")[0]["spec"]["namespaceSelector"] == {"matchNames": ["team-a"]}


@pytest.mark.parametrize(
    ("known", "without_crds", "made"),
    [
        ((), "Skip", {}),
        ((), "Create", {"PodMonitor": 2, "PrometheusRule": 2}),
        (("PodMonitor",), "Skip", {"PodMonitor": 2}),
        (("PodMonitor", "PrometheusRule"), "Fail", {"PodMonitor": 2, "PrometheusRule": 2}),
    ],
)
def test_a_cluster_without_the_prometheus_operator(
    known: tuple[str, ...], without_crds: str, made: dict[str, int]
) -> None:
    """What is asked for and cannot be is left out: an unknown kind would fail the whole installation."""
    crds = [argument for kind in known for argument in ("--api-versions", f"monitoring.coreos.com/v1/{kind}")]
    objects = render(*ALL_MONITORS, "--set", f"metrics.withoutCrds={without_crds}", *crds)
    kinds = [each["kind"] for each in of_kind(objects, "PodMonitor", "PrometheusRule")]
    assert {kind: kinds.count(kind) for kind in kinds} == made


def test_without_its_crds_monitoring_is_refused_if_so_asked() -> None:
    refused = helm("template", str(CHART), *ALL_MONITORS, "--set", "metrics.withoutCrds=Fail")
    assert refused.returncode != 0
    assert_says(refused.stderr, ".enabled is true", "monitoring.coreos.com/v1", "withoutCrds to Skip")
    unknown = helm("template", str(CHART), "--set", "metrics.withoutCrds=Perhaps")
    assert_says(unknown.stderr, "withoutCrds")


def test_the_operators_pod_is_restricted() -> None:
    (deployment,) = of_kind(render(), "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert deployment["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    assert pod["terminationGracePeriodSeconds"] > STOP_SECONDS + sum(lease.TIMEOUT)
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
    assert all(volume.keys() <= {"name", "configMap", "emptyDir"} for volume in pod["volumes"])
    assert container["resources"].keys() == {"requests", "limits"}
    assert container["terminationMessagePolicy"] == "FallbackToLogsOnError"
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container[probe]["httpGet"]["path"] == "/healthz"


@pytest.mark.parametrize(
    ("values", "budgets"),
    [((), 1), (("operator.replicas=1",), 0), (("operator.disruptionBudgets=false",), 0)],
)
def test_a_drain_takes_one_replica_at_a_time(values: tuple[str, ...], budgets: int) -> None:
    """And never waits for one that does not start, or that is the only one."""
    objects = render(*(argument for value in values for argument in ("--set", value)))
    (deployment,) = of_kind(objects, "Deployment")
    found = of_kind(objects, "PodDisruptionBudget")
    assert [each["spec"] for each in found] == [
        {
            "maxUnavailable": 1,
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
            "selector": deployment["spec"]["selector"],
        }
    ] * budgets


@pytest.mark.parametrize(
    ("values", "bound"),
    [
        ((), {None}),
        (("watchNamespaces={team-a,team-b}",), {("team-a", "team-b")}),
        (("tenancy.open=true",), set()),
        (("tenancy.admissionPolicy=false",), set()),
    ],
)
def test_the_rules_are_also_the_api_servers(values: tuple[str, ...], bound: set[tuple[str, ...] | None]) -> None:
    """For both kinds, and only where this release's operator watches; never for a platform that is open."""
    objects = render(*(part for value in values for part in ("--set", value)))
    policies = of_kind(objects, "ValidatingAdmissionPolicy")
    bindings = of_kind(objects, "ValidatingAdmissionPolicyBinding")
    assert {each["spec"]["policyName"] for each in bindings} == {each["metadata"]["name"] for each in policies}
    assert len(policies) == (2 if bound else 0)
    for binding in bindings:
        resources = binding["spec"].get("matchResources")
        chosen = resources["namespaceSelector"]["matchExpressions"][0]["values"] if resources else None
        assert (tuple(chosen) if chosen else None) in bound
    for policy in policies:
        assert policy["spec"]["failurePolicy"] == "Ignore", "the operator checks the rules anyway"


def test_open_is_for_platforms_without_rules() -> None:
    values = ("--set", "tenancy.open=true", "--set", "tenancy.rules[0].namespaces={team-a}")
    done = helm("template", "finetune-operator", str(CHART), *values)
    assert done.returncode != 0
    assert "tenancy.open is true, so tenancy.rules would limit nothing: remove one of them." in done.stderr


@pytest.mark.parametrize("policy", [True, False])
def test_rules_that_no_policy_can_hold_are_refused_before_the_api_server_does(policy: bool, tmp_path: Path) -> None:
    secrets = [f"finetune-secret-{number:05}" for number in range(5000)]
    tenancy = {"rules": [{"namespaces": ["team-a"], "secrets": secrets}], "admissionPolicy": policy}
    values = tmp_path / "values.yaml"
    values.write_text(yaml.safe_dump({"tenancy": tenancy}))
    done = helm("template", "finetune-operator", str(CHART), "--values", str(values))
    assert (done.returncode != 0) is policy
    if policy:
        assert_says(done.stderr, "tenancy.rules", "100,000 characters", "globs", "tenancy.admissionPolicy: false")


def test_a_changed_configuration_restarts_the_operator() -> None:
    def checksum(*arguments: str) -> str:
        (deployment,) = of_kind(render(*arguments), "Deployment")
        return str(deployment["spec"]["template"]["metadata"]["annotations"]["checksum/config"])

    assert checksum() == checksum()
    assert checksum() == checksum("--set", "rbac.aggregateToDefaultRoles=false")
    assert checksum() != checksum("--set", "operator.workers=3")


@pytest.mark.parametrize(("arguments", "expected"), [((), 2), (("--set", "crds.enabled=false"), 0)])
def test_crds_are_upgraded_with_the_chart_and_outlive_it(arguments: tuple[str, ...], expected: int) -> None:
    found = of_kind(render(*arguments), "CustomResourceDefinition")
    assert len(found) == expected
    for crd in found:
        assert crd["metadata"]["annotations"] == KEPT
        committed = yaml.load(
            (REPOSITORY / "crds" / f"{meta.GROUP}_{crd['spec']['names']['plural']}.yaml").read_text(), yaml.CSafeLoader
        )
        assert crd["spec"] == committed["spec"]
