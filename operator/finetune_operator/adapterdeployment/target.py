"""What should serve: the spec, its source and the platform's settings, resolved to one revision."""

from dataclasses import dataclass, replace
from typing import Final

from finetune_api.adapterdeployment import AdapterDeploymentSpec
from finetune_api.hashing import digest, short
from finetune_api.reasons import Reason
from finetune_api.storage import Storage
from finetune_operator.adapterdeployment.observe import Observed
from finetune_operator.finetunejob.outcome import refusal
from finetune_operator.resources.deployment import Serving, pod_template

REVISION_LENGTH: Final = 8


@dataclass(frozen=True)
class Target:
    """The revision that the spec asks for."""

    revision: str
    """Short hash of what is served and how: a change of either is another revision, hence another Deployment."""
    serving: Serving
    """What is served and how."""
    spec_hash: str
    """Identity of the spec without replicas: a failed revision is tried again when it changes."""


@dataclass(frozen=True)
class Blocked:
    """Why there is no target."""

    reason: Reason
    message: str
    waiting: bool = False
    """True: it passes without anybody changing this resource; False: somebody has to act."""


def find_target(observed: Observed) -> Target | Blocked:
    """The revision that should serve, or what stands in its way."""
    spec, settings = observed.resource.spec, observed.settings
    if spec.runtime not in settings.runtimes:
        known = ", ".join(sorted(settings.runtimes)) or "none"
        return Blocked(Reason.RUNTIME_UNKNOWN, f"spec.runtime is {spec.runtime!r}; the platform offers: {known}.")
    runtime = settings.runtimes[spec.runtime]
    if observed.strangers:
        taken = ", ".join(observed.strangers)
        return Blocked(Reason.NAME_TAKEN, f"{taken} exists already and does not belong to this AdapterDeployment.")
    if observed.refusal:
        return Blocked(*refusal(observed.refusal))
    source = _source(observed)
    if isinstance(source, Blocked):
        return source
    if not observed.service_account:
        return Blocked(
            Reason.RUNNER_SERVICE_ACCOUNT_MISSING,
            f"ServiceAccount {runtime.service_account_name!r} of runtime {spec.runtime!r} "
            f"does not exist in namespace {observed.resource.metadata.namespace!r}.",
        )
    uri, storage = source
    serving = Serving(artifact_uri=uri, storage=storage, runtime_name=spec.runtime, runtime=runtime)
    return Target(revision_of(observed, serving), serving, spec_hash(spec))


def revision_of(observed: Observed, serving: Serving) -> str:
    """Short hash of the artifact and of the pods that serve it, whatever their number.

    The pods name their fetch input, which is named by its own hash: where the artifact is, and how it is reached,
    count too. The uid of the custom resource does not, so that a restored one has the same revisions.
    """
    owner = replace(observed.owner, uid="")
    template = pod_template(owner, serving, observed.settings.images, revision="")
    return short([serving.artifact_digest, serving.runtime_name, template], REVISION_LENGTH)


def spec_hash(spec: AdapterDeploymentSpec) -> str:
    """Identity of the spec, except for the number of pods, which autoscalers change.

    Without defaults, so that a field which a later version adds changes nothing.
    """
    return digest(spec.model_dump(mode="json", by_alias=True, exclude_defaults=True, exclude={"replicas"}))


def _source(observed: Observed) -> tuple[str, Storage] | Blocked:
    """URI of the artifact and how to reach it."""
    source, job = observed.resource.spec.source, observed.source
    if source.artifact is not None:
        return source.artifact.uri, source.artifact.storage
    name = source.fine_tune_job.name if source.fine_tune_job else ""
    if job is None:
        return Blocked(Reason.SOURCE_NOT_READY, f"FineTuneJob {name!r} does not exist in this namespace.", waiting=True)
    if job.artifact is None:
        phase = f"its phase is {job.phase}" if job.phase else "it has not begun"
        return Blocked(
            Reason.SOURCE_NOT_READY, f"FineTuneJob {name!r} has not published an artifact; {phase}.", waiting=True
        )
    return job.artifact.uri, job.storage
