"""What should serve: the spec, its source and the platform's settings, resolved to one revision."""

from collections.abc import Iterator
from dataclasses import dataclass

from finetune_api.compatibility import Level
from finetune_api.serving_status import RevisionStatus
from finetune_api.suitability import serving_verdict
from finetune_operator.adapterdeployment.adapters import read_back
from finetune_operator.adapterdeployment.artifact import Artifact, asked_back, asked_record, find_artifact
from finetune_operator.adapterdeployment.blockers import BLOCKERS
from finetune_operator.adapterdeployment.delivery import taken_at_run_time
from finetune_operator.adapterdeployment.observe import ObservedDeployment
from finetune_operator.adapterdeployment.record import recorded
from finetune_operator.adapterdeployment.revision import asked_hash
from finetune_operator.adapterdeployment.size_limits import memory_warning
from finetune_operator.adapterdeployment.stored_record import Record
from finetune_operator.adapterdeployment.token_limits import example_warning
from finetune_operator.blockers import Blocker, first_blocker
from finetune_operator.resources.deployment import Adapter, Serving
from finetune_operator.resources.self_check import loads_adapters
from finetune_operator.runtimes.facts import serving_facts
from finetune_operator.settings import Runtime


@dataclass(frozen=True)
class Target:
    """The revision that the spec asks for."""

    record: Record
    """What is served, how, and what its pods are made of: another one is another revision, hence another Deployment."""
    spec_hash: str
    """Identity of the spec without replicas: a failed revision is retried when it changes."""
    source_blocker: Blocker | None = None
    """Why the source has no artifact, so that the last known one stays the target."""
    answer_tokens: int = 0
    """The most that an answer of its evaluation may have; 0: unknown, as of a pinned artifact."""
    warning: str = ""
    """What may go wrong with the target although it can be served."""
    asked_adapters: tuple[Adapter, ...] | None = None
    """What its pods are to serve by now, where they take other adapters while they run; None: as the record has it."""
    is_asked: bool = True
    """Whether the spec asks for it as it reads now; not if it serves on because another one is not there yet."""

    @property
    def revision(self) -> str:
        """Short hash of what is served and how."""
        return self.record.revision

    @property
    def serving(self) -> Serving:
        """What is served and how."""
        return self.record.serving

    @property
    def adapters(self) -> tuple[Adapter, ...]:
        """What its pods are to serve by now; none where the artifact is a whole model."""
        return self.record.serving.adapters if self.asked_adapters is None else self.asked_adapters


def find_target(observed: ObservedDeployment) -> Target | Blocker:
    """The revision that should serve, or what stands in its way."""
    if blocker := first_blocker(BLOCKERS, observed):
        return blocker
    artifact = find_artifact(observed)
    if isinstance(artifact, Blocker):  # found by BLOCKERS already
        return artifact
    spec = observed.resource.spec
    asked = artifact.serving(spec, observed.settings.runtimes[spec.runtime])
    back = asked_back(observed)
    running = None if back else taken_at_run_time(observed, asked)
    record = back or running or asked_record(observed)
    if isinstance(record, Blocker):  # for the type checker: there is an artifact
        return record
    return Target(
        record=record,
        asked_adapters=asked.adapters if running else None,
        spec_hash=asked_hash(observed),
        source_blocker=artifact.source_blocker,
        answer_tokens=(artifact.tokens.answer or 0) if artifact.tokens else 0,
        is_asked=artifact.source_blocker is None,
        warning=" ".join(filter(None, _warnings(artifact, record.serving.runtime_name, record.serving.runtime))),
    )


def _warnings(artifact: Artifact, name: str, runtime: Runtime) -> Iterator[str]:
    yield example_warning(artifact.tokens, name, runtime)
    found = serving_verdict(serving_facts(name, runtime), artifact.architecture, artifact.format)
    yield f"Runtime {name!r}: {found.message}" if found.level is Level.CAVEAT else ""
    yield memory_warning(artifact.size_bytes, name, runtime)


def recorded_target(observed: ObservedDeployment, known: RevisionStatus) -> Target | None:
    """The target of a known revision; None if it has no record and the platform's settings would make other pods of it
    now."""
    record = recorded(observed, known)
    if record is None:
        return None
    adapters = read_back(known.adapters) if loads_adapters(record.template) and known.adapters else None
    return Target(record, asked_hash(observed), asked_adapters=adapters, is_asked=False)
