"""The states of a revision: the table in docs/concepts/serving.md is what the code does, no more and no less."""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_api.serving_status import AdapterDeploymentStatus, RevisionState
from finetune_operator.adapterdeployment.candidate import PAUSE_SECONDS
from finetune_operator.adapterdeployment.gap import STALE_SECONDS
from finetune_operator.adapterdeployment.health import LONG_WAIT_SECONDS, PULL_PATIENCE_SECONDS, UNANSWERED_SECONDS
from finetune_operator.adapterdeployment.plan import plan
from finetune_operator.adapterdeployment.pod_problems import CRASHES
from finetune_operator.framework.actions import Plan
from finetune_operator.framework.objects import DEPLOYMENTS, JOBS
from finetune_operator.resources.deployment import FETCH_SECONDS
from tests.support.fast import share
from tests.support.played_pods import BETTER, GOOD, INACTIVE
from tests.support.promoted import crash, disprove, prove
from tests.support.serving import ServingCluster
from tests.support.serving_specs import SETTINGS, pinned, start_seconds
from tests.unit.test_adapterdeployment_walk import CANARY, IN_PLACE, ROOM, OneAtATime, steps, walk

pytestmark = pytest.mark.unit

PAGE = (Path(__file__).parents[2] / "docs/concepts/serving.md").read_text()
NEW = "new"
Transition = tuple[str, str]


def documented() -> set[Transition]:
    """The rows of the table, each with the states before and after."""
    section = PAGE.partition("## The states of a revision\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| ([A-Za-z, ]+) \| ([A-Za-z]+) \|", section, re.MULTILINE)
    return {(before.strip(), after) for some, after in rows for before in some.split(",") if before != "from"}


def states(status: AdapterDeploymentStatus) -> dict[str, str]:
    """The state of each revision that the status knows."""
    found = {status.candidate.revision: str(status.candidate.state)} if status.candidate else {}
    return found | {line.revision: str(line.state) for line in status.revisions}


@dataclass
class Recorded(ServingCluster):
    """A cluster that notes from which state to which its revisions go, and in which no two have pods in place."""

    seen: set[Transition] = field(default_factory=set)
    pods_of: OneAtATime = field(default_factory=OneAtATime)

    def __post_init__(self) -> None:
        self.watch = self.pods_of

    def reconcile(self, crash_after: int | None = None) -> Plan[AdapterDeploymentStatus]:
        before = states(self.status)
        made = super().reconcile(crash_after)
        after = states(self.status)
        self.seen |= {(was, now) for name, now in after.items() if (was := before.get(name, NEW)) != now}
        return made


def cluster(limit: int | None = None, **spec: Any) -> Recorded:
    return Recorded(
        spec=pinned(GOOD, **({"keepLastGood": "10m"} | spec)),
        settings=SETTINGS.model_copy(update={"max_concurrent_rollouts": limit}),
    )


def updated(found: Recorded, digest: str = BETTER, passes: int = 12, **spec: Any) -> Recorded:
    """Another artifact is asked for, and so many passes go by."""
    found.spec = pinned(digest, keepLastGood="10m") | spec
    for _ in range(passes):
        found.reconcile()
        found.run_controllers()
        found.now += timedelta(seconds=5)
    return found


def in_place(found: Recorded, digest: str = BETTER, passes: int = 8, **spec: Any) -> Recorded:
    """The same where the pods of what serves stop first."""
    how = {"strategy": IN_PLACE | {"notice": "3s"}, "keepLastGood": "0s"}
    return updated(found, digest, passes, **(how | spec))


def served(limit: int | None = None, **spec: Any) -> Recorded:
    """Many stories begin with the same, whose way there is gone once."""
    return copy.deepcopy(_at_rest(limit, json.dumps(spec)))


@cache
def _at_rest(limit: int | None, spec: str) -> Recorded:
    found = cluster(limit, **json.loads(spec))
    found.settle()
    return found


def all_goes_well() -> Recorded:
    found = updated(served())
    found.settle()
    return found


def nothing_is_kept() -> Recorded:
    return updated(served(keepLastGood="0s"), keepLastGood="0s")


def it_waits_for_its_turn() -> Recorded:
    found = served(limit=1)
    updated(found, passes=2)
    updated(found, digest=GOOD)
    found.settle()
    found = updated(found, passes=20)
    return updated(found, digest=GOOD)  # before its pods are gone


