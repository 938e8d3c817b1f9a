"""A pod that a page starts by hand is accepted in a namespace prepared as the pages say."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

import pytest
import yaml

from hack.cluster.console import ClusterError
from hack.cluster.controlplane import ControlPlane
from hack.cluster.layout import REPOSITORY
from tests.support.pages import blocks

pytestmark = pytest.mark.controlplane

NAMESPACE = "team-a"
PAGE = REPOSITORY / "docs" / "how-to" / "trace-and-withdraw.md"
CONTEXT = '"securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},'


@pytest.fixture(scope="module")
def restricted(plane: ControlPlane) -> Iterator[ControlPlane]:
    """With a namespace as docs/how-to/install.md prepares one."""
    plane.kubectl("create", "namespace", NAMESPACE)
    plane.kubectl("label", "namespace", NAMESPACE, "pod-security.kubernetes.io/enforce=restricted")
    plane.kubectl("-n", NAMESPACE, "create", "serviceaccount", "finetune-runner")
    yield plane
    plane.kubectl("delete", "namespace", NAMESPACE, "--wait=false")


def withdrawal() -> str:
    """The command that withdraws an artifact from within a cluster, with an image."""
    (block,) = (block for block in blocks(PAGE, "console") if "run withdraw" in block)
    image = "registry.example/data:1"
    return block.replace("<images.data of the chart's values>", image).replace("<the same>", image)


def typed(command: str) -> list[str]:
    """kubectl's arguments for a command that only the API server judges: kubectl attaches to no pod of a dry run."""
    program, *arguments = shlex.split(command)
    assert program == "kubectl"
    return [each for each in arguments if each not in ("--rm", "-i")] + ["--dry-run=server", "--output=yaml"]


def test_the_pod_that_withdraws_is_accepted_as_it_is_written(restricted: ControlPlane) -> None:
    pod = yaml.safe_load(restricted.kubectl(*typed(withdrawal())))
    assert (pod["metadata"]["namespace"], pod["spec"]["serviceAccountName"]) == (NAMESPACE, "finetune-runner")
    (container,) = pod["spec"]["containers"]
    assert container["image"] == "registry.example/data:1"
    assert container["command"][:3] == ["python", "-m", "finetune_jobs.withdraw"]


def test_without_its_security_context_it_is_not(restricted: ControlPlane) -> None:
    assert CONTEXT in withdrawal()
    with pytest.raises(ClusterError) as error:
        restricted.kubectl(*typed(withdrawal().replace(CONTEXT, "")))
    assert 'violates PodSecurity "restricted' in str(error.value)
