"""What should serve: the spec, its source and the platform's settings, resolved to one revision."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from finetune_api.adapterdeployment import AdapterDeploymentSpec, RevisionState, RevisionStatus
from finetune_api.finetunejob import ArtifactTokens, Phase
from finetune_api.hashing import digest, short
from finetune_api.reasons import Reason
from finetune_api.storage import Storage
from finetune_operator.adapterdeployment.observe import ObservedDeployment
from finetune_operator.adapterdeployment.token_limits import examples_too_long, prompts_too_long
from finetune_operator.resources.deployment import Serving, pod_template
from finetune_operator.tenancy import Claim, Subject, tenancy_violation

REVISION_LENGTH: Final = 8
RETRY_SECONDS: Final = 30.0
"""How soon to look again for what no watched object tells: a ServiceAccount, a stranger's object."""
DELETION_SECONDS: Final = 5.0
"""The same for what the garbage collector is about to take."""


@dataclass(frozen=True)
class Blocked:
    """Why there is no target."""

    reason: Reason
    message: str
    waiting: bool = False
    """True: it passes without anybody changing this resource; False: somebody has to act."""
    requeue_after: float | None = RETRY_SECONDS
    """When to look again; None where a watched object tells."""


@dataclass(frozen=True)
class Target:
    """The revision that the spec asks for."""

    revision: str
    """Short hash of what is served and how: a change of either is another revision, hence another Deployment."""
    serving: Serving
    """What is served and how."""
    spec_hash: str
    """Identity of the spec without replicas: a failed revision is tried again when it changes."""
    source_blocker: Blocked | None = None
    """Why the source has no artifact, so that the one which is known from before stays the target."""
    warning: str = ""
    """What may go wrong with it though it can be served."""


@dataclass(frozen=True)
class _Artifact:
    """What is to be served, how it is reached, and ``source_blocker`` as in Target."""

    uri: str
    storage: Storage
    tokens: ArtifactTokens | None = None
    source_blocker: Blocked | None = None


def find_target(observed: ObservedDeployment) -> Target | Blocked:
    """The revision that should serve, or what stands in its way."""
    spec, settings = observed.resource.spec, observed.settings
    if spec.runtime not in settings.runtimes:
        known = ", ".join(sorted(settings.runtimes)) or "none"
        return Blocked(Reason.RUNTIME_UNKNOWN, f"spec.runtime is {spec.runtime!r}; the platform offers: {known}.")
    runtime, artifact = settings.runtimes[spec.runtime], _artifact(observed)
    claims = _claims(spec, artifact)
    if forbidden := tenancy_violation(settings.tenancy, observed.resource.metadata.namespace, claims):
        return Blocked(Reason.NOT_ALLOWED, forbidden)
    if observed.conflicts:
        taken = ", ".join(observed.conflicts)
        return Blocked(Reason.NAME_TAKEN, f"{taken} exists already and does not belong to this AdapterDeployment.")
    if observed.pending_deletion:
        message = (
            f"{', '.join(observed.pending_deletion)} of an earlier AdapterDeployment of this name is yet to be deleted."
        )
        return Blocked(Reason.WAITING, message, waiting=True, requeue_after=DELETION_SECONDS)
    if isinstance(artifact, Blocked):
        return artifact
    if not observed.service_account:
        return Blocked(
            Reason.RUNNER_SERVICE_ACCOUNT_MISSING,
            f"ServiceAccount {runtime.service_account_name!r} of runtime {spec.runtime!r} "
            f"does not exist in namespace {observed.resource.metadata.namespace!r}.",
        )
    serving = Serving(artifact_uri=artifact.uri, storage=artifact.storage, runtime_name=spec.runtime, runtime=runtime)
    revision, stable = revision_of(observed, serving), observed.resource.status.stable
    too_long = prompts_too_long(artifact.tokens, spec.runtime, runtime)
    if too_long and (stable is None or stable.revision != revision):
        return Blocked(Reason.PROMPTS_TOO_LONG, too_long)
    warning = examples_too_long(artifact.tokens, spec.runtime, runtime)
    return Target(revision, serving, spec_hash(spec), artifact.source_blocker, warning)


