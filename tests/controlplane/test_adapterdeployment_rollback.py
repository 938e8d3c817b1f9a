"""The way back on a real API server: by itself, by the spec, and whatever is deleted or dies on the way."""

from __future__ import annotations

import time
from typing import Any

import pytest

from finetune_api.endpoint_stages import SelfCheckLimits
from finetune_api.reasons import Reason
from finetune_api.serving_status import RevisionState, ServingPhase
from finetune_operator.framework.objects import CONFIG_MAPS, CONTROLLER_REVISIONS, DEPLOYMENTS, PODS
from finetune_operator.settings import Images
from tests.controlplane.conftest import wait
from tests.controlplane.serving import Serving
from tests.support.played_pods import BETTER, GOOD
from tests.support.serving_specs import pinned

pytestmark = pytest.mark.controlplane

THIRD, FOURTH, FIFTH, SIXTH = ("e" * 63 + number for number in "1234")
"""Artifacts that serve."""


def updated(serving: Serving, **spec: Any) -> tuple[str, str]:
    """An endpoint after an update, with the pods of the revision before; both revisions, old and new."""
    serving.create(pinned(GOOD, keepLastGood="10m") | spec)
    old = serving.until(ServingPhase.READY).last_good_revision
    serving.change(**pinned(BETTER, keepLastGood="10m"))
    wait(lambda: serving.traffic() != old, "the promotion")
    new = serving.until(ServingPhase.READY).last_good_revision
    assert set(serving.children(DEPLOYMENTS)) == {f"demo-{old}", f"demo-{new}"}
    return old, new


def test_a_crash_loop_goes_back_by_itself_and_is_not_tried_again(serving: Serving) -> None:
    serving.start()
    begun = time.monotonic()
    old, new = updated(serving)
    crashed = time.monotonic()
    serving.crash(new)
    wait(lambda: serving.traffic() == old, "the way back")
    took, rollouts = time.monotonic() - crashed, crashed - begun
    assert took < max(10, rollouts / 2), "nothing starts for it, as it does for a rollout"
    wait(lambda: serving.reached() == {old}, "the endpoints")
    candidate = wait(lambda: serving.status().candidate, "the status")
    assert (candidate.revision, candidate.state) == (new, RevisionState.FAILED)
    wait(lambda: _shown(serving)["Ready"] == ("True", Reason.SERVING), "answers")
    shown = _shown(serving)
    assert shown["RolledBack"] == shown["Stalled"] == ("True", Reason.CANDIDATE_FAILED)
    wait(lambda: ("Warning", "RolledBack") in serving.events(), "the event")
    wait(lambda: set(serving.children(DEPLOYMENTS)) == {f"demo-{old}"}, "the bad pods to go")
    states = {line.revision: line.state for line in serving.status().revisions}
    assert states == {new: RevisionState.ROLLED_BACK, old: RevisionState.SERVING}
    asked = len(serving.asked)
    serving.change(replicas=2)
    wait(lambda: serving.status().ready_replicas == 2, "two pods")
    assert (serving.traffic(), len(serving.asked)) == (old, asked)
    serving.change(rerun="fixed")
    wait(lambda: serving.traffic() == new, "another try")
    assert serving.until(ServingPhase.READY).last_good_revision == new


def test_by_the_spec_and_forward_again(serving: Serving) -> None:
    """At once while pods are kept, and from the record once they are gone. What a person has left is not kept."""
    serving.start()
    old, new = updated(serving)
    asked = len(serving.asked)
    serving.change(rollbackTo=old)
    wait(lambda: serving.traffic() == old, "the way back")
    status = serving.until(ServingPhase.READY)
    assert {each.type: each.reason for each in status.conditions}["RolledBack"] == Reason.ROLLED_BACK
    assert len(serving.asked) == asked, "nothing was verified again"
    wait(lambda: set(serving.children(DEPLOYMENTS)) == {f"demo-{old}"}, "the pods that were left to end")
    serving.change(rollbackTo=None, keepLastGood="0s")
    wait(lambda: serving.traffic() == new, "the way forward by a rollout")
    wait(lambda: set(serving.children(DEPLOYMENTS)) == {f"demo-{new}"}, "the old pods to go")
    asked = len(serving.asked)
    serving.change(rollbackTo=old)
    wait(lambda: serving.traffic() == old, "the way back by a rollout")
    proofs = {given.run.id for given in serving.asked[asked:]}
    assert [proof.startswith(old) for proof in proofs] == [True], proofs
    serving.until_only(old)
    serving.change(rollbackTo="0123abcd")
    status = serving.until(ServingPhase.DEGRADED)
    assert {each.type: each.reason for each in status.conditions}["Stalled"] == Reason.REVISION_UNUSABLE
    assert serving.traffic() == old


