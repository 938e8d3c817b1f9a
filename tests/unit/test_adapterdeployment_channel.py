"""A channel of an output name as the source: when a Job looks, what comes of what it finds, what it never costs."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from finetune_api.meta import ANNOTATION_LOOK
from finetune_api.reasons import Reason
from finetune_api.serving_status import ServingPhase
from finetune_api.stages import Outcome, Stage, StageResult
from finetune_operator.adapterdeployment.claims import claims_of
from finetune_operator.adapterdeployment.health import LONG_WAIT_SECONDS
from finetune_operator.adapterdeployment.revision import spec_hash
from finetune_operator.framework.actions import Create
from finetune_operator.framework.conditions import parse_timestamp, timestamp
from finetune_operator.framework.objects import CONFIG_MAPS, DEPLOYMENTS, JOBS
from finetune_operator.tenancy.rules import Tenancy, TenancyRule
from tests.support.copies import copied
from tests.support.played_pods import BETTER, GOOD, UNSCHEDULABLE, job_pod
from tests.support.promoted import crash, passes, until
from tests.support.sentences import assert_says
from tests.support.serving import ServingCluster, condition
from tests.support.serving_specs import SETTINGS, uri

pytestmark = pytest.mark.unit

SOON = 30.0
OUTPUT: dict[str, Any] = {"uri": "s3://models/team", "name": "intents"}


def following(**output: Any) -> dict[str, Any]:
    return {"source": {"output": OUTPUT | output}, "runtime": "tgi-cpu", "keepLastGood": "0s"}


def settle(cluster: ServingCluster) -> None:
    """Until nothing happens before the next look."""
    cluster.settle(within=SOON)


def served(channel: str | Reason = GOOD, **output: Any) -> ServingCluster:
    """An endpoint after its first look."""
    cluster = ServingCluster(spec=following(**output), channel=channel)
    settle(cluster)
    return cluster


def looks(cluster: ServingCluster) -> list[str]:
    return [name for name in cluster.objects[JOBS] if f"-{Stage.FOLLOW}-" in name]


def later(cluster: ServingCluster, **time: float) -> None:
    cluster.now += timedelta(**time)
    settle(cluster)


def test_what_the_channel_points_to_is_verified_and_served() -> None:
    cluster = served()
    assert cluster.status.phase is ServingPhase.READY
    assert cluster.status.stable is not None
    assert (cluster.status.stable.artifact_digest, cluster.status.stable.artifact_uri) == (GOOD, uri(GOOD))
    known = cluster.status.channel
    assert known is not None
    assert (known.name, known.channel, known.artifact_digest, known.reason) == ("intents", "stable", GOOD, "")
    assert known.looked_at is not None
    assert [each.uri for each in cluster.looks] == [OUTPUT["uri"]]


@pytest.mark.parametrize(
    ("scalars", "reason"),
    [
        ({"format": "Merged", "sizeBytes": str(50 << 30)}, Reason.RUNTIME_UNSUITABLE),
        ({"format": "Merged", "goldenPromptTokens": "99999"}, Reason.PROMPTS_TOO_LONG),
        ({"format": "Adapter", "rank": "8"}, Reason.ADAPTERS_UNSUITABLE),
    ],
    ids=["size", "prompts", "format"],
)
def test_what_does_not_fit_the_runtime_is_known_before_a_pod_starts(scalars: dict[str, str], reason: Reason) -> None:
    """And is forgotten with the artifact: another one may fit."""
    cluster = ServingCluster(spec=following(), channel=GOOD, channel_scalars=scalars)
    settle(cluster)
    assert (cluster.status.phase, cluster.objects.get(DEPLOYMENTS)) == (ServingPhase.FAILED, None)
    assert condition(cluster.status, "Stalled") == ("True", reason)
    cluster.channel, cluster.channel_scalars = BETTER, {"format": "Merged", "sizeBytes": "many"}
    later(cluster, minutes=6)
    assert cluster.status.phase is ServingPhase.READY
    assert cluster.status.channel is not None
    assert cluster.status.channel.artifact is not None
    assert (cluster.status.channel.artifact.digest, cluster.status.channel.artifact.size_bytes) == (BETTER, None)


def test_of_an_artifact_that_could_not_be_read_nothing_is_known() -> None:
    cluster = ServingCluster(spec=following(), channel=GOOD, channel_scalars={"sizeBytes": str(50 << 30)})
    settle(cluster)
    assert cluster.status.phase is ServingPhase.READY
    assert cluster.status.channel is not None
    assert (cluster.status.channel.artifact_digest, cluster.status.channel.artifact) == (GOOD, None)


def test_a_look_that_reads_less_takes_nothing_from_what_is_known_of_the_same_artifact() -> None:
    facts = {"format": "Merged", "sizeBytes": "1000"}
    cluster = ServingCluster(spec=following(), channel=GOOD, channel_scalars=facts)
    settle(cluster)
    assert cluster.status.channel is not None
    known = cluster.status.channel.artifact
    assert known is not None
    cluster.channel_scalars = {}
    later(cluster, minutes=6)
    assert cluster.status.channel.artifact == known
    cluster.channel = BETTER
    later(cluster, minutes=6)
    assert cluster.status.channel.artifact is None


def test_what_was_read_of_another_artifact_is_not_taken_for_this_one() -> None:
    """An operator of the version before, which runs for a while, writes another digest and leaves what it does not
    know."""
    cluster = ServingCluster(spec=following(), channel=GOOD, channel_scalars={"format": "Merged"})
    settle(cluster)
    assert cluster.status.channel is not None
    moved = cluster.status.channel.model_copy(update={"artifact_digest": BETTER})
    cluster.status = cluster.status.model_copy(update={"channel": moved})
    settle(cluster)
    assert cluster.status.stable is not None
    assert cluster.status.stable.artifact_digest == BETTER


def test_before_the_first_look_it_waits() -> None:
    cluster = served("")
    assert (cluster.status.phase, cluster.status.stable) == (ServingPhase.PENDING, None)
    assert condition(cluster.status, "Reconciling") == ("True", Reason.SOURCE_NOT_READY)
    assert len(looks(cluster)) == 1


def test_it_is_looked_at_again_after_the_interval_and_not_before() -> None:
    cluster = served()
    cluster.channel = BETTER
    assert cluster.status.channel is not None
    looked = parse_timestamp(cluster.status.channel.looked_at or "")
    cluster.now = looked + timedelta(minutes=4)
    settle(cluster)
    assert len(cluster.looks) == 1
    cluster.now = looked + timedelta(minutes=5)
    settle(cluster)
    assert len(cluster.looks) == 2
    assert cluster.status.stable is not None
    assert cluster.status.stable.artifact_digest == BETTER
    assert len(looks(cluster)) == 1, "the Job of the look before is gone"


def test_a_clock_that_is_set_back_does_not_put_off_the_next_look() -> None:
    cluster = served()
    cluster.channel = BETTER
    later(cluster, hours=-24)
    assert len(cluster.looks) == 2
    later(cluster, minutes=4)
    assert len(cluster.looks) == 2
    later(cluster, minutes=2)
    assert len(cluster.looks) == 3


@pytest.mark.parametrize("interval", ["0m", "24h"])
def test_an_annotation_has_it_looked_at_at_once(interval: str) -> None:
    cluster = served(interval=interval)
    cluster.channel = BETTER
    later(cluster, hours=23)
    assert len(cluster.looks) == 1
    cluster.annotations[ANNOTATION_LOOK] = "now"
    settle(cluster)
    assert cluster.status.stable is not None
    assert cluster.status.stable.artifact_digest == BETTER
    settle(cluster)
    assert len(cluster.looks) == 2, "and once only"


REFUSED = 'jobs.batch "x" is forbidden: exceeded quota: few'
FAILURES = [Reason.CHANNEL_NOT_FOUND, Reason.OUTPUT_NAME_FOREIGN, Reason.ARTIFACT_WITHDRAWN, Reason.S3_UNREACHABLE]


@pytest.mark.parametrize("reason", FAILURES)
def test_what_is_not_found_is_said_and_what_serves_still_does(reason: Reason) -> None:
    cluster = served()
    before = cluster.status.stable
    cluster.channel = reason
    later(cluster, minutes=6)
    assert cluster.status.stable == before
    assert condition(cluster.status, "Ready") == ("True", Reason.SERVING)
    assert condition(cluster.status, "Stalled") == ("True", reason)
    assert cluster.status.channel is not None
    assert (cluster.status.channel.artifact_digest, cluster.status.channel.reason) == (GOOD, reason)
    assert_says(cluster.status.channel.message, "nothing there", GOOD[:12], "is still the one to serve")
    assert [event.reason for event in cluster.events].count(reason) == 1
    cluster.channel = BETTER
    later(cluster, minutes=6)
    assert condition(cluster.status, "Stalled")[0] == "False"
    assert cluster.status.channel.reason == ""
    assert cluster.status.stable is not None
    assert cluster.status.stable.artifact_digest == BETTER


@pytest.mark.parametrize("reason", FAILURES)
def test_the_same_before_anything_serves(reason: Reason) -> None:
    cluster = served(reason)
    assert condition(cluster.status, "Stalled") == ("True", reason)
    said = next(each.message for each in cluster.status.conditions if each.type == "Stalled")
    assert_says(said, "channels/demo/stable.json")
    cluster.channel = GOOD
    later(cluster, minutes=6)
    assert condition(cluster.status, "Ready") == ("True", Reason.SERVING)


@pytest.mark.slow
def test_a_look_that_is_refused_holds_up_nothing_else() -> None:
    """Neither go the pods that stay, nor is the way back to them closed."""
    cluster = served()
    cluster.spec["keepLastGood"], old, cluster.channel = "1h", cluster.traffic(), BETTER
    later(cluster, minutes=6)
    new = cluster.traffic()
    assert new != old
    cluster.refuse = lambda _, action: REFUSED if isinstance(action, Create) and action.resource == JOBS else ""
    later(cluster, minutes=6)
    assert condition(cluster.status, "Stalled") == ("True", Reason.QUOTA_EXCEEDED)
    assert cluster.status.channel is not None
    assert_says(cluster.status.channel.message, "Job that looks up the channel is waiting", "exceeded quota: few")
    assert cluster.status.previous is not None
    assert cluster.status.previous.revision == old
    crash(cluster, new)
    passes(cluster)
    assert cluster.traffic() == old
    cluster.refuse = lambda *_: ""
    later(cluster, minutes=6)
    assert cluster.status.channel.reason == ""


def test_a_wait_for_a_node_is_a_problem_only_once_it_is_long() -> None:
    cluster = served()
    cluster.channel = ""
    later(cluster, minutes=6)
    [name] = looks(cluster)
    ended = StageResult(stage=Stage.FOLLOW, outcome=Outcome.FAILED, reason=Reason.WAITING)
    pod = job_pod(cluster.objects[JOBS][name], ended)
    pod["status"] = copied(UNSCHEDULABLE)
    pod["status"]["conditions"][0]["lastTransitionTime"] = timestamp(cluster.now)
    cluster.pods[name] = [pod]
    made = cluster.reconcile()
    assert condition(cluster.status, "Stalled")[0] == "False"
    assert made.requeue_after == LONG_WAIT_SECONDS
    cluster.now += timedelta(seconds=LONG_WAIT_SECONDS)
    cluster.reconcile()
    assert condition(cluster.status, "Stalled") == ("True", Reason.UNSCHEDULABLE)


def test_another_source_is_looked_at_at_once_and_what_serves_stays_meanwhile() -> None:
    cluster = served()
    before, cluster.channel = cluster.traffic(), ""
    cluster.spec = following(channel="candidate")
    settle(cluster)
    assert cluster.traffic() == before
    assert cluster.status.channel is not None
    assert (cluster.status.channel.channel, cluster.status.channel.artifact_digest) == ("candidate", "")
    cluster.channel = BETTER
    settle(cluster)
    assert cluster.traffic() != before
    assert cluster.looks[-1].channel == "candidate"


def test_a_look_that_was_not_recorded_is_the_same_look() -> None:
    """The operator may die between the Job's end and its status."""
    cluster = ServingCluster(spec=following(), channel="")
    cluster.reconcile()
    names = looks(cluster)
    cluster.channel = GOOD
    cluster.run_controllers()
    status = cluster.status
    cluster.reconcile()
    cluster.status = status
    settle(cluster)
    assert len(cluster.looks) == 1
    assert looks(cluster) == names


