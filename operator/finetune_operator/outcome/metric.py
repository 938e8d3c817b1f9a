"""A metric container that takes longer than the platform allows it. Kubernetes has no deadline for one container of a
pod, so the operator looks at the clock. Pure."""

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from finetune_api import meta
from finetune_api.reasons import Reason
from finetune_operator.framework.conditions import parse_timestamp
from finetune_operator.framework.objects import Object
from finetune_operator.outcome.job import State, Verdict
from finetune_operator.outcome.pod import is_alive
from finetune_operator.resources.metric_containers import METRIC_PREFIX


def within_time(verdict: Verdict, pods: Sequence[Object], now: datetime) -> Verdict:
    """The verdict on a Job with these pods, or that one of its metrics has run for too long. Another attempt would take
    as long."""
    if verdict.state is not State.RUNNING:
        return verdict
    for pod in filter(is_alive, pods):
        for name, limit in _limits(pod).items():
            if (since := _running_since(pod, name)) and now - parse_timestamp(since) > timedelta(seconds=limit):
                message = f"Metric {name!r} has run for longer than the {limit} s of its timeoutSeconds."
                return replace(
                    verdict, state=State.FAILED, reason=Reason.METRIC_FAILED, message=message, tries_again=True
                )
    return verdict


def _limits(pod: Object) -> dict[str, int]:
    """Seconds for each metric of a pod, as its Job wrote them."""
    text = (pod["metadata"].get("annotations") or {}).get(meta.ANNOTATION_METRIC_SECONDS, "{}")
    return {str(name): int(seconds) for name, seconds in json.loads(text).items()}


def _running_since(pod: Object, name: str) -> str | None:
    for container in pod["status"].get("initContainerStatuses") or []:
        if container["name"] == f"{METRIC_PREFIX}{name}":
            since: str | None = (container.get("state", {}).get("running") or {}).get("startedAt")
            return since
    return None