@pytest.mark.parametrize("crash", range(1, 6))
def test_an_operator_that_dies_on_the_way_back(endpoint: Serving, crash: int) -> None:
    old = endpoint.traffic()
    endpoint.change(**pinned(f"{crash:064x}", keepLastGood="10m"))
    wait(lambda: endpoint.traffic() != old, "the promotion")
    new = endpoint.until(ServingPhase.READY).last_good_revision
    assert set(endpoint.children(DEPLOYMENTS)) == {f"demo-{old}", f"demo-{new}"}
    endpoint.team.stop()
    endpoint.crash(new)
    dying = endpoint.start(crash_after_writes=crash)
    wait(
        lambda: dying.process.exitcode is not None or set(endpoint.children(DEPLOYMENTS)) == {f"demo-{old}"},
        "its death, or all its work done",
    )
    endpoint.team.stop()
    endpoint.start()
    wait(lambda: set(endpoint.children(DEPLOYMENTS)) == {f"demo-{old}"}, "the bad pods to go")
    status = endpoint.until(ServingPhase.DEGRADED)
    assert endpoint.traffic() == old
    states = {line.revision: line.state for line in status.revisions}
    assert (states[new], states[old]) == (RevisionState.ROLLED_BACK, RevisionState.SERVING)
    assert list(states.values()).count(RevisionState.SERVING) == 1


def test_pods_that_answer_otherwise_later_get_no_clients(endpoint: Serving) -> None:
    """Without a revision to go back to nobody gets answers until they have passed; with one, it serves."""
    before = endpoint.traffic()
    endpoint.change(**pinned(FIFTH), qualityWatch={"interval": "30s"})
    wait(lambda: endpoint.traffic() != before, "the promotion")
    proved = endpoint.until(ServingPhase.READY).last_good_revision
    endpoint.until_only(proved)
    name = f"demo-{proved}"

    def interval() -> int:
        found = endpoint.children(CONFIG_MAPS)[name]
        return SelfCheckLimits.model_validate_json(found["data"]["limits.json"]).watch_seconds

    assert interval() == 30
    pods = endpoint.children(DEPLOYMENTS)[name]["metadata"]["generation"]
    endpoint.change(qualityWatch={"interval": "2m"})
    wait(lambda: interval() == 120, "the interval")
    assert endpoint.children(DEPLOYMENTS)[name]["metadata"]["generation"] == pods
    endpoint.self_check(proved, passed=False)
    wait(lambda: _shown(endpoint).get("Ready") == ("False", Reason.SELF_CHECK_FAILED), "nobody gets answers")
    assert _shown(endpoint)["Degraded"] == ("True", Reason.SELF_CHECK_FAILED)
    wait(lambda: endpoint.reached() == set(), "no endpoint")
    wait(lambda: ("Warning", "SelfCheckFailed") in endpoint.events(), "the event")
    endpoint.self_check(proved, passed=True)
    assert "Degraded" not in {each.type for each in endpoint.until(ServingPhase.READY).conditions}
    endpoint.change(**pinned(SIXTH, keepLastGood="10m"))
    wait(lambda: endpoint.traffic() != proved, "the promotion of another")
    new = endpoint.until(ServingPhase.READY).last_good_revision
    endpoint.self_check(new, passed=False)
    wait(lambda: endpoint.traffic() == proved, "the way back")
    fallen = wait(lambda: endpoint.status().candidate, "the status")
    assert (fallen.revision, fallen.reason) == (new, Reason.VERIFICATION_FAILED)
    assert [each.name for each in fallen.verification] == ["logProbabilities"]
    wait(lambda: set(endpoint.children(DEPLOYMENTS)) == {name}, "the wrong pods to go")


