"""The pointer of an output name: which artifact it stands for, and whose it is."""

from finetune_api.layout import ChannelPointer, channel_object
from finetune_api.reasons import Reason
from finetune_api.stages import RunRef
from finetune_jobs.base.documents import parse_json
from finetune_jobs.base.errors import StageError
from finetune_jobs.store.s3 import Store


def read_channel(store: Store, name: str) -> tuple[ChannelPointer, str] | None:
    """Where an output name points to, and the ETag for a change; None for a name that was never published."""
    found = store.get_tagged(channel_object(name))
    if found is None:
        return None
    return parse_json(found[0], ChannelPointer, store.uri(channel_object(name))), found[1]


def require_owner(uri: str, standing: ChannelPointer, run: RunRef) -> None:
    """Raises StageError (OutputNameConflict) when the channel at ``uri`` is another resource's than the run's.

    A resource that was deleted and made again (same namespace and name, another UID) is the same owner.
    """
    owner = standing.owner
    if (owner.kind, owner.namespace, owner.name) != (run.kind, run.namespace, run.name):
        raise StageError(
            Reason.OUTPUT_NAME_CONFLICT,
            f"{uri} belongs to {owner.kind} {owner.namespace}/{owner.name}, which published there last; "
            f"{run.namespace}/{run.name} may not publish there.",
        )
