"""The pointers of an output name: their artifacts and their owner."""

from collections.abc import Mapping

from finetune_api.layout import Channel, ChannelPointer, channel_object
from finetune_api.reasons import Reason
from finetune_api.stages import RunRef
from finetune_jobs.base.documents import parse_json
from finetune_jobs.base.errors import StageError
from finetune_jobs.store.s3 import Store


def read_channel(store: Store, name: str, channel: Channel = Channel.STABLE) -> tuple[ChannelPointer, str] | None:
    """The target of an output name, and the ETag for changing it; None if nothing was published there."""
    place = channel_object(name, channel)
    found = store.get_tagged(place)
    if found is None:
        return None
    return parse_json(found[0], ChannelPointer, store.uri(place)), found[1]


def require_owner(uri: str, standing: ChannelPointer, run: RunRef) -> None:
    """Raises StageError (OutputNameConflict) if the channel at ``uri`` belongs to another resource than the run's. A
    recreated resource (same namespace and name, another UID) is the same owner.
    """
    owner = standing.owner
    if (owner.kind, owner.namespace, owner.name) != (run.kind, run.namespace, run.name):
        raise StageError(
            Reason.OUTPUT_NAME_CONFLICT,
            f"{uri} belongs to {owner.kind} {owner.namespace}/{owner.name}, which published there last; "
            f"{run.namespace}/{run.name} may not publish there. If that one is gone for good, delete this object: "
            "it only points to what was published.",
        )


def channel_of(scalars: Mapping[str, str]) -> Channel:
    """Where a result of publish belongs; earlier versions knew one place only."""
    return Channel(scalars.get("channel", Channel.STABLE))