@pytest.mark.parametrize("found", [GOOD, Reason.CHANNEL_NOT_FOUND])
def test_what_a_look_found_while_the_operator_was_down_is_as_old_as_the_look(found: str | Reason) -> None:
    cluster = served()
    cluster.channel = found
    cluster.now += timedelta(minutes=5)
    cluster.reconcile()
    ended = timestamp(cluster.now)
    cluster.run_controllers()
    assert len(cluster.looks) == 2
    cluster.now += timedelta(hours=1)
    cluster.channel = BETTER
    made = cluster.reconcile()
    assert cluster.status.channel is not None
    assert cluster.status.channel.looked_at == ended
    assert made.requeue_after == 0
    settle(cluster)
    assert len(cluster.looks) == 3, "at once, not after another interval"
    assert cluster.status.stable is not None
    assert cluster.status.stable.artifact_digest == BETTER


@pytest.mark.parametrize("minutes", [-10, 10])
def test_a_nodes_clock_makes_a_look_neither_newer_nor_older_than_it_can_be(minutes: int) -> None:
    """An old one would be followed by the next without a pause, one from the future by none for longer."""
    cluster = served()
    cluster.now += timedelta(minutes=5)
    cluster.reconcile()
    created = timestamp(cluster.now)
    cluster.now += timedelta(seconds=8)
    cluster.run_controllers()
    [name] = looks(cluster)
    cluster.objects[JOBS][name]["status"]["completionTime"] = timestamp(cluster.now + timedelta(minutes=minutes))
    cluster.reconcile()
    assert cluster.status.channel is not None
    assert cluster.status.channel.looked_at == (created if minutes < 0 else timestamp(cluster.now))