def verification_fails_and_is_repeated() -> Recorded:
    found = served(limit=1)
    for rerun in ("", "again"):
        updated(found, digest=INACTIVE, rerun=rerun)
    return found


def repeated_at_once() -> Recorded:
    found = served()
    for rerun in ("", "again"):
        updated(found, digest=INACTIVE, rerun=rerun)
    return found


def it_never_loads() -> Recorded:
    found = served()
    found.loading.add(BETTER)
    updated(found, passes=2)
    found.now += timedelta(seconds=start_seconds("tgi-cpu"))
    found.settle()
    return found


def given_back(passes: int) -> Recorded:
    """An image that cannot be pulled, after so many passes; then it can."""
    found = served()
    updated(found, passes=passes, replicas=2)
    assert found.status.candidate is not None
    name = found.status.candidate.deployment
    for pod in found.pods[name]:
        waiting = {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}
        pod["status"]["containerStatuses"] = [{"name": "server", "restartCount": 0, "state": waiting}]
        pod["status"]["conditions"] = []
    found.now += timedelta(seconds=PULL_PATIENCE_SECONDS + 100)
    for live in found.objects[DEPLOYMENTS].values():
        if live["metadata"]["name"] == name:
            live["status"]["availableReplicas"] = live["status"]["readyReplicas"] = 0
    found.reconcile()
    found.settle(passes=60)
    return found


def crashes_while(passes: int, **spec: Any) -> Recorded:
    found = served()
    updated(found, passes=passes, **spec)
    assert found.status.candidate is not None
    crash(found, found.status.candidate.revision)
    found.reconcile()
    return found


def given_up(passes: int) -> Recorded:
    """Another one is asked for before it has served."""
    found = updated(served(), passes=passes)
    return updated(found, digest=GOOD)


def its_pods_go_while_it_is_verified() -> Recorded:
    """Somebody deletes the Deployment of a candidate."""
    found = updated(served(), passes=1)
    found.reconcile()
    assert found.status.candidate is not None
    del found.objects[DEPLOYMENTS][found.status.candidate.deployment]
    del found.pods[found.status.candidate.deployment]
    found.settle()
    return found


def its_verification_goes(available: bool) -> Recorded:
    """Somebody deletes the Job of a candidate that was verified."""
    found = updated(served(), passes=3, replicas=3)
    found.objects[JOBS].clear()
    for live in found.objects[DEPLOYMENTS].values():
        if not available:
            live["status"]["availableReplicas"] = 0
    found.reconcile()
    return found


def given_up_in_line() -> Recorded:
    """Given back, and then another one is asked for."""
    found = served()
    found.loading.add(BETTER)
    updated(found, passes=1)
    assert found.status.candidate is not None
    [pod] = found.pods[found.status.candidate.deployment]
    pod["status"]["containerStatuses"] = [
        {"name": "server", "restartCount": 0, "state": {"waiting": {"reason": "ImagePullBackOff", "message": "none"}}}
    ]
    found.now += timedelta(seconds=PULL_PATIENCE_SECONDS)
    found.reconcile()
    return updated(found, digest=GOOD)


def rolled_back(fall: Callable[[ServingCluster, str], None]) -> Recorded:
    found = updated(served())
    fall(found, found.traffic())
    found.settle()
    found.spec["rerun"] = "again"
    found.settle()
    return found


def back_and_forth() -> Recorded:
    found = served()
    old = found.traffic()
    updated(found)
    updated(found, rollbackTo=old, passes=3)
    return updated(found, passes=3)


def asked_back_without_its_pods(available: int, limit: int | None = None) -> Recorded:
    found = served(limit)
    old = found.traffic()
    updated(found)
    found.objects[DEPLOYMENTS][f"demo-{old}"]["status"] |= {"readyReplicas": 0, "availableReplicas": available}
    updated(found, rollbackTo=old, passes=1)
    return found


def asked_back_later() -> Recorded:
    found = all_goes_well()
    return updated(found, digest=GOOD)


def asked_back_in_line() -> Recorded:
    found = served(limit=1)
    updated(found)
    found.settle()
    return updated(found, digest=GOOD)