def recorded_target(observed: ObservedDeployment, known: RevisionStatus) -> Target | None:
    """A revision as its status recorded it; None if the platform's settings make other pods of it by now."""
    runtime = observed.settings.runtimes.get(known.runtime)
    if runtime is None or known.storage is None:
        return None
    serving = Serving(
        artifact_uri=known.artifact_uri, storage=known.storage, runtime_name=known.runtime, runtime=runtime
    )
    revision = revision_of(observed, serving)
    return Target(revision, serving, spec_hash(observed.resource.spec)) if revision == known.revision else None


def revision_of(observed: ObservedDeployment, serving: Serving) -> str:
    """Short hash of the artifact and of the pods that serve it, whatever their number.

    The pods name their fetch input, which is named by its own hash: where the artifact is, and how it is reached,
    count too. The uid of the custom resource does not, so that a restored one has the same revisions.
    """
    owner = replace(observed.owner, uid="")
    template = pod_template(owner, serving, observed.settings, revision="")
    return short([serving.artifact_digest, serving.runtime_name, template], REVISION_LENGTH)


def spec_hash(spec: AdapterDeploymentSpec) -> str:
    """Identity of the spec, except for the number of pods, which autoscalers change.

    Without defaults, so that a field which a later version adds changes nothing.
    """
    return digest(spec.model_dump(mode="json", by_alias=True, exclude_defaults=True, exclude={"replicas"}))


def _claims(spec: AdapterDeploymentSpec, artifact: _Artifact | Blocked) -> Iterator[Claim]:
    """What the spec asks for that the platform's tenancy may limit, as far as it is known."""
    yield Claim(Subject.RUNTIME, "spec.runtime", spec.runtime)
    if isinstance(artifact, _Artifact):
        job = spec.source.fine_tune_job
        uri, endpoint = "spec.source.artifact.uri", "The endpoint in spec.source.artifact.storage"
        if job is not None:
            uri = f"The artifact of FineTuneJob {job.name!r}"
            endpoint = f"The endpoint to which FineTuneJob {job.name!r} published"
        yield Claim(Subject.INPUT, uri, artifact.uri)
        yield Claim(Subject.ENDPOINT, endpoint, artifact.storage.endpoint)


def _artifact(observed: ObservedDeployment) -> _Artifact | Blocked:
    """The artifact that the source names. Where its FineTuneJob has none, the one that is known from before stays."""
    source, job = observed.resource.spec.source, observed.source
    if source.artifact is not None:
        return _Artifact(source.artifact.uri, source.artifact.storage.for_reading)
    if job is not None and job.artifact is not None:
        # The spec may be that of a run which has yet to publish; an earlier version recorded no storage.
        return _Artifact(job.artifact.uri, job.artifact.storage or job.storage.for_reading, job.artifact.tokens)
    source_blocker = _source_blocker(observed, source.fine_tune_job.name if source.fine_tune_job else "")
    known = _known(observed)
    if known is None or known.storage is None:
        return source_blocker
    return _Artifact(known.artifact_uri, known.storage, source_blocker=source_blocker)


def _source_blocker(observed: ObservedDeployment, name: str) -> Blocked:
    """Why the FineTuneJob has no artifact. Before anything serves, it may not have been applied yet."""
    job, stable = observed.source, observed.resource.status.stable
    if job is not None:
        phase = f"its phase is {job.phase}" if job.phase else "it has not begun"
        message = f"FineTuneJob {name!r} has not published an artifact; {phase}."
        return Blocked(Reason.SOURCE_NOT_READY, message, waiting=job.phase != Phase.FAILED, requeue_after=None)
    message = f"FineTuneJob {name!r} does not exist in this namespace"
    if stable is None:
        return Blocked(Reason.SOURCE_NOT_READY, f"{message}.", waiting=True, requeue_after=None)
    message = f"{message}; revision {stable.revision} goes on serving {stable.artifact_uri}."
    return Blocked(Reason.SOURCE_NOT_FOUND, message)


def _known(observed: ObservedDeployment) -> RevisionStatus | None:
    """What the spec asked for while its source had an artifact: the candidate under way, or else what serves."""
    status, wanted = observed.resource.status, spec_hash(observed.resource.spec)
    candidate = status.candidate
    if candidate and candidate.state is not RevisionState.FAILED and candidate.spec_hash == wanted:
        return candidate
    return status.stable
