"""What the status knows of the channel that the source follows. Pure.

The store is read by a Job (``look.py``), and what it has found is in the status: from there on a channel is a source
like any other.
"""

from finetune_api import meta
from finetune_api.artifact_source import OutputRef
from finetune_api.hashing import digest, without_defaults
from finetune_api.reasons import Reason
from finetune_api.serving_status import ChannelStatus
from finetune_operator.adapterdeployment.observe import ObservedDeployment
from finetune_operator.blockers import Blocker


def identity_of(asked: OutputRef) -> str:
    """What is looked at, and how it is reached; however often."""
    return digest({name: value for name, value in without_defaults(asked).items() if name != "interval"})


def asked_of(observed: ObservedDeployment) -> str:
    """What has it looked again at once when it changes."""
    annotations, spec = observed.resource.metadata.annotations, observed.resource.spec
    return digest([annotations.get(meta.ANNOTATION_LOOK, ""), spec.rerun, spec.policy.withdrawn.value])


def known_channel(observed: ObservedDeployment, asked: OutputRef) -> ChannelStatus | None:
    """What was found for this source; None: it has not been looked for yet."""
    known = observed.resource.status.channel
    return known if known is not None and known.source == identity_of(asked) else None


def channel_blocker(known: ChannelStatus | None) -> Blocker | None:
    """Why the newest look found no artifact, or none that may be served; None: it has, or there was none yet. The next
    look is due by itself."""
    if known is None or not known.reason:
        return None
    return Blocker(Reason(known.reason), known.message, watched=True)


def not_looked_yet(asked: OutputRef) -> Blocker:
    """The first look has not come to an end."""
    message = f"A Job is looking up where channel {asked.channel} of output {asked.name!r} points."
    return Blocker(Reason.SOURCE_NOT_READY, message, waiting=True, watched=True)