def test_an_upgrade_of_the_operator_moves_no_endpoint(serving: Serving) -> None:
    """Its own images have another tag; nor does one without records lose its pods."""
    first = serving.start()
    revision = serving.serve(GOOD)
    serving.until_only(revision)
    first.stop()
    before = serving.children(DEPLOYMENTS)
    for name, record in serving.children(CONTROLLER_REVISIONS).items():
        serving.team.api.delete(CONTROLLER_REVISIONS, serving.team.namespace, name, record["metadata"]["uid"])
    names = ("data", "prepare", "jobs", "quantize", "proxy")
    later = Images(**{name: f"example/{name}:later" for name in names})
    serving.start(images=later)
    wait(lambda: f"demo-{revision}" in serving.children(CONTROLLER_REVISIONS), "the record")
    serving.change(replicas=2)
    wait(lambda: serving.status().ready_replicas == 2, "two pods")
    after = serving.children(DEPLOYMENTS)
    assert set(after) == set(before) == {f"demo-{revision}"}
    [old], [new] = before.values(), after.values()
    assert new["spec"]["template"] == old["spec"]["template"]
    serving.update(BETTER)
    wait(lambda: serving.traffic() != revision, "the promotion")
    serving.until_only(serving.traffic())
    [live] = serving.children(DEPLOYMENTS).values()
    assert live["spec"]["template"]["spec"]["initContainers"][0]["image"] == "example/data:later"


def test_what_serves_is_deleted_during_a_rollout(serving: Serving) -> None:
    """It comes back as it was proved, serves again, and the rollout goes on."""
    serving.servers.loading.add(BETTER)
    serving.start()
    old = serving.serve(GOOD)
    before = serving.children(DEPLOYMENTS)[f"demo-{old}"]
    serving.update(BETTER)
    serving.until(ServingPhase.PROGRESSING)
    serving.team.api.delete(DEPLOYMENTS, serving.team.namespace, f"demo-{old}", before["metadata"]["uid"])
    again = wait(lambda: _another(serving, f"demo-{old}", before["metadata"]["uid"]), "the Deployment")
    assert again["spec"]["template"]["spec"] == before["spec"]["template"]["spec"]
    wait(lambda: serving.status().ready_replicas == 1, "its pod")
    assert serving.traffic() == old
    serving.servers.loading.clear()
    wait(lambda: serving.traffic() != old, "the promotion")
    serving.until_only(serving.traffic())


def test_the_spec_changes_twice_during_one_rollout(serving: Serving) -> None:
    """What is asked for last serves in the end, and nothing of the others is left but their lines."""
    serving.servers.loading |= {BETTER, THIRD}
    serving.start()
    old = serving.serve(GOOD)
    for digest in (BETTER, THIRD):
        serving.update(digest)
        wait(lambda asked=digest: _asked(serving) == asked, digest[-1])  # type: ignore[misc]
    serving.update(FOURTH)
    wait(lambda: serving.traffic() != old, "the promotion")
    newest = serving.traffic()
    serving.until_only(newest)
    status = serving.until(ServingPhase.READY)
    lines = {line.artifact_digest: (line.state, line.promoted_at is not None) for line in status.revisions}
    assert lines == {
        FOURTH: (RevisionState.SERVING, True),
        THIRD: (RevisionState.SUPERSEDED, False),
        BETTER: (RevisionState.SUPERSEDED, False),
        GOOD: (RevisionState.SUPERSEDED, True),
    }
    assert set(serving.children(CONTROLLER_REVISIONS)) == {f"demo-{line.revision}" for line in status.revisions}
    wait(lambda: not _servers_of_others(serving, newest), "their pods to go")


def _shown(serving: Serving) -> dict[str, tuple[str, str]]:
    return {each.type: (each.status, each.reason) for each in serving.status().conditions}


def _another(serving: Serving, name: str, uid: str) -> Any:
    found = serving.get(DEPLOYMENTS, name)
    return found if found and found["metadata"]["uid"] != uid else None


def _servers_of_others(serving: Serving, revision: str) -> list[str]:
    pods = serving.children(PODS)
    return [pod for pod in pods if pod.startswith("demo-") and revision not in pod and "verify" not in pod]


def _asked(serving: Serving) -> str:
    candidate = serving.status().candidate
    return candidate.artifact_digest if candidate and candidate.state is RevisionState.STARTING else ""
