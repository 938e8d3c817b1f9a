"""What ``make demo-full`` does with the demo's endpoint: another revision takes over, wrong weights are refused, and
the first revision comes back. Then two adapters share one vLLM.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from finetune_api import meta
from finetune_api.adapterdeployment import AdapterDeployment
from finetune_api.finetunejob import FineTuneJob
from finetune_api.job_status import ArtifactStatus
from hack.cluster.console import ClusterError, say, step
from hack.demo.examples import DEMO, EXTRACTION, example, merged
from hack.demo.follow import apply, follow_deployment, follow_job, follow_refusal
from hack.demo.planted import plant
from hack.platform import local, object_store
from hack.platform.kubectl import Kubectl, Object

_SHARED: Final = "shared"
"""Name of the AdapterDeployment with two adapters."""
_SHARED_SAMPLES: Final = 20
"""Of each adapter's test examples, for its evaluation."""
_VERIFIED_SAMPLES: Final = 8
"""Of these, for its verification: with adapters, vLLM on a CPU writes four tokens a second."""


@dataclass(frozen=True)
class Served:
    """What came of the rollouts."""

    first: str
    """Revision of the demo's artifact, which serves again at the end."""
    second: str
    """Revision of the same model in 16 bits."""
    refusal: str
    """Why the artifact with wrong weights got no traffic."""


def roll_out_and_back(kubectl: Kubectl, in_16_bits: str) -> Served:
    """The demo's endpoint through a rollout of what the FineTuneJob of this name publishes, a refused one and a
    rollback. It serves as before at the end.

    Raises:
        ClusterError: one of them did not end as it should; with the operator's message.
    """
    before = AdapterDeployment.model_validate(kubectl.get("adep", DEMO)).status.stable
    if before is None:
        raise ClusterError("the demo's AdapterDeployment serves nothing; run `make demo` first")
    first = _demo_artifact(kubectl)
    _, second = follow_job(kubectl, in_16_bits)
    _ask_for(kubectl, second.uri)
    after = follow_deployment(kubectl, DEMO, second.digest).status.stable
    with step("publish a copy of that artifact in which one layer's MLP is zero"):
        spoiled = _planted(kubectl, second)
    _ask_for(kubectl, spoiled)
    refusal = follow_refusal(kubectl, DEMO, spoiled.rsplit("/", 1)[1])
    _ask_for(kubectl, spoiled, rollbackTo=before.revision)
    follow_deployment(kubectl, DEMO, first.digest)
    return Served(before.revision, after.revision if after else "", refusal)


def share_a_server(kubectl: Kubectl, jobs: list[str]) -> AdapterDeployment:
    """The adapters that these FineTuneJobs publish on one vLLM on CPUs.

    Raises:
        ClusterError: a job failed, or an adapter did not prove itself; with the operator's message.
    """
    local.install_vllm_runtime(kubectl)
    artifacts = [follow_job(kubectl, job)[1] for job in jobs]
    name = apply(kubectl, shared_deployment(), AdapterDeployment)
    return follow_deployment(kubectl, name, *(artifact.digest for artifact in artifacts))


def in_16_bits() -> Object:
    """The demo's FineTuneJob with another format: the same training, which is not repeated."""
    return _variant(example("finetunejob"), f"{DEMO}-16-bit", {"export": {"format": "Merged"}})


def adapter_jobs() -> list[Object]:
    """The FineTuneJobs whose trainings have run, with their adapters published alone. How good these models are was
    asked of the first format already: the endpoint needs some answers that it can be verified by, no more."""
    alone: Object = {
        "export": {"format": "Adapter", "onRegression": "Fail"},
        "evaluation": {"maxSamples": _SHARED_SAMPLES, "general": "Off", "adversarial": "Off", "goals": []},
    }
    jobs = (example("finetunejob"), EXTRACTION.job())
    return [_variant(job, f"{job['metadata']['name']}-adapter", alone) for job in jobs]


def shared_deployment() -> Object:
    """The AdapterDeployment of both adapters."""
    adapters = [
        {"name": name.removesuffix("-adapter"), "fineTuneJob": {"name": name}}
        for name in (str(job["metadata"]["name"]) for job in adapter_jobs())
    ]
    spec = {"source": {"adapters": adapters}, "runtime": "vllm-cpu", "verification": {"samples": _VERIFIED_SAMPLES}}
    return {
        "apiVersion": meta.API_VERSION,
        "kind": meta.ADAPTERDEPLOYMENT,
        "metadata": {"name": _SHARED},
        "spec": spec,
    }


def _variant(job: Object, name: str, changes: Object) -> Object:
    """The same job under another name, with changes, where what is equal is reused."""
    output = {"output": {"name": name}}
    return merged(job, {"metadata": {"name": name}, "spec": merged(changes, output)})


def _demo_artifact(kubectl: Kubectl) -> ArtifactStatus:
    artifact = FineTuneJob.model_validate(kubectl.get("ftj", DEMO)).status.artifact
    if artifact is None:
        raise ClusterError("the demo's FineTuneJob has published nothing; run `make demo` first")
    return artifact


def _ask_for(kubectl: Kubectl, uri: str, **spec: Any) -> None:
    """Pin an artifact in the demo's AdapterDeployment."""
    deployment = example("adapterdeployment")
    source = {"artifact": {"uri": uri, "storage": example("finetunejob")["spec"]["storage"]}}
    kubectl.apply(deployment | {"spec": deployment["spec"] | {"source": source} | spec})
    say(f"  … serve {uri}" if "rollbackTo" not in spec else f"  … roll back to revision {spec['rollbackTo']}")


def _planted(kubectl: Kubectl, artifact: ArtifactStatus) -> str:
    root = artifact.uri.removesuffix(f"/artifacts/{artifact.digest}")
    with object_store.from_here(kubectl) as storage:
        return plant(storage, root, artifact.digest)
