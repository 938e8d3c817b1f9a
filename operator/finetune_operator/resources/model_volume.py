"""The volume into which a serving pod downloads its model: as large as that, and never larger than its runtime allows.

Its size is a limit, so that a pod that writes more than was expected is stopped before it fills its node's disk. The
scheduler does not count a volume's limit: what is known to be written is asked of it as ``ephemeral-storage``. Pure.
"""

import math
from typing import Final, NamedTuple

from finetune_operator.resources.drift import quantity
from finetune_operator.resources.pod import scratch_bytes, scratch_limit
from finetune_operator.settings import Runtime

_SHARE: Final = 0.05
_SMALL: Final = 1 << 30
"""The margin: a share of the download, for what file systems take beside the bytes of files; and for golden prompts and
samples of artifacts, whose size nobody counts."""
_MIB: Final = 1 << 20


class ModelVolume(NamedTuple):
    """The volume of a pod."""

    limit: str
    """The most that it may hold, as the API has it."""
    request: str
    """What the scheduler reserves for it; empty: nothing is known to be written."""

    @property
    def room(self) -> int:
        """The limit in bytes."""
        return int(quantity(self.limit) or 0)


def model_volume(runtime: Runtime, fetched: int, *, grows: bool = False) -> ModelVolume:
    """The volume for a download of so many bytes.

    What fills all that the runtime allows, or more, is a size that is not known, or goes to a cache. ``grows``: the
    pods take other adapters while they run, whose size nobody knows when they start.
    """
    whole, room = scratch_limit(runtime.pod), scratch_bytes(runtime.pod)
    if not 0 < fetched < room:
        return ModelVolume(whole, "")
    needed = math.ceil(fetched * (1 + _SHARE)) + _SMALL
    limit = whole if grows or needed >= room else _mebibytes(needed)
    # With a cache the volume is used only while that cannot be.
    return ModelVolume(limit, "" if runtime.model_cache else _mebibytes(fetched))


def _mebibytes(size: int) -> str:
    return f"{math.ceil(size / _MIB)}Mi"
