"""Several artifacts of format Adapter as one thing to serve, or why they cannot be. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from finetune_api.compatibility import ADAPTER
from finetune_api.job_status import ArtifactTokens
from finetune_api.reasons import Reason
from finetune_api.serving_status import AdapterState, AdapterStatus, VerificationCheck
from finetune_api.storage import Storage
from finetune_operator.blockers import Blocker
from finetune_operator.resources.deployment import Adapter
from finetune_operator.runtimes import ENGINES
from finetune_operator.settings import Runtime

_ALL: Final = ".checks"
"""How the check of a verification is called that says what came of all of an adapter's."""


@dataclass(frozen=True)
class Found:
    """What one of the sources names."""

    adapter: Adapter
    storage: Storage
    format: str
    """Empty: unknown, as of a pinned artifact."""


def misfit(found: Sequence[Found]) -> Blocker | None:
    """Why the artifacts cannot share a server, as far as that is known: of pinned ones the download finds it out."""
    for each in found:
        if each.format and each.format != ADAPTER:
            return _unsuitable(
                f"The artifact of adapter {each.adapter.name!r} is a whole model ({each.format}), not of format "
                f"{ADAPTER}."
            )
    first = found[0]
    for other in found[1:]:
        names = f"Adapters {first.adapter.name!r} and {other.adapter.name!r}"
        if other.storage != first.storage:
            return _unsuitable(f"{names} are in stores with different access settings (storage).")
    known = [each.adapter for each in found if each.adapter.base]
    for adapter in known[1:]:
        if adapter.base != known[0].base:
            return _unsuitable(
                f"Adapters {known[0].name!r} and {adapter.name!r} were trained on different base models "
                f"({known[0].base[:12]} and {adapter.base[:12]})."
            )
    return None


def no_room(adapters: Iterable[Adapter], name: str, runtime: Runtime) -> Blocker | None:
    """Why a runtime cannot serve adapters, or one of these."""
    limit = ENGINES[runtime.engine].highest_rank(runtime)
    for each in adapters:
        if not limit:
            return _unsuitable(f"Runtime {name!r} serves no adapters: its engine is {runtime.engine}.")
        if each.rank > limit:
            return _unsuitable(f"Adapter {each.name!r} has rank {each.rank}; runtime {name!r} accepts at most {limit}.")
    return None


def alone(digest: str) -> Blocker:
    """An adapter is named as if it were a whole model."""
    return _unsuitable(f"Artifact {digest[:12]} is an adapter: name it in spec.source.adapters.")


def longest(tokens: Iterable[ArtifactTokens | None]) -> ArtifactTokens | None:
    """The lengths that all artifacts stay within; None: of one they were not counted."""
    known = list(tokens)
    if not known or None in known:
        return None
    counted = [each for each in known if each is not None]
    return ArtifactTokens(
        golden_prompt=_longest(each.golden_prompt for each in counted),
        answer=_longest(each.answer for each in counted),
        example=_longest(each.example for each in counted),
    )


def shown(adapters: Iterable[Adapter]) -> list[AdapterStatus]:
    """The adapters of a revision for its status."""
    return [
        AdapterStatus(
            name=each.name, artifact_digest=each.digest, artifact_uri=each.uri, base_digest=each.base, rank=each.rank
        )
        for each in adapters
    ]


def read_back(adapters: Iterable[AdapterStatus]) -> tuple[Adapter, ...]:
    """The inverse of ``shown``: those that a revision has, without any that is being removed."""
    return tuple(adapter_of(each) for each in adapters if each.state is not AdapterState.REMOVING)


def adapter_of(row: AdapterStatus) -> Adapter:
    """The adapter that a row is about."""
    return Adapter(row.name, row.artifact_uri, row.artifact_digest, row.base_digest, row.rank)


def judged(adapters: Iterable[AdapterStatus], checks: Iterable[VerificationCheck]) -> list[AdapterStatus]:
    """The adapters with what came of the verification of each."""
    found = {check.name: check.outcome for check in checks}
    return [each.model_copy(update={"outcome": found.get(f"{each.name}{_ALL}")}) for each in adapters]


def _longest(counts: Iterable[int | None]) -> int | None:
    return max((count for count in counts if count is not None), default=None)


def _unsuitable(message: str) -> Blocker:
    return Blocker(Reason.ADAPTERS_UNSUITABLE, message, watched=True)
