"""What the status knows of the channels that the source follows. Pure.

The store is read by Jobs (``look.py``), and what they have found is in the status: from there on a channel is a source
like any other. The adapter that a channel is followed for has its name; the only channel of a whole model an empty one.
"""

from collections.abc import Mapping
from dataclasses import replace

from finetune_api import meta
from finetune_api.artifact_source import OutputRef
from finetune_api.hashing import digest, without_defaults
from finetune_api.job_status import ArtifactStatus
from finetune_api.reasons import Reason
from finetune_api.serving_status import AdapterChannelStatus, ChannelStatus
from finetune_operator.adapterdeployment.observe import ObservedDeployment
from finetune_operator.blockers import Blocker


def identity_of(asked: OutputRef) -> str:
    """What is looked at, and how it is reached; however often."""
    return digest({name: value for name, value in without_defaults(asked).items() if name != "interval"})


def asked_of(observed: ObservedDeployment) -> str:
    """What has it looked again at once when it changes."""
    annotations, spec = observed.resource.metadata.annotations, observed.resource.spec
    return digest([annotations.get(meta.ANNOTATION_LOOK, ""), spec.rerun, spec.policy.withdrawn.value])


def all_known(observed: ObservedDeployment) -> dict[str, ChannelStatus]:
    """What the status has of channels, whether or not the spec still asks for them, by adapter."""
    status = observed.resource.status
    known: dict[str, ChannelStatus] = {each.adapter: each for each in status.adapter_channels}
    return known if status.channel is None else {"": status.channel, **known}


def knowing(observed: ObservedDeployment, known: Mapping[str, ChannelStatus]) -> ObservedDeployment:
    """The same with these in its status."""
    if known == all_known(observed):
        return observed
    of_adapters = [each for each in known.values() if isinstance(each, AdapterChannelStatus)]
    update = {"channel": known.get(""), "adapter_channels": of_adapters}
    resource = observed.resource
    return replace(observed, resource=resource.model_copy(update={"status": resource.status.model_copy(update=update)}))


def nothing_known(asked: OutputRef, adapter: str) -> ChannelStatus:
    """Of a channel that nobody has looked up yet."""
    told = {"name": asked.name, "channel": asked.channel.value, "source": identity_of(asked)}
    return AdapterChannelStatus(adapter=adapter, **told) if adapter else ChannelStatus(**told)


def known_channel(observed: ObservedDeployment, asked: OutputRef, adapter: str = "") -> ChannelStatus | None:
    """What was found for this source; None: it has not been looked for yet."""
    known = all_known(observed).get(adapter)
    return known if known is not None and known.source == identity_of(asked) else None


def facts_of(known: ChannelStatus | None, digest: str) -> ArtifactStatus | None:
    """What was read of an artifact to which the channel points; None: nothing. An earlier version of the operator, in
    between, wrote another digest and left the rest."""
    return known.artifact if known is not None and known.artifact and known.artifact.digest == digest else None


def channel_blocker(known: ChannelStatus | None, adapter: str = "") -> Blocker | None:
    """Why the newest look found no artifact, or none that may be served; None: it has, or there was none yet. The next
    look is due by itself."""
    if known is None or not known.reason:
        return None
    return Blocker(Reason(known.reason), f"{_of(adapter)}{known.message}", watched=True)


def not_looked_yet(asked: OutputRef, adapter: str = "") -> Blocker:
    """The first look has not come to an end."""
    message = f"{_of(adapter)}A Job is looking up where channel {asked.channel} of output {asked.name!r} points."
    return Blocker(Reason.SOURCE_NOT_READY, message, waiting=True, watched=True)


def _of(adapter: str) -> str:
    return f"Adapter {adapter!r}: " if adapter else ""
