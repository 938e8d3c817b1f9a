"""The chart, installed by helm into a real API server: what the operator and users may then do, and what stays."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client, config

from finetune_api import meta
from finetune_operator.rbac import FORMER_ROUTE_RULES, RULES
from hack.cluster import toolchain
from hack.cluster.console import ClusterError, run
from hack.cluster.controlplane import ControlPlane
from hack.cluster.layout import REPOSITORY
from hack.platform.helm import forget_killed
from hack.platform.kubectl import Kubectl
from tests.controlplane.conftest import wait
from tests.support.sentences import assert_says

pytestmark = pytest.mark.controlplane

CHART = REPOSITORY / "charts" / "finetune-operator"
RELEASE = "finetune-operator"
SYSTEM = "finetune-system"
OPERATOR = f"system:serviceaccount:{SYSTEM}:{RELEASE}"
VERBS = ("get", "list", "watch", "create", "update", "patch", "delete", "deletecollection")
EVERYWHERE = ("--set", "runner.namespaces={team-a}")
POLICIES = tuple(f"networkpolicy.networking.k8s.io/finetune-{name}" for name in ("egress", "stages", "training"))
TEAM_A_ONLY = (*EVERYWHERE, "--set", "watchNamespaces={team-a}")


class Installed:
    """An API server on which the chart is installed, and questions about rights there."""

    def __init__(self, plane: ControlPlane) -> None:
        self.plane = plane
        api = config.new_client_from_config(str(plane.kubeconfig))
        self._authorization = client.AuthorizationV1Api(api)

    def helm(self, *arguments: str) -> str:
        connection = ("--kubeconfig", self.plane.kubeconfig, "--namespace", SYSTEM)
        return run([toolchain.program("helm"), *arguments, *connection], timeout=300)

    def runner_objects(self, namespace: str = "team-a") -> list[str]:
        """What the pods that the operator starts need in a namespace of the chart's values."""
        return self.plane.kubectl("get", "serviceaccounts,networkpolicies", "-n", namespace, "-o", "name").split()

    def allowed(self, user: str, namespace: str, verb: str, group: str, resource: str) -> bool:
        name, _, subresource = resource.partition("/")
        attributes = client.V1ResourceAttributes(
            namespace=namespace, verb=verb, group=group, resource=name, subresource=subresource
        )
        spec = client.V1SubjectAccessReviewSpec(user=user, resource_attributes=attributes)
        review = self._authorization.create_subject_access_review(client.V1SubjectAccessReview(spec=spec))
        return bool(review.status.allowed)

    def operator_may(self, namespace: str, verb: str, group: str, resource: str) -> bool:
        return self.allowed(OPERATOR, namespace, verb, group, resource)


@pytest.fixture(scope="module")
def installed() -> Iterator[Installed]:
    with ControlPlane.temporary(controllers=("clusterrole-aggregation-controller",)) as plane:
        plane.kubectl("create", "namespace", SYSTEM)
        plane.kubectl("label", "namespace", SYSTEM, "pod-security.kubernetes.io/enforce=restricted")
        for team in ("team-a", "team-b"):
            plane.kubectl("create", "namespace", team)
            for user, role in (("viewer", "view"), ("editor", "edit"), ("owner", "admin")):
                plane.kubectl("create", "rolebinding", user, f"--clusterrole={role}", f"--user={user}", "-n", team)
        result = Installed(plane)
        result.helm("install", RELEASE, str(CHART), *EVERYWHERE)
        yield result


@pytest.mark.parametrize("arguments", [EVERYWHERE, TEAM_A_ONLY], ids=["all namespaces", "team-a only"])
def test_the_operators_rights(installed: Installed, arguments: tuple[str, ...]) -> None:
    installed.helm("upgrade", RELEASE, str(CHART), *arguments)
    rules = (*RULES, *FORMER_ROUTE_RULES.values())
    granted = {(rule.api_group, rule.name): rule.verbs for rule in rules}
    places = {"team-a"} | ({"team-b"} if arguments == EVERYWHERE else set())

    def wrong() -> list[str]:
        """What the operator may and should not, or the other way round."""
        return [
            f"{verb} {resource} in {namespace}"
            for (group, resource), verbs in granted.items()
            for verb in VERBS
            for namespace in ("team-a", "team-b")
            if installed.operator_may(namespace, verb, group, resource) != (verb in verbs and namespace in places)
        ]

    # The API server's authorizer follows roles a moment later.
    wait(lambda: not wrong(), "the operator's rights", describe=lambda: str(wrong()))
    for verb in VERBS:
        for namespace in ("team-a", SYSTEM):
            assert not installed.operator_may(namespace, verb, "", "secrets")
            assert not installed.operator_may(namespace, verb, "rbac.authorization.k8s.io", "roles")
    for subresource in ("exec", "attach", "portforward"):
        assert not installed.operator_may("team-a", "create", "", f"pods/{subresource}")
    assert not installed.operator_may("team-a", "create", "", "serviceaccounts/token")
    assert not installed.operator_may("team-a", "impersonate", "", "users")


