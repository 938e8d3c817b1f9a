"""What stands in the way of many jobs costs the API server little, and is noticed when it goes."""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from finetune_api.finetunejob import Phase
from finetune_api.reasons import Reason
from finetune_operator.framework.objects import JOBS, SERVICE_ACCOUNTS
from finetune_operator.kinds import FINETUNEJOBS
from tests.controlplane.conftest import RUNNER, Team, account, wait

pytestmark = pytest.mark.controlplane

WATCHED_SECONDS = 40


def quota(team: Team, **hard: str) -> None:
    """A ResourceQuota that the API server enforces already."""
    spec = {"hard": {name.replace("_", "/"): value for name, value in hard.items()}}
    team.kubectl_apply({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "few"}, "spec": spec})
    get = ("-n", team.namespace, "get", "quota", "few", "-o", "jsonpath={.status.hard}")
    wait(lambda: all(value in team.plane.kubectl(*get) for value in hard.values()), "the quota to be enforced")


def reasons(team: Team) -> Counter[str]:
    """How many jobs have which reason of Ready."""
    found = team.api.select(FINETUNEJOBS, team.namespace)
    conditions = [(job.get("status") or {}).get("conditions") or [] for job in found]
    return Counter(each["reason"] for some in conditions for each in some if each["type"] == "Ready")


def all_wait(team: Team, many: int) -> bool:
    """Whether all wait; asked with pauses, as the answer is long."""
    time.sleep(2)
    return reasons(team)[Reason.QUOTA_EXCEEDED] == many


def spent(team: Team, seconds: float) -> Counter[str]:
    """The operator's calls in so many seconds from now."""
    before = len(team.calls())
    time.sleep(seconds)
    return Counter(team.calls()[before:])


@pytest.mark.parametrize(
    ("hard", "many"), [({"count_jobs.batch": "0"}, 400), ({"pods": "0"}, 100)], ids=["of Jobs", "of pods"]
)
def test_many_jobs_behind_a_quota(team: Team, hard: dict[str, str], many: int) -> None:
    """At most five calls a second for all of them; when there is room for one, one goes on at once."""
    quota(team, **hard)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: team.create(f"j{number:03}"), range(many)))
    team.start().wait_ready(60)
    wait(lambda: all_wait(team, many), "all to wait", 420, lambda: str(reasons(team)))
    # What the streams still show of the burst gives a few more turns.
    wait(lambda: spent(team, 5).total() <= 5 * 5, "the burst to end", 120)
    calls = spent(team, WATCHED_SECONDS)
    assert calls.total() <= 5 * WATCHED_SECONDS, calls
    assert calls.total() >= 1, "they are looked at again"
    if "pods" in hard:
        return  # the Job's own controller starts the pod: its backoff is up to ten minutes
    quota(team, **{"count_jobs.batch": "1"})
    wait(lambda: team.api.select(JOBS, team.namespace), "a job to use the room", 10)


def test_a_service_account_that_appears_is_noticed_at_once(team: Team) -> None:
    """However long the job has waited: the next look would come much later."""
    missing = team.api.get(SERVICE_ACCOUNTS, team.namespace, RUNNER)
    assert missing is not None
    team.api.delete(SERVICE_ACCOUNTS, team.namespace, RUNNER, missing["metadata"]["uid"])
    team.start()
    for number in range(5):
        team.create(f"homeless{number}")
        team.until(f"homeless{number}", Reason.RUNNER_SERVICE_ACCOUNT_MISSING)
    time.sleep(25)
    asked = Counter(team.calls())["get ServiceAccount"]
    assert asked <= 5, "one answer is for all of them"
    team.api.create(SERVICE_ACCOUNTS, account(team.namespace))
    wait(lambda: all(team.jobs(f"homeless{number}") for number in range(5)), "their Jobs", 8)
    team.until("homeless0", Phase.SUCCEEDED)
