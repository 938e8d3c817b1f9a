"""Which events give which custom resource a turn."""

from __future__ import annotations

from typing import Any, cast

import pytest

from finetune_operator.controller import Controller
from finetune_operator.finetunejob.output import OUTPUT_INDEX
from finetune_operator.framework.cache import Cache
from finetune_operator.framework.objects import Object
from finetune_operator.framework.ownership import Key
from finetune_operator.kinds import ADAPTERDEPLOYMENTS, FINETUNEJOBS
from finetune_operator.settings import Images, Settings

pytestmark = pytest.mark.unit

UNUSED = cast(Any, None)
SETTINGS = Settings(images=Images(data="d", prepare="p", jobs="j", quantize="q"), profiles={})
FOLLOWER = Key("AdapterDeployment", "team", "endpoint")


def found(name: str, version: int, spec: Object) -> Object:
    return {"metadata": {"name": name, "namespace": "team", "uid": name, "resourceVersion": str(version)}, "spec": spec}


def job(version: int) -> Object:
    return found("source", version, {"output": {"uri": "s3://bucket/out", "name": "n"}})


def turns(controller: Controller) -> set[Key]:
    """Everything that is due; taken out of the queue."""
    keys = set()
    while (key := controller.queue.poll()) is not None:
        keys.add(key)
        controller.queue.done(key)
    return keys


@pytest.mark.parametrize("written_by_us", [False, True])
def test_followers_hear_of_their_source_even_from_our_own_status_write(written_by_us: bool) -> None:
    """The operator records what it has written itself: the event of it is no news then, but the followers need it."""
    cache = Cache(OUTPUT_INDEX)
    controller = Controller(UNUSED, cache, UNUSED, SETTINGS)
    follower = found("endpoint", 1, {"source": {"fineTuneJob": {"name": "source"}}})
    controller.seen(ADAPTERDEPLOYMENTS, gone=False, found=follower)
    controller.seen(FINETUNEJOBS, gone=False, found=job(2))
    turns(controller)
    if written_by_us:
        cache.record(FINETUNEJOBS, job(3))
    controller.seen(FINETUNEJOBS, gone=False, found=job(3))
    assert FOLLOWER in turns(controller)
