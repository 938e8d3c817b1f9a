"""The artifact that the source names, or why there is none."""

from collections.abc import Sequence
from dataclasses import dataclass

from finetune_api.adapterdeployment import AdapterDeploymentSpec
from finetune_api.artifact_source import AdapterSource, OutputRef, set_address
from finetune_api.compatibility import ADAPTER
from finetune_api.job_status import ArtifactStatus, ArtifactTokens, Phase
from finetune_api.reasons import Reason
from finetune_api.serving_status import RevisionState, RevisionStatus
from finetune_api.storage import Storage
from finetune_operator.adapterdeployment.adapters import Found, longest, misfit, read_back
from finetune_operator.adapterdeployment.channel import channel_blocker, facts_of, known_channel, not_looked_yet
from finetune_operator.adapterdeployment.observe import ObservedDeployment, Source
from finetune_operator.adapterdeployment.record import record_for
from finetune_operator.adapterdeployment.revision import accepted_keys, api_keys_secret, asked_hash, tls_secret
from finetune_operator.adapterdeployment.stored_record import Record
from finetune_operator.blockers import Blocker
from finetune_operator.framework.once import once
from finetune_operator.resources.deployment import Adapter, Serving
from finetune_operator.resources.pod import scratch_bytes
from finetune_operator.settings import Runtime


@dataclass(frozen=True)
class Artifact:
    """What is to be served and how it is reached; ``source_blocker`` as in Target."""

    uri: str
    digest: str
    storage: Storage
    tokens: ArtifactTokens | None = None
    format: str = ""
    """Format of its weights; empty: unknown, as of a pinned artifact."""
    architecture: str = ""
    """Their architecture; empty: unknown."""
    source_blocker: Blocker | None = None
    adapters: tuple[Adapter, ...] = ()
    """Several of format Adapter, in place of one artifact."""
    size_bytes: int = 0
    """Size of its weights, of adapters with their base; 0: unknown, as of a pinned artifact."""

    def serving(self, spec: AdapterDeploymentSpec, runtime: Runtime) -> Serving:
        """How a runtime serves the artifact. What is downloaded fits the volume, whatever its size."""
        place = (self.uri, self.digest, self.storage)
        keys = (accepted_keys(spec), api_keys_secret(spec))
        size = self.size_bytes or scratch_bytes(runtime.pod)
        return Serving(*place, spec.runtime, runtime, *keys, self.adapters, size, tls_secret(spec))


def asked_back(observed: ObservedDeployment) -> Record | None:
    """The revision that the spec goes back to, as far as it is known."""
    wanted = observed.resource.spec.rollback_to
    return observed.records.get(wanted) if wanted else None


@once
def find_artifact(observed: ObservedDeployment) -> Artifact | Blocker:
    """The artifact that the source names, or that of the revision to go back to. If its FineTuneJob has none, the last
    known one stays."""
    if back := asked_back(observed):
        served = back.serving
        return Artifact(served.artifact_uri, served.artifact_digest, served.storage, adapters=served.adapters)
    source, job = observed.resource.spec.source, observed.source
    if source.adapters is not None:
        return _find_adapters(observed, source.adapters)
    if source.output is not None:
        return _find_in_channel(observed, source.output)
    if source.artifact is not None:
        return Artifact(source.artifact.uri, source.artifact.digest, source.artifact.storage.for_reading)
    if job is not None and job.artifact is not None:
        # The spec may belong to a run that has not published yet; an earlier version recorded no storage.
        return _published(job.artifact, job.artifact.storage or job.storage.for_reading)
    name = source.fine_tune_job.name if source.fine_tune_job else ""
    return _last_known(observed, _source_blocker(observed, name, job))


@once
def asked_record(observed: ObservedDeployment) -> Record | Blocker:
    """What would serve what the spec asks for now, or why there is no artifact."""
    artifact, spec = find_artifact(observed), observed.resource.spec
    if isinstance(artifact, Blocker):
        return artifact
    return record_for(observed, artifact.serving(spec, observed.settings.runtimes[spec.runtime]))


def _find_in_channel(observed: ObservedDeployment, asked: OutputRef) -> Artifact | Blocker:
    """Where the channel points, as far as that is known; the last artifact stays if the newest look found none."""
    known = known_channel(observed, asked)
    blocker = channel_blocker(known)
    if known is None or not known.artifact_digest:
        return _last_known(observed, blocker or not_looked_yet(asked))
    storage = asked.storage.for_reading
    if (facts := facts_of(known, known.artifact_digest)) is not None:
        return _published(facts, storage, blocker)
    uri = asked.artifact_uri(known.artifact_digest)
    return Artifact(uri, known.artifact_digest, storage, source_blocker=blocker)


def _published(found: ArtifactStatus, storage: Storage, blocker: Blocker | None = None) -> Artifact:
    """An artifact of which it is known what it consists of."""
    return Artifact(
        found.uri,
        found.digest,
        storage,
        found.tokens,
        format=found.format,
        architecture=found.architecture or "",
        source_blocker=blocker,
        size_bytes=found.size_bytes or 0,
    )


