"""Which FineTuneJob an AdapterDeployment follows: it gets a turn when that one changes."""

from typing import Final, NamedTuple

from finetune_operator.framework.cache import Indexes
from finetune_operator.framework.objects import Object
from finetune_operator.kinds import ADAPTERDEPLOYMENTS


class FollowedJob(NamedTuple):
    """A FineTuneJob as the source of AdapterDeployments, which are in its namespace."""

    namespace: str
    name: str


def followed_job(resource: Object) -> FollowedJob | None:
    """The source of an AdapterDeployment, from its stored spec; None for one that serves a fixed artifact."""
    source = (resource["spec"].get("source") or {}).get("fineTuneJob") or {}
    return FollowedJob(resource["metadata"]["namespace"], source["name"]) if "name" in source else None


SOURCE_INDEX: Final[Indexes] = {ADAPTERDEPLOYMENTS.kind: (followed_job,)}
"""How the cache finds the AdapterDeployments that follow a FineTuneJob."""