def node_lost() -> Recorded:
    """What served is given back rather than failed, and tried again after its pause."""
    found = updated(served())
    for pod in found.pods[f"demo-{found.traffic()}"]:
        pod["status"]["conditions"] = [
            {"type": "Ready", "status": "False", "lastTransitionTime": found.now.strftime("%Y-%m-%dT%H:%M:%SZ")}
        ]
        pod["status"]["containerStatuses"] = [{"name": "server", "started": True, "ready": True, "restartCount": 0}]
    found.now += timedelta(seconds=UNANSWERED_SECONDS)
    found.settle(passes=80)
    return found


def its_name_is_taken_in_the_gap() -> Recorded:
    """The conflict is known within one pass, as the reconciler does it."""
    found = in_place(served(), passes=2)
    before = states(found.status)
    found.status = plan(replace(found.observe(), conflicts=("Deployment demo-x",)), found.now).status
    found.seen |= {(before[name], now) for name, now in states(found.status).items() if before[name] != now}
    return found


def something_blocks_it(passes: int) -> Recorded:
    """The runtime is not offered for a while."""
    found = updated(served(), passes=passes, replicas=2)
    return updated(updated(found, runtime="not-offered", passes=2), replicas=2)


def it_fails_in_place_and_is_repeated() -> Recorded:
    found = in_place(served(), INACTIVE)
    assert found.status.ready_replicas == 1
    return in_place(found, INACTIVE, rerun="again")


def back_in_place() -> Recorded:
    found = in_place(in_place(served(limit=1), passes=12), GOOD, passes=12)
    found.settle()
    return found


def in_place_after_a_fall() -> Recorded:
    found = updated(served())
    crash(found, found.traffic())
    found.settle()
    return in_place(found, rerun="again")


def put_in_place(passes: int) -> Recorded:
    """It has started beside what serves, so many passes ago."""
    return in_place(updated(served(), passes=passes, replicas=2), replicas=2)


def what_is_kept_is_asked_for_in_place() -> Recorded:
    return in_place(updated(served()), GOOD)


def by_steps(found: Recorded, passes: int = 20, **spec: Any) -> Recorded:
    """The same where another revision gets its share step by step."""
    found.spec = pinned(BETTER, **({"replicas": 3, "strategy": CANARY} | spec))
    for _ in range(passes):
        made = found.reconcile()
        found.run_controllers()
        found.now += timedelta(seconds=math.ceil(made.requeue_after or 1))
    return found


def in_a_step(**spec: Any) -> Recorded:
    found = served(replicas=3)
    while not (found.status.candidate and found.status.candidate.state is RevisionState.CANARY):
        by_steps(found, passes=1)
    return by_steps(found, passes=1, **spec)


def it_falls_in_a_step(fall: Callable[[ServingCluster, str], None]) -> Recorded:
    found = in_a_step()
    assert found.status.candidate is not None
    fall(found, found.status.candidate.revision)
    return by_steps(found, passes=1)


def a_step_is_given_back() -> Recorded:
    """There is room for its first pod only."""
    found = in_a_step()
    found.room = 4
    return by_steps(found, passes=8)


def it_takes_steps_after_all() -> Recorded:
    """Its verification is over when the strategy changes."""
    found = served(replicas=3)
    while not (found.status.candidate and found.status.candidate.state is RevisionState.PROMOTING):
        updated(found, passes=1, replicas=3)
    return by_steps(found, passes=1)


STORIES: tuple[Callable[[], Recorded], ...] = (
    all_goes_well,
    nothing_is_kept,
    it_waits_for_its_turn,
    verification_fails_and_is_repeated,
    repeated_at_once,
    it_never_loads,
    *(lambda passes=passes: given_back(passes) for passes in (1, 2, 3)),
    *(lambda passes=passes: crashes_while(passes, replicas=3) for passes in (1, 2, 3)),
    *(lambda passes=passes: given_up(passes) for passes in (1, 2, 3)),
    its_pods_go_while_it_is_verified,
    *(lambda available=available: its_verification_goes(available) for available in (True, False)),
    given_up_in_line,
    lambda: rolled_back(crash),
    lambda: rolled_back(disprove),
    back_and_forth,
    lambda: asked_back_without_its_pods(available=1),
    lambda: asked_back_without_its_pods(available=0),
    lambda: asked_back_without_its_pods(available=0, limit=1),
    asked_back_later,
    asked_back_in_line,
    node_lost,
    lambda: in_place(served()),
    its_name_is_taken_in_the_gap,
    *(lambda passes=passes: something_blocks_it(passes) for passes in (1, 2, 3)),
    it_fails_in_place_and_is_repeated,
    back_in_place,
    in_place_after_a_fall,
    *(lambda passes=passes: put_in_place(passes) for passes in (1, 2, 3)),
    what_is_kept_is_asked_for_in_place,
    lambda: in_place(in_place(served(), passes=1), GOOD),
    lambda: by_steps(served(replicas=3)),
    lambda: it_falls_in_a_step(crash),
    lambda: it_falls_in_a_step(disprove),
    a_step_is_given_back,
    it_takes_steps_after_all,
    lambda: updated(in_a_step(), digest=GOOD),
    lambda: in_place(in_a_step()),
    lambda: in_a_step(rerun="again"),
)


