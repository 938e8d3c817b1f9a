"""What the volume that serving pods share was good for: what each pod's ``fetch`` has left in its status. Pure.

The operator reads no volume. Where the model was found, or why the volume was not used, every pod says when its
download ends, and goes on saying as long as it is there.
"""

from collections.abc import Iterator
from datetime import datetime
from typing import Final

from finetune_api.endpoint_stages import MODEL_CACHE, MODEL_CACHE_PROBLEM, CacheUse
from finetune_api.reasons import Reason
from finetune_api.serving_status import AdapterDeploymentStatus, ModelCacheStatus, RevisionStatus
from finetune_api.stages import StageResult
from finetune_operator.adapterdeployment.health import fetched
from finetune_operator.adapterdeployment.observe import ObservedDeployment
from finetune_operator.framework.actions import Event
from finetune_operator.framework.conditions import timestamp

_CAUSE_LIMIT: Final = 512
"""Characters of a pod's own words."""


def with_model_cache(
    observed: ObservedDeployment, revision: RevisionStatus | None, now: datetime
) -> RevisionStatus | None:
    """The revision with where its pods got their model from."""
    if revision is None:
        return None
    known, found = revision.model_cache, _model_cache(observed, revision.revision)
    # What has been told stays told, also while the pods that could not use the volume are replaced by others.
    since = known.unused_since if known else None
    if found is None and known is not None and since is not None:
        found = ModelCacheStatus(claim_name=known.claim_name)
    if found is not None:
        found = found.model_copy(update={"unused_since": since or (timestamp(now) if found.unused else None)})
    return revision if found == known else revision.model_copy(update={"model_cache": found})


def cache_news(before: AdapterDeploymentStatus, after: AdapterDeploymentStatus) -> Iterator[Event]:
    """A warning, once for each revision, that pods do not use the volume: they start, and nothing else would say so."""
    known = [each for each in (before.stable, before.candidate, before.previous) if each]
    told = {each.revision for each in known if each.model_cache is not None and each.model_cache.unused_since}
    for each in (after.stable, after.candidate):
        if each is None or each.model_cache is None or not each.model_cache.unused or each.revision in told:
            continue
        told.add(each.revision)
        message = f"Revision {each.revision}: {each.model_cache.message}"
        yield Event("Warning", Reason.MODEL_CACHE_UNUSED, message)


def _model_cache(observed: ObservedDeployment, revision: str) -> ModelCacheStatus | None:
    results = [
        (str(pod["metadata"]["name"]), found)
        for pod in sorted(observed.server_pods(revision), key=lambda pod: str(pod["metadata"]["name"]))
        if (found := fetched(pod)) is not None
    ]
    by_use = {use: [each for each in results if each[1].scalars.get(MODEL_CACHE) == use.value] for use in CacheUse}
    record = observed.records.get(revision) if any(by_use.values()) else None
    cache = record.serving.runtime.model_cache if record else None
    if cache is None:
        return None
    unused = by_use[CacheUse.UNUSED]
    return ModelCacheStatus(
        claim_name=cache.claim_name,
        found=len(by_use[CacheUse.FOUND]),
        downloaded=len(by_use[CacheUse.DOWNLOADED]),
        unused=len(unused),
        message=_why_unused(cache.claim_name, *unused[0]) if unused else "",
    )


def _why_unused(claim: str, pod: str, found: StageResult) -> str:
    """In the pod's own words, and what to do."""
    cause = found.scalars.get(MODEL_CACHE_PROBLEM, "")[:_CAUSE_LIMIT].rstrip(".")
    return (
        f"Pod {pod} could not use volume claim {claim}{f': {cause}' if cause else ''}. It has downloaded the model to "
        "its own volume, as pods that start later may have to. Make the volume usable, or ask the platform's admin to."
    )