def _find_adapters(observed: ObservedDeployment, asked: Sequence[AdapterSource]) -> Artifact | Blocker:
    """All of them together. Where a source has no artifact, the last known one of that adapter stays; if there is none,
    or it fits no more, those of all."""
    found: list[_FoundAdapter] = []
    for each in sorted(asked, key=lambda each: each.name):
        adapter = _find_adapter(observed, each)
        if isinstance(adapter, Blocker):
            before = _before(observed, each)
            if before is None:
                return _last_known(observed, adapter)
            adapter = _FoundAdapter(before, blocker=adapter)
        found.append(adapter)
    adapters = tuple(each.found.adapter for each in found)
    blocker = next((each.blocker for each in found if each.blocker), None)
    unfit = misfit([each.found for each in found])
    if unfit is not None:
        return _last_known(observed, blocker) if blocker else unfit
    return Artifact(
        "",
        set_address({each.name: each.digest for each in adapters}),
        found[0].found.storage,
        longest(each.known.tokens if each.known else None for each in found),
        format=ADAPTER,
        architecture=next((each.known.architecture for each in found if each.known and each.known.architecture), ""),
        source_blocker=blocker,
        adapters=adapters,
        size_bytes=_together([each.known for each in found]),
    )


@dataclass(frozen=True)
class _FoundAdapter:
    """One of several adapters."""

    found: Found
    known: ArtifactStatus | None = None
    """What is known of it; None: nothing, as of a pinned artifact."""
    blocker: Blocker | None = None
    """Why its source has no newer one."""


def _find_adapter(observed: ObservedDeployment, asked: AdapterSource) -> _FoundAdapter | Blocker:
    if (pinned := asked.artifact) is not None:
        return _FoundAdapter(Found(Adapter(asked.name, pinned.uri, pinned.digest), pinned.storage.for_reading, ""))
    if (output := asked.output) is not None:
        channel = known_channel(observed, output, asked.name)
        blocker = channel_blocker(channel, asked.name)
        if channel is None or not channel.artifact_digest:
            return blocker or not_looked_yet(output, asked.name)
        storage, known = output.storage.for_reading, facts_of(channel, channel.artifact_digest)
        if known is None:
            uri = output.artifact_uri(channel.artifact_digest)
            return _FoundAdapter(Found(Adapter(asked.name, uri, channel.artifact_digest), storage, ""), blocker=blocker)
        return _FoundAdapter(_described(asked.name, known, storage), known, blocker)
    name = asked.fine_tune_job.name if asked.fine_tune_job else ""
    job = observed.sources.get(name)
    if job is None or job.artifact is None:
        return _source_blocker(observed, name, job)
    storage = job.artifact.storage or job.storage.for_reading
    return _FoundAdapter(_described(asked.name, job.artifact, storage), job.artifact)


def _before(observed: ObservedDeployment, asked: AdapterSource) -> Found | None:
    """The last known artifact of an adapter; None: none is known."""
    known = _known(observed)
    adapter = next((each for each in read_back(known.adapters) if each.name == asked.name), None) if known else None
    if known is None or adapter is None or known.storage is None:
        return None
    output = asked.output
    is_below = output is not None and adapter.uri == output.artifact_uri(adapter.digest)
    # Below the same output it is read as the spec says by now: the others may be, and all share their settings.
    return Found(adapter, output.storage.for_reading if output and is_below else known.storage, ADAPTER)


def _described(name: str, known: ArtifactStatus, storage: Storage) -> Found:
    adapter = Adapter(name, known.uri, known.digest, known.base_digest or "", known.rank or 0)
    return Found(adapter, storage, known.format)


def _together(known: Sequence[ArtifactStatus | None]) -> int:
    """Size of adapters and of the base that they share; 0: that of one, or of the base, is not known."""
    own = [(each.size_bytes or 0) if each else 0 for each in known]
    base = max((each.base_size_bytes or 0) if each else 0 for each in known)
    return sum(own) + base if base and all(own) else 0


def _last_known(observed: ObservedDeployment, source_blocker: Blocker) -> Artifact | Blocker:
    known = _known(observed)
    if known is None or known.storage is None:
        return source_blocker
    adapters = read_back(known.adapters)
    # The status has the address of those that are served; these are all that were asked for.
    address = set_address({each.name: each.digest for each in adapters}) if adapters else known.artifact_digest
    return Artifact(known.artifact_uri, address, known.storage, source_blocker=source_blocker, adapters=adapters)


def _source_blocker(observed: ObservedDeployment, name: str, job: Source | None) -> Blocker:
    """Why there is no artifact. Before anything serves, the FineTuneJob may just not have been applied yet."""
    stable = observed.resource.status.stable
    if job is not None:
        phase = f"its phase is {job.phase}" if job.phase else "it has not started"
        message = f"FineTuneJob {name!r} has not published an artifact; {phase}."
        return Blocker(Reason.SOURCE_NOT_READY, message, waiting=job.phase != Phase.FAILED, watched=True)
    message = f"FineTuneJob {name!r} does not exist in this namespace"
    if stable is None:
        return Blocker(Reason.SOURCE_NOT_READY, f"{message}.", waiting=True, watched=True)
    message = f"{message}; revision {stable.revision} keeps serving {stable.artifact_uri or 'its adapters'}."
    return Blocker(Reason.SOURCE_NOT_FOUND, message, watched=True)


def _known(observed: ObservedDeployment) -> RevisionStatus | None:
    """The revision of the last known artifact: a candidate for this spec, or else the stable one."""
    status, wanted = observed.resource.status, asked_hash(observed)
    candidate = status.candidate
    if candidate and candidate.state is not RevisionState.FAILED and candidate.spec_hash == wanted:
        return candidate
    return status.stable
