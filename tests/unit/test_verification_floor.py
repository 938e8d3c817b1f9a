"""The least that the platform lets AdapterDeployments ask of a revision, and what becomes of what asks for less."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from finetune_api.reasons import Reason
from finetune_api.serving_status import ServingPhase
from finetune_api.verification import Policy, Verification
from finetune_jobs.verification.power import smallest_sample
from finetune_operator.framework.objects import CONFIG_MAPS, DEPLOYMENTS, JOBS
from finetune_operator.settings import Settings
from finetune_operator.tenancy.floor import VerificationFloor, floor_violation, strictest
from tests.support.played_pods import BETTER, GOOD
from tests.support.promoted import crash, passes, until
from tests.support.sentences import assert_says
from tests.support.serving import ServingCluster, condition
from tests.support.serving_specs import SETTINGS, pinned

pytestmark = pytest.mark.unit

OURS, THEIRS = ("-----BEGIN PUBLIC KEY-----\n" + letter * 60 + "\n-----END PUBLIC KEY-----\n" for letter in "AB")
LOOSE: dict[str, Any] = {"maxDistance": "9.999", "samples": 0, "minAgreementPercent": 1}
"""What an auditor set, with withdrawn: Warn."""
FLOOR: dict[str, Any] = {"maxDistance": "0.8", "samples": 50, "minAgreementPercent": 75, "withdrawn": "Refuse"}

FIRST: dict[str, Any] = {"objectives": {"timeToFirstToken": "2s"}}
FAST: dict[str, Any] = {"objectives": {"timeToFirstToken": "2s", "timePerOutputToken": "50ms"}}


def floored(*floors: dict[str, Any]) -> Settings:
    """Settings with these floors."""
    made = [VerificationFloor.model_validate(each) for each in floors]
    return SETTINGS.model_copy(update={"serving": SETTINGS.serving.model_copy(update={"verification_floors": made})})


def violation(floor: dict[str, Any], verification: dict[str, Any], policy: dict[str, Any], where: str = "team") -> str:
    """What one floor says of a spec."""
    asked = Verification.model_validate(verification), Policy.model_validate(policy)
    return floor_violation([VerificationFloor.model_validate(floor)], where, *asked)


@pytest.mark.parametrize(
    ("floor", "verification", "policy", "says"),
    [
        (FLOOR, {}, {}, ""),
        ({}, LOOSE, {"withdrawn": "Warn"}, ""),
        ({"namespaces": ["prod-*"], **FLOOR}, LOOSE, {"withdrawn": "Warn"}, ""),
        ({"maxDistance": "0.8"}, {"maxDistance": "0.8"}, {}, ""),
        ({"maxDistance": "0.8"}, {"maxDistance": "0.801"}, {}, "maxDistance is 0.801; it may be at most 0.8"),
        ({"samples": 50}, {"samples": 49}, {}, "samples is 49; it must be at least 50"),
        ({"samples": 91}, {"samples": 0, "detectDrop": "0.1"}, {}, ""),
        ({"samples": 92}, {"detectDrop": "0.1"}, {}, "detectDrop is 0.1 … 91 test examples … at least 92"),
        ({"detectDrop": "0.1"}, {"detectDrop": "0.05"}, {}, ""),
        ({"detectDrop": "0.1"}, {"detectDrop": "0.2"}, {}, "detectDrop is 0.2; it may be at most 0.1"),
        ({"detectDrop": "0.1"}, {}, {}, "detectDrop is not set; it may be at most 0.1"),
        ({"minAgreementPercent": 75}, {"minAgreementPercent": 74}, {}, "minAgreementPercent is 74 … at least 75"),
        (FAST, {"objectives": {"timeToFirstToken": "2000ms", "timePerOutputToken": "49ms"}}, {}, ""),
        (FAST, {}, {}, "timeToFirstToken is not set; it may be at most 2s … timePerOutputToken is not set … most 50ms"),
        (FIRST, {"objectives": {"timeToFirstToken": "2s"}}, {}, ""),
        (FIRST, {"objectives": {"timeToFirstToken": "999ms"}}, {}, ""),
        (FIRST, {"objectives": {"timeToFirstToken": "3s"}}, {}, "objectives.timeToFirstToken is 3s … at most 2s"),
        (FIRST, {"objectives": {"timeToFirstToken": "2001ms"}}, {}, "timeToFirstToken is 2001ms; it may be at most 2s"),
        (FIRST, {"objectives": {"timePerOutputToken": "1ms"}}, {}, "objectives.timeToFirstToken is not set"),
        ({"objectives": {}}, {}, {}, ""),
        ({"requireProbabilities": True}, {"requireProbabilities": True}, {}, ""),
        ({"requireProbabilities": True}, {}, {}, "verification.requireProbabilities is false; it must be true"),
        ({"requireProbabilities": False}, {}, {}, ""),
        ({"withdrawn": "Refuse"}, {}, {"withdrawn": "Warn"}, "withdrawn is Warn; it must be Refuse"),
        ({"gates": "Passed"}, {}, {"gates": "Passed"}, ""),
        ({"gates": "Passed"}, {}, {}, "spec.policy.gates is Any; it must be Passed"),
        ({"requiredGates": ["recall", "leaks"]}, {}, {"requiredGates": ["recall"]}, "must include 'leaks'"),
        ({"signed": True}, {}, {}, "spec.policy.signature is not set"),
        ({"signed": True}, {}, {"signature": {"publicKeys": [THEIRS]}}, ""),
        ({"publicKeys": [OURS]}, {}, {}, "spec.policy.signature is not set"),
        ({"publicKeys": [OURS]}, {}, {"signature": {"publicKeys": [OURS.strip()]}}, ""),
        ({"publicKeys": [OURS]}, {}, {"signature": {"publicKeys": [OURS, THEIRS]}}, "publicKeys[1]: not one of"),
    ],
)
def test_a_spec_against_a_floor(
    floor: dict[str, Any], verification: dict[str, Any], policy: dict[str, Any], says: str
) -> None:
    found = violation(floor, verification, policy)
    if says:
        assert_says(found, *says.split(" … "), "namespace 'team'")
    else:
        assert found == ""


def test_all_floors_of_a_namespace_count() -> None:
    """Rules of tenancy are alternatives; of those one would pick the one without a floor."""
    floors = [
        VerificationFloor.model_validate(each) for each in ({"samples": 10}, {"namespaces": ["te*"], "samples": 40})
    ]
    assert_says(floor_violation(floors, "team", Verification(samples=20), Policy()), "at least 40")
    assert floor_violation(floors, "other", Verification(samples=20), Policy()) == ""
    both = floor_violation(floors, "team", Verification(samples=0), Policy())
    assert_says(both, "at least 10", "at least 40")


@pytest.mark.parametrize(
    "floor",
    [
        {"samples": -1},
        {"maxDistance": "much"},
        {"gates": "Most"},
        {"namespaces": []},
        {"x": 1},
        {"objectives": {"timeToFirstToken": "soon"}},
        {"objectives": {"throughput": "1s"}},
        {"requireProbabilities": "sometimes"},
    ],
)
def test_a_floor_that_makes_no_sense_is_refused(floor: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        VerificationFloor.model_validate(floor)


@pytest.mark.parametrize("drop", ["0.01", "0.05", "0.1", "0.2", "0.33", "0.5", "0.99"])
def test_the_fewest_examples_that_show_a_drop(drop: str) -> None:
    """What the stage takes for the best case, an artifact that was always right."""
    wanted = smallest_sample(1.0, float(drop), 1000)
    assert Verification(detect_drop=drop).least_samples == (wanted or 1000)


def test_what_asks_for_less_is_not_rolled_out() -> None:
    cluster = ServingCluster(spec=pinned(GOOD), settings=floored(FLOOR))
    cluster.settle()
    assert cluster.status.phase is ServingPhase.READY
    before = cluster.status.stable
    cluster.spec = pinned(BETTER, verification=LOOSE, policy={"withdrawn": "Warn"})
    cluster.settle()
    assert condition(cluster.status, "Stalled") == ("True", Reason.BELOW_VERIFICATION_FLOOR)
    assert condition(cluster.status, "Ready") == ("True", Reason.SERVING)
    assert (cluster.status.stable, cluster.status.candidate) == (before, None)
    assert len(cluster.objects[DEPLOYMENTS]) == 1
    said = next(each.message for each in cluster.status.conditions if each.type == "Stalled")
    assert_says(
        said, "maxDistance is 9.999", "at most 0.8", "samples is 0", "minAgreementPercent is 1", "withdrawn is Warn"
    )
    assert_says(said, "serving.verificationFloors")
    cluster.spec = pinned(BETTER)
    cluster.settle()
    assert cluster.status.stable is not None
    assert cluster.status.stable.artifact_digest == BETTER


def taken_over(**first: Any) -> tuple[ServingCluster, str]:
    """An endpoint just after an update, while the pods of the revision before stay, and that revision."""
    cluster = ServingCluster(spec=pinned(GOOD, keepLastGood="10m", **first))
    cluster.settle()
    old = cluster.traffic()
    cluster.spec = pinned(BETTER, keepLastGood="10m")
    until(cluster, lambda: cluster.traffic() != old)
    return cluster, old


def test_kept_pods_from_before_a_floor_are_verified_again_before_they_serve() -> None:
    cluster, old = taken_over(verification=LOOSE)
    new, verified = cluster.traffic(), set(cluster.objects[JOBS])
    cluster.settings = floored(FLOOR)
    cluster.spec["rollbackTo"] = old
    cluster.reconcile()
    assert cluster.traffic() == new
    [told] = [event.message for event in cluster.events if event.reason == Reason.BELOW_VERIFICATION_FLOOR]
    assert_says(told, old, "verified again", "By the spec with which", "maxDistance is 9.999", "samples is 0")
    until(cluster, lambda: cluster.traffic() == old)
    assert set(cluster.objects[JOBS]) - verified, "a Job of its own has verified it"
    assert cluster.status.stable is not None
    assert cluster.status.stable.verified_by == Verification()


def test_kept_pods_that_meet_the_floor_serve_again_at_once() -> None:
    cluster, old = taken_over()
    cluster.settings = floored(FLOOR)
    cluster.spec["rollbackTo"] = old
    cluster.reconcile()
    assert cluster.traffic() == old


def test_kept_pods_that_had_to_be_less_fast_are_verified_again_before_they_serve() -> None:
    cluster, old = taken_over()
    new, verified = cluster.traffic(), set(cluster.objects[JOBS])
    cluster.settings = floored(FAST)
    cluster.spec["verification"] = {"objectives": {"timeToFirstToken": "1s", "timePerOutputToken": "20ms"}}
    cluster.spec["rollbackTo"] = old
    cluster.reconcile()
    assert cluster.traffic() == new
    [told] = [event.message for event in cluster.events if event.reason == Reason.BELOW_VERIFICATION_FLOOR]
    assert_says(told, "By the spec with which", "timeToFirstToken is not set", "timePerOutputToken is not set")
    until(cluster, lambda: cluster.traffic() == old)
    assert set(cluster.objects[JOBS]) - verified, "a Job of its own has verified it"


def test_kept_pods_whose_probabilities_were_not_required_are_verified_again_before_they_serve() -> None:
    cluster, old = taken_over()
    cluster.settings = floored({"requireProbabilities": True})
    cluster.spec["verification"] = {"requireProbabilities": True}
    cluster.spec["rollbackTo"] = old
    cluster.reconcile()
    assert cluster.traffic() != old
    until(cluster, lambda: cluster.traffic() == old)
    assert cluster.status.stable is not None
    assert cluster.status.stable.verified_by == Verification(require_probabilities=True)


@pytest.mark.parametrize("for_others", [False, True])
def test_of_what_an_earlier_version_verified_nothing_is_known(for_others: bool) -> None:
    cluster, old = taken_over()
    assert cluster.status.previous is not None
    unknown = cluster.status.previous.model_copy(update={"verified_by": None})
    cluster.status = cluster.status.model_copy(update={"previous": unknown})
    cluster.spec["rollbackTo"] = old
    cluster.settings = floored({"namespaces": ["others"], **FLOOR} if for_others else FLOOR)
    cluster.reconcile()
    assert (cluster.traffic() == old) == for_others


def test_a_floor_keeps_no_traffic_with_a_revision_that_crashes() -> None:
    cluster, old = taken_over(verification=LOOSE)
    cluster.settings = floored(FLOOR)
    crash(cluster, cluster.traffic())
    passes(cluster)
    assert cluster.traffic() == old


def limits_of(cluster: ServingCluster) -> tuple[str, dict[str, Any]]:
    """Name and content of what the pods of what serves prove themselves by."""
    [found] = [
        (name, json.loads(each["data"]["limits.json"]))
        for name, each in cluster.objects[CONFIG_MAPS].items()
        if "limits.json" in each["data"]
    ]
    return found


def test_a_floor_that_comes_later_takes_no_pod_from_its_clients() -> None:
    """What serves was proved by its own limits: by tighter ones none of its pods might become ready again."""
    cluster = ServingCluster(spec=pinned(GOOD, verification=LOOSE))
    cluster.settle()
    name, proved_by = limits_of(cluster)
    assert (proved_by["maxDistance"], proved_by["minAgreementPercent"]) == (9.999, 1)
    cluster.settings = floored(FLOOR)
    cluster.settle()
    assert condition(cluster.status, "Stalled") == ("True", Reason.BELOW_VERIFICATION_FLOOR)
    assert condition(cluster.status, "Ready") == ("True", Reason.SERVING)
    assert limits_of(cluster) == (name, proved_by)
    cluster.spec = pinned(GOOD)
    cluster.settle()
    assert limits_of(cluster)[1]["minAgreementPercent"] >= 75, "they follow a spec that meets the floor"


def test_a_spec_below_loosens_no_pod_that_runs() -> None:
    cluster = ServingCluster(spec=pinned(GOOD), settings=floored(FLOOR))
    cluster.settle()
    name, proved_by = limits_of(cluster)
    cluster.spec = pinned(GOOD, verification=LOOSE)
    cluster.settle()
    assert limits_of(cluster) == (name, proved_by)
    del cluster.objects[CONFIG_MAPS][name]
    cluster.settle()
    anew = limits_of(cluster)[1]
    assert (anew["maxDistance"], anew["minAgreementPercent"]) == (0.8, 75), "made anew, they are the floor's"
    made = [VerificationFloor.model_validate(FLOOR)]
    assert strictest(made, "team", Verification()).max_distance is None
    assert not strictest(made, "team", Verification()).require_probabilities
    asking = VerificationFloor.model_validate({"requireProbabilities": True})
    assert strictest([*made, asking], "team", Verification()).require_probabilities
    by_itself = Verification(require_probabilities=True)
    assert strictest(made, "team", by_itself).require_probabilities
    assert strictest([], "team", Verification.model_validate(LOOSE)).max_distance == "9.999"
