"""An output name: whose it is, and the pointers to its artifacts.

The name has one owner for all its channels, decided before the first of them is written. Were each channel owned by
whoever wrote it first, two jobs could end up with one each, and neither could publish again.
"""

from collections.abc import Mapping

from finetune_api.artifact_source import Channel
from finetune_api.hashing import canonical_json
from finetune_api.layout import ChannelPointer, NameOwner, channel_object, owner_object
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


def require_name(store: Store, name: str, run: RunRef) -> None:
    """Raises StageError (OutputNameConflict) if the output name belongs to another resource than the run's. A
    recreated resource (same namespace and name, another UID) is the same owner.
    """
    found = owner_of(store, name)
    if found is None:
        return
    uri, owner = found
    if (owner.kind, owner.namespace, owner.name) != (run.kind, run.namespace, run.name):
        raise StageError(
            Reason.OUTPUT_NAME_CONFLICT,
            f"{uri} belongs to {owner.kind} {owner.namespace}/{owner.name}, which published there first; "
            f"{run.namespace}/{run.name} may not publish there. If that one is gone for good, delete "
            f"{store.uri(owner_object(name))} and what is below {store.uri(f'channels/{name}')}: "
            "they only point to what was published.",
        )


def claim_name(store: Store, name: str, run: RunRef, moment: str) -> None:
    """Make the output name the run's, for all its channels and for good. Of several that claim one at a time, one
    gets it. Raises StageError (OutputNameConflict) for the others."""
    require_name(store, name, run)
    if not store.put_if_absent(owner_object(name), canonical_json(NameOwner(owner=run, claimed_at=moment))):
        require_name(store, name, run)


def owner_of(store: Store, name: str) -> tuple[str, RunRef] | None:
    """Whose a name is, and the object that says so. Earlier versions let each channel have its own owner; where they
    have left two, the name is that of ``stable``, so that nobody has to delete anything."""
    place = owner_object(name)
    if content := store.get(place):
        return store.uri(place), parse_json(content, NameOwner, store.uri(place)).owner
    for channel in (Channel.STABLE, Channel.CANDIDATE):
        if found := read_channel(store, name, channel):
            return store.uri(channel_object(name, channel)), found[0].owner
    return None


def channel_of(scalars: Mapping[str, str]) -> Channel:
    """Where a result of publish belongs; earlier versions knew one place only."""
    return Channel(scalars.get("channel", Channel.STABLE))