@pytest.mark.parametrize(
    ("user", "verb", "resource", "expected"),
    [
        ("viewer", "list", meta.FINETUNEJOBS, True),
        ("viewer", "watch", meta.ADAPTERDEPLOYMENTS, True),
        ("viewer", "create", meta.FINETUNEJOBS, False),
        ("viewer", "patch", f"{meta.ADAPTERDEPLOYMENTS}/scale", False),
        ("editor", "create", meta.FINETUNEJOBS, True),
        ("editor", "get", meta.FINETUNEJOBS, True),
        ("editor", "patch", f"{meta.ADAPTERDEPLOYMENTS}/scale", True),
        ("editor", "patch", f"{meta.FINETUNEJOBS}/status", False),
        ("owner", "delete", meta.ADAPTERDEPLOYMENTS, True),
        ("owner", "update", f"{meta.ADAPTERDEPLOYMENTS}/status", False),
        ("stranger", "get", meta.FINETUNEJOBS, False),
    ],
)
def test_users_rights(installed: Installed, user: str, verb: str, resource: str, expected: bool) -> None:
    def aggregated() -> bool:
        return installed.allowed("editor", "team-a", "create", meta.GROUP, meta.FINETUNEJOBS)

    wait(aggregated, "aggregation of the roles")
    if expected:  # each role is aggregated on its own
        wait(lambda: installed.allowed(user, "team-a", verb, meta.GROUP, resource), "the right")
    assert installed.allowed(user, "team-a", verb, meta.GROUP, resource) == expected


def test_the_operators_pod_passes_restricted_admission(installed: Installed) -> None:
    deployment = json.loads(installed.plane.kubectl("get", "deployment", RELEASE, "-n", SYSTEM, "-o", "json"))
    template = deployment["spec"]["template"]
    pod: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "probe", "labels": template["metadata"]["labels"]},
        "spec": template["spec"],
    }
    created = installed.plane.kubectl("create", "--dry-run=server", "-n", SYSTEM, "-f", "-", stdin=json.dumps(pod))
    assert "pod/probe created" in created


def test_runner_account_and_policies_are_accepted(installed: Installed) -> None:
    assert {"serviceaccount/finetune-runner", *POLICIES} <= set(installed.runner_objects())


def test_who_may_view_a_namespace_reads_what_it_is_offered(installed: Installed) -> None:
    offer = ("get", "configmap", "finetune-offers", "-n", "team-a", "-o", "jsonpath={.data.profiles}")
    assert yaml.safe_load(installed.plane.kubectl(*offer, "--as", "viewer")).keys() == {"cpu-small"}


@pytest.mark.parametrize("arguments", [EVERYWHERE, TEAM_A_ONLY], ids=["all namespaces", "team-a only"])
def test_a_second_release_must_handle_something_else(installed: Installed, arguments: tuple[str, ...]) -> None:
    """Both would make and delete the same children: the second one is refused, unless it has an instance of its own."""
    installed.helm("upgrade", RELEASE, str(CHART), *arguments)
    watched = tuple(each.replace("runner.namespaces={team-a}", "crds.enabled=false") for each in arguments)
    with pytest.raises(ClusterError) as refused:
        installed.helm("install", "second", str(CHART), *watched)
    assert_says(str(refused.value), "finetune-operator", "invalid ownership metadata", "second", RELEASE)
    installed.helm("install", "canary", str(CHART), *watched, "--set", "operator.instance=canary")
    canary = f"system:serviceaccount:{SYSTEM}:canary-{RELEASE}"
    wait(lambda: installed.allowed(canary, "team-a", "create", "batch", "jobs"), "the second one's rights")
    wait(lambda: installed.allowed(canary, SYSTEM, "create", "coordination.k8s.io", "leases"), "its Lease")
    assert not installed.allowed(canary, "team-a", "get", "coordination.k8s.io", "leases")
    installed.helm("uninstall", "canary")


