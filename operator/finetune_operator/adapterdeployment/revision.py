"""Identities: of what people chose to serve, of the pods that serve it, and of the spec. Pure."""

from dataclasses import replace
from typing import Final

from finetune_api.adapterdeployment import AdapterDeploymentSpec
from finetune_api.artifact_source import ArtifactSource, OutputRef
from finetune_api.hashing import digest, short, without_defaults
from finetune_api.stages import Stage
from finetune_api.verification import GatesPolicy
from finetune_operator.adapterdeployment.observe import ObservedDeployment
from finetune_operator.framework.once import once
from finetune_operator.resources.deployment import Serving, pod_template
from finetune_operator.resources.pod import repository
from finetune_operator.settings import Settings

REVISION_LENGTH: Final = 8


def choice_of(serving: Serving, settings: Settings) -> str:
    """Identity of what users and the admin chose for the serving pods: artifact, store, runtime, proxy, registry.

    What comes with a release of the operator is left out: how it renders pods, the version of the image of ``fetch``,
    and defaults. So revisions that were proved by an earlier release are found again by a later one (``record.py``).
    """
    images = settings.images
    place_of_fetch = repository(images.of(Stage.FETCH))
    registry = {"policy": images.pull_policy, "secrets": images.pull_secrets, "fetch": place_of_fetch}
    chosen = (serving.storage, serving.runtime, settings.proxy)
    values = [without_defaults(each) for each in chosen]
    values[1].pop("description", None)
    place: list[object] = [
        serving.artifact_uri,
        serving.artifact_digest,
        list(serving.public_keys),
        serving.runtime_name,
    ]
    if serving.adapters:
        place.append([[each.name, each.uri, each.digest] for each in serving.adapters])
    keys = [{"apiKeys": serving.api_keys_secret, "proxy": repository(images.proxy)}] if serving.api_keys_secret else []
    shown = [{"tls": serving.tls_secret, "proxy": repository(images.proxy)}] if serving.tls_secret else []
    return digest([*place, *values, registry, *keys, *shown])


def revision_of(observed: ObservedDeployment, serving: Serving) -> str:
    """Short hash of the artifact and of the pods that this release makes for it, whatever their number.

    The pods name their fetch input, whose name contains its own hash: the artifact's place and how it is reached count
    too. The uid of the custom resource does not, so that a restored resource has the same revisions.
    """
    owner = replace(observed.owner, uid="")
    template = pod_template(owner, serving, observed.settings, revision="")
    return short([serving.artifact_digest, serving.runtime_name, template], REVISION_LENGTH)


def accepted_keys(spec: AdapterDeploymentSpec) -> tuple[str, ...]:
    """The public keys that the spec's policy asks for; empty: none."""
    return tuple(spec.policy.signature.public_keys) if spec.policy.signature else ()


def api_keys_secret(spec: AdapterDeploymentSpec) -> str:
    """The Secret with the keys that the spec asks of clients; empty: none are asked."""
    return spec.access.api_keys.secret_ref.name if spec.access.api_keys else ""


def tls_secret(spec: AdapterDeploymentSpec) -> str:
    """The Secret with the servers' certificate that the spec asks for; empty: clients do not connect by TLS."""
    return spec.access.tls.secret_ref.name if spec.access.tls else ""


def is_as_the_spec_protects(serving: Serving, spec: AdapterDeploymentSpec) -> bool:
    """Whether a revision asks its artifact's signature, and its clients, for the keys that the spec asks for by now,
    and shows them the certificate."""
    return serving.public_keys == accepted_keys(spec) and is_reached_as_asked(serving, spec)


def is_reached_as_asked(serving: Serving, spec: AdapterDeploymentSpec) -> bool:
    """The last two of these."""
    return (serving.api_keys_secret, serving.tls_secret) == (api_keys_secret(spec), tls_secret(spec))


def asked_gates(spec: AdapterDeploymentSpec) -> str:
    """Identity of the gates that the spec's policy asks for; empty: none."""
    policy = spec.policy
    if policy.gates is GatesPolicy.ANY and not policy.required_gates:
        return ""
    return digest([policy.gates, sorted(policy.required_gates)])


@once
def asked_hash(observed: ObservedDeployment) -> str:
    """Identity of the spec of what was observed."""
    return spec_hash(observed.resource.spec)


def spec_hash(spec: AdapterDeploymentSpec) -> str:
    """Identity of the spec, except for the number of pods, which autoscalers change, which pods go and stay when, how
    what serves is watched, how often a channel is looked at, and the way in from outside.

    Defaults are left out, so a field that a later version adds changes nothing.
    """
    apart = {"replicas", "strategy", "keep_last_good", "quality_watch"}
    told = spec.model_copy(update={"access": spec.access.model_copy(update={"route": None})})
    told = told.model_copy(update={"source": _without_intervals(spec.source)})
    return digest(told.model_dump(mode="json", by_alias=True, exclude_defaults=True, exclude=apart))


def _without_intervals(source: ArtifactSource) -> ArtifactSource:
    """How often channels are looked at starts no pod but that of the look."""
    adapters = [each.model_copy(update={"output": _as_default(each.output)}) for each in source.adapters or []]
    return source.model_copy(update={"output": _as_default(source.output), "adapters": adapters or None})


def _as_default(followed: OutputRef | None) -> OutputRef | None:
    default = OutputRef.model_fields["interval"].default
    return followed.model_copy(update={"interval": default}) if followed else None
