"""What stands in the way of many jobs costs the API server little, and is noticed when it goes."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from finetune_api.job_status import Phase
from finetune_api.reasons import Reason
from finetune_operator.framework.client import StreamClient
from finetune_operator.framework.objects import JOBS, SERVICE_ACCOUNTS
from finetune_operator.framework.reading import MISSING_SECONDS
from finetune_operator.framework.waiting_room import PACE
from finetune_operator.kinds import FINETUNEJOBS
from hack.cluster.controlplane import ControlPlane
from tests.controlplane.conftest import RUNNER, Team, account, prepared_team, wait
from tests.support.operator_process import Running

pytestmark = [pytest.mark.controlplane, pytest.mark.timeout(1800)]

MOST_A_SECOND = 5
WATCHED_SECONDS = 40
TURNS = "finetune_operator_reconcile_duration_seconds_count"


def reasons(team: Team) -> Counter[str]:
    """How many jobs have which reason of Ready."""
    found = team.api.select(FINETUNEJOBS, team.namespace)
    conditions = [(job.get("status") or {}).get("conditions") or [] for job in found]
    return Counter(each["reason"] for some in conditions for each in some if each["type"] == "Ready")


def all_wait(team: Team, many: int) -> bool:
    """Whether all wait; asked with pauses, as the answer is long."""
    time.sleep(2)
    return reasons(team)[Reason.QUOTA_EXCEEDED] == many


@dataclass(frozen=True)
class Spent:
    """What an operator did for a while, as it counts it itself. None of the requests was made by a reconciliation that
    had ended before."""

    requests: Counter[str]
    looks: float
    """Reconciliations."""
    seconds: float
    """For how long: as asked, and what the answers with the figures took."""


def spent(operator: Running, seconds: float) -> Spent:
    """What it does in so many seconds from now."""
    began = time.monotonic()
    turns, requests = operator.metric(TURNS), operator.requests()
    time.sleep(seconds)
    requests = operator.requests() - requests
    turns = operator.metric(TURNS) - turns
    return Spent(requests, turns, time.monotonic() - began)


def is_calm(operator: Running) -> bool:
    """Whether the burst of the beginning is over."""
    found = spent(operator, 5)
    return found.requests.total() <= MOST_A_SECOND * found.seconds


@dataclass(frozen=True)
class Crowd:
    """Many jobs in a namespace whose quota lets none of them through, and what they cost."""

    hard: dict[str, str]
    many: int
    per_look: int
    """Requests that one look at a job may take."""


CROWDS = {"of Jobs": Crowd({"count/jobs.batch": "0"}, 200, 3), "of pods": Crowd({"pods": "0"}, 100, 1)}


@dataclass(frozen=True)
class Watched:
    """A crowd that waits, and what its operator did in ``WATCHED_SECONDS``."""

    team: Team
    spent: Spent


def watch(team: Team, crowd: Crowd) -> Watched:
    """Let a crowd wait, and watch it once the burst of its beginning is over."""
    team.limit(crowd.hard)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: team.create(f"j{number:03}"), range(crowd.many)))
    operator = team.start()
    operator.wait_ready()
    wait(lambda: all_wait(team, crowd.many), "all to wait", 900, lambda: str(reasons(team)))
    # What the streams still show of the burst gives a few more turns.
    wait(lambda: is_calm(operator), "the burst to end", 300)
    return Watched(team, spent(operator, WATCHED_SECONDS))


@pytest.fixture(scope="module")
def crowds(
    plane: ControlPlane, api: StreamClient, operator_kubeconfig: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Watched]]:
    """Both crowds, at the same time: each has a namespace and an operator of its own, and most of it is waiting."""
    with ExitStack() as stack, ThreadPoolExecutor(len(CROWDS)) as pool:
        teams = [
            stack.enter_context(prepared_team(plane, api, operator_kubeconfig, tmp_path_factory.mktemp("crowd")))
            for _ in CROWDS
        ]
        yield dict(zip(CROWDS, pool.map(watch, teams, CROWDS.values()), strict=True))


@pytest.mark.parametrize("quota", CROWDS)
def test_many_jobs_behind_a_quota(crowds: dict[str, Watched], quota: str) -> None:
    """At most five requests a second for all of them; when there is room for one, one goes on at once.

    There is one look a second, however many wait. With a quota of pods the Job controller has a pod and an event to
    try for each, again and again, which takes minutes for hundreds.
    """
    crowd, watched = CROWDS[quota], crowds[quota]
    requests, looks, seconds = watched.spent.requests, watched.spent.looks, watched.spent.seconds
    assert requests.total() <= MOST_A_SECOND * seconds, requests
    assert 1 <= looks <= 2 * seconds / PACE, "they are looked at again, one after the other"
    assert requests.total() <= crowd.per_look * (looks + 1), requests
    if "pods" in crowd.hard:
        return  # the Job's own controller starts the pod: its backoff is up to ten minutes
    team = watched.team
    team.limit({"count/jobs.batch": "1"})
    wait(lambda: team.api.select(JOBS, team.namespace), "a job to use the room")


def test_a_service_account_that_appears_is_noticed_at_once(team: Team) -> None:
    """However long the job has waited: the next look would come much later."""
    missing = team.api.get(SERVICE_ACCOUNTS, team.namespace, RUNNER)
    assert missing is not None
    team.api.delete(SERVICE_ACCOUNTS, team.namespace, RUNNER, missing["metadata"]["uid"])
    team.start()
    began = time.monotonic()
    for number in range(5):
        team.create(f"homeless{number}")
        team.until(f"homeless{number}", Reason.RUNNER_SERVICE_ACCOUNT_MISSING)
    time.sleep(12)  # each has been looked at again; the last one's look after that is 18 s away
    asked = Counter(team.calls())["get ServiceAccount"]
    assert asked <= 2 + (time.monotonic() - began) / MISSING_SECONDS, "one answer is for all of them"
    team.api.create(SERVICE_ACCOUNTS, account(team.namespace))
    wait(lambda: all(team.jobs(f"homeless{number}") for number in range(5)), "their Jobs", 17)
    team.until("homeless0", Phase.SUCCEEDED)