@pytest.mark.slow
def test_every_row_of_the_table_happens_and_nothing_else_does() -> None:
    seen: set[Transition] = set()
    for story in STORIES:
        seen |= story().seen
    assert documented() - seen == set(), "documented, and not seen"
    assert seen - documented() == set(), "seen, and not documented"


@pytest.mark.slow
def test_a_failure_is_forgotten_while_something_blocks_it() -> None:
    """So says the page; what had served and fell is remembered (the tests of the last good revision)."""
    failed = updated(served(), INACTIVE)
    again = updated(updated(updated(served(), INACTIVE), INACTIVE, runtime="not-offered", passes=2), INACTIVE)
    first, second = (found.status.revisions[0] for found in (failed, again))
    assert (first.revision, first.state) == (second.revision, second.state) == (first.revision, RevisionState.FAILED)
    assert first.started_at != second.started_at


more = st.one_of(
    steps,
    st.tuples(st.just("fall"), st.sampled_from([crash, disprove, prove])),
    st.tuples(st.just("back"), st.integers(0, 3)),
    st.tuples(st.just("delete"), st.sampled_from([DEPLOYMENTS, JOBS])),
)


def one_by_one(found: Recorded, path: list[tuple[str, Any]]) -> Iterator[None]:
    for step, value in path:
        match step:
            case "fall":
                if found.pods.get(f"demo-{found.traffic()}"):
                    value(found, found.traffic())
            case "back":
                lines = found.status.revisions
                found.spec = copy.deepcopy(found.spec) | {
                    "rollbackTo": lines[value].revision if value < len(lines) else ""
                }
            case "delete":
                for name in list(found.objects.get(value, {})):
                    del found.objects[value][name]
                    found.pods.pop(name, None)
                found.pods_of.forget(found)
            case "settle":
                continue
            case _:
                walk(found, [(step, value)])
        found.reconcile()
        yield


@pytest.mark.slow
@settings(max_examples=share(60), deadline=None)
@given(st.lists(more, max_size=25))
def test_no_path_leaves_the_table(path: list[tuple[str, Any]]) -> None:
    """Whatever happens to it, a revision goes from one state to another as documented, and no two serve."""
    found, table = cluster(limit=1), documented()
    for _ in one_by_one(found, path):
        assert found.seen <= table, found.seen - table
        serving = [line for line in found.status.revisions if line.state is RevisionState.SERVING]
        assert len(serving) <= 1
        kept = [line.revision for line in found.status.revisions if line.state is RevisionState.KEPT]
        assert kept == ([found.status.previous.revision] if found.status.previous else [])
    assert found.room <= ROOM


@pytest.mark.parametrize(
    "said",
    [
        f"plus {FETCH_SECONDS // 60} minutes",
        f"{PULL_PATIENCE_SECONDS / 60:.0f} minutes while an image cannot be pulled",
        f"for {UNANSWERED_SECONDS:.0f} seconds",
        f"the verification has {LONG_WAIT_SECONDS / 60:.0f} minutes to find a node",
        f"its deadline and {FETCH_SECONDS / 60:.0f} minutes",
        f"{ {600.0: 'ten'}[STALE_SECONDS] } minutes for pods that have lost their Deployment",
        {3: "third time"}[CRASHES],
        {3600: "after an hour"}[int(PAUSE_SECONDS)],
    ],
)
def test_the_limits_on_the_page_are_those_of_the_code(said: str) -> None:
    assert said in " ".join(PAGE.split())
