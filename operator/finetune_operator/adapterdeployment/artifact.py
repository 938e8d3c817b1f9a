"""The artifact that the source names, or why there is none."""

from collections.abc import Sequence
from dataclasses import dataclass

from finetune_api.adapterdeployment import AdapterDeploymentSpec
from finetune_api.artifact_source import AdapterSource, OutputRef, set_address
from finetune_api.compatibility import ADAPTER
from finetune_api.job_status import ArtifactTokens, Phase
from finetune_api.reasons import Reason
from finetune_api.serving_status import RevisionState, RevisionStatus
from finetune_api.storage import Storage
from finetune_operator.adapterdeployment.adapters import Found, longest, misfit, read_back
from finetune_operator.adapterdeployment.channel import channel_blocker, known_channel, not_looked_yet
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
        published, storage = job.artifact, job.artifact.storage or job.storage.for_reading
        return Artifact(
            published.uri,
            published.digest,
            storage,
            published.tokens,
            format=published.format,
            architecture=published.architecture or "",
            size_bytes=published.size_bytes or 0,
        )
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
    uri = asked.artifact_uri(known.artifact_digest)
    size = known.size_bytes or 0
    return Artifact(uri, known.artifact_digest, asked.storage.for_reading, source_blocker=blocker, size_bytes=size)


def _find_adapters(observed: ObservedDeployment, asked: Sequence[AdapterSource]) -> Artifact | Blocker:
    """All of them together. If the FineTuneJob of one has no artifact, the last known ones stay."""
    found: list[Found] = []
    tokens: list[ArtifactTokens | None] = []
    sizes: list[tuple[int, int]] = []
    architecture = ""
    for each in sorted(asked, key=lambda each: each.name):
        if each.artifact is not None:
            pinned = each.artifact
            found.append(Found(Adapter(each.name, pinned.uri, pinned.digest), pinned.storage.for_reading, ""))
            tokens.append(None)
            sizes.append((0, 0))
            continue
        name = each.fine_tune_job.name if each.fine_tune_job else ""
        job = observed.sources.get(name)
        if job is None or job.artifact is None:
            return _last_known(observed, _source_blocker(observed, name, job))
        published = job.artifact
        adapter = Adapter(each.name, published.uri, published.digest, published.base_digest or "", published.rank or 0)
        found.append(Found(adapter, published.storage or job.storage.for_reading, published.format))
        tokens.append(published.tokens)
        sizes.append((published.size_bytes or 0, published.base_size_bytes or 0))
        architecture = published.architecture or architecture
    adapters = tuple(each.adapter for each in found)
    return misfit(found) or Artifact(
        "",
        set_address({each.name: each.digest for each in adapters}),
        found[0].storage,
        longest(tokens),
        format=ADAPTER,
        architecture=architecture,
        adapters=adapters,
        size_bytes=_together(sizes),
    )


def _together(sizes: Sequence[tuple[int, int]]) -> int:
    """Size of adapters and of the base that they share, from that of each and of its base; 0: one is not known."""
    own, base = sum(size for size, _ in sizes), max(base for _, base in sizes)
    return own + base if base and all(size for size, _ in sizes) else 0


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
