"""What an AdapterDeployment asks for that the platform's tenancy may limit. Pure.

What the spec itself names comes first, in the order in which the API server finds it
(``charts/finetune-operator/templates/_tenancy.tpl``). Beside it only the operator knows what was found: what a
FineTuneJob has published, and an earlier revision's artifact, which may be elsewhere, or have other keys.
"""

from collections.abc import Iterator

from finetune_api.artifact_source import AdapterSource, ArtifactRef, ArtifactSource, OutputRef, artifact_digest
from finetune_api.storage import Storage
from finetune_operator.adapterdeployment.artifact import Artifact, asked_back, find_artifact
from finetune_operator.adapterdeployment.observe import ObservedDeployment
from finetune_operator.adapterdeployment.route_claims import route_claims
from finetune_operator.tenancy.claim import Claim, Subject, secret_claim, store_claims


def claims_of(observed: ObservedDeployment) -> Iterator[Claim]:
    """All of them, as far as they are known."""
    yield from spec_claims(observed)
    source, artifact = observed.resource.spec.source, find_artifact(observed)
    if not isinstance(artifact, Artifact):
        return
    if artifact.adapters:
        asked = {each.name: each for each in source.adapters or []}
        for adapter in artifact.adapters:
            yield from _claims_of_found(adapter.uri, artifact.storage, asked.get(adapter.name))
    else:
        yield from _claims_of_found(artifact.uri, artifact.storage, source)


def spec_claims(observed: ObservedDeployment) -> Iterator[Claim]:
    """Those of what the spec itself names, whatever was found."""
    spec, back = observed.resource.spec, asked_back(observed)
    yield Claim(Subject.RUNTIME, "spec.runtime", back.serving.runtime_name if back else spec.runtime)
    if spec.access.api_keys:
        yield from secret_claim("spec.access.apiKeys.secretRef.name", spec.access.api_keys.secret_ref)
    if spec.access.tls:
        yield from secret_claim("spec.access.tls.secretRef.name", spec.access.tls.secret_ref)
    yield from route_claims(observed.owner.namespace, spec.access.route)
    yield from _claims_of_place(spec.source.artifact, "spec.source.artifact")
    yield from _claims_of_place(spec.source.output, "spec.source.output")
    adapters = list(enumerate(spec.source.adapters or []))
    for number, each in adapters:
        yield from _claims_of_place(each.artifact, f"spec.source.adapters[{number}].artifact")
    for number, each in adapters:
        yield from _claims_of_place(each.output, f"spec.source.adapters[{number}].output")


def _claims_of_place(named: ArtifactRef | OutputRef | None, place: str) -> Iterator[Claim]:
    """What is read at, or below, a place of the spec."""
    if named is not None:
        yield Claim(Subject.INPUT, f"{place}.uri", named.uri)
        yield from store_claims(named.storage, f"{place}.storage.endpoint", f"{place}.storage.secretRef.name")


def _claims_of_found(uri: str, storage: Storage, asked: ArtifactSource | AdapterSource | None) -> Iterator[Claim]:
    """What an artifact asks for beside what the spec names for it."""
    if asked is not None and _names(asked, uri, storage):
        return
    named = "The URI of an earlier revision's artifact"
    endpoint, secret = "The endpoint of an earlier revision's artifact", "The Secret for an earlier revision's artifact"
    if asked is not None and (job := asked.fine_tune_job):
        named = f"The artifact of FineTuneJob '{job.name}'"
        endpoint = f"The endpoint to which FineTuneJob '{job.name}' published"
        secret = f"The Secret with which FineTuneJob '{job.name}' published"
    yield Claim(Subject.INPUT, named, uri)
    yield from store_claims(storage, endpoint, secret)


def _names(asked: ArtifactSource | AdapterSource, uri: str, storage: Storage) -> bool:
    """Whether the artifact is the pinned one, or below the output, and is read in the same way."""
    if (pinned := asked.artifact) is not None:
        return (uri, storage) == (pinned.uri, pinned.storage.for_reading)
    if (output := asked.output) is not None:
        return (uri, storage) == (output.artifact_uri(artifact_digest(uri)), output.storage.for_reading)
    return False
