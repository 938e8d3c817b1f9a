"""The identity of what serves: a short hash of the artifact and of its pods, and one of the spec."""

from dataclasses import replace
from typing import Final

from finetune_api.adapterdeployment import AdapterDeploymentSpec
from finetune_api.hashing import digest, short
from finetune_operator.adapterdeployment.observe import ObservedDeployment
from finetune_operator.resources.deployment import Serving, pod_template

REVISION_LENGTH: Final = 8


def revision_of(observed: ObservedDeployment, serving: Serving) -> str:
    """Short hash of the artifact and of the pods that serve it, whatever their number.

    The pods name their fetch input, whose name contains its own hash: the artifact's place and how it is reached count
    too. The uid of the custom resource does not, so that a restored resource has the same revisions.
    """
    owner = replace(observed.owner, uid="")
    template = pod_template(owner, serving, observed.settings, revision="")
    return short([serving.artifact_digest, serving.runtime_name, template], REVISION_LENGTH)


def spec_hash(spec: AdapterDeploymentSpec) -> str:
    """Identity of the spec, except for the number of pods, which autoscalers change.

    Defaults are left out, so a field that a later version adds changes nothing.
    """
    return digest(spec.model_dump(mode="json", by_alias=True, exclude_defaults=True, exclude={"replicas"}))