def test_a_release_whose_upgrade_was_killed_can_be_upgraded(installed: Installed) -> None:
    """On the local cluster, where an interrupted demo or test run would keep the next from its start."""
    kubectl = Kubectl(toolchain.program("kubectl"), installed.plane.kubeconfig, SYSTEM)
    connection = ("--kubeconfig", str(installed.plane.kubeconfig), "--namespace", SYSTEM)
    command = (str(toolchain.program("helm")), "upgrade", RELEASE, str(CHART), *EVERYWHERE, "--wait", *connection)
    with subprocess.Popen(command) as waits_for_a_pod:  # there is no node
        (record,) = wait(lambda: kubectl.items("secrets", "owner=helm,status=pending-upgrade"), "the upgrade to begin")
        waits_for_a_pod.kill()
    with pytest.raises(ClusterError, match="another operation"):
        installed.helm("upgrade", RELEASE, str(CHART), *EVERYWHERE)
    forget_killed(kubectl, RELEASE, patience=4)
    begin = datetime.fromisoformat(record["metadata"]["creationTimestamp"])
    assert datetime.now(UTC) - begin >= timedelta(seconds=4)  # for so long, it might have gone on
    installed.helm("upgrade", RELEASE, str(CHART), *EVERYWHERE)
    assert not kubectl.items("secrets", "owner=helm,status=pending-upgrade")
    forget_killed(kubectl, RELEASE)  # nothing is pending, so this does not wait
    assert kubectl.items("secrets", "owner=helm,status=deployed")


def test_objects_of_users_survive_the_uninstallation(installed: Installed) -> None:
    job = {
        "apiVersion": meta.API_VERSION,
        "kind": meta.FINETUNEJOB,
        "metadata": {"name": "kept"},
        "spec": {
            "profile": "cpu-small",
            "model": {"uri": "s3://base-models/m"},
            "dataset": {"sources": [{"uri": "s3://datasets/d.csv"}]},
            "output": {"uri": "s3://artifacts/kept", "name": "kept"},
        },
    }
    installed.plane.kubectl("apply", "-n", "team-a", "-f", "-", stdin=json.dumps(job))
    before = installed.runner_objects()
    assert set(POLICIES) < set(before)
    installed.helm("uninstall", RELEASE)
    assert "kept" in installed.plane.kubectl("get", "finetunejobs", "-n", "team-a")
    assert installed.plane.kubectl("get", "deployments,serviceaccounts", "-n", SYSTEM, "-o", "name").split() == []
    assert installed.runner_objects() == before, "what serving pods need when they are replaced"
    offer = ("get", "configmap", "finetune-offers", "--ignore-not-found", "-n", "team-a", "-o", "name")
    assert installed.plane.kubectl(*offer) == "", "without an operator nothing is offered"
    # Helm takes what stayed over again: its ownership annotations are still those of this release.
    installed.helm("install", RELEASE, str(CHART), *EVERYWHERE)
    assert "kept" in installed.plane.kubectl("get", "finetunejobs", "-n", "team-a")
    assert installed.runner_objects() == before


def test_policies_that_are_turned_off_stay_and_are_named(installed: Installed) -> None:
    before = installed.runner_objects()
    said = installed.helm("upgrade", RELEASE, str(CHART), *EVERYWHERE, "--set", "runner.networkPolicy.enabled=false")
    assert installed.runner_objects() == before
    for name in POLICIES:
        deletion = f"kubectl -n team-a delete networkpolicy {name.rpartition('/')[2]}"
        assert deletion in said
        installed.plane.kubectl(*deletion.split()[1:])
    again = installed.helm("upgrade", RELEASE, str(CHART), *EVERYWHERE, "--set", "runner.networkPolicy.enabled=false")
    assert "delete networkpolicy" not in again
    assert "delete networkpolicy" not in installed.helm("upgrade", RELEASE, str(CHART), *EVERYWHERE)


def test_the_steps_of_the_installation_guide_in_their_order(installed: Installed, tmp_path: Path) -> None:
    """In a namespace of its own, and without --wait: there is no node on which the operator could become ready."""
    steps = (REPOSITORY / "docs" / "how-to" / "install.md").read_text().replace("team-a", "team-guide")
    steps = steps.partition("## 2. ")[2].partition("## 5. ")[0]
    values = tmp_path / "values.yaml"
    done = []
    for language, block in re.findall(r"^```(console|yaml)\n(.*?)^```", steps, re.DOTALL | re.MULTILINE):
        if language == "yaml":
            values.write_text(block)
            continue
        for line in block.replace("\\\n", " ").splitlines():
            program, *arguments = shlex.split(line)
            done.append(program)
            if program == "kubectl":
                installed.plane.kubectl(*arguments)
            else:
                where = {"values.yaml": str(values), "charts/finetune-operator": str(CHART)}
                installed.helm(*(where.get(each, each) for each in arguments if each != "--wait"))
    assert done == ["kubectl", "kubectl", "kubectl", "helm"]
    assert {"serviceaccount/finetune-runner", *POLICIES} <= set(installed.runner_objects("team-guide"))
