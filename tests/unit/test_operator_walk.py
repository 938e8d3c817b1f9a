"""FineTuneJobs on random walks: crashes at any write, stale caches, deleted children, edits, suspension, evictions.

Whatever happens on the way: two pods never run at the same time, no stage's work is done twice for the same input, a
frozen spec is what runs, and once it is left alone, the job ends with the artifact of its spec.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from datetime import timedelta

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from finetune_api.finetunejob import FineTuneJobSpec
from finetune_api.job_status import FineTuneJobStatus, Phase
from finetune_api.stages import PIPELINE
from finetune_operator.controller import INDEXES
from finetune_operator.finetunejob.kind import fine_tune_job_kind
from finetune_operator.finetunejob.observe import spec_hash
from finetune_operator.framework.cache import Cache
from finetune_operator.framework.client import ApiError
from finetune_operator.framework.objects import CONFIG_MAPS, JOBS, PODS, SERVICE_ACCOUNTS
from finetune_operator.framework.ownership import Key
from finetune_operator.framework.reconcile import Reconciler
from finetune_operator.kinds import FINETUNEJOBS
from finetune_operator.settings import Images, Profile, Settings
from tests.support.fast import share
from tests.support.memory_cluster import NAMESPACE, Crash, MemoryCluster, fine_tune_job, read_all, runner

pytestmark = pytest.mark.unit

SETTINGS = Settings(
    images=Images(data="d", prepare="p", jobs="j", quantize="q", proxy="x"), profiles={"small": Profile()}
)
KEY = Key("FineTuneJob", NAMESPACE, "walk")
STEPS = (
    *("go on",) * 6,
    *("reconcile", "controllers", "kubelet"),
    *("watch", "lag", "restart", "crash in 1", "crash in 2", "crash in 3"),
    *("delete a job", "delete the pods", "suspend", "resume", "change", "other credentials", "rerun"),
)


class Walk:
    """One FineTuneJob, its cluster and its operator."""

    def __init__(self, keep_ended_seconds: int = SETTINGS.keep_ended_seconds) -> None:
        self.settings = SETTINGS.model_copy(update={"keep_ended_seconds": keep_ended_seconds})
        self.cluster = MemoryCluster()
        self.cluster.create(SERVICE_ACCOUNTS, runner())
        self.cluster.create(FINETUNEJOBS, fine_tune_job("walk"))
        self.edits = 0
        self.lost = False
        self.lagging = False
        self.restart()

    def restart(self) -> None:
        """A new operator process: nothing is remembered, everything is listed."""
        cluster = self.cluster
        cluster.crash_in = 0
        cluster.stream.clear()
        self.lagging = False
        self.cache = Cache(INDEXES)
        read_all(self.cache, cluster)
        kind = fine_tune_job_kind(cluster, self.cache, self.settings)
        self.reconciler = Reconciler(cluster, self.cache, {KEY.kind: kind}, lambda: cluster.now)

    def watch(self) -> None:
        """All pending watch events arrive."""
        for resource, gone, found in self.cluster.stream:
            if gone:
                self.cache.forget(resource, found)
            else:
                self.cache.record(resource, found)
        self.cluster.stream.clear()

    def reconcile(self) -> None:
        """One turn of the operator; it may die in it."""
        if not self.lagging:
            self.watch()
        try:
            with contextlib.suppress(ApiError):
                self.reconciler.reconcile(KEY)
        except Crash:
            self.restart()

    def step(self, name: str) -> None:
        """Something happens."""
        cluster = self.cluster
        jobs = [job for kind, job in cluster.objects if kind == JOBS.kind]
        match name.split():
            case ["go", "on"]:
                self.turn()
            case ["reconcile"]:
                self.reconcile()
            case ["controllers"]:
                cluster.controllers()
            case ["kubelet"]:
                cluster.kubelet()
            case ["watch"]:
                self.lagging = False
                self.watch()
            case ["lag"]:
                self.lagging = True
            case ["restart"]:
                self.restart()
            case ["crash", "in", writes]:
                cluster.crash_in = int(writes)
            case ["delete", "a", "job"] if jobs:
                cluster.remove(JOBS, jobs[-1])
            case ["delete", "the", "pods"]:
                self.delete_pods()
            case ["suspend"]:
                cluster.change_spec("walk", suspend=True)
            case ["resume"]:
                cluster.change_spec("walk", suspend=False)
            case ["change"]:
                self.edits += 1
                cluster.change_spec("walk", training={"epochs": 1 + self.edits % 50})
            case ["other", "credentials"]:
                self.edits += 1
                cluster.change_spec("walk", storage={"secretRef": {"name": f"s{self.edits}"}})
            case ["rerun"]:
                self.edits += 1
                cluster.change_spec("walk", rerun=f"r{self.edits}")

    def delete_pods(self) -> None:
        """Somebody deletes all pods. The results of ended ones go only once: a run that loses one again has failed."""
        for pod in self.cluster.pods():
            if pod["status"]["phase"] in ("Pending", "Running") or not self.lost:
                self.cluster.remove(PODS, pod["metadata"]["name"])
        self.lost = True

    def turn(self) -> None:
        """Everybody does one thing."""
        self.reconcile()
        self.cluster.controllers()
        self.cluster.kubelet()

    def pause(self) -> None:
        """Left alone, suspended: no pod runs."""
        self.cluster.change_spec("walk", suspend=True)
        for _ in range(8):
            self.reconcile()
            self.cluster.controllers()
        assert all(pod["status"]["phase"] in ("Succeeded", "Failed") for pod in self.cluster.pods())
        assert self.status().phase in (Phase.SUSPENDED, Phase.SUCCEEDED)

    def settle(self) -> FineTuneJobStatus:
        """Left alone: the status in the end."""
        self.cluster.change_spec("walk", suspend=False)
        for _ in range(100):
            before = self.cluster.version()
            self.turn()
            if self.cluster.version() == before:
                break
        return self.status()

    def unfinished(self) -> list[str]:
        """Jobs that may still start pods."""
        jobs = self.cluster.select(JOBS, None)
        return [job["metadata"]["name"] for job in jobs if not job["status"].get("conditions")]

    def spec(self) -> FineTuneJobSpec:
        """The stored spec."""
        return FineTuneJobSpec.model_validate(self.cluster.objects[FINETUNEJOBS.kind, "walk"]["spec"])

    def status(self) -> FineTuneJobStatus:
        """The stored status."""
        return FineTuneJobStatus.model_validate(self.cluster.objects[FINETUNEJOBS.kind, "walk"]["status"])


@pytest.mark.slow
@settings(max_examples=share(60), deadline=None)
@example(["go on", "go on", "reconcile", "delete the pods"], 0)  # an ended pod that its Job has not counted yet
@given(st.lists(st.sampled_from(STEPS), max_size=60), st.sampled_from([0, SETTINGS.keep_ended_seconds]))
def test_it_ends_with_the_artifact_of_its_spec(steps: list[str], keep_ended_seconds: int) -> None:
    """Any walk, then a pause, then rest; whether the objects of ended runs stay or go at once."""
    walk = Walk(keep_ended_seconds)
    for name in steps:
        walk.step(name)
    walk.cluster.crash_in = 0
    walk.lagging = False
    walk.pause()
    status = walk.settle()
    assert walk.cluster.overlaps == []
    assert walk.unfinished() == []
    assert status.phase is Phase.SUCCEEDED, status
    assert status.run is not None
    assert status.artifact is not None
    assert status.run.artifact_digest == status.artifact.digest
    assert status.stages_done == "5/5"
    assert status.run.spec_hash == spec_hash(walk.spec())
    made = walk.cluster.store.made
    assert Counter(walk.cluster.store.executed).total() == len(made), "no work is done twice"
    keys = {row.name: row.input_key for row in status.stages[1:]}
    assert {name: made[key].stage for name, key in keys.items()} == {stage.value: stage for stage in PIPELINE}
    if keep_ended_seconds == 0:
        walk.reconcile()
        assert not [place for place in walk.cluster.objects if place[0] in (JOBS.kind, PODS.kind)]


@pytest.mark.slow
def test_objects_of_a_run_go_when_it_has_been_over_for_long_enough() -> None:
    """Jobs with their pods, and inputs, also of a run that was cut short; the status stays, and nothing starts."""
    walk = Walk(keep_ended_seconds=3600)
    walk.turn()
    walk.pause()
    walk.step("change")
    status = walk.settle()
    assert [run.number for run in status.runs] == [1]
    kept = set(walk.cluster.objects)
    walk.cluster.now += timedelta(minutes=59)
    walk.reconcile()
    assert set(walk.cluster.objects) == kept
    walk.cluster.now += timedelta(minutes=1)
    walk.turn()
    walk.turn()
    assert not {JOBS.kind, PODS.kind, CONFIG_MAPS.kind} & {kind for kind, _ in walk.cluster.objects}
    assert walk.status() == status


@pytest.mark.slow
def test_at_rest_nothing_is_written() -> None:
    """After the end, any number of turns and restarts change no object."""
    walk = Walk()
    walk.settle()
    before = {place: found["metadata"]["resourceVersion"] for place, found in walk.cluster.objects.items()}
    for _ in range(3):
        walk.reconcile()
        walk.restart()
        walk.reconcile()
    assert {place: found["metadata"]["resourceVersion"] for place, found in walk.cluster.objects.items()} == before