def test_another_interval_is_no_other_spec() -> None:
    seldom, often = (ServingCluster(spec=following(interval=each)).observe() for each in ("1h", "1m"))
    other = ServingCluster(spec=following(name="others")).observe()
    assert spec_hash(seldom.resource.spec) == spec_hash(often.resource.spec) != spec_hash(other.resource.spec)


def test_a_place_that_the_rules_do_not_allow_is_not_looked_at() -> None:
    rules = Tenancy(rules=[TenancyRule.model_validate({"namespaces": ["*"], "inputs": ["s3://models/others"]})])
    cluster = ServingCluster(spec=following(), channel=GOOD, settings=SETTINGS.model_copy(update={"tenancy": rules}))
    settle(cluster)
    assert condition(cluster.status, "Stalled") == ("True", Reason.NOT_ALLOWED)
    assert not cluster.looks
    assert cluster.objects.get(JOBS, {}) == {}
    said = next(each.message for each in cluster.status.conditions if each.type == "Stalled")
    assert_says(said, "spec.source.output.uri", "s3://models/team", "s3://models/others")


def test_a_source_that_comes_back_is_looked_at_anew() -> None:
    rules = Tenancy(rules=[TenancyRule.model_validate({"namespaces": ["*"], "inputs": [OUTPUT["uri"]]})])
    cluster = served(interval="24h")
    cluster.settings = SETTINGS.model_copy(update={"tenancy": rules})
    cluster.spec = following(uri="s3://models/others", interval="24h")
    settle(cluster)
    assert condition(cluster.status, "Stalled") == ("True", Reason.NOT_ALLOWED)
    cluster.channel, cluster.spec = BETTER, following(interval="24h")
    settle(cluster)
    assert len(cluster.looks) == 2
    assert cluster.status.stable is not None
    assert cluster.status.stable.artifact_digest == BETTER


