"""The Helm chart, rendered by the real helm: rights, pods, configuration, and what its schema refuses."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic.alias_generators import to_camel

from finetune_api import meta
from finetune_operator.controller import STOP_SECONDS
from finetune_operator.framework import lease
from finetune_operator.rbac import LEASE_RULE, RULES
from finetune_operator.settings import Gpu, Lease, Proxy, ServingAccess, Settings
from finetune_operator.tenancy.rules import Tenancy, TenancyRule
from hack.cluster import toolchain
from hack.cluster.layout import REPOSITORY
from hack.manifests.__main__ import generate, stale
from tests.support.pages import blocks

pytestmark = [pytest.mark.unit, pytest.mark.slow]

CHART = REPOSITORY / "charts" / "finetune-operator"
NAMESPACE = "finetune-system"
NAMESPACED = ("--set", "watchNamespaces={team-a,team-b}")
RUNNERS = ("--set", "runner.namespaces={team-a}")

EXPECTED_RULES = {(rule.api_group, rule.name, rule.verbs) for rule in RULES}
RIGHTS = {"secrets", "roles", "clusterroles", "rolebindings", "clusterrolebindings"}
KEPT = {"helm.sh/resource-policy": "keep"}
TGI = "ghcr.io/huggingface/text-generation-inference"

Object = dict[str, Any]


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(toolchain.program("helm")), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def render(*arguments: str) -> list[Object]:
    done = helm("template", "finetune-operator", str(CHART), "--namespace", NAMESPACE, *arguments)
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def of_kind(objects: Iterable[Object], *kinds: str) -> list[Object]:
    return [each for each in objects if each["kind"] in kinds]


def settings(objects: Iterable[Object]) -> Settings:
    (config,) = (each for each in of_kind(objects, "ConfigMap") if "config.yaml" in each["data"])
    return Settings.model_validate(yaml.safe_load(config["data"]["config.yaml"]))


def rules(role: Object) -> set[tuple[str, str, tuple[str, ...]]]:
    """(group, resource, verbs) of a role."""
    return {
        (group, resource, tuple(rule["verbs"]))
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }


def test_generated_files_are_up_to_date() -> None:
    assert stale(generate()) == []


def test_lint_finds_nothing() -> None:
    done = helm("lint", "--strict", str(CHART))
    assert done.returncode == 0, done.stdout + done.stderr


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


def test_monitoring_is_there_if_it_is_asked_for(tmp_path: Path) -> None:
    """The values of the guide: who may scrape, what is scraped, and alerts on metrics that exist."""
    assert of_kind(render(), "PodMonitor", "PrometheusRule") == []
    guide = REPOSITORY / "docs" / "how-to" / "operate.md"
    (example,) = (block for block in blocks(guide, "yaml") if block.startswith("# values.yaml"))
    (tmp_path / "values.yaml").write_text(example)
    objects = render("--values", str(tmp_path / "values.yaml"))
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
    alerts = re.findall(r"^\| `(Finetune\w+)`", guide.read_text(), re.MULTILINE)
    assert [each["alert"] for each in group["rules"]] == alerts


@pytest.mark.parametrize("arguments", [(), NAMESPACED, RUNNERS])
def test_no_role_reaches_secrets_shells_or_rights(arguments: tuple[str, ...]) -> None:
    for role in of_kind(render(*arguments), "Role", "ClusterRole"):
        for group, resource, verbs in rules(role):
            assert resource.split("/")[0] not in {
                "secrets",
                "roles",
                "clusterroles",
                "rolebindings",
                "clusterrolebindings",
            }
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
    ("values", "data", "tgi"),
    [
        ((), "localhost/finetune-operator/data:0.1.0", f"{TGI}:3.3.7"),
        (
            ("images.tag=dev",),
            "localhost/finetune-operator/data:dev",
            f"{TGI}:3.3.7",
        ),
        (
            ("images.registry=r.example:5000/ml", "images.data.tag=v2", "runtimes.tgi.image.registry=mirror.example"),
            "r.example:5000/ml/data:v2",
            "mirror.example/huggingface/text-generation-inference:3.3.7",
        ),
        (
            (f"images.data.digest=sha256:{'a' * 64}", f"runtimes.tgi.image.digest=sha256:{'b' * 64}"),
            f"localhost/finetune-operator/data@sha256:{'a' * 64}",
            f"{TGI}@sha256:{'b' * 64}",
        ),
    ],
)
def test_images_come_from_registry_tag_or_digest(values: tuple[str, ...], data: str, tgi: str) -> None:
    rendered = settings(render(*(part for value in values for part in ("--set", value))))
    assert rendered.images.data == data
    assert rendered.runtimes["tgi"].image == tgi


def test_default_profiles_and_runtimes_are_complete() -> None:
    rendered = settings(render())
    assert rendered.profiles.keys() == {
        "cpu-small",
        *(f"gpu-{gpu}" for gpu in ("l4", "a10g", "a100-40", "a100-80", "a100-80x8", "h100-80")),
    }
    assert rendered.runtimes.keys() == {"tgi-cpu", "tgi"}
    for name, profile in rendered.profiles.items():
        asked = profile.accelerator.limits.get("nvidia.com/gpu")
        assert asked == (str(profile.gpu.count) if profile.gpu else None), name
        assert (profile.gpu is None) == name.startswith("cpu-"), name
        assert profile.service_account_name == "finetune-runner"
        assert profile.description


def test_settings_pass_through_unchanged(tmp_path: Path) -> None:
    values = {
        "watchNamespaces": ["team-a"],
        "images": {"pullPolicy": "Never", "pullSecrets": ["registry"]},
        "profiles": {
            "gpu-l4": None,
            "mine": {
                "description": "x",
                "retries": 0,
                "deadlineSeconds": 100000000,
                "accelerator": {"limits": {"example.com/npu": "2"}, "tolerations": [{"operator": "Exists"}]},
                "gpu": {"name": "NPU", "count": 2, "memoryGib": 0.5, "peakTflops": 1e3, "usdPerHour": 0},
            },
        },
        "runtimes": {"tgi": None, "tgi-cpu": {"env": {"CUDA_GRAPHS": "0"}, "numShard": 2}},
        "proxy": {"httpsProxy": "http://proxy.corp:3128", "noProxy": ".svc"},
        "tenancy": {"rules": [{"namespaces": ["team-*"], "outputs": ["s3://models/{namespace}"], "maxUsdPerRun": 1e8}]},
        "serving": {"ingressFrom": [{"namespaceSelector": {"matchLabels": {"gateway": "true"}}}]},
        "operator": {
            "workers": 3,
            "resyncSeconds": 60,
            "keepEndedSeconds": 1000000,
            "progressSeconds": 5,
            "maxConcurrentRollouts": 2,
            "policySeconds": 7,
        },
        "metrics": {"podMonitor": {"interval": "1m"}},
    }
    (tmp_path / "values.yaml").write_text(yaml.safe_dump(values))
    rendered = settings(render("--values", str(tmp_path / "values.yaml")))
    mine, runtime = rendered.profiles["mine"], rendered.runtimes["tgi-cpu"]
    assert (rendered.workers, rendered.resync_seconds, rendered.keep_ended_seconds) == (3, 60, 1000000)
    assert (rendered.progress_seconds, rendered.policy_seconds, rendered.max_concurrent_rollouts) == (5, 7, 2)
    assert (rendered.images.pull_policy, rendered.images.pull_secrets) == ("Never", ["registry"])
    assert rendered.proxy == Proxy(https_proxy="http://proxy.corp:3128", no_proxy=".svc")
    team = TenancyRule(namespaces=["team-*"], outputs=["s3://models/{namespace}"], max_usd_per_run=1e8)
    assert rendered.tenancy.rules == [team]
    peer = {"namespaceSelector": {"matchLabels": {"gateway": "true"}}}
    assert rendered.serving == ServingAccess(ingress_from=[peer])
    assert "gpu-l4" not in rendered.profiles
    assert rendered.runtimes.keys() == {"tgi-cpu"}
    assert (runtime.env, runtime.num_shard) == ({"CUDA_GRAPHS": "0"}, 2)
    assert (mine.retries, mine.deadline_seconds) == (0, 100000000)
    assert mine.accelerator.limits == {"example.com/npu": "2"}
    assert mine.accelerator.tolerations == [{"operator": "Exists"}]
    gpu = Gpu(name="NPU", count=2, memory_gib=0.5, peak_tflops=1000, usd_per_hour=0)
    assert mine.gpu == gpu


def test_profiles_and_runtimes_use_the_runners_account_unless_they_name_another(tmp_path: Path) -> None:
    """Whatever its name: the chart makes the account under it."""
    special: Object = {"serviceAccountName": "special"}
    values: Object = {"runner": {"namespaces": ["team-a"], "serviceAccountName": "worker"}}
    values |= {"profiles": {"gpu-l4": special}, "runtimes": {"tgi": special}}
    (tmp_path / "values.yaml").write_text(yaml.safe_dump(values))
    objects = render("--values", str(tmp_path / "values.yaml"))
    made = {each["metadata"]["name"] for each in of_kind(objects, "ServiceAccount")}
    found = settings(objects)
    assert "worker" in made
    for name, kind in (found.profiles | found.runtimes).items():
        assert kind.service_account_name == ("special" if name in ("gpu-l4", "tgi") else "worker"), name


def test_the_example_of_the_installation_guide(tmp_path: Path) -> None:
    guide = (REPOSITORY / "docs" / "how-to" / "install.md").read_text()
    example = guide.partition("```yaml\n")[2].partition("```")[0]
    (tmp_path / "values.yaml").write_text(example)
    given = settings(render("--values", str(tmp_path / "values.yaml")))
    assert given.profiles["gpu-l4"].accelerator.node_selector == {"cloud.google.com/gke-accelerator": "nvidia-l4"}
    assert "gpu-h100-80" not in given.profiles
    assert re.fullmatch(r"registry\.example\.com/finetune-operator/data:[0-9a-f]{7}", given.images.data)


def test_the_examples_of_the_guide_to_clouds(tmp_path: Path) -> None:
    guide = REPOSITORY / "docs" / "how-to" / "install-on-eks-and-gke.md"
    examples = [block for block in blocks(guide, "yaml") if block.startswith("# values.yaml")]
    rendered = []
    for number, example in enumerate(examples):
        path = tmp_path / f"{number}.yaml"
        path.write_text(example)
        rendered.append(settings(render("--values", str(path))))
    eks, gke = rendered
    assert eks.profiles["gpu-l4"].accelerator.node_selector == {"node.kubernetes.io/instance-type": "g6.2xlarge"}
    assert eks.runtimes["tgi"].image.endswith(".amazonaws.com/finetune-operator/tgi:3.3.7-nonroot")
    assert eks.runtimes["tgi"].pod.node_selector == {"node.kubernetes.io/instance-type": "g6.2xlarge"}
    assert gke.profiles["gpu-l4"].accelerator.node_selector == {"cloud.google.com/gke-accelerator": "nvidia-l4"}


def test_the_example_of_the_guide_to_sharing(tmp_path: Path) -> None:
    guide = (REPOSITORY / "docs" / "how-to" / "share-a-cluster.md").read_text()
    example = guide.partition("```yaml\n")[2].partition("```")[0]
    (tmp_path / "values.yaml").write_text(example)
    rules = settings(render("--values", str(tmp_path / "values.yaml"))).tenancy.rules
    assert [rule.max_usd_per_run for rule in rules] == [50, 2000]
    named = re.findall(r"^\| `(\w+)` \|", guide, re.MULTILINE)
    assert named == [to_camel(name) for name in TenancyRule.model_fields]


def test_the_defaults_of_the_chart_are_the_operators() -> None:
    rendered = settings(render())
    assert (rendered.tenancy, rendered.serving) == (Tenancy(), ServingAccess())
    assert rendered.free_profiles == ["cpu-small"]


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


def test_a_changed_configuration_restarts_the_operator() -> None:
    def checksum(*arguments: str) -> str:
        (deployment,) = of_kind(render(*arguments), "Deployment")
        return str(deployment["spec"]["template"]["metadata"]["annotations"]["checksum/config"])

    assert checksum() == checksum()
    assert checksum() == checksum("--set", "rbac.aggregateToDefaultRoles=false")
    assert checksum() != checksum("--set", "operator.workers=3")


@pytest.mark.parametrize(
    ("value", "place", "complaint"),
    [
        ("profiles.gpu-l4.deadlineSeconds=soon", "/profiles/gpu-l4/deadlineSeconds", "got string, want integer"),
        ("profiles.gpu-l4.deadlineSeconds=1", "/profiles/gpu-l4/deadlineSeconds", "minimum: got 1, want 60"),
        ("profiles.gpu-l4.retries=11", "/profiles/gpu-l4/retries", "maximum: got 11, want 10"),
        ("profiles.gpu-l4.gpus=2", "/profiles/gpu-l4", "additional properties 'gpus' not allowed"),
        (
            "profiles.gpu-l4.accelerator.limits.cpu=8",
            "/profiles/gpu-l4/accelerator/limits/cpu",
            "got number, want string",
        ),
        ("profiles.mine.gpu.name=X", "/profiles/mine/gpu", "missing properties"),
        ("profiles.Mine.description=x", "/profiles", "additional properties 'Mine' not allowed"),
        (f"profiles.{'m' * 41}.description=x", "/profiles", "not allowed"),
        ("profiles=null", "", "missing property 'profiles'"),
        ("runtimes.tgi.engine=vllm", "/runtimes/tgi/engine", "value must be 'tgi'"),
        ("runtimes.mine.engine=tgi", "/runtimes/mine", "missing property 'image'"),
        ("runtimes.tgi.image=tgi:3", "/runtimes/tgi/image", "got string, want object"),
        ("images.data.digest=abc", "/images/data/digest", "does not match pattern"),
        ("images.pullPolicy=Sometimes", "/images/pullPolicy", "value must be one of"),
        ("operator.workers=0", "/operator/workers", "minimum: got 0, want 1"),
        ("operator.logFormat=xml", "/operator/logFormat", "value must be one of 'plain', 'json'"),
        ("watchNamespaces={Team}", "/watchNamespaces/0", "does not match pattern"),
        ("runner.namespaces={a,a}", "/runner/namespaces", "items at 0 and 1 are equal"),
        ("runner.networkPolicy.metricsFrom[0].pod.x=y", "/runner/networkPolicy/metricsFrom/0", "'pod' not allowed"),
        ("tenancy.rules[0].profiles={gpu-l4}", "/tenancy/rules/0", "missing property 'namespaces'"),
        ("tenancy.rules[0].namespaces={Team}", "/tenancy/rules/0/namespaces/0", "does not match pattern"),
        ("tenancy.rules[0].hosts={https://a.example}", "/tenancy/rules/0/hosts/0", "does not match pattern"),
        ("serving.ingressFrom[0].pods=all", "/serving/ingressFrom/0", "'pods' not allowed"),
        ("networkPolicy.apiServerPorts={0}", "/networkPolicy/apiServerPorts/0", "minimum: got 0, want 1"),
        ("operator.replicas=0", "/operator/replicas", "minimum: got 0, want 1"),
        ("replicas=2", "", "additional properties 'replicas' not allowed"),
    ],
)
def test_the_schema_refuses(value: str, place: str, complaint: str) -> None:
    done = helm("template", "finetune-operator", str(CHART), "--set", value)
    assert done.returncode != 0
    assert f"at '{place}'" in done.stderr
    assert complaint in done.stderr


@pytest.mark.parametrize(("arguments", "expected"), [((), 2), (("--set", "crds.enabled=false"), 0)])
def test_crds_are_upgraded_with_the_chart_and_outlive_it(arguments: tuple[str, ...], expected: int) -> None:
    found = of_kind(render(*arguments), "CustomResourceDefinition")
    assert len(found) == expected
    for crd in found:
        assert crd["metadata"]["annotations"] == KEPT
        committed = yaml.safe_load(
            (REPOSITORY / "crds" / f"{meta.GROUP}_{crd['spec']['names']['plural']}.yaml").read_text()
        )
        assert crd["spec"] == committed["spec"]


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
