"""An endpoint just after an update, while the pods of the revision before stay; and how the new one fails."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

from finetune_api.meta import ExitCode
from finetune_api.reasons import Reason
from finetune_api.serving_status import CheckOutcome, VerificationCheck
from finetune_api.stages import Outcome, Stage, StageResult
from finetune_operator.framework.conditions import timestamp
from finetune_operator.framework.objects import Object
from tests.support.played_cluster import START
from tests.support.played_pods import BETTER, GOOD
from tests.support.serving import ServingCluster
from tests.support.serving_specs import SETTINGS, pinned


def promoted(keep: str = "10m", replicas: int = 1) -> tuple[ServingCluster, str, str]:
    """A cluster just after an update, with the pods of the revision before; both revisions, old and new."""
    cluster = ServingCluster(spec=pinned(GOOD, keepLastGood=keep, replicas=replicas))
    cluster.settle()
    old = cluster.traffic()
    cluster.spec = pinned(BETTER, keepLastGood=keep, replicas=replicas)
    until(cluster, lambda: cluster.traffic() != old)
    return cluster, old, cluster.traffic()


def until(cluster: ServingCluster, reached: Callable[[], bool]) -> None:
    """Let the operator and the controllers act in turn until something is reached."""
    for _ in range(20):
        cluster.reconcile()
        cluster.run_controllers()
        if reached():
            return
        cluster.now += timedelta(seconds=SETTINGS.policy_seconds)
    raise AssertionError(cluster.status)


def passes(cluster: ServingCluster, count: int = 4, seconds: int = 5) -> None:
    """Let the operator and the controllers act in turn, so many times."""
    for _ in range(count):
        cluster.reconcile()
        cluster.run_controllers()
        cluster.now += timedelta(seconds=seconds)


def crash(
    cluster: ServingCluster, revision: str, restarts: int = 3, code: int = 137, reason: str = "OOMKilled"
) -> None:
    """The server of a pod of the revision crashes; the Deployment says that it is not ready."""
    cluster.pods[f"demo-{revision}"][0]["status"] |= {
        "conditions": [{"type": "Ready", "status": "False", "lastTransitionTime": timestamp(cluster.now)}],
        "containerStatuses": [
            {
                "name": "server",
                "restartCount": restarts,
                "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                "lastState": {"terminated": {"exitCode": code, "reason": reason}},
            }
        ],
    }


def self_checked(now: datetime, *, passed: bool) -> Object:
    """The status of a pod whose self-check has failed although it had passed before, and whose server runs and answers;
    ``passed``: and has passed again since."""
    wrong = VerificationCheck(
        name="logProbabilities",
        expected="at most 0.550 nats a token from the artifact",
        seen="1.312",
        outcome=CheckOutcome.FAILED,
    )
    said = f"Its server, which had passed before, fails the check {wrong.name}: expected {wrong.expected}, seen 1.312."
    result = StageResult(
        stage=Stage.VERIFY,
        outcome=Outcome.FAILED,
        reason=Reason.VERIFICATION_FAILED,
        message=said,
        checks=[wrong],
    )
    ended = {"terminated": {"exitCode": int(ExitCode.FATAL), "message": result.model_dump_json(by_alias=True)}}
    reported = {"image": "example/image", "imageID": "", "state": {"running": {}}}
    check = {"name": "self-check", "restartCount": 1, "ready": passed, "lastState": ended}
    running = {"name": "server", "restartCount": 0, "started": True, "ready": True}
    at = {"lastTransitionTime": timestamp(now)}
    return {
        "conditions": [
            {"type": "PodScheduled", "status": "True"} | at,
            {"type": "Ready", "status": str(passed)} | at,
        ],
        "initContainerStatuses": [reported | check],
        "containerStatuses": [reported | running],
    }


def disprove(cluster: ServingCluster, revision: str, pods: int | None = None) -> None:
    """So many pods of the revision, or all, fail their self-check."""
    for pod in cluster.pods[f"demo-{revision}"][:pods]:
        pod["status"] |= self_checked(cluster.now, passed=False)


def prove(cluster: ServingCluster, revision: str) -> None:
    """All pods of the revision have passed it again."""
    for pod in cluster.pods[f"demo-{revision}"]:
        pod["status"] |= self_checked(cluster.now, passed=True)


def crashed_before(cluster: ServingCluster, revision: str) -> None:
    """A pod of the revision was killed three times on the first day, and is ready."""
    server = {
        "name": "server",
        "restartCount": 3,
        "ready": True,
        "started": True,
        "state": {"running": {"startedAt": timestamp(START)}},
        "lastState": {
            "terminated": {
                "exitCode": 137,
                "reason": "OOMKilled",
                "startedAt": timestamp(START - timedelta(minutes=2)),
                "finishedAt": timestamp(START - timedelta(minutes=1)),
            }
        },
    }
    cluster.pods[f"demo-{revision}"][0]["status"]["containerStatuses"] = [server]


def falls_silent(cluster: ServingCluster, revision: str) -> None:
    """The servers of all pods of the revision run and do not answer."""
    for pod in cluster.pods[f"demo-{revision}"]:
        pod["status"] |= {
            "conditions": [{"type": "Ready", "status": "False", "lastTransitionTime": timestamp(cluster.now)}],
            "containerStatuses": [
                {"name": "server", "restartCount": 0, "started": True, "ready": False, "state": {"running": {}}}
            ],
        }