def test_what_it_reads_and_with_which_keys_is_claimed_once() -> None:
    cluster = served(storage={"endpoint": "https://s3.example", "secretRef": {"name": "keys"}})
    found = [claim.field for claim in claims_of(cluster.observe()) if claim.field.startswith("spec.source")]
    assert sorted(found) == [
        "spec.source.output.storage.endpoint",
        "spec.source.output.storage.endpoint",
        "spec.source.output.storage.secretRef.name",
        "spec.source.output.uri",
    ]


def test_an_earlier_revision_is_claimed_with_its_own_keys() -> None:
    """It may have been allowed once, and be so no longer."""
    cluster = served(storage={"endpoint": "https://former.example", "secretRef": {"name": "former"}})
    cluster.spec = following(storage={"endpoint": "https://s3.example", "secretRef": {"name": "keys"}}) | {
        "rollbackTo": cluster.traffic()
    }
    claimed = {claim.value: claim.field for claim in claims_of(cluster.observe())}
    assert {"https://s3.example", "keys", "https://former.example", "former"} <= claimed.keys()
    assert_says(claimed["former"], "Secret", "earlier revision's")


def test_keys_that_are_not_allowed_any_more_do_not_keep_the_next_ones_from_a_look() -> None:
    """What serves was read with them. With others for the same place the channel is another one, of which nothing is
    known until the next look."""
    former = {"endpoint": "https://s3.example", "secretRef": {"name": "former"}}
    cluster = served(storage=former)
    rules = Tenancy(rules=[TenancyRule.model_validate({"namespaces": ["*"], "secrets": ["rotated"]})])
    cluster.settings = SETTINGS.model_copy(update={"tenancy": rules})
    settle(cluster)
    assert condition(cluster.status, "Stalled") == ("True", Reason.NOT_ALLOWED)
    cluster.spec = following(storage=former | {"secretRef": {"name": "rotated"}})
    settle(cluster)
    assert condition(cluster.status, "Stalled")[0] == "False"
    assert cluster.status.stable is not None
    assert cluster.status.stable.storage is not None
    assert cluster.status.stable.storage.secret_ref is not None
    assert cluster.status.stable.storage.secret_ref.name == "rotated"


def test_its_jobs_go_with_the_source() -> None:
    cluster = served()
    assert looks(cluster)
    cluster.spec = {"source": {"artifact": {"uri": uri(GOOD)}}, "runtime": "tgi-cpu", "keepLastGood": "0s"}
    settle(cluster)
    assert not looks(cluster)
    assert not [name for name in cluster.objects[CONFIG_MAPS] if f"-{Stage.FOLLOW}-" in name]
    assert cluster.status.channel is None
    until(cluster, lambda: cluster.status.phase is ServingPhase.READY)
