"""Kubernetes Events on the custom resources. They are for people; nothing depends on them."""

from collections.abc import Iterable, Iterator
from datetime import datetime

from finetune_api import meta
from finetune_api.base import Condition
from finetune_api.hashing import short
from finetune_api.reasons import Reason, with_remedy
from finetune_operator.framework.actions import Event
from finetune_operator.framework.conditions import ConditionType, timestamp
from finetune_operator.framework.objects import Object
from finetune_operator.framework.ownership import Owner


def advice_events(before: Iterable[Condition], after: Iterable[Condition]) -> Iterator[Event]:
    """A warning for each setting, or artifact, that has become discouraged."""
    known = {each.message for each in before if each.type == ConditionType.DISCOURAGED}
    for each in after:
        if each.type == ConditionType.DISCOURAGED and each.message not in known:
            yield Event("Warning", Reason(each.reason), each.message)


def event_object(owner: Owner, event: Event, resource_version: str, now: datetime) -> Object:
    """The Event as the API takes it. Its name follows from what it reports, so a retry creates no second one."""
    moment = timestamp(now)
    identity = short([owner.uid, event.reason, event.message, resource_version], 16)
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{owner.name}.{identity}", "namespace": owner.namespace},
        "involvedObject": {
            "apiVersion": owner.resource.api_version,
            "kind": owner.resource.kind,
            "namespace": owner.namespace,
            "name": owner.name,
            "uid": owner.uid,
        },
        "type": event.type,
        "reason": event.reason,
        "message": with_remedy(event.reason, event.message, owner.resource.kind),
        "firstTimestamp": moment,
        "lastTimestamp": moment,
        "count": 1,
        "source": {"component": meta.MANAGED_BY},
        "reportingComponent": meta.MANAGED_BY,
        "reportingInstance": meta.MANAGED_BY,
    }
