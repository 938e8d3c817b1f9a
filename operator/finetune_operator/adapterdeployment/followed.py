"""Which FineTuneJobs an AdapterDeployment follows: it gets a turn when one of them changes."""

from functools import partial
from typing import Final, NamedTuple

from finetune_api.artifact_source import MAX_ADAPTERS
from finetune_operator.framework.objects import Object


class FollowedJob(NamedTuple):
    """A FineTuneJob as the source of AdapterDeployments, which are in its namespace."""

    namespace: str
    name: str


def followed_job(resource: Object, number: int = 0) -> FollowedJob | None:
    """A source of an AdapterDeployment, from its stored spec: the only one, or that of an adapter; None for a fixed
    artifact, and where there are not so many."""
    source = resource["spec"].get("source") or {}
    sources = [source] if "fineTuneJob" in source else source.get("adapters") or []
    job = (sources[number].get("fineTuneJob") or {}) if number < len(sources) else {}
    return FollowedJob(resource["metadata"]["namespace"], job["name"]) if "name" in job else None


SOURCE_INDEXES: Final = tuple(partial(followed_job, number=number) for number in range(MAX_ADAPTERS))
"""How the cache finds the AdapterDeployments that follow a FineTuneJob."""
